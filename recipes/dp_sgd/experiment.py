"""The recipe's experiment: train privately, say what it cost, and attack it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes import data
from recipes.cards import Stopwatch
from recipes.dp_sgd.accounting import Ledger
from recipes.dp_sgd.config import Config, settings, warn_of_large_delta
from recipes.files import check_writable

if TYPE_CHECKING:
    from torch import nn

    from recipes.dp_sgd.audit import Bound
    from recipes.dp_sgd.lesson import Outlier


@dataclass(frozen=True)
class Result:
    """What came out."""

    data: str
    """Whether the images were real or embedded."""
    network: str
    engine: str
    sampling: str
    steps: int
    """Taken, and accounted for."""
    noise_multiplier: float
    accuracy: float
    """Of all test images."""
    plain_accuracy: float | None
    """The same network and batches without privacy; None if that was not trained."""
    epsilon_rdp: float | None
    """Of the steps taken; None if there is no finite one. Of shuffled batches an upper bound, without
    amplification."""
    epsilon_pld: float | None
    epsilon_shuffle_low: float | None
    """What it is at least if the batches were shuffled, whichever way they were drawn; None: see above."""
    epsilon_shuffle_high: float | None
    """What it is at most if the batches were shuffled."""
    delta: float
    seed: int | None
    """Whoever knows it takes the noise away again; None if it was drawn in secret."""
    statement: str
    """What may be said of the training, and what it depends on."""
    epsilon_lower_bound: float | None
    """Of the audit's own training, many runs, at 95 % confidence, if its mechanism is the stated one with
    less noise; None if there was no audit."""
    epsilon_lower_bound_any: float | None
    """The same, whatever the mechanism is."""
    epsilon_audited: float | None
    """What that training states."""
    epsilon_lower_bound_one_run: float | None
    """Of one training with a thousand canaries."""
    epsilon_audited_one_run: float | None
    """What that training states."""
    faults: dict[str, tuple[float, float, float]] | None
    """By planted fault: what the audit's training states, and the two bounds, in the same order."""
    faults_found: int | None
    """In how many of them the attacker does better than the stated mechanism allows."""
    cpu_seconds_epoch: float
    slowdown: float | None
    """CPU seconds beside those of plain SGD, same network, same batches; None if that was not trained."""
    resumed_from: int
    """Steps that the checkpoint had."""
    sweep: tuple[tuple[float, float, float, float], ...]
    """Noise multiplier, epsilon, test accuracy, and the epsilon that one audited run shows at least; empty
    unless asked for."""
    outlier: Outlier | None
    norms: np.ndarray
    """`[n]`, gradient norms of a thousand training images after training."""
    clip: float
    bound: Bound | None


def run(config: Config) -> Result:
    """Train, account for the steps that were taken, and audit.

    Raises:
        ValueError: the config asks for what the data cannot give, training diverged, or the checkpoint is
            of another training.
    """
    if config.checkpoint:
        check_writable(config.checkpoint)
    if config.train:
        _train_shipped()
    dataset = data.load(config.dataset, config.data)
    warn_of_large_delta(config.delta, len(dataset.train))
    trained = _original(config, dataset) if config.engine == "tf-privacy" else _with_pytorch(config, dataset)
    ledger = trained.ledger
    epsilons = [_finite(ledger.epsilon(config.delta, accountant)) for accountant in ("rdp", "pld")]
    shuffled = dataclasses.replace(ledger, sampling="shuffle").shuffle_bounds(config.delta)
    return Result(
        data=dataset.source,
        network=config.network,
        engine=config.engine,
        sampling=ledger.sampling,
        steps=ledger.steps,
        noise_multiplier=ledger.noise_multiplier,
        accuracy=trained.accuracy,
        plain_accuracy=trained.plain_accuracy,
        epsilon_rdp=epsilons[0],
        epsilon_pld=epsilons[1],
        epsilon_shuffle_low=_finite(shuffled[0]),
        epsilon_shuffle_high=_finite(shuffled[1]),
        delta=config.delta,
        seed=config.seed,
        statement=ledger.statement(config.delta),
        cpu_seconds_epoch=trained.cpu_seconds_epoch,
        slowdown=trained.slowdown,
        resumed_from=trained.resumed_from,
        norms=trained.norms,
        clip=trained.clip,
        **_attacked(config),
        **_lesson(config, dataset),
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class _Trained:
    ledger: Ledger
    accuracy: float
    cpu_seconds_epoch: float
    clip: float
    plain_accuracy: float | None = None
    slowdown: float | None = None
    resumed_from: int = 0
    norms: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    network: nn.Module | None = None


def _with_pytorch(config: Config, dataset: data.Dataset) -> _Trained:
    from recipes.dp_sgd import networks, scattering
    from recipes.dp_sgd.gradients import check_network, clipped_sum
    from recipes.dp_sgd.training import Trainer, train_plainly
    from recipes.training import accuracy, one_thread

    how = settings(config, len(dataset.train))
    labels, test_labels = networks.labels(dataset.train.labels), networks.labels(dataset.test.labels)
    if config.network == "chapter":
        inputs, test = networks.images(dataset.train.images), networks.images(dataset.test.images)
        network = networks.chapter(networks.initial_weights(config.seed or 0))
    else:
        inputs, test = scattering.prepared(config.dataset, dataset.source)
        network = scattering.classifier()
    trainer = Trainer(network, inputs, labels, how)
    resumed_from = trainer.take_up(config.checkpoint)
    planned = dataclasses.replace(trainer.ledger, steps=how.steps)
    planned.statement(config.delta)  # what cannot be accounted for is found before the work
    clipped_sum(network, inputs[: how.batch], labels[: how.batch], how.clip, engine=how.engine)  # warm up
    check_network(network, inputs, labels, how.engine)
    with one_thread() if config.network == "chapter" else contextlib.nullcontext(), Stopwatch() as watch:
        trainer.run(config.checkpoint)
    seconds = watch.cpu
    steps = max(1, how.steps - resumed_from)
    epoch = seconds * len(labels) / (steps * how.batch)
    plain: dict[str, Any] = {}
    if config.network == "chapter":
        twin = networks.chapter(networks.initial_weights(config.seed or 0))
        with one_thread(), Stopwatch() as plain_watch:
            train_plainly(twin, inputs, labels, how)
        if resumed_from < how.steps:
            plain["slowdown"] = (seconds / steps) / (plain_watch.cpu / how.steps)
        plain["plain_accuracy"] = accuracy(twin, test, test_labels)
    return _Trained(
        ledger=trainer.ledger,
        accuracy=accuracy(network, test, test_labels),
        cpu_seconds_epoch=epoch,
        clip=how.clip,
        resumed_from=resumed_from,
        norms=clipped_sum(network, inputs[:1000], labels[:1000], how.clip).norms.numpy(),
        network=network,
        **plain,
    )


def _original(config: Config, dataset: data.Dataset) -> _Trained:
    from recipes.dp_sgd import networks, original
    from recipes.dp_sgd.gradients import clipped_sum
    from recipes.training import accuracy

    how = settings(config, len(dataset.train))
    microbatches = config.microbatches or how.batch
    start = networks.initial_weights(config.seed or 0)
    with Stopwatch() as watch:
        weights = original.train(
            start,
            dataset.train.images,
            dataset.train.labels,
            steps=how.steps,
            batch=how.batch,
            microbatches=microbatches,
            clip=how.clip,
            noise_multiplier=how.noise_multiplier,
            learning_rate=how.learning_rate,
            seed=config.seed,
        )
    if not all(np.isfinite(array).all() for array in weights):
        raise ValueError("training diverged: weights are not numbers any more; try a smaller learning rate")
    # one example more or less changes the mean gradient of a group from one vector to another, each up to
    # the clip long: twice what a group of one does, so the noise protects half as well
    grouped = microbatches != how.batch
    ledger = Ledger(
        how.noise_multiplier / (2 if grouped else 1),
        how.batch,
        len(dataset.train),
        "shuffle",
        how.steps,
        grouped,
    )
    network = networks.chapter(weights)
    first = networks.images(dataset.train.images[:1000]), networks.labels(dataset.train.labels[:1000])
    test = networks.images(dataset.test.images), networks.labels(dataset.test.labels)
    return _Trained(
        ledger=ledger,
        accuracy=accuracy(network, *test),
        cpu_seconds_epoch=watch.cpu * len(dataset.train) / (how.steps * how.batch),
        clip=how.clip,
        norms=clipped_sum(network, *first, how.clip).norms.numpy(),
    )


def _attacked(config: Config) -> dict[str, Any]:
    """The audit's part of the result."""
    found: dict[str, Any] = dict.fromkeys(
        (
            *("epsilon_lower_bound", "epsilon_lower_bound_any", "epsilon_audited"),
            *("epsilon_lower_bound_one_run", "epsilon_audited_one_run"),
            *("faults", "faults_found", "bound"),
        )
    )
    if config.engine == "tf-privacy" or not (config.audit_runs or config.faults):
        return found
    from recipes.dp_sgd import audit
    from recipes.dp_sgd.faults import planted

    seed = config.seed or 0
    if config.audit_runs:
        many = audit.many_runs(audit.Attack(engine=config.engine, seed=seed), config.audit_runs)
        one = audit.one_run(audit.Attack(engine=config.engine, seed=seed, steps=1, batch=8), 1000)
        found |= {
            "bound": many,
            "epsilon_lower_bound": many.this_mechanism,
            "epsilon_lower_bound_any": many.any_mechanism,
            "epsilon_audited": many.stated,
            "epsilon_lower_bound_one_run": one.this_mechanism,
            "epsilon_audited_one_run": one.stated,
        }
    if config.faults:
        bounds = {
            name: audit.many_runs(
                dataclasses.replace(attack, engine=config.engine, seed=seed),
                max(config.audit_runs, 1000),
                parts,
            )
            for name, (parts, attack) in planted().items()
        }
        found["faults"] = {
            name: (bound.stated, bound.this_mechanism, bound.any_mechanism) for name, bound in bounds.items()
        }
        found["faults_found"] = sum(bound.found_out for bound in bounds.values())
    return found


def _lesson(config: Config, dataset: data.Dataset) -> dict[str, Any]:
    """The sweep and the outlier, if they are asked for."""
    if not config.lesson:
        return {"sweep": (), "outlier": None}
    from recipes.dp_sgd import lesson

    chapter = dataclasses.replace(config, network="chapter", target_epsilon=None)
    how = settings(chapter, len(dataset.train))
    return {
        "sweep": tuple(lesson.sweep(dataset, how, config.delta)),
        "outlier": lesson.outlier(dataset, config.delta),
    }


def _train_shipped() -> None:
    """Rewrite the classifiers that come with the recipe."""
    from recipes import cards, weights
    from recipes.dp_sgd import scattering

    for name in ("mnist", "fashion-mnist"):
        dataset = data.load(name, "real")
        for target in scattering.TARGETS:
            config = Config(data="real", dataset=name, network="scattering", target_epsilon=target)
            with cards.Stopwatch() as watch:
                trained = _with_pytorch(config, dataset)
            card = weights.card(
                "scattering features, by DP-SGD; whoever has the seed can take the noise away",
                dataset,
                config.seed,
                scattering.COMMAND,
                statement=trained.ledger.statement(config.delta),
                test_accuracy=f"{trained.accuracy:.4f}",
                cpu_seconds=f"{watch.cpu:.0f}",
            )
            scattering.write(trained.network, name, target, card)


def main() -> None:
    """Run the recipe from the command line."""
    from recipes import cards, command_line
    from recipes.dp_sgd.report import describe, plot

    def accurate(dataset: str, target: float, published: str) -> cards.Experiment:
        return cards.Experiment(
            f"scattering features, {dataset}, epsilon {target:g}",
            Config(dataset=dataset, network="scattering", target_epsilon=target, audit_runs=0),
            shown=("accuracy", "epsilon_pld"),
            seeds=range(5),
            published=published,
        )

    plan = cards.Plan(
        recipe="dp_sgd",
        number=5,
        question="Can a network learn from images without giving any one of them away?",
        dataset="mnist",
        experiments=(
            cards.Experiment(
                "the chapter's network, one epoch, Poisson batches",
                Config(),
                shown=("accuracy", "plain_accuracy", "epsilon_pld", "epsilon_rdp"),
                seeds=range(5),
                source="0.722 (epsilon 1.02 printed)",
            ),
            cards.Experiment(
                "the same on shuffled batches, as the chapter drew them",
                Config(sampling="shuffle", audit_runs=0),
                shown=("accuracy", "epsilon_shuffle_low", "epsilon_shuffle_high"),
            ),
            cards.Experiment(
                "the same on TensorFlow Privacy",
                Config(engine="tf-privacy"),
                shown=("accuracy", "cpu_seconds_epoch"),
                source="0.722",
            ),
            cards.Experiment(
                "audit, honest and with five planted faults",
                Config(steps=1, faults=True, audit_runs=4000),
                shown=("epsilon_audited", "epsilon_lower_bound", "faults_found"),
            ),
            accurate("mnist", 1, "0.9793 (DPSUR 2024)"),
            accurate("mnist", 3, "0.9888 (DPSUR 2024)"),
            accurate("fashion-mnist", 1, "0.8838 (DPSUR 2024)"),
            accurate("fashion-mnist", 3, "0.8971 (DPSUR 2024)"),
        ),
    )
    profiles = {"quick": Config(), "full": Config(lesson=True, faults=True)}
    command_line.main("dp_sgd", run, plot, describe, profiles, plan)

"""The recipe's experiment, in the order of its story: break it, measure it, doubt it, defend it, prove it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes import data
from recipes.adversarial_robustness.config import Config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipes.adversarial_robustness.checklist import Check
    from recipes.adversarial_robustness.evaluation import Measured
    from recipes.adversarial_robustness.from_scratch import Walk

EPSILONS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
"""Of the curves."""
TABLE = ("cnn", "nearest neighbour", "abs")
"""The networks of the ABS paper's table."""
DEFENCES = ("stale", "fgsm", "pgd", "certified")
"""Networks that are claimed robust in Linf 0.3."""
AUTOATTACKED = 1000
"""Images that AutoAttack takes on, in the strong evaluation."""


@dataclass(frozen=True)
class Defence:
    """What attacks and bounds say of one network in Linf."""

    clean: float
    """Accuracy on all test images."""
    attacked: tuple[float, ...]
    """Accuracy at each of EPSILONS under PGD: the robust accuracy is at most this, on these images."""
    attacked_images: int
    verified: tuple[float, ...]
    """Share of all test images that are proved safe at each of EPSILONS by interval bounds: at least this is
    robust."""
    verified_images: int
    proved: float
    """The same at the config's epsilon, by interval bounds and CROWN."""
    pgd: float | None
    """Accuracy on all test images under PGD-100 with 10 restarts; those that are proved safe are not
    tried."""
    auto_attack: float | None
    """Accuracy on the first AUTOATTACKED test images."""
    auto_attack_images: int
    found: int
    """Adversarials that AutoAttack or PGD-100 gave."""
    found_after_rounding: int
    """Of them, how many are misclassified also as pictures of 8 bits."""
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Stale:
    """The third article's evaluation, and then a better one."""

    images: int
    """Test images that were attacked, from the first."""
    before: dict[str, float]
    """The undefended network, by attack."""
    after: dict[str, float]
    """After the article's adversarial training."""


@dataclass(frozen=True)
class Details:
    """The parts that were run, with their pictures; too much for a JSON file."""

    walk: Walk | None
    table: dict[str, Measured]
    stale: Stale | None
    defences: dict[str, Defence]


@dataclass(frozen=True)
class Result:
    """What came out; the dictionaries are by network."""

    data: str
    """Whether the images were real or embedded."""
    images: int
    """Attacked in the table."""
    clean_accuracy: dict[str, float]
    """Of all test images."""
    median_distance: dict[str, dict[str, float | None]]
    """By norm; None where for most images nothing was found."""
    accuracy_at: dict[str, dict[str, float]]
    """By norm and epsilon, or by attack."""
    attacks: dict[str, dict[str, float | None]]
    """By attack: the median distance that it found by itself."""
    verified_accuracy: dict[str, float]
    """Of all test images, proved at the config's epsilon."""
    checklist: dict[str, dict[str, bool]]
    """By sign of a weak evaluation: whether it is absent."""
    rechecked: dict[str, list[int]]
    """Adversarials reported, and how many of them are misclassified as 8-bit pictures, too."""
    scratch_reached: int | None
    """Digits of 100 that were led to the class chosen for them."""
    scratch_l2: float | None
    """The mean length of these perturbations."""
    cnn_l2: float | None
    """Medians of the chapter's CNN."""
    cnn_linf: float | None
    cnn_l0: float | None
    abs_accuracy: float | None
    abs_l2: float | None
    abs_over_cnn: float | None
    """The ratio of the L2 medians."""
    stale_claimed: float | None
    """Accuracy on the adversarials that the defended network was trained to know."""
    stale_fgsm: float | None
    stale_pgd: float | None
    fgsm_robust: float | None
    """Under the strongest attack that was run: AutoAttack, or PGD."""
    pgd_robust: float | None
    certified_robust: float | None
    certified_verified: float | None
    details: Details


def run(config: Config) -> Result:
    """Attack, doubt, defend and prove, on as many processes as there are cores.

    Raises:
        ValueError: there are not so many test images, or `train` finds stand-ins only.
        FileNotFoundError: weights are missing.
    """
    dataset = data.load("mnist", config.data)
    for name in ("images", "attacked"):
        if getattr(config, name) > len(dataset.test):
            raise ValueError(
                f"{name} must be at most {len(dataset.test)}, which is all of {dataset.source} mnist, "
                f"not {getattr(config, name)}"
            )
    if config.train:
        _train(config, dataset)
    jobs: dict[tuple[str, str], tuple[Callable[..., Any], tuple[Any, ...]]] = {}
    if config.part in ("all", "table"):
        jobs |= {("table", name): (measured, (name, config)) for name in reversed(TABLE)}
    if config.part in ("all", "defences"):
        jobs |= {("defences", name): (defended, (name, config)) for name in reversed(DEFENCES)}
    if config.part in ("all", "stale"):
        jobs["stale", ""] = evaluated_as_the_article_does, (config,)
    if config.part in ("all", "scratch"):
        jobs["scratch", ""] = walked, (config,)
    done = dict(zip(jobs, _in_processes(list(jobs.values())), strict=True))
    parts = {
        part: {name: done[part, name] for name in names if (part, name) in done}
        for part, names in (("table", TABLE), ("defences", DEFENCES))
    }
    return _result(
        config,
        dataset.source,
        done.get(("scratch", "")),
        parts["table"],
        done.get(("stale", "")),
        parts["defences"],
    )


def _train(config: Config, dataset: data.Dataset) -> None:
    from recipes.adversarial_robustness import zoo

    for name in zoo.ENTRIES if config.train == "all" else (config.train,):
        zoo.train(name, dataset, config.seed)


def _in_processes(jobs: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Each job in a process of its own, as many at once as there are cores, one thread each."""
    threads = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update(threads)  # read when the libraries are imported, in the new processes
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            len(os.sched_getaffinity(0)), context, initializer=_die_quietly, max_tasks_per_child=1
        ) as pool:
            futures = [pool.submit(function, *arguments) for function, arguments in jobs]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _die_quietly() -> None:
    """On Ctrl-C, which reaches all processes, the first one says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# --- the four parts -----------------------------------------------------------------------------------


def walked(config: Config, digits: int = 100) -> Walk:
    """The attack from scratch: test digits, chosen at random, each to another class at random."""
    from recipes.adversarial_robustness import from_scratch, keras_twins, zoo

    split = data.load("mnist", config.data).test
    random = np.random.default_rng(config.seed)
    places = random.choice(len(split), min(digits, len(split)), replace=False)
    labels = split.labels[places].astype(np.int64)
    targets = (labels + random.integers(1, 10, len(places))) % 10
    model = keras_twins.to_keras(zoo.load("scratch"), from_scratch.network())
    return from_scratch.walk(model, data.scale(split.images[places]), labels, targets)


def measured(name: str, config: Config) -> tuple[Measured, float]:
    """One row of the ABS paper's table, and the accuracy on all test images."""
    from recipes import training
    from recipes.adversarial_robustness import evaluation, zoo
    from recipes.adversarial_robustness.nearest import NearestNeighbour
    from recipes.adversarial_robustness.search import attacks_on

    dataset = data.load("mnist", config.data)
    images, labels = zoo.tensors(dataset.test)
    network = NearestNeighbour(*zoo.tensors(dataset.train)) if name == TABLE[1] else zoo.load(name)
    few = slice(config.images)
    found = evaluation.measure(
        network, images[few], labels[few], attacks_on(network, config.strong), config.seed
    )
    whole = slice(None) if config.strong or name == "cnn" else few
    return found, training.accuracy(network, images[whole].numpy(), labels[whole].numpy())


def evaluated_as_the_article_does(config: Config) -> Stale:
    """Accuracies before and after the article's adversarial training, from its evaluation to a real one."""
    import torch

    from recipes.adversarial_robustness import attacks, stale, zoo

    count = None if config.strong else 1000
    images, labels = zoo.tensors(data.load("mnist", config.data).test, count)
    last = images.permute(0, 2, 3, 1).numpy()
    undefended, defended = zoo.load("undefended"), zoo.load("stale")

    def accuracy(network, found) -> float:
        return 1 - float(attacks.fooled(network, found, labels).float().mean())

    def first(found: np.ndarray):
        return torch.from_numpy(found).permute(0, 3, 1, 2)

    old = first(stale.fgsm(stale.as_keras(undefended), last, config.epsilon))
    by_network = []
    for network in (undefended, defended):
        printed = first(stale.fgsm(stale.as_keras(network), last, config.epsilon))
        single = attacks.fgsm(network, images, labels, config.epsilon)
        many = attacks.pgd(
            *(network, images, labels, config.epsilon),
            generator=torch.Generator().manual_seed(config.seed),
        )
        by_network.append(
            {
                "no attack": accuracy(network, images),
                "FGSM against the undefended network": accuracy(network, old),
                "FGSM as the article calls it": accuracy(network, printed),
                "the same, cut to [0, 1]": accuracy(network, printed.clamp(0, 1)),
                "FGSM on logits and true labels": accuracy(network, single),
                "PGD, 40 steps": accuracy(network, many),
            }
        )
    return Stale(len(images), *by_network)


def defended(name: str, config: Config) -> Defence:
    """One network between the attacks and the bounds."""
    import torch

    from recipes.adversarial_robustness import attacks, bounds, checklist, evaluation, search, zoo

    network, surrogate = zoo.load(name), zoo.load("undefended")
    images, labels = zoo.tensors(data.load("mnist", config.data).test)
    x, y = images[: config.attacked], labels[: config.attacked]
    generator = torch.Generator().manual_seed(config.seed)
    curve = evaluation.robust_accuracies(network, x, y, EPSILONS, generator=generator)
    boxes = [float(bounds.verified(network, images, labels, e, crown=False).float().mean()) for e in EPSILONS]
    crown = name == "certified"  # in the others boxes and lines grow too large at once
    safe = bounds.verified(network, images, labels, config.epsilon, crown=crown)

    def claim(target: nn.Module, seen: Tensor, truth: Tensor) -> Tensor:
        if name == "stale":  # as its article measures
            return attacks.fgsm(target, seen, truth, config.epsilon)
        return attacks.pgd(target, seen, truth, config.epsilon, generator=generator)

    checks = checklist.run(network, x, y, claim, surrogate, epsilon=config.epsilon, seed=config.seed)
    wrong = attacks.fooled(network, images, labels)
    tried = min(AUTOATTACKED, len(images)) if config.strong else 0
    strong = [
        (search.fixed_pgd(config.epsilon, steps=100, restarts=10), len(images) if config.strong else 0),
        (search.auto_attack(config.epsilon), tried),
    ]
    accuracies, found, rounded = [], 0, 0
    for attack, count in strong:
        broken = wrong[:count].clone()
        left = torch.nonzero(~broken & ~safe[:count])[:, 0]  # what is proved needs no trial
        for places in left.split(1000):
            tries = attack(network, images[places], labels[places], generator)
            hit = evaluation.adversarial(network, images[places], labels[places], tries, config.epsilon)
            broken[places] = hit
            found += int(hit.sum())
            after = attacks.fooled(network, evaluation.eight_bits(tries[hit]), labels[places][hit])
            rounded += int(after.sum())
        accuracies.append(1 - float(broken.float().mean()) if count else None)
    return Defence(
        clean=1 - float(wrong.float().mean()),
        attacked=tuple(curve),
        attacked_images=len(x),
        verified=tuple(boxes),
        verified_images=len(images),
        proved=float(safe.float().mean()),
        pgd=accuracies[0],
        auto_attack=accuracies[1],
        auto_attack_images=tried,
        found=found,
        found_after_rounding=rounded,
        checks=tuple(checks),
    )


def _result(
    config: Config,
    source: str,
    walk: Walk | None,
    table: dict[str, tuple[Measured, float]],
    stale: Stale | None,
    defences: dict[str, Defence],
) -> Result:
    """All parts' figures under the names that a card knows."""
    rows = {name: row for name, (row, _) in table.items()}
    limits = {"l2": 1.5, "linf": 0.3, "l0": 12}
    medians = {name: {norm: _finite(row.median(norm)) for norm in limits} for name, row in rows.items()}
    accuracy_at = {
        name: {f"{norm} {limit:g}": row.accuracy_at(norm, limit) for norm, limit in limits.items()}
        for name, row in rows.items()
    }
    for name, defence in defences.items():
        named = {
            "PGD-40": _at(defence, config.epsilon),
            "PGD-100 x 10": defence.pgd,
            "AutoAttack": defence.auto_attack,
        }
        accuracy_at[name] = {attack: value for attack, value in named.items() if value is not None}
    robust = {name: min(accuracy_at[name].values(), default=None) for name in defences}
    cnn, abs_ = medians.get("cnn", {}), medians.get("abs", {})
    after = stale.after if stale else {}
    return Result(
        data=source,
        images=config.images,
        clean_accuracy={name: clean for name, (_, clean) in table.items()}
        | {name: defence.clean for name, defence in defences.items()},
        median_distance=medians,
        accuracy_at=accuracy_at,
        attacks={name: {k: _finite(v) for k, v in row.medians.items()} for name, row in rows.items()},
        verified_accuracy={name: defence.proved for name, defence in defences.items()},
        checklist={name: {c.name: c.passed for c in defence.checks} for name, defence in defences.items()},
        rechecked={name: [d.found, d.found_after_rounding] for name, d in defences.items() if config.strong},
        scratch_reached=None if walk is None else int(walk.reached.sum()),
        scratch_l2=None if walk is None else float(walk.l2.mean()),
        cnn_l2=cnn.get("l2"),
        cnn_linf=cnn.get("linf"),
        cnn_l0=cnn.get("l0"),
        abs_accuracy=table["abs"][1] if "abs" in table else None,
        abs_l2=abs_.get("l2"),
        abs_over_cnn=abs_["l2"] / cnn["l2"] if abs_.get("l2") and cnn.get("l2") else None,
        stale_claimed=after.get("FGSM against the undefended network"),
        stale_fgsm=after.get("the same, cut to [0, 1]"),
        stale_pgd=after.get("PGD, 40 steps"),
        fgsm_robust=robust.get("fgsm"),
        pgd_robust=robust.get("pgd"),
        certified_robust=robust.get("certified"),
        certified_verified=defences["certified"].proved if defences else None,
        details=Details(walk, rows, stale, defences),
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _at(defence: Defence, epsilon: float) -> float | None:
    """The curve's value at an epsilon that it has."""
    return dict(zip(EPSILONS, defence.attacked, strict=True)).get(epsilon)


def main() -> None:
    """Run the recipe from the command line."""
    from recipes import cards, command_line
    from recipes.adversarial_robustness.report import describe, plot

    plan = cards.Plan(
        recipe="adversarial_robustness",
        number=4,
        question="How little must an image change before a network takes it for something else?",
        dataset="mnist",
        benchmark=True,
        experiments=(
            cards.Experiment(
                "the attack from scratch, 100 digits, each to another class",
                Config(part="scratch"),
                shown=("scratch_reached", "scratch_l2"),
                source="one digit",
            ),
            cards.Experiment(
                "analysis by synthesis against a CNN, 200 images, median distances",
                Config(part="table", strong=True),
                shown=("cnn_l2", "cnn_linf", "cnn_l0", "abs_accuracy", "abs_l2", "abs_over_cnn"),
                source="five digits right, one attacked",
                published="CNN 1.09, 0.075, 8.7; ABS 2.24 (Schott 2019)",
            ),
            cards.Experiment(
                "the defence that only looks like one",
                Config(part="stale", strong=True),
                shown=("stale_claimed", "stale_fgsm", "stale_pgd"),
                source="an accuracy on FGSM",
            ),
            cards.Experiment(
                "defences that hold, Linf 0.3",
                Config(part="defences", strong=True, attacked=1000),
                shown=("fgsm_robust", "pgd_robust", "certified_robust", "certified_verified"),
                published="0.829 (Wong 2020), 0.885 (Madry 2018), verified 0.931 (fast IBP), 0.934 (SABR)",
            ),
        ),
    )
    full = Config(strong=True, attacked=1000, train="all")
    command_line.main("adversarial_robustness", run, plot, describe, {"quick": Config(), "full": full}, plan)

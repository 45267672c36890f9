"""One run: federated training as the config says, beside one model on the pooled examples; and its card."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recipes import cards
from recipes.data import Dataset, load
from recipes.federated_averaging import privacy, table
from recipes.federated_averaging.aggregation import Aggregator
from recipes.federated_averaging.algorithms import ALGORITHMS, FedAvg
from recipes.federated_averaging.checkpoint import Progress, checkpoint_of
from recipes.federated_averaging.config import Config
from recipes.federated_averaging.leakage import reconstruction_mse
from recipes.federated_averaging.networks import NETWORKS, Examples
from recipes.federated_averaging.simulation import (
    Round,
    clients_of,
    federated_rounds,
    flatten,
    new_algorithm,
    take_part,
)
from recipes.federated_averaging.tff_engine import tff_rounds
from recipes.progress import bar as progress_bar


@dataclass(frozen=True)
class Result:
    """The course of the training, one entry a round in every tuple, and what protected it."""

    data_source: str
    """`real` or `embedded`."""
    dataset: str
    engine: str
    network: str
    partition: str
    clients: int
    algorithm: str
    rounds: int
    """Rounds that were run."""
    train_accuracy: tuple[float | None, ...]
    """Share of right answers while the clients train, before each step, over all clients of the round; None
    if nobody took part."""
    train_loss: tuple[float | None, ...]
    """Mean cross-entropy in nats, taken in the same way."""
    test_accuracy: tuple[float, ...]
    """The global model on all test images."""
    best_test_accuracy: float
    """The largest of them so far."""
    test_loss: tuple[float, ...]
    centralised_accuracy: tuple[float, ...]
    """On all test images: one model that is trained on the same examples in one place; empty for the CNN."""
    rounds_to_target: int | None
    """The first round whose test accuracy is at least the target; None: none was, or there is none."""
    epsilon: float | None
    """Of client-level differential privacy, for the rounds that were run, against whoever sees the global
    models; None without noise."""
    epsilon_against_server: float | None
    """Against the server, which knows who took part; None without noise and secure aggregation."""
    delta: float | None
    reconstruction_mse: float
    """Mean squared error of pixels in [0, 1] that an attacker gets back from what the server sees of each
    client's change by itself: of a hundred images, each held by a client of its own, or of four that the CNN
    takes one step on."""
    aggregate_error: float | None
    """With secure aggregation: the largest distance of the mean change from the plain one, in quantisation
    steps; rounding leaves half a step at most."""
    bytes_up: int
    """The most that one client sent in a round: parameters, shares and keys, without framing."""
    bytes_down: int
    """The most that one client received in a round."""
    table: tuple[table.Row, ...]
    """Rounds to an accuracy by local work, for clients alike and unlike; empty if it was not asked for."""
    wall_seconds: float
    """Of all rounds, with those before an interruption."""
    cpu_seconds: float
    model: np.ndarray = field(repr=False)
    """`[P]` float32, the last global model."""

    @property
    def weights(self) -> np.ndarray:
        """Of softmax regression: `[784, 10]` float32."""
        return NETWORKS["softmax"].unpack(self.model)[0]

    @property
    def bias(self) -> np.ndarray:
        """Of softmax regression: `[10]` float32."""
        return NETWORKS["softmax"].unpack(self.model)[1]


def run(config: Config) -> Result:
    """Train for `config.rounds` rounds or to the target, and one model on the same examples beside it.

    Raises:
        DatasetUnavailable: the real data were asked for and cannot be had.
        ImportError: the engine is not installed.
        ValueError: a client would hold no example, or a change is too large for secure aggregation.
    """
    data = load(config.dataset, config.data)
    clients = clients_of(data, config)
    progress = _train(config, data, clients, checkpoint_of(config, data.digest()))
    columns = zip(*progress.history, strict=True)
    train_accuracy, train_loss, test_accuracy, test_loss, centralised, wall, cpu, up, down, error = columns
    rounds = len(progress.history)
    return Result(
        data_source=data.source,
        dataset=config.dataset,
        engine=config.engine,
        network=config.network,
        partition=config.partition,
        clients=config.clients,
        algorithm=config.algorithm,
        rounds=rounds,
        train_accuracy=train_accuracy,
        train_loss=train_loss,
        test_accuracy=test_accuracy,
        best_test_accuracy=max(test_accuracy),
        test_loss=test_loss,
        centralised_accuracy=() if config.network == "cnn" else centralised,
        rounds_to_target=_first(test_accuracy, config.target),
        epsilon=privacy.epsilon(config, rounds) if config.noise else None,
        epsilon_against_server=(
            privacy.epsilon_against_server(config, rounds) if config.noise and config.secure else None
        ),
        delta=config.delta if config.noise else None,
        reconstruction_mse=reconstruction_mse(clients[0], config),
        aggregate_error=max(error) if config.secure else None,
        bytes_up=max(up),
        bytes_down=max(down) + progress.model.nbytes * ALGORITHMS[config.algorithm].vectors,
        table=table.rows(data, config) if config.table else (),
        wall_seconds=sum(wall),
        cpu_seconds=sum(cpu),
        model=progress.model,
    )


def _train(config: Config, data: Dataset, clients: Sequence[Examples], path: Path | None) -> Progress:
    """All rounds, after those that a checkpoint holds."""
    network, algorithm = NETWORKS[config.network], new_algorithm(config)
    aggregator = Aggregator(config, network.size)
    test = Examples(flatten(data.test.images), data.test.labels)
    first = network.initial(config.seed)
    progress = Progress(first, first, [], algorithm.memory)
    if path and path.exists():
        progress = Progress.read(path)
        algorithm.memory = progress.memory
    history = progress.history
    if len(history) > config.rounds:
        raise ValueError(f"rounds is {config.rounds}: {path} has {len(history)} behind it; ask for as many")
    bar = progress_bar(what="rounds", unit="round", total=config.rounds, initial=len(history))
    with bar, contextlib.closing(_rounds(config, clients, aggregator, algorithm, progress)) as rounds:
        while len(history) < config.rounds and not _first((row[2] for row in history), config.target):
            with cards.Stopwatch() as watch:
                step = next(rounds)
                row = [step.train_accuracy, step.train_loss, *network.evaluate(step.model, test)]
                if not np.isfinite(row[3]):
                    raise ValueError(f"training diverged in round {len(history) + 1}: take smaller steps")
                row.append(_pooled_accuracy(config, clients, step, progress, test))
            costs = aggregator.bytes_up, aggregator.bytes_down, aggregator.error
            history.append([*row, watch.wall, watch.cpu, *costs])
            progress.model = step.model
            if path:
                progress.write(path)
            bar.update()
            bar.set_postfix(accuracy=f"{row[2]:.4f}")
    return progress


def _rounds(
    config: Config,
    clients: Sequence[Examples],
    aggregator: Aggregator,
    algorithm: FedAvg,
    progress: Progress,
) -> Iterator[Round]:
    if config.engine == "tff":
        return tff_rounds(clients, config)
    return federated_rounds(clients, config, aggregator, algorithm, (len(progress.history), progress.model))


def _pooled_accuracy(
    config: Config, clients: Sequence[Examples], step: Round, progress: Progress, test: Examples
) -> float:
    """The accuracy of one model that sees the round's examples in one place, as often; 0 for the CNN."""
    if config.network == "cnn":
        return 0.0
    number = len(progress.history) + 1
    chosen = [clients[client] for client in step.clients]
    if chosen:
        pooled = Examples(*map(np.concatenate, zip(*chosen, strict=True)))
        plain = dataclasses.replace(config, poison="none", hostile=0)
        progress.pooled = progress.pooled + take_part(number, 0, progress.pooled, pooled, plain).change
    return NETWORKS[config.network].evaluate(progress.pooled, test)[0]


def _first(accuracies: Iterable[float], target: float) -> int | None:
    """The number of the first that reaches the target; None if none does, or there is none."""
    reached = (number for number, accuracy in enumerate(accuracies, start=1) if target and accuracy >= target)
    return next(reached, None)


def main() -> None:
    """Run the recipe from the command line."""
    from recipes import command_line
    from recipes.federated_averaging.report import describe, plot

    quick = Config(table=True)
    many = {"partition": "iid", "clients": 100, "clients_per_round": 10}
    small = Config(**many, batch_size=10, learning_rate=0.05, rounds=30)
    private = dataclasses.replace(small, clients=1000, clients_per_round=50, clip=0.5, noise=1.0)
    hostile = dataclasses.replace(small, poison="signs", hostile=20)
    paper = Config(
        **many,
        dataset="mnist",
        network="cnn",
        local_epochs=5,
        batch_size=10,
        learning_rate=0.2,
        rounds=600,
        target=0.99,
        checkpoints=Path("checkpoints"),
    )

    def under_attack(aggregate: str, partition: str) -> cards.Experiment:
        return cards.Experiment(
            f"20 of 100 clients send their change reversed and tenfold, {partition}: {aggregate}",
            dataclasses.replace(hostile, aggregate=aggregate, partition=partition),
            shown=("test_accuracy",),
        )

    plan = cards.Plan(
        recipe="federated_averaging",
        number=1,
        question="Can clients train one model while their images stay at home?",
        dataset="fashion-mnist",
        quick=quick,
        experiments=(
            cards.Experiment(
                "Alice and Bob, one round on TensorFlow Federated, in the chapter's order",
                Config(engine="tff", order="chapter"),
                shown=("train_accuracy",),
                source="0.74365",
            ),
            cards.Experiment(
                "the same in NumPy",
                Config(order="chapter"),
                shown=("train_accuracy",),
                source="0.74365",
            ),
            cards.Experiment(
                "ten rounds, beside one model on the pooled data",
                Config(order="shuffled", rounds=10),
                shown=("test_accuracy", "centralised_accuracy"),
                seeds=range(5),
            ),
            cards.Experiment(
                "an image back from the update of a client that holds it alone",
                Config(),
                shown=("reconstruction_mse",),
            ),
            cards.Experiment(
                "four images back from one step of the CNN",
                dataclasses.replace(paper, rounds=1, local_epochs=1, target=0.0, checkpoints=None),
                shown=("reconstruction_mse",),
            ),
            cards.Experiment(
                "single images from sealed changes, each by itself; 3 of 10 clients are lost",
                dataclasses.replace(small, secure=True, dropouts=3),
                shown=("reconstruction_mse", "test_accuracy", "aggregate_error", "bytes_up"),
            ),
            cards.Experiment(
                "private for 1,000 clients, 50 a round, 100 rounds",
                dataclasses.replace(private, rounds=100),
                shown=("test_accuracy", "centralised_accuracy", "epsilon"),
                seeds=range(3),
            ),
            cards.Experiment(
                "private and sealed, 30 rounds",
                dataclasses.replace(private, secure=True, dropouts=5),
                shown=("test_accuracy", "epsilon", "epsilon_against_server", "reconstruction_mse"),
            ),
            cards.Experiment("100 honest clients, 10 a round", small, shown=("test_accuracy",)),
            *(under_attack(aggregate, "iid") for aggregate in ("mean", "median", "trimmed-mean", "krum")),
            *(under_attack(aggregate, "shards") for aggregate in ("mean", "median", "trimmed-mean", "krum")),
            cards.Experiment(
                "McMahan's CNN to 99 %, equal parts",
                paper,
                shown=("rounds_to_target", "cpu_seconds"),
                seeds=range(3),
                published="20 rounds (McMahan 2017)",
            ),
            cards.Experiment(
                "the same with two shards of the sorted images a client",
                dataclasses.replace(paper, partition="shards", learning_rate=0.05, rounds=250),
                shown=("rounds_to_target", "best_test_accuracy", "cpu_seconds"),
                published="229 rounds (McMahan 2017)",
            ),
        ),
    )
    profiles = {"quick": quick, "full": Config(engine="tff", order="chapter", rounds=10, table=True)}
    command_line.main("federated_averaging", run, plot, describe, profiles, plan)

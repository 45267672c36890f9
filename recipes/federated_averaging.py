"""Can Alice and Bob train one model while their images stay at home?

Federated averaging: a server sends a model to its clients, each trains it on its own data, and
the server averages what comes back, weighted by the number of examples.

Who sees what: a client sees its own data and every global model; with two clients that is enough
        to get the other's model, by subtraction. The server sees every client's model, in
        plaintext, and no image. That is a claim about where the images are, not about what a
        model tells of them: `image_from_update` gets an image back from a model that was trained
        on it alone, and every run does so for a hundred images.
Paper:  McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
        Data", 2017, arXiv:1602.05629, Algorithm 1.
Source: Tsukerman, "Machine Learning for Cybersecurity Cookbook", Packt 2019, chapter 8, which
        printed training accuracy 0.74365 and loss 0.82071316 for one round.
Status: simplified (all clients take part in every round, in one process; a client goes through
        its data in the same order in every epoch).
Expect: one round on Fashion-MNIST, softmax regression from zeros, SGD 0.02, batches of 32: training
        accuracy 0.743367 and loss 0.820889 in file order, 0.743650 and 0.820713 in the order in
        which the chapter's loader served the images; 0.7872 and 0.7888 on the test images.
        Nothing is random unless `order="shuffled"`. Under 1 s with NumPy, half a minute with TFF.
Command: python -m recipes.federated_averaging --rounds 10 --plot federated.png
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from recipes import cards
from recipes.data import Dataset, Source, load, scale
from recipes.files import shipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Config:
    """What is trained, by whom, and on which engine."""

    data: Source = "auto"
    """Fashion-MNIST: real, embedded (stand-ins), or auto (real if it can be had)."""
    engine: Literal["reference", "tff"] = "reference"
    """NumPy (reference) or TensorFlow Federated (tff); both reach the same weights."""
    order: Literal["file", "chapter", "shuffled"] = "file"
    """Order of the training images; Alice holds the first half of it, Bob the second."""
    rounds: int = 1
    """Rounds of communication, from 1."""
    local_epochs: int = 1
    """Passes of a client over its data in a round (E in the paper), from 1."""
    batch_size: int = 32
    """Examples in a client's minibatch (B in the paper), from 1."""
    learning_rate: float = 0.02
    """Step of the clients' SGD (eta in the paper), between 1e-9 and 1000."""
    seed: int = 0
    """Seed of order=shuffled, from 0."""

    def __post_init__(self) -> None:
        for name in ("rounds", "local_epochs", "batch_size"):
            if not 1 <= getattr(self, name) <= 1_000_000:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie between 1 and 1,000,000")
        if not 1e-9 <= self.learning_rate <= 1e3:  # false for nan, too
            raise ValueError(f"learning_rate is {self.learning_rate}: it must lie between 1e-9 and 1000")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: it must be at least 0")


@dataclass(frozen=True)
class Result:
    """The course of the training, one entry a round in every tuple."""

    engine: str
    data_source: str
    """`real` or `embedded`."""
    rounds: int
    train_accuracy: tuple[float, ...]
    """Share of right answers while the clients train, before each step, over all clients."""
    train_loss: tuple[float, ...]
    """Mean cross-entropy in nats, taken in the same way."""
    test_accuracy: tuple[float, ...]
    """The averaged model on all test images."""
    test_loss: tuple[float, ...]
    centralised_accuracy: tuple[float, ...]
    """On the test images: one model trained on the pooled data for as many epochs."""
    reconstruction_mse: float
    """Mean squared error of the pixels (in [0, 1]) of Alice's first 100 images, each got back from
    the update of a client that holds it alone."""
    bytes_up: int
    """Parameters that the clients sent, over all rounds: float32, without framing."""
    bytes_down: int
    """Parameters that the clients received, counted alike."""
    weights: np.ndarray = field(repr=False)
    """`[784, 10]` float32, of the last global model."""
    bias: np.ndarray = field(repr=False)
    """`[10]` float32."""


class Examples(NamedTuple):
    """A client's data, or a test set."""

    pixels: np.ndarray
    """`[N, 784]` float32 in [0, 1]."""
    labels: np.ndarray
    """`[N]` uint8."""


class Model(NamedTuple):
    """Softmax regression."""

    weights: np.ndarray
    """`[784, 10]` float32."""
    bias: np.ndarray
    """`[10]` float32."""


class Update(NamedTuple):
    """What a client sends back after a round."""

    model: Model
    examples: int
    """Examples that it trained on (n_k in the paper); the server weights by them."""
    correct: int
    """Right answers among the examples x epochs that it saw, before each step."""
    loss: float
    """Sum of their cross-entropies, in nats."""


class Round(NamedTuple):
    """The global model after a round, and how the clients fared in it."""

    model: Model
    train_accuracy: float
    train_loss: float


# ---- the protocol, in the order in which it runs


def clients_of(data: Dataset, config: Config) -> list[Examples]:
    """Alice's and Bob's halves of the training set, each in the order of `config.order`."""
    count = len(data.train)
    if config.order == "chapter":
        # [2, 30000] uint16: the order in which tensorflow-datasets 1.3.2 served the two halves
        order = np.load(shipped("datasets", "fashion-mnist-tfds-1.3.2-order.npy")).ravel()
    elif config.order == "shuffled":
        order = np.random.default_rng(config.seed).permutation(count)
    else:
        order = np.arange(count)
    pixels, labels = flatten(data.train.images), data.train.labels
    return [Examples(pixels[part], labels[part]) for part in np.array_split(order, 2)]


def flatten(images: np.ndarray) -> np.ndarray:
    """`[N, 28, 28]` uint8 to `[N, 784]` float32 in [0, 1]."""
    return scale(images).reshape(len(images), -1)


def initial_model() -> Model:
    """All zeros, as in the source chapter."""
    return Model(np.zeros((784, 10), np.float32), np.zeros(10, np.float32))


def client_update(model: Model, examples: Examples, config: Config) -> Update:
    """Train the global model on one client's data (ClientUpdate in the paper).

    Raises:
        ValueError: the client holds no examples.
    """
    count = len(examples.labels)
    if count == 0:
        raise ValueError("a client holds no examples: leave it out, or give it some")
    weights, bias = model.weights.copy(), model.bias.copy()
    correct, loss = 0, 0.0
    for _ in range(config.local_epochs):
        for start in range(0, count, config.batch_size):
            x = examples.pixels[start : start + config.batch_size]  # [B, 784] float32
            y = examples.labels[start : start + config.batch_size]  # [B] uint8
            log_p = log_softmax(x @ weights + bias)  # [B, 10] float32
            row = np.arange(len(y))
            correct += int((log_p.argmax(axis=1) == y).sum())
            loss -= float(log_p[row, y].sum())
            error = np.exp(log_p)  # the gradient of the loss with respect to the logits …
            error[row, y] -= 1  # … is probability minus one-hot label
            step = np.float32(config.learning_rate / len(y))
            weights -= step * (x.T @ error)
            bias -= step * error.sum(axis=0)
    return Update(Model(weights, bias), count, correct, loss)


def server_update(updates: Sequence[Update]) -> Model:
    """Average the clients' models, weighted by their numbers of examples (w_{t+1} in the paper)."""
    share = np.array([update.examples for update in updates], np.float64)
    share /= share.sum()  # n_k / n
    weights = np.einsum("k,kij->ij", share, [update.model.weights for update in updates])
    bias = np.einsum("k,ki->i", share, [update.model.bias for update in updates])
    return Model(weights.astype(np.float32), bias.astype(np.float32))


def federated_rounds(clients: Sequence[Examples], config: Config) -> Iterator[Round]:
    """FedAvg in NumPy: an endless run of rounds."""
    model = initial_model()
    while True:
        updates = [client_update(model, examples, config) for examples in clients]
        model = server_update(updates)
        seen = sum(update.examples for update in updates) * config.local_epochs
        correct = sum(update.correct for update in updates)
        yield Round(model, correct / seen, sum(update.loss for update in updates) / seen)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis, without overflow; shape and dtype stay."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def evaluate(model: Model, examples: Examples) -> tuple[float, float]:
    """Accuracy, and mean cross-entropy in nats."""
    log_p = log_softmax(examples.pixels @ model.weights + model.bias)
    right = log_p.argmax(axis=1) == examples.labels
    return float(right.mean()), float(-log_p[np.arange(len(right)), examples.labels].mean())


# ---- what an update gives away


def image_from_update(before: Model, after: Model) -> tuple[np.ndarray, int]:
    """The image and label of a client that took its steps on one single example.

    A step on class j's weights is `rate * (y_j - p_j)` times the image, and on its bias the same
    without the image, so that dividing one by the other gives the image. Only the true class's
    bias grows.

    Args:
        before: the global model that was sent.
        after: the client's model that came back.

    Returns:
        Pixels `[784]` float32, exact up to rounding, and the label.
    """
    weights, bias = after.weights - before.weights, after.bias - before.bias
    label = int(bias.argmax())
    return weights[:, label] / bias[label], label


def reconstruction_mse(examples: Examples, config: Config, count: int = 100) -> float:
    """Mean squared error over the first `count` images, attacked one by one."""
    model, errors = initial_model(), []
    for image, label in zip(examples.pixels[:count], examples.labels[:count], strict=True):
        alone = Examples(image[None], label[None])
        pixels, _ = image_from_update(model, client_update(model, alone, config).model)
        errors.append(np.mean((pixels - image) ** 2, dtype=np.float64))
    return float(np.mean(errors))


# ---- the same protocol on TensorFlow Federated


def tff_rounds(clients: Sequence[Examples], config: Config) -> Iterator[Round]:
    """FedAvg on TensorFlow Federated's learning API: an endless run of rounds.

    Raises:
        ImportError: TensorFlow Federated is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow logs its start at length
    try:
        import tensorflow as tf
        import tensorflow_federated as tff
    except ImportError as error:
        raise ImportError(f"engine=tff needs TensorFlow Federated: run `make setup` ({error})") from error

    def dataset(examples: Examples) -> tf.data.Dataset:
        columns = {"x": examples.pixels, "y": examples.labels[:, None].astype(np.int32)}
        slices = tf.data.Dataset.from_tensor_slices(columns)
        return slices.batch(config.batch_size).repeat(config.local_epochs)

    datasets = [dataset(examples) for examples in clients]

    def model() -> tff.learning.models.VariableModel:
        dense = tf.keras.layers.Dense(10, kernel_initializer="zeros", input_shape=(784,))
        return tff.learning.models.from_keras_model(
            tf.keras.Sequential([dense]),
            input_spec=datasets[0].element_spec,
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[tf.keras.metrics.SparseCategoricalAccuracy("accuracy")],
        )

    with tff_runtime(tff):
        process = tff.learning.algorithms.build_weighted_fed_avg(
            model, client_optimizer_fn=tff.learning.optimizers.build_sgdm(config.learning_rate)
        )
        state = process.initialize()
        while True:
            state, metrics = process.next(state, datasets)
            train = metrics["client_work"]["train"]
            global_model = Model(*process.get_model_weights(state).trainable)
            yield Round(global_model, float(train["accuracy"]), float(train["loss"]))


@contextlib.contextmanager
def tff_runtime(tff) -> Iterator[None]:
    """TFF's local runtime, whose `worker_binary` server ends with the block.

    Left alone, that server outlives the program and holds its output open: a pipe never ends.
    """
    import psutil

    use_new_runtime = tff.backends.native.set_sync_local_cpp_execution_context
    use_new_runtime()
    try:
        yield
    finally:
        use_new_runtime()  # TFF ends the server of a runtime that nothing refers to any more …
        for child in psutil.Process().children(recursive=True):
            if child.name() == "worker_binary":  # … but an exception on its way out may refer to it
                child.kill()


# ---- one run


def run(config: Config) -> Result:
    """Train for `config.rounds` rounds, and one model on the pooled data beside it.

    Raises:
        DatasetUnavailable: the real data were asked for and cannot be had.
        ImportError: the engine is not installed.
    """
    from tqdm import tqdm

    data = load("fashion-mnist", config.data)
    clients = clients_of(data, config)
    pooled = Examples(*map(np.concatenate, zip(*clients, strict=True)))
    test = Examples(flatten(data.test.images), data.test.labels)
    engine = tff_rounds if config.engine == "tff" else federated_rounds
    history = []
    with contextlib.closing(engine(clients, config)) as rounds:
        both = itertools.islice(zip(rounds, federated_rounds([pooled], config), strict=True), config.rounds)
        for step, alone in tqdm(both, "rounds", config.rounds, disable=not sys.stderr.isatty()):
            model = step.model
            history.append((*step[1:], *evaluate(model, test), evaluate(alone.model, test)[0]))
    train_accuracy, train_loss, test_accuracy, test_loss, centralised = zip(*history, strict=True)
    sent = config.rounds * len(clients) * sum(array.nbytes for array in model)
    return Result(
        engine=config.engine,
        data_source=data.source,
        rounds=config.rounds,
        train_accuracy=train_accuracy,
        train_loss=train_loss,
        test_accuracy=test_accuracy,
        test_loss=test_loss,
        centralised_accuracy=centralised,
        reconstruction_mse=reconstruction_mse(clients[0], config),
        bytes_up=sent,
        bytes_down=sent,
        weights=model.weights,
        bias=model.bias,
    )


def describe(result: Result) -> str:
    """The result as text: a line a round."""
    lines = [
        f"Federated averaging, Alice and Bob, Fashion-MNIST ({result.data_source}), engine {result.engine}",
        "round   train accuracy   train loss   test accuracy   trained on pooled data",
    ]
    columns = (result.train_accuracy, result.train_loss, result.test_accuracy)
    for number, row in enumerate(zip(*columns, result.centralised_accuracy, strict=True), start=1):
        lines.append("{:5}   {:14.6f}   {:10.6f}   {:13.4f}   {:22.4f}".format(number, *row))
    lines.append(
        f"The clients sent {result.bytes_up:,} bytes of parameters. A client with a single image gives"
        f" it away in them: mean squared error {result.reconstruction_mse:.1e}."
    )
    return "\n".join(lines)


def plot(result: Result) -> Figure:
    """Test accuracy a round, federated and on the pooled data."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rounds = range(1, result.rounds + 1)
    axes.plot(rounds, result.centralised_accuracy, "s--", color="0.5", label="one model, pooled data")
    axes.plot(rounds, result.test_accuracy, "o-", label="federated averaging, Alice and Bob")
    axes.set(xlabel="round", ylabel="accuracy on the test images")
    axes.set_xlim(0.5, result.rounds + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_title(f"Fashion-MNIST ({result.data_source}), softmax regression")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)  # where it hides no point
    return figure


PROFILES = {"quick": Config(), "full": Config(engine="tff", order="chapter", rounds=10)}

CARD = cards.Plan(
    recipe="federated_averaging",
    number=1,
    question="Can Alice and Bob train one model while their images stay at home?",
    dataset="fashion-mnist",
    experiments=(
        cards.Experiment(
            "one round on TensorFlow Federated, in the chapter's order",
            Config(engine="tff", order="chapter"),
            shown=("train_accuracy",),
            source="0.74365",
        ),
        cards.Experiment(
            "the same on the NumPy reference",
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
    ),
)


def main() -> None:
    """The command line."""
    from recipes import command_line

    command_line.main("federated_averaging", run, plot, describe, PROFILES, CARD)


if __name__ == "__main__":
    main()

"""Rounds a second with 100 clients, beside TensorFlow Federated and Flower's simulation engine.

All in one run, the engines in turns, a round each; each engine's first round is not counted. Every engine
starts from the same weights and gives the same clients the same batches in the same order, and the models
after the first round must agree (of the CNN that is two batches a client). Softmax regression on
Fashion-MNIST: all 100 clients of 600 images take part. McMahan's CNN on MNIST: 10 of the 100. Both: images
dealt out at random, one epoch (the paper's best has five, which would only take longer), batches of 10, SGD
0.1.

All engines may use all cores; the ratio takes our best number of workers. TensorFlow Federated: a functional
model, a loop over the dataset's iterator, as many clients at once as there are cores, and each client's
batches read from a file by its own C++ runtime; of what was tried on softmax regression it is the fastest.
(With the images sent to it in each round, as the recipe's engine does, a round took two to four times as
long.) Flower: Ray, an actor for each core, `client_update` of this recipe in each, with the data in memory;
its server looks for replies every 2 ms instead of every 100 ms. It has an environment of its own, and takes
PyTorch out of ours.

Then, how our seconds grow with the number of clients, each with 60 images, all taking part.

    python benchmarks/federated_averaging.py [--rounds N] [--json FILE] [--flower PYTHON]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # workers, actors and clients are what runs at once
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow logs at length

import numpy as np
from federated_averaging_flower import by_flower
from federated_averaging_work import CORES, WORKLOADS, Chosen, Models, chosen_in, dealt, first_of

from recipes import cards
from recipes import federated_averaging as fa

FLOWER = Path(__file__).resolve().parent.parent / ".venv-flower" / "bin" / "python"
ROUNDS = 5
TOLERANCE = {"softmax": 1e-5, "cnn": 1e-4}
"""Largest difference of a weight after the first round."""
GROWTH = (10, 30, 100, 300, 1000)
OURS, TFF, FLWR = "ours, workers={}", "TensorFlow Federated", "Flower"


def ours(clients: Sequence[fa.Examples], config: fa.Config, workers: int) -> Models:
    """This recipe."""
    config = dataclasses.replace(config, workers=workers)
    with contextlib.closing(fa.federated_rounds(first_of(clients, config), config)) as rounds:
        model = next(rounds).model
    yield model
    with contextlib.closing(fa.federated_rounds(clients, config, start=(1, model))) as rounds:
        for one in rounds:
            yield one.model


# ---- TensorFlow Federated


def by_tff(clients: Sequence[fa.Examples], config: fa.Config, chosen: Chosen) -> Models:
    """TensorFlow Federated's FedAvg."""
    import tensorflow as tf
    import tensorflow_federated as tff

    from recipes.federated_averaging.tff_engine import tff_runtime

    spec = {"x": tf.TensorSpec((None, 784)), "y": tf.TensorSpec((None,), tf.int32)}
    model = tff.learning.models.functional_model_from_keras(
        functools.partial(_keras, config.network), _cross_entropy, spec
    )
    with tempfile.TemporaryDirectory() as folder, tff_runtime(tff):
        for prefix, examples in (("", clients), ("first ", first_of(clients, config))):
            _write_records(Path(folder), prefix, examples, config.batch_size)
        tff.backends.native.set_sync_local_cpp_execution_context(max_concurrent_computation_calls=CORES)
        process = tff.learning.algorithms.build_weighted_fed_avg(
            model,
            client_optimizer_fn=tff.learning.optimizers.build_sgdm(config.learning_rate),
            loop_implementation=tff.learning.LoopImplementation.DATASET_ITERATOR,
        )
        process = tff.simulation.compose_dataset_computation_with_learning_process(
            _batches_of(tff, folder, config.batch_size), process
        )
        start = _to_tf(fa.NETWORKS[config.network].initial(config.seed), config.network)
        weights = tff.learning.models.ModelWeights(tuple(start), ())
        state = process.set_model_weights(process.initialize(), weights)
        for number in range(sys.maxsize):
            prefix = "" if number else "first "
            state = process.next(state, [f"{prefix}{client}" for client in chosen(number)]).state
            yield _from_tf(process.get_model_weights(state).trainable, config.network)


def _keras(network: str) -> Any:
    import tensorflow as tf

    layers = tf.keras.layers
    if network == "softmax":
        return tf.keras.Sequential([layers.Dense(10, input_shape=(784,))])
    convolution = functools.partial(layers.Conv2D, kernel_size=5, padding="same", activation="relu")
    return tf.keras.Sequential(
        [
            layers.Reshape((28, 28, 1), input_shape=(784,)),
            *(convolution(32), layers.MaxPool2D(), convolution(64), layers.MaxPool2D()),
            *(layers.Flatten(), layers.Dense(512, activation="relu"), layers.Dense(10)),
        ]
    )


def _cross_entropy(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y_true, logits=y_pred))


def _write_records(folder: Path, prefix: str, clients: Sequence[fa.Examples], size: int) -> None:
    """A file for each client, in which each record is a batch."""
    for number, (pixels, labels) in enumerate(clients):
        if len(labels) % size:
            raise ValueError(f"a client's {len(labels)} images make no whole batches of {size}")
        np.column_stack([pixels, labels.astype(np.float32)]).tofile(folder / f"{prefix}{number}")


def _batches_of(tff: Any, folder: str, size: int) -> Any:
    """A computation of TFF's: name of a file -> its batches."""
    import tensorflow as tf

    def batch(record: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.reshape(tf.io.decode_raw(record, tf.float32), (-1, 785))
        return {"x": rows[:, :784], "y": tf.cast(rows[:, 784], tf.int32)}

    @tff.tensorflow.computation(np.str_)
    def batches(name):
        file = tf.strings.join([folder, "/", name])
        return tf.data.FixedLengthRecordDataset(file, size * 785 * 4).map(batch)

    return batches


def _to_tf(vector: np.ndarray, network: str) -> list[np.ndarray]:
    """Weights and biases in TensorFlow's layout; pixels by channels where ours are channels by pixels."""
    parts = fa.NETWORKS[network].unpack(vector)
    if network == "softmax":
        return list(parts)
    first, second, hidden, last = parts[::2]
    weights = [first.transpose(2, 3, 1, 0), second.transpose(2, 3, 1, 0)]
    weights += [hidden.reshape(512, 64, 7, 7).transpose(2, 3, 1, 0).reshape(3136, 512), last.T]
    return [part for pair in zip(weights, parts[1::2], strict=True) for part in pair]


def _from_tf(parts: Sequence[Any], network: str) -> np.ndarray:
    parts = [np.asarray(part) for part in parts]
    if network == "cnn":
        first, second, hidden, last = parts[::2]
        parts[::2] = first.transpose(3, 2, 0, 1), second.transpose(3, 2, 0, 1), hidden, last.T
        parts[4] = hidden.reshape(7, 7, 64, 512).transpose(3, 2, 0, 1)
    return np.concatenate([part.ravel() for part in parts])


# ---- measuring


def in_turns(engines: dict[str, Models], tolerance: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round after the first; and the models after the first must agree.

    Raises:
        SystemExit: they do not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    first: dict[str, np.ndarray] = {}
    for number in range(rounds + 1):
        for name, models in engines.items():
            start = time.perf_counter()
            model = next(models)
            if number:
                seconds[name].append(time.perf_counter() - start)
            else:
                first[name] = np.asarray(model)
        if not number:
            _agree(first, tolerance)
    return seconds


def _agree(models: dict[str, np.ndarray], tolerance: float) -> None:
    expected, *_ = models.values()
    for name, model in models.items():
        apart = float(np.abs(model - expected).max())
        print(f"  {name}: weights after round 1 differ from ours by {apart:.1e} at most")
        if not apart <= tolerance:  # nan, too
            raise SystemExit(f"{name} computes something else: {apart:.1e} is more than {tolerance:.0e}")


def beside_peers(config: fa.Config, python: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each engine's rounds."""
    clients, config = dealt(config)
    with contextlib.ExitStack() as stack:
        engines = {
            **{OURS.format(count): ours(clients, config, count) for count in sorted({1, CORES})},
            TFF: by_tff(clients, config, functools.partial(chosen_in, config)),
            FLWR: by_flower(clients, config, python),
        }
        for models in engines.values():
            stack.enter_context(contextlib.closing(models))
        return in_turns(engines, TOLERANCE[config.network], rounds)


def growth(rounds: int) -> dict[str, dict[str, float]]:
    """Our seconds a round by number of clients, and how many times those of the fewest they are."""
    config = dataclasses.replace(WORKLOADS["softmax, 100 of 100 clients"], clients=GROWTH[-1])
    clients, config = dealt(config)
    seconds = {}
    for count in GROWTH:
        one = {"ours": ours(clients[:count], dataclasses.replace(config, clients=count), 1)}
        with contextlib.closing(one["ours"]):
            seconds[count] = _timed(one["ours"], rounds)
    return {
        str(count): {"seconds": median, "ratio": median / seconds[GROWTH[0]]}
        for count, median in seconds.items()
    }


def _timed(models: Models, rounds: int) -> float:
    next(models)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        next(models)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def show(workload: str, seconds: dict[str, list[float]]) -> dict[str, float]:
    """Print a workload's table; how many times as fast as each peer we are."""
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    best = min(median for name, median in medians.items() if name not in (TFF, FLWR))
    print(f"{workload}, medians and ranges of {len(seconds[TFF])} rounds")
    for name, median in medians.items():
        spread = f"({min(seconds[name]):.3g} to {max(seconds[name]):.3g})"
        speed = f"{1 / median:6.2f} rounds/s, {median / best:5.1f} x our best"
        print(f"  {name:22} {median:7.3f} s {spread:16}  {speed}")
    return {peer: medians[peer] / best for peer in (TFF, FLWR)}


def versions(python: Path) -> dict[str, str]:
    """This environment's packages, and Flower's."""
    code = "from importlib.metadata import version as v; print(v('flwr'), v('ray'), v('numpy'))"
    command = [python, "-c", code]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    return {
        **cards.environment(),
        **dict(zip(("flwr", "ray", "numpy of Flower"), answer.split(), strict=True)),
    }


def main() -> None:
    """Print the tables, and write the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all that was measured, and ratios, to this file")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how many are counted")
    parser.add_argument("--flower", type=Path, default=FLOWER, help="the Python that has Flower")
    given = parser.parse_args()
    if not given.flower.exists():
        raise SystemExit(f"there is no {given.flower}: run `make recipe-1-flower`, which installs Flower")
    seconds, ratios = {}, {TFF: {}, FLWR: {}}
    for workload, config in WORKLOADS.items():
        print(workload, flush=True)
        seconds[workload] = beside_peers(config, given.flower, given.rounds)
        for peer, ratio in show(workload, seconds[workload]).items():
            ratios[peer][workload] = round(ratio, 3)
    grown = growth(given.rounds)
    print("ours by number of clients, 60 images each: ", end="")
    print(", ".join(f"{n} {one['seconds']:.4f} s ({one['ratio']:.1f} x)" for n, one in grown.items()))
    found = versions(given.flower)
    print(", ".join(f"{name} {version}" for name, version in found.items()))
    if given.json:
        record = {"ratios": ratios, "seconds": seconds, "growth": grown, "versions": found}
        cards.write_json(given.json, record)


if __name__ == "__main__":
    main()

"""Seconds a round: the NumPy reference beside TensorFlow Federated, on the same batches.

Alice and Bob train softmax regression on Fashion-MNIST, 30,000 images each, batches of 32. The
first round of each engine is not counted: it holds imports, tracing and warm-up.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator

from recipes import cards
from recipes import federated_averaging as fa
from recipes.data import load

ROUNDS = 5


def seconds_a_round(rounds: Iterator[fa.Round]) -> list[float]:
    """Wall seconds of each of `ROUNDS` rounds after the first."""
    seconds = []
    with contextlib.closing(rounds):
        next(rounds)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            next(rounds)
            seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print the table."""
    config = fa.Config()
    data = load("fashion-mnist", "auto")
    clients = fa.clients_of(data, config)
    measured = {
        "NumPy reference": seconds_a_round(fa.federated_rounds(clients, config)),
        "TensorFlow Federated": seconds_a_round(fa.tff_rounds(clients, config)),
    }
    base = statistics.median(measured["NumPy reference"])
    print(f"FedAvg, one round, Fashion-MNIST ({data.source}), median and range of {ROUNDS} rounds")
    for engine, seconds in measured.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        print(f"{engine:22} {median:.3f} s ({spread})   {median / base:6.1f} x the reference")
    print(", ".join(f"{name} {version}" for name, version in cards.environment().items()))


if __name__ == "__main__":
    main()

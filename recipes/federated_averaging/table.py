"""McMahan's table in small: how many rounds it takes, by how much clients work and how much they differ."""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

from recipes import progress
from recipes.data import Dataset
from recipes.federated_averaging.config import Config
from recipes.federated_averaging.networks import NETWORKS, Examples
from recipes.federated_averaging.simulation import clients_of, federated_rounds, flatten

TARGET, LIMIT = 0.8, 300
"""The accuracy on the test images that is waited for, and rounds after which it is no more."""
ALL = 1_000_000
"""A batch size larger than any client's data."""
SETTINGS = (
    ("FedSGD", 0.2, 1, ALL),
    ("E = 1, B = 10", 0.1, 1, 10),
    ("E = 5, B = 10", 0.05, 5, 10),
)
"""Local work: name, learning rate, epochs and batch size."""


class Row(NamedTuple):
    """A setting of local work."""

    name: str
    learning_rate: float
    """Of those tried, from 0.01 to 1.6, among the quickest that do not depend on how numbers are rounded."""
    iid: int | None
    """Rounds until the target with clients alike; None: not within the limit."""
    shards: int | None
    """The same with clients of two shards each."""


def rounds_to(target: float, limit: int, data: Dataset, config: Config) -> int | None:
    """The first round whose accuracy on all test images is at least `target`; None: not within `limit`."""
    test = Examples(flatten(data.test.images), data.test.labels)
    rounds = federated_rounds(clients_of(data, config), config)
    for number, step in enumerate(itertools.islice(rounds, limit), start=1):
        if NETWORKS[config.network].evaluate(step.model, test)[0] >= target:
            return number
    return None


def rows(data: Dataset, config: Config, limit: int = LIMIT) -> tuple[Row, ...]:
    """FedSGD, and federated averaging with little and much local work, by softmax regression: 100 clients, 10
    a round."""
    found = []
    for name, rate, epochs, batch in progress.bar(SETTINGS, f"rounds to {TARGET:.0%}", unit="algorithm"):
        each = Config(
            dataset=config.dataset,
            seed=config.seed,
            workers=config.workers,
            clients=100,
            clients_per_round=10,
            local_epochs=epochs,
            batch_size=batch,
            learning_rate=rate,
        )
        both = (dataclasses.replace(each, partition=kind) for kind in ("iid", "shards"))
        found.append(Row(name, rate, *(rounds_to(TARGET, limit, data, one) for one in both)))
    return tuple(found)

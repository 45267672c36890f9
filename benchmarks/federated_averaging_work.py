"""What every engine of federated_averaging.py is given to do: whose images, and who takes part in a round."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from recipes import data
from recipes import federated_averaging as fa

CORES = os.cpu_count() or 1
_COMMON = {"clients": 100, "partition": "iid", "batch_size": 10, "learning_rate": 0.1}
WORKLOADS = {
    "softmax, 100 of 100 clients": fa.Config(**_COMMON),
    "CNN, 10 of 100 clients": fa.Config(network="cnn", dataset="mnist", clients_per_round=10, **_COMMON),
}
FIRST = {"softmax": 600, "cnn": 20}
"""Images of each client in the first round, which is not counted. The CNN's roundings grow: a ReLU or a
maximum that turns out otherwise in one of 60 steps makes another model, on PyTorch alone, too."""

Models = Iterator[np.ndarray]
"""The global model after each round, `[P]`: the round is run when it is asked for."""
Chosen = Callable[[int], Sequence[int]]
"""Number of a round, from 0 -> the clients that take part."""


def dealt(config: fa.Config) -> tuple[list[fa.Examples], fa.Config]:
    """The clients, and the config with which they keep the order of their images, in every engine."""
    clients = fa.clients_of(data.load(config.dataset, config.data), config)
    return clients, dataclasses.replace(config, partition="halves")


def first_of(clients: Sequence[fa.Examples], config: fa.Config) -> list[fa.Examples]:
    """What the first round is run on."""
    images = FIRST[config.network]
    return [fa.Examples(one.pixels[:images], one.labels[:images]) for one in clients]


def chosen_in(config: fa.Config, number: int) -> list[int]:
    """The clients of a round, from 0, as this recipe draws them."""
    from recipes.federated_averaging.simulation import chosen

    return chosen(config, number + 1)

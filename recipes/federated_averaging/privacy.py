"""Client-level differential privacy: whether a client took part at all is hidden.

Each client takes part in a round with the same probability by itself, its change is shortened to a bounded
length, and Gaussian noise as long as that drowns the sum. Epsilon is that of the rounds that were really run.

Paper: McMahan et al., "Learning differentially private recurrent language models", 2018, arXiv:1710.06963.
"""

from __future__ import annotations

import math

import numpy as np

from recipes.federated_averaging.config import Config
from recipes.federated_averaging.simulation import chosen


def shortened(change: np.ndarray, clip: float) -> np.ndarray:
    """A change `[P]`, no longer than `clip` in L2, float64; one that is not finite counts as none."""
    length = float(np.linalg.norm(change.astype(np.float64)))
    if not math.isfinite(length):
        return np.zeros(change.shape)
    return change.astype(np.float64) * min(1.0, clip / length) if length > 0 else np.zeros(change.shape)


def noise_of_each(config: Config, clients: int, clip: float) -> float:
    """Standard deviation of what each of so many clients adds, so that the sum of those who are left has just
    the noise that is accounted for."""
    return config.noise * clip / math.sqrt(clients - lost_of(config, clients))


def lost_of(config: Config, clients: int) -> int:
    """How many of so many clients in a round are lost."""
    return min(config.dropouts, (clients - 1) // 2)


def epsilon(config: Config, rounds: int) -> float:
    """Of so many rounds, against whoever sees the global models and does not know who took part in which, by
    privacy loss distributions, if one client is added or removed with all that it holds; infinity without
    noise."""
    return _epsilon(config, config.sampled, config.clients, rounds)


def epsilon_against_server(config: Config, rounds: int) -> float:
    """The same against a server that sees sealed sums and knows who took part, so that drawing clients at
    random hides nobody from it: of the client that took part most often. Infinity without secure aggregation,
    as the server sees each change without noise then."""
    taken = np.zeros(config.clients, np.int64)
    for number in range(1, rounds + 1):
        taken[chosen(config, number)] += 1
    return _epsilon(config, 1, 1, int(taken.max())) if config.secure else math.inf


def _epsilon(config: Config, sampled: int, clients: int, rounds: int) -> float:
    if not config.noise:
        return math.inf
    from recipes.dp_sgd.accounting import Ledger

    return Ledger(config.noise, sampled, clients, steps=rounds).epsilon(config.delta)

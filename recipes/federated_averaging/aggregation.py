"""How a round's changes become one: the plain mean, robust ones, with noise, and sealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from recipes.federated_averaging import privacy, robust
from recipes.federated_averaging.algorithms import ALGORITHMS
from recipes.federated_averaging.config import FEWEST, Config
from recipes.federated_averaging.simulation import Update, mean

WIDEST = 1.0
"""How far a parameter may move in a round of secure aggregation without `clip`."""


@dataclass
class Aggregator:
    """The changes of a round in one, as a config says; and what that cost and showed."""

    config: Config
    parameters: int
    """P."""
    bytes_up: int = field(init=False)
    """The most that a client sent in a round."""
    bytes_down: int = 0
    """The most that a client received in a round, besides the model."""
    error: float = 0.0
    """The largest distance of a coordinate of the secure mean from that of the plain one so far, in
    quantisation steps; rounding leaves half a step at most."""
    view: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    """What the server saw of each client in the last round of secure aggregation, `[P]` uint32."""

    def __post_init__(self) -> None:
        self.bytes_up = 4 * self.parameters * ALGORITHMS[self.config.algorithm].vectors

    def __call__(self, updates: Sequence[Update], random: np.random.Generator) -> np.ndarray:
        """Updates of a round -> the change `[P]` float32 that the server's step is made of.

        Raises:
            ValueError: secure aggregation is for smaller changes, or fewer clients.
        """
        config = self.config
        if config.secure:
            return self._sealed(updates, random)
        if config.aggregate != "mean":
            changes = np.stack([update.change for update in updates])
            return robust.robust_mean(config.aggregate, changes, config.tolerated)
        if config.clip:
            total = sum((self._summand(update) for update in updates), np.zeros(self.parameters))
            total += self._noise(random, config.noise * config.clip)
            return (total / self._weight(updates)).astype(np.float32)
        return mean(updates, weighted=ALGORITHMS[config.algorithm].weighted)

    def _summand(self, update: Update) -> np.ndarray:
        """What a client adds to the sum, `[P]` float64; with `clip` every client counts alike."""
        if self.config.clip:
            return privacy.shortened(update.change, self.config.clip)
        return update.examples * update.change.astype(np.float64)

    def _weight(self, updates: Sequence[Update]) -> float:
        """By what the sum is divided: with noise by the expected number, which tells of nobody."""
        if self.config.noise:
            return self.config.sampled
        return len(updates) if self.config.clip else sum(update.examples for update in updates)

    def _noise(self, random: np.random.Generator, deviation: float) -> np.ndarray:
        return random.normal(0, deviation, self.parameters) if deviation else np.zeros(self.parameters)

    def _sealed(self, updates: Sequence[Update], random: np.random.Generator) -> np.ndarray:
        """The same by secure aggregation: each client rounds its summand, and adds its part of the noise."""
        from recipes.federated_averaging import secure_aggregation as sealing

        config = self.config
        summands = [self._summand(update) for update in updates]
        while len(summands) < FEWEST:  # as Poisson sampling may draw; clients without a change join in
            summands.append(np.zeros(self.parameters))
        count = len(summands)
        part = privacy.noise_of_each(config, count, config.clip)
        largest = config.clip or WIDEST * max(update.examples for update in updates)
        step = sealing.step_of(1.01 * largest + 10 * part, count)
        if part:  # rounding makes a summand longer, by half a step in each coordinate at most
            part = privacy.noise_of_each(config, count, config.clip + np.sqrt(self.parameters) * step / 2)
            summands = [summand + self._noise(random, part) for summand in summands]
        lost = random.choice(count, privacy.lost_of(config, count), replace=False).tolist()
        sealed = sealing.aggregate(summands, step=step, lost=lost)
        plain = sum(summands[place] for place in sealed.here)
        self.error = max(self.error, float(np.abs(sealed.total - plain).max()) / step / len(sealed.here))
        self.bytes_up = max(self.bytes_up, sealed.bytes_up)
        self.bytes_down = max(self.bytes_down, sealed.bytes_down)
        self.view = sealed.view
        left = [updates[place] for place in sealed.here if place < len(updates)]
        return (sealed.total / self._weight(left)).astype(np.float32)

"""Which examples each step takes: drawn one by one (Poisson), shuffled, or so many each time.

What an accountant may say depends on it: `accounting` has the bounds that belong to each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Sampling = Literal["poisson", "shuffle"]


class Sampler:
    """Draws batches without end; its whole state can be saved.

    Args:
        examples: N, how many there are.
        batch: the expected size of a batch (Poisson), or its size (shuffle); at most N.
        sampling: `poisson`: each example is in each batch with probability batch / N, whatever the others
            are, so that sizes vary and a batch may be empty. `shuffle`: all examples in a new random order
            each epoch, cut into batches; what is left over at an epoch's end is left out.
        generator: of the draws. Who can repeat them knows who was in which batch.
    """

    def __init__(self, examples: int, batch: int, sampling: Sampling, generator: torch.Generator) -> None:
        if not 1 <= batch <= examples:
            raise ValueError(f"batch must be from 1 to the {examples} examples that there are, not {batch}")
        self.examples, self.batch, self.sampling, self.generator = examples, batch, sampling, generator
        self.waiting = torch.empty(0, dtype=torch.int64)
        """`[n]`, what is left of this epoch's order."""

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """The next batch's examples, `[B]` int64."""
        if self.sampling == "poisson":
            draws = torch.rand(self.examples, generator=self.generator, dtype=torch.float64)
            return (draws < self.batch / self.examples).nonzero().squeeze(1)
        if len(self.waiting) < self.batch:
            self.waiting = torch.randperm(self.examples, generator=self.generator)
        taken, self.waiting = self.waiting[: self.batch], self.waiting[self.batch :]
        return taken

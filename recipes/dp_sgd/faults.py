"""Mistakes that an implementation of DP-SGD can make, for the audit to find."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recipes.dp_sgd import gradients, training
from recipes.dp_sgd.audit import Attack
from recipes.dp_sgd.sampling import Sampler
from recipes.dp_sgd.training import Parts


def _too_little(like: Sequence[Tensor], deviation: float, generator: torch.Generator) -> list[Tensor]:
    return training.gaussian(like, 0.1 * deviation, generator)


def _not_clipped(*arguments: object, **options: object) -> gradients.ClippedSum:
    network, inputs, labels, _clip = arguments
    return gradients.clipped_sum(network, inputs, labels, math.inf, **options)


def _twice() -> training.Noise:
    """Noise that every second step has from the step before."""
    kept: list[list[Tensor]] = []

    def noise(like: Sequence[Tensor], deviation: float, generator: torch.Generator) -> list[Tensor]:
        if kept:
            return kept.pop()
        kept.append(training.gaussian(like, deviation, generator))
        return kept[0]

    return noise


class _FixedSize(Sampler):
    """Exactly so many examples each step, which an accountant of Poisson batches knows nothing of."""

    def __next__(self) -> Tensor:
        return torch.randperm(self.examples, generator=self.generator)[: self.batch]


def planted() -> dict[str, tuple[Parts, Attack]]:
    """Each fault by its name, with the training in which an attacker looks for it.

    Made anew at each call, as one of them remembers. A batch of a fixed size gives most away when few are
    in it, and a step more than stated when few are stated.
    """
    return {
        "noise scaled by 0.1": (Parts(noise=_too_little), Attack()),
        "clipping forgotten": (Parts(clipped_sum=_not_clipped), Attack()),
        "the same noise used twice": (Parts(noise=_twice()), Attack()),
        "batches of fixed size": (Parts(sampler=_FixedSize), Attack(noise_multiplier=0.6, steps=8, batch=1)),
        "one step not accounted for": (
            Parts(unaccounted_steps=1),
            Attack(noise_multiplier=0.7, steps=1, batch=8),
        ),
    }

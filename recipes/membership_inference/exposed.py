"""Which records are exposed most, and is it always the same ones?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Exposed:
    """The members that attacks are surest of."""

    records: np.ndarray
    """`[n]` int64, places among the records, the most exposed first."""
    found_by: np.ndarray
    """`[n]` int64, in how many of the attack's seeds each is among the n most exposed members."""
    seeds: int
    stability: float
    """The share of the n most exposed that two seeds have in common, mean over pairs of seeds."""
    by_chance: float
    """What that share would be if each seed drew its n at random."""


def most_exposed(scores: Sequence[np.ndarray], member: np.ndarray, count: int = 100) -> Exposed:
    """The records with the highest mean rank over an attack's seeds, and how stable that is.

    Args:
        scores: `[N]` for each seed, high for members.
        member: `[N]` bool.
        count: n, how many.
    """
    from scipy.stats import rankdata

    inside = np.flatnonzero(member)
    count = min(count, len(inside))
    ranks = np.stack([rankdata(-of_seed[inside]) for of_seed in scores])
    best = np.argsort(ranks.mean(axis=0), kind="stable")[:count]
    tops = [set(np.argsort(of_seed, kind="stable")[:count].tolist()) for of_seed in ranks]
    pairs = [(a, b) for i, a in enumerate(tops) for b in tops[i + 1 :]]
    return Exposed(
        inside[best],
        np.array([sum(int(place) in top for top in tops) for place in best]),
        len(tops),
        float(np.mean([len(a & b) / count for a, b in pairs])) if pairs else float("nan"),
        count / len(inside),
    )

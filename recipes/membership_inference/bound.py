"""From an attack to a bound: how small can the epsilon of the training be, if the attack is this often right?

Each record was a member by the toss of a coin. An attacker who guesses some of the tosses, and is right
too often, contradicts a small epsilon (Steinke, Nasr and Jagielski, "Privacy auditing with one training
run", 2023, arXiv:2305.08846). One training is enough, and the bound holds with 95 % whatever the network
is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recipes.membership_inference import metrics

SHARES = (0.0005, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Of the records, guessed."""


@dataclass(frozen=True)
class Bound:
    """What the guesses say of epsilon."""

    epsilon: float
    """At least, at 95 % confidence."""
    attack: str
    """Which attack's guesses show it."""
    right: int
    guessed: int
    delta: float
    """Of (epsilon, delta)-differential privacy, for records that are added or removed."""


def epsilon_lower_bound(
    scores: Mapping[str, np.ndarray],
    member: np.ndarray,
    delta: float = 1e-5,
    confidence: float = metrics.CONFIDENCE,
) -> Bound:
    """The best bound of several attacks, each of which pays for having been tried.

    Args:
        scores: by attack, `[N]`, high for members. An attack may have learned from other records only.
        member: `[N]` bool, each by a fair toss.
        delta: of (epsilon, delta)-differential privacy, for records that are added or removed.
        confidence: of the bound.

    Raises:
        ValueError: the memberships cannot have been fair tosses, or there are too few.
    """
    from scipy.special import logit
    from scipy.stats import beta, binomtest

    from recipes.dp_sgd.audit import one_run_bound

    if binomtest(int(member.sum()), len(member)).pvalue < 1e-6:
        raise ValueError(
            f"{int(member.sum()):,} members of {len(member):,} records cannot be fair tosses of a coin"
        )
    guesses = [
        (name, *counts) for name, of_attack in scores.items() for counts in _guesses(of_attack, member)
    ]
    if not guesses:
        raise ValueError(f"{len(member)} records are too few for a bound: give 20 or more")
    error = (1 - confidence) / len(guesses)
    # with delta 0 the bound is Clopper and Pearson's; with more it is lower, so that few need be worked out
    _, right, guessed = (np.array(part) for part in zip(*guesses, strict=True))
    most = logit(np.where(right > 0, beta.ppf(error, np.maximum(right, 1), guessed - right + 1), 0.0))
    best = Bound(0.0, *guesses[int(np.argmax(most))], delta)
    for place in np.argsort(most)[::-1]:
        if most[place] <= best.epsilon:
            break
        found = one_run_bound(*guesses[place][1:], len(member), error, delta)
        if found > best.epsilon:
            best = Bound(found, *guesses[place], delta)
    return best


def _guesses(scores: np.ndarray, member: np.ndarray) -> list[tuple[int, int]]:
    """How many guesses are right, of how many: about the highest, the lowest, and the outermost scores."""
    by_chance = np.random.default_rng(0).permutation(len(scores))  # among ties, whose order could tell
    ordered = member[np.lexsort((by_chance, -scores))]
    counts = []
    for share in SHARES:
        n = int(share * len(ordered))
        if n >= 10:
            top, bottom = int(ordered[:n].sum()), int((~ordered[-n:]).sum())
            half = n // 2
            both = int(ordered[:half].sum() + (~ordered[-half:]).sum())
            counts += [(both, 2 * half)] if share == 1 else [(top, n), (bottom, n), (both, 2 * half)]
    return counts

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
    """What the best of several attacks says of epsilon.

    Which attack that is, and how many records it had best guess, is chosen on one half of the records; the
    bound is that of its guesses about the other half, whose tosses nothing was chosen by.

    Args:
        scores: by attack, `[N]`, high for members. An attack may have learned from other records only.
        member: `[N]` bool, each by a fair toss.
        delta: of (epsilon, delta)-differential privacy, for records that are added or removed.
        confidence: of the bound.

    Raises:
        ValueError: the memberships cannot have been fair tosses, or there are too few.
    """
    from scipy.stats import beta, binomtest

    from recipes.dp_sgd.audit import one_run_bound

    if binomtest(int(member.sum()), len(member)).pvalue < 1e-6:
        raise ValueError(
            f"{int(member.sum()):,} members of {len(member):,} records cannot be fair tosses of a coin"
        )
    half, error = len(member) // 2, 1 - confidence
    drawn = np.random.default_rng((0, 7)).permutation(len(member))
    here, there = drawn[:half], drawn[half : 2 * half]
    tried = [
        (name, place, *counts)
        for name, of_attack in scores.items()
        for place, counts in enumerate(_guesses(of_attack[here], member[here]))
    ]
    if not tried:
        raise ValueError(f"{len(member)} records are too few for a bound: give 20 or more")
    # with delta 0 the bound is Clopper and Pearson's; here everything tried is paid for, lest luck choose
    right, guessed = (np.array([one[column] for one in tried]) for column in (2, 3))
    least = beta.ppf(error / len(tried), np.maximum(right, 1), guessed - right + 1)
    name, place = tried[int(np.argmax(np.where(right > 0, least, 0.0)))][:2]
    counts = _guesses(scores[name][there], member[there])[place]
    return Bound(one_run_bound(*counts, half, error, delta), name, *counts, delta)


def _guesses(scores: np.ndarray, member: np.ndarray) -> list[tuple[int, int]]:
    """How many guesses are right, of how many: about the highest, the lowest, and the outermost scores."""
    by_chance = np.random.default_rng((0, 8)).permutation(len(scores))  # among ties, whose order could tell
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

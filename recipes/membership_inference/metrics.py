"""How well scores tell members from non-members, and how sure that is.

A score is high where an attack takes a record for a member. Averages hide what matters: an attack that is
right about few records, but sure of them, has a balanced accuracy near a half (Carlini et al.,
"Membership inference attacks from first principles", 2022, arXiv:2112.03570). So there are true positive
rates at low false positive rates, too, each with its interval, and none where there are too few
non-members to count it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

CONFIDENCE = 0.95
"""Of every interval."""
FALSE_POSITIVE_RATES = (0.01, 0.001, 0.0001)
PRIORS = (0.5, 0.1, 0.01)
"""Shares of members among the records that an attacker looks at."""


@dataclass(frozen=True)
class Rate:
    """A share that was counted, with its Clopper-Pearson interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """An attack at a threshold: it says "member" of every record with a score above it."""

    threshold: float
    true_positives: Rate
    false_positives: Rate

    def precision(self, prior: float) -> Rate:
        """The share of members among the records that it takes for members, and what both intervals allow.

        Args:
            prior: the share of members among the records that it looks at.
        """
        true, false = self.true_positives, self.false_positives
        return Rate(
            _precision(prior, true.value, false.value),
            _precision(prior, true.low, false.high),
            _precision(prior, true.high, false.low),
        )


def _precision(prior: float, true: float, false: float) -> float:
    """0 where nobody is accused."""
    right, wrong = prior * true, (1 - prior) * false
    return right / (right + wrong) if right + wrong else 0.0


@dataclass(frozen=True)
class Evaluation:
    """What an attack's scores are worth."""

    auc: float
    """The chance that a member's score is above a non-member's; ties count half."""
    auc_low: float
    auc_high: float
    balanced_accuracy: float
    """The mean of the true positive and the true negative rate, at a threshold chosen on other records."""
    balanced_accuracy_low: float
    balanced_accuracy_high: float
    points: dict[float, Point]
    """By false positive rate: only the rates for which there are non-members enough."""
    members: int
    non_members: int


def share(count: int, total: int, confidence: float = CONFIDENCE) -> Rate:
    """`count` of `total`, with its Clopper-Pearson interval."""
    from scipy.stats import beta  # whose binomtest warns of a division by zero where counts are large

    error, others = (1 - confidence) / 2, total - count
    low = beta.ppf(error, count, others + 1) if count else 0.0
    high = beta.ppf(1 - error, count + 1, others) if others else 1.0
    return Rate(count / total, float(low), float(high))


def check_scores(scores: np.ndarray, member: np.ndarray) -> None:
    """Raise ValueError unless there is a score for each record, and records of both kinds."""
    if np.shape(scores) != np.shape(member) or np.ndim(scores) != 1:
        raise ValueError(
            f"scores are of shape {np.shape(scores)} and memberships of {np.shape(member)}: both must be [N]"
        )
    if np.asarray(member).dtype != bool:
        raise ValueError(f"memberships must be bool, not {np.asarray(member).dtype}")
    if not (np.any(member) and not np.all(member)):
        raise ValueError("an attack is judged on members and non-members: one of them is missing")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are not finite numbers")


def roc(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1).

    Args:
        scores: `[N]`, high for members.
        member: `[N]` bool.
    """
    check_scores(scores, member)
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    hits, alarms = np.cumsum(member[order])[last_of_ties], np.cumsum(~member[order])[last_of_ties]
    return np.append(0, alarms) / alarms[-1], np.append(0, hits) / hits[-1]


def auc(scores: np.ndarray, member: np.ndarray) -> tuple[float, float, float]:
    """The area under the ROC curve, and its interval (DeLong et al. 1988)."""
    from scipy.stats import norm, rankdata

    check_scores(scores, member)
    inside, outside = scores[member], scores[~member]
    above = (rankdata(scores)[member] - rankdata(inside)) / len(outside)  # share of non-members below each
    below = 1 - (rankdata(scores)[~member] - rankdata(outside)) / len(inside)
    variance = sum(np.var(part, ddof=1) / len(part) if len(part) > 1 else 0.25 for part in (above, below))
    half = float(norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(variance))
    if half == 0:  # the scores do not overlap: the rule of three
        half = 3 / min(len(inside), len(outside))
    value = float(above.mean())
    return value, max(0.0, value - half), min(1.0, value + half)


def floor(non_members: int) -> float:
    """The lowest false positive rate that can be told from none: one false positive."""
    return 1 / non_members


def at_threshold(scores: np.ndarray, member: np.ndarray, threshold: float) -> Point:
    """Count what lies above a threshold that was chosen elsewhere."""
    taken = scores > threshold
    return Point(
        threshold,
        share(int(taken[member].sum()), int(member.sum())),
        share(int(taken[~member].sum()), int((~member).sum())),
    )


def at_rate(scores: np.ndarray, member: np.ndarray, rate: float) -> Point:
    """The attack at the lowest threshold at which the counted false positive rate is at most `rate`.

    The interval of the true positive rate is that of the threshold whose true false positive rate is `rate`:
    half of its error is for where that threshold lies, given the scores of so many non-members, and half
    for the members above it.

    Raises:
        ValueError: there are too few non-members for the rate.
    """
    from scipy.stats import binom

    check_scores(scores, member)
    outside = np.sort(scores[~member])
    if rate < floor(len(outside)) * (1 - 1e-9):
        raise ValueError(
            f"a false positive rate of {rate:g} cannot be shown with {len(outside):,} non-members, whose "
            f"floor is {floor(len(outside)):.2g}: take {int(np.ceil(1 / rate)):,} or more"
        )
    allowed = int(np.floor(rate * len(outside) * (1 + 1e-9)))
    point = at_threshold(scores, member, _above(outside, allowed))
    # how many non-members the true threshold lets through is binomial
    error = 1 - CONFIDENCE
    few, many = (int(count) for count in binom.ppf((error / 4, 1 - error / 4), len(outside), rate))
    inside = scores[member]
    least, most = (int((inside > _above(outside, count)).sum()) for count in (few - 1, many))
    true = Rate(
        point.true_positives.value,
        share(least, len(inside), 1 - error / 2).low,
        share(most, len(inside), 1 - error / 2).high,
    )
    return replace(point, true_positives=true)


def _above(ascending: np.ndarray, count: int) -> float:
    """A threshold above which so many scores lie, or fewer if some are equal; -1: none of anyone's."""
    if count < 0:
        return np.inf
    return float(ascending[-count - 1]) if count < len(ascending) else -np.inf


def balanced_accuracy(scores: np.ndarray, member: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The balanced accuracy and its interval: each half of the records has the other's best threshold.

    To choose the threshold on the records that are judged would flatter an attack, and give one that knows
    nothing more than a half.
    """
    check_scores(scores, member)
    first = np.zeros(len(scores), bool)
    for kind in (member, ~member):
        places = np.random.default_rng((seed, 6)).permutation(np.flatnonzero(kind))
        first[places[: len(places) // 2]] = True
    hits = passes = 0
    for chosen_on, judged_on in ((first, ~first), (~first, first)):
        threshold = best_threshold(scores[chosen_on], member[chosen_on])
        taken = scores > threshold
        hits += int((taken & member & judged_on).sum())
        passes += int((~taken & ~member & judged_on).sum())
    true, false = share(hits, int(member.sum())), share(passes, int((~member).sum()))
    return (
        (true.value + false.value) / 2,
        (true.low + false.low) / 2,
        (true.high + false.high) / 2,
    )


def best_threshold(scores: np.ndarray, member: np.ndarray) -> float:
    """The threshold with the highest balanced accuracy on these records; infinite if none helps."""
    if not (member.any() and not member.all()):
        return -np.inf
    false, true = roc(scores, member)
    values = np.append(np.inf, np.unique(scores)[::-1])
    best = int(np.argmax(true - false))
    if best == len(values) - 1:
        return -np.inf
    return float(np.inf if best == 0 else (values[best] + values[best + 1]) / 2)


def evaluate(
    scores: np.ndarray,
    member: np.ndarray,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    seed: int = 0,
) -> Evaluation:
    """Everything at once; rates below the floor are left out.

    Args:
        scores: `[N]`, high for members.
        member: `[N]` bool.
        rates: false positive rates.
        seed: of the halves of the balanced accuracy.
    """
    outside = int((~member).sum())
    shown = [rate for rate in rates if rate >= floor(max(1, outside)) * (1 - 1e-9)]
    return Evaluation(
        *auc(scores, member),
        *balanced_accuracy(scores, member, seed),
        {rate: at_rate(scores, member, rate) for rate in shown},
        int(member.sum()),
        outside,
    )


def auc_by_class(scores: np.ndarray, member: np.ndarray, labels: np.ndarray) -> dict[int, tuple]:
    """The AUC and its interval for each class that has members and non-members, by label."""
    found = {}
    for label in np.unique(labels):
        of_class = labels == label
        if member[of_class].any() and not member[of_class].all():
            found[int(label)] = auc(scores[of_class], member[of_class])
    return found

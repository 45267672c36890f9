"""Attacks that see no more of a network than what it answers. Each gives `[N]` scores, high for members.

    loss, entropy         the target alone: a network is surer of what it was trained on
                          (Yeom et al. 2018, arXiv:1709.01604; Song and Mittal 2021, arXiv:2003.10595)
    LiRA                  how likely the target's confidence is under reference networks that were trained
                          with the record, and without it (Carlini et al. 2022, arXiv:2112.03570)
    RMIA                  by how much the record gained confidence, compared with other records
                          (Zarifzadeh, Liu and Shokri 2024, arXiv:2312.03262)
    BaVarIA               LiRA whose means and variances lean on all records where a record has few references
                          (Braennvall 2026, arXiv:2603.11799)
    BMIA                  like LiRA offline, with the deviation from the posterior of one Bayesian
                          neural network instead of from many references (Liu et al. 2025, arXiv:2503.07482)

A confidence is phi = log(p / (1 - p)) of the probability p that a network gives the record's own label. N
is the number of records, K of reference networks, V of views of a record (the image, and its mirror
image), P of records of a population that nobody trained on, C of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Signals:
    """What the attacks that calibrate see: confidences of the target and of the references."""

    target: np.ndarray
    """`[V, N]` float32."""
    references: np.ndarray
    """`[K, V, N]` float32."""
    trained_on: np.ndarray
    """`[K, N]` bool: whether a reference was trained on a record."""
    population_target: np.ndarray
    """`[V, P]` float32, of records that neither the target nor a reference was trained on."""
    population_references: np.ndarray
    """`[K, V, P]` float32."""
    deviations: np.ndarray | None = None
    """`[K, N]` float32, the posterior's standard deviation of a reference's confidence; for BMIA."""

    def of(self, records: np.ndarray) -> Signals:
        """The same of some of the records only."""
        return Signals(
            self.target[:, records],
            self.references[:, :, records],
            self.trained_on[:, records],
            self.population_target,
            self.population_references,
            None if self.deviations is None else self.deviations[:, records],
        )


# --- the target alone --------------------------------------------------------------------------------


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log-softmax: logits `[N, C]` -> `[N, C]` float64."""
    from scipy.special import log_softmax

    return log_softmax(logits.astype(np.float64), axis=1)


def confidences(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """phi = log(p / (1 - p)) of the label's probability p, without cancellation: `[N, C]`, `[N]` -> `[N]`."""
    from scipy.special import logsumexp

    logits = logits.astype(np.float64)
    own = logits[np.arange(len(labels)), labels]
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return own - logsumexp(others, axis=1)


def loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The loss, negated: `[N, C]`, `[N]` -> `[N]`."""
    return log_probabilities(logits)[np.arange(len(labels)), labels]


def entropy(logits: np.ndarray) -> np.ndarray:
    """The entropy of what the network answers, negated; it takes no label: `[N, C]` -> `[N]`."""
    log_p = log_probabilities(logits)
    return (np.exp(log_p) * log_p).sum(axis=1)


def modified_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Song and Mittal's, which is low only where the network is sure and right, negated."""
    log_p = log_probabilities(logits)
    p = np.exp(log_p)
    log_not = np.log1p(-np.minimum(p, 1 - 1e-15))
    own = np.arange(len(labels)), labels
    return (p * log_not).sum(axis=1) - p[own] * log_not[own] + (1 - p[own]) * log_p[own]


# --- calibrated by references ------------------------------------------------------------------------


def lira(signals: Signals, online: bool = True, fixed_variance: bool = True) -> np.ndarray:
    """How likely the target's confidence is with the record and without it: the ratio's logarithm, `[N]`.

    Args:
        signals: online takes references that were trained on a record, and such that were not; offline
            takes only the latter, and asks how unlikely so high a confidence is without the record.
        fixed_variance: one variance for all records, where a record's own references are too few for it; it
            is 1 where no record has two.

    Raises:
        ValueError: a record has too few references.
    """
    from scipy.stats import norm

    outside = _moments(signals, False, fixed_variance, fewest=1 + (online or not fixed_variance))
    if not online:
        return -norm.logsf(signals.target, *outside).sum(axis=0)
    inside = _moments(signals, True, fixed_variance, fewest=2)
    ratio = norm.logpdf(signals.target, *inside) - norm.logpdf(signals.target, *outside)
    return ratio.sum(axis=0)


def _moments(
    signals: Signals, inside: bool, fixed_variance: bool, fewest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[V, N]` and standard deviation (`[V, N]`, or `[V, 1]` if fixed) of the references'
    confidences."""
    chosen = (signals.trained_on == inside)[:, None]  # [K, 1, N]
    count = _count(chosen, fewest, "trained on it" if inside else "not trained on it")
    mean = np.where(chosen, signals.references, 0).sum(axis=0) / count
    squares = np.where(chosen, (signals.references - mean) ** 2, 0).sum(axis=0)
    if fixed_variance:
        freedom = (count - 1).sum()
        variance = squares.sum(axis=1, keepdims=True) / freedom if freedom else np.ones((len(mean), 1))
    else:
        variance = squares / (count - 1)
    return mean, np.sqrt(variance) + 1e-6  # references that agree to the last digit


def _count(chosen: np.ndarray, fewest: int, which: str) -> np.ndarray:
    """How many references of a kind each record has, `[1, N]`; raises ValueError if that is too few."""
    count = chosen.sum(axis=0)
    if count.min() < fewest:
        raise ValueError(
            f"record {int(count.argmin())} has {int(count.min())} references that were {which}, and "
            f"{fewest} are needed: train more references"
        )
    return count


def bavaria(signals: Signals, weight: float = 4.0) -> np.ndarray:
    """LiRA online with a normal-inverse-gamma prior for each record's mean and variance: `[N]`.

    The prior is fitted to all records: its mean is their mean, its variance the pooled one, and its
    strength in the mean how much less records differ than references do. What a record's own references
    then predict is a Student-t distribution.

    Args:
        signals: what the networks gave; a record needs one reference of each kind, and all together two.
        weight: how many references the prior of the variance is worth.

    Raises:
        ValueError: a record has too few references.
    """
    inside, outside = (_predictive(signals, kind, weight) for kind in (True, False))
    return (inside - outside).sum(axis=0)


def _predictive(signals: Signals, inside: bool, weight: float) -> np.ndarray:
    """The log-likelihood of the target's confidences, `[V, N]`."""
    from scipy.stats import t

    mean, deviation = _moments(signals, inside, fixed_variance=True, fewest=1)
    variance = deviation**2  # pooled, [V, 1]
    chosen = (signals.trained_on == inside)[:, None]
    count = chosen.sum(axis=0)
    squares = np.where(chosen, (signals.references - mean) ** 2, 0).sum(axis=0)
    overall = mean.mean(axis=1, keepdims=True)
    between = np.maximum(mean.var(axis=1, keepdims=True) - variance * np.mean(1 / count), 1e-6)
    strength = variance / between  # kappa_0: of the prior's mean, in references
    total, freedom = strength + count, weight + count
    centre = (strength * overall + count * mean) / total
    scale = weight * variance + squares + strength * count / total * (mean - overall) ** 2
    return t.logpdf(signals.target, freedom, centre, np.sqrt(scale / freedom * (1 + 1 / total)))


def rmia(signals: Signals, online: bool = False, gamma: float = 2.0, offline_a: float = 0.3) -> np.ndarray:
    """The share of the population that a record beats by a factor of gamma, mean over the views: `[N]`.

        ratio(x) = p(x | target) / p(x),    score(x) = share of z with ratio(x) >= gamma ratio(z)

    where p is what networks give a record on average, be they trained on it or not.

    Args:
        signals: what the networks gave.
        online: take references that were trained on the record, too; else p is ((1 + a) p_out + 1 - a) / 2
            of those that were not, of x and z alike.
        gamma: by which factor to beat, at least 1.
        offline_a: a, from 0 (being trained on a record makes it certain) to 1 (it changes nothing).

    Raises:
        ValueError: a record has too few references, or gamma or a is out of range.
    """
    if gamma < 1 or not 0 <= offline_a <= 1:
        raise ValueError(f"gamma must be at least 1 and a from 0 to 1, not {gamma} and {offline_a}")
    outside = _mean_probability(signals, False)
    if online:
        average = (outside + _mean_probability(signals, True)) / 2
    else:
        average = ((1 + offline_a) * outside + 1 - offline_a) / 2
    of_population = _probability(signals.population_references).mean(axis=0)
    if not online:
        of_population = ((1 + offline_a) * of_population + 1 - offline_a) / 2
    ratios = _probability(signals.target) / average  # [V, N]
    others = np.sort(_probability(signals.population_target) / of_population, axis=1)  # [V, P]
    beaten = [np.searchsorted(z, x / gamma, side="right") for x, z in zip(ratios, others, strict=True)]
    return np.mean(beaten, axis=0) / others.shape[1]


def _probability(confidence: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.maximum(expit(confidence.astype(np.float64)), 1e-300)


def _mean_probability(signals: Signals, inside: bool) -> np.ndarray:
    """What references of a kind give the record's label on average, `[V, N]`."""
    chosen = (signals.trained_on == inside)[:, None]
    count = _count(chosen, 1, "trained on it" if inside else "not trained on it")
    return np.where(chosen, _probability(signals.references), 0).sum(axis=0) / count


def bmia(signals: Signals) -> np.ndarray:
    """How many standard deviations the target's confidence is above what is expected without the record,
    `[N]`.

    The deviation of each record's confidence comes from the posterior of the references, and, where a record
    has several, from how they differ. The first view only.

    Raises:
        ValueError: no posterior is there, or a record has no reference that was not trained on it.
    """
    if signals.deviations is None:
        raise ValueError("BMIA needs the references' posterior: their last layer must be an nn.Linear")
    chosen = ~signals.trained_on
    count = _count(chosen[:, None], 1, "not trained on it")[0]
    references = signals.references[:, 0]
    mean = np.where(chosen, references, 0).sum(axis=0) / count
    within = np.where(chosen, signals.deviations**2, 0).sum(axis=0) / count
    between = np.where(chosen, (references - mean) ** 2, 0).sum(axis=0) / count
    return (signals.target[0] - mean) / np.sqrt(within + between + 1e-12)

"""What a training costs: epsilon for the steps that were taken, and the batches as they were drawn.

All figures are for (epsilon, delta)-differential privacy of the whole sequence of noisy gradients, so of
anything that is made of them: the last weights, an average, or every one of them.

    Poisson   neighbours differ by one example that is there or not. RDP: Mironov, Talwar and Zhang, 2019,
              arXiv:1908.10530. PLD: Doroshenko et al., "Connect the dots", 2022, arXiv:2207.04380,
              which is tight up to its rounding, and rounds up.
    shuffle   neighbours differ by one example that is replaced by one with no gradient. No tight figure
              is known. Lower bound, of the first epoch: Chua et al., "How private are DP-SGD
              implementations?", 2024, arXiv:2403.17673 (their "Scalable DP-SGD", 2024, arXiv:2411.04205,
              goes on to more epochs). Upper bound: each example is in one batch an epoch, and what the order
              hides is not counted.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import dp_accounting

Accountant = Literal["rdp", "pld"]
LEAST_NOISE = 0.05
"""The least noise multiplier that is accounted for, but for none at all."""
MOST_NOISE = 1e4
"""The most that is looked for."""
_HALVINGS = 14
"""Of the ratio of the two, until it is a thousandth."""


@dataclass
class Ledger:
    """The releases of a training: `steps` is counted up as they are made, and is what is accounted for."""

    noise_multiplier: float
    """σ, at least 0."""
    batch: int
    """Expected size of a batch (Poisson), or its size (shuffle)."""
    examples: int
    """N."""
    sampling: Literal["poisson", "shuffle"] = "poisson"
    steps: int = 0
    grouped: bool = False
    """Whether mean gradients of groups are clipped; σ is half of the noise then, and no lower bound of
    shuffling is known."""

    def epsilon(self, delta: float, accountant: Accountant = "pld") -> float:
        """Epsilon of the steps so far; infinity without noise. Of a shuffled training, the upper bound.

        Raises:
            ValueError: delta is not between 0 and 1.
        """
        if self.sampling == "shuffle":
            return self.shuffle_bounds(delta, accountant)[1]
        check_delta(delta)
        if not self.steps or not self.noise_multiplier:
            return math.inf if self.steps else 0.0
        return epsilon(self.batch / self.examples, self.noise_multiplier, self.steps, delta, accountant)

    def shuffle_bounds(self, delta: float, accountant: Accountant = "pld") -> tuple[float, float]:
        """A lower and an upper bound of epsilon if the batches are those of shuffled epochs.

        The lower bound is that of one epoch; more epochs cost more.
        """
        check_delta(delta)
        per_epoch = self.examples // self.batch
        epochs = math.ceil(self.steps / per_epoch)
        if not self.steps or not self.noise_multiplier:
            return (math.inf, math.inf) if self.steps else (0.0, 0.0)
        upper = epsilon(1.0, self.noise_multiplier, epochs, delta, accountant)
        batches = min(self.steps, per_epoch)
        there = batches * self.batch / self.examples  # the last of an epoch may be left out
        low = 0.0 if self.grouped else _shuffled_epoch(self.noise_multiplier, batches, there, delta)
        return low, upper

    def event(self) -> dp_accounting.DpEvent:
        """The releases as dp-accounting describes them."""
        if self.sampling != "poisson":
            raise ValueError("shuffled batches have bounds only: no accountant composes them with others")
        return _event(self.batch / self.examples, self.noise_multiplier, self.steps)

    def statement(self, delta: float) -> str:
        """What may be said of the training, with all that it depends on."""
        if not self.noise_multiplier:
            return f"no privacy: {self.steps:,} steps without noise"
        mechanism = (
            f"{self.steps:,} steps of the Gaussian mechanism, noise multiplier {self.noise_multiplier:g}"
        )
        if self.sampling == "shuffle":
            low, high = self.shuffle_bounds(delta)
            return (
                f"({rounded_up(high)}, {delta:g})-differentially private, at best ({low:.3g}, {delta:g}), if "
                f"one example is replaced by one without a gradient: {mechanism}, on batches of "
                f"{self.batch:,} out of {self.examples:,} shuffled examples; the batches were drawn so"
            )
        pld, rdp = (rounded_up(self.epsilon(delta, accountant)) for accountant in ("pld", "rdp"))
        return (
            f"({pld}, {delta:g})-differentially private by PLD, ({rdp}, {delta:g}) by RDP, if one "
            f"example is added or removed: {mechanism}, on Poisson batches, each example with probability "
            f"{self.batch:,}/{self.examples:,}; the batches were drawn so"
        )


def budget(ledgers: Iterable[Ledger], delta: float, accountant: Accountant = "pld") -> float:
    """Epsilon of several trainings on the same examples, together.

    Raises:
        ValueError: delta is not between 0 and 1, or a training shuffled.
    """
    check_delta(delta)
    taken = [ledger for ledger in ledgers if ledger.steps]
    if any(not ledger.noise_multiplier for ledger in taken):
        return math.inf
    book = _accountant(accountant, min((ledger.noise_multiplier for ledger in taken), default=1.0))
    for ledger in taken:
        book.compose(ledger.event())
    return float(book.get_epsilon(delta)) if taken else 0.0


def epsilon(
    probability: float, noise_multiplier: float, steps: int, delta: float, accountant: Accountant = "pld"
) -> float:
    """Epsilon of so many steps on Poisson batches; probability 1 takes every example each time."""
    return _epsilon(probability, noise_multiplier, steps, delta, accountant)


@lru_cache(maxsize=256)
def _epsilon(
    probability: float,
    noise_multiplier: float,
    steps: int,
    delta: float,
    accountant: Accountant,
    coarse: float = 1.0,
) -> float:
    """The same, with losses rounded up to a grid that is so many times as coarse."""
    book = _accountant(accountant, noise_multiplier, coarse)
    book.compose(_event(probability, noise_multiplier, steps))
    return float(book.get_epsilon(delta))


@lru_cache(maxsize=64)
def noise_for(
    target_epsilon: float, probability: float, steps: int, delta: float, accountant: Accountant = "pld"
) -> float:
    """The least noise multiplier, to one part in a thousand, whose epsilon is at most the target.

    Raises:
        ValueError: the target is not a number above 0, or delta not between 0 and 1.
    """
    check_delta(delta)
    if not 0 < target_epsilon < math.inf:
        raise ValueError(f"target_epsilon must be a number above 0, not {target_epsilon}")
    if not epsilon(probability, MOST_NOISE, steps, delta, accountant) <= target_epsilon:
        raise ValueError(
            f"target_epsilon {target_epsilon:g} would take a noise multiplier above {MOST_NOISE:g}"
        )

    def enough(place: int, coarse: float = 1.0) -> bool:
        noise = on_the_way(LEAST_NOISE, MOST_NOISE, _HALVINGS, place)
        return _epsilon(probability, noise, steps, delta, accountant, coarse) <= target_epsilon

    last = 2**_HALVINGS
    near = bisect.bisect_left(range(1, last), True, key=lambda place: enough(place, 10.0)) + 1
    return on_the_way(LEAST_NOISE, MOST_NOISE, _HALVINGS, first_that_holds(enough, last, near))


def on_the_way(low: float, high: float, halvings: int, place: int) -> float:
    """The number at a place, from 1 to 2**halvings, between two others, evenly by ratio; the last is `high`.

    It is the one that bisection comes to, the same to the last bit.
    """
    for halving in reversed(range(halvings)):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if (place - 1) >> halving & 1 else (low, middle)
    return high


def first_that_holds(holds: Callable[[int], bool], last: int, near: int) -> int:
    """The first place, from 1 to `last`, from which on something holds; at `last` it is known to.

    Looks around `near` first, in growing steps: each look takes a second.
    """
    low, high, step = 0, last, 1
    while high - low > 1:
        place = min(max(near, low + 1), high - 1)
        if holds(place):
            high, near = place, place - step
        else:
            low, near = place, place + step
        step *= 2
        if low > 0 and high < last:
            near = (low + high) // 2
    return high


def rounded_up(number: float) -> str:
    """Three digits, rounded up: what is stated must not be less than what is true."""
    if not 0 < number < math.inf:
        return f"{number:g}"
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return f"{math.ceil(number / unit * (1 - 1e-12)) * unit:.3g}"


def check_noise(noise_multiplier: float) -> None:
    """Raise ValueError unless this is a noise that can be accounted for, or none."""
    if noise_multiplier and not LEAST_NOISE <= noise_multiplier <= 1e9:
        raise ValueError(
            f"noise_multiplier must be 0, or from {LEAST_NOISE:g} to 1e9, not {noise_multiplier:g}"
        )


def check_seed(seed: int | None) -> None:
    """Raise ValueError unless this is a seed, or none."""
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, or None, not {seed}")


def check_delta(delta: float) -> None:
    """Raise ValueError unless 0 < delta < 1."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, not {delta}")


def _event(probability: float, noise_multiplier: float, steps: int) -> dp_accounting.DpEvent:
    import dp_accounting

    event = dp_accounting.GaussianDpEvent(noise_multiplier)
    if probability < 1:
        event = dp_accounting.PoissonSampledDpEvent(probability, event)
    return dp_accounting.SelfComposedDpEvent(event, steps)


def _accountant(
    name: Accountant, noise_multiplier: float, coarse: float = 1.0
) -> dp_accounting.PrivacyAccountant:
    """An accountant for neighbours that differ by one example which is there or not.

    Little noise makes for large losses, which are rounded up to a coarser grid.
    """
    import dp_accounting
    from dp_accounting import pld, rdp

    neighbours = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    if name == "rdp":
        return rdp.RdpAccountant(neighboring_relation=neighbours)
    grid = 1e-4 * coarse * max(1.0, (0.4 / noise_multiplier) ** 2)
    return pld.PLDAccountant(neighbours, grid)


def _shuffled_epoch(noise_multiplier: float, batches: int, there: float, delta: float) -> float:
    """A lower bound of a shuffled epoch's epsilon (Chua et al. 2024, the event that some batch is above C).

    All examples but one have the gradient −C, and that one +C or none: the batch that it is in is 2C or 1C
    above the others. With the probability `there` it is in one of them. Over every threshold c:
    log((P(max > c) − delta) / Q(max > c)).
    """
    from scipy.special import log_ndtr

    c = np.linspace(-5.0, 40.0, 20_001) * max(noise_multiplier, 1.0)
    below = log_ndtr(c / noise_multiplier)
    above = [
        -there * np.expm1(log_ndtr((c - shift) / noise_multiplier) + (batches - 1) * below)
        - (1 - there) * np.expm1(batches * below)
        for shift in (2.0, 1.0)
    ]
    told = (above[0] > delta) & (above[1] > 0)
    return float(np.log((above[0][told] - delta) / above[1][told]).max(initial=0.0))


def chapters_epsilon(
    steps: int, probability: float = 250 / 60_000, noise: float = 1.1, delta: float = 1e-5
) -> float:
    """What the chapter's accountant of 2019 printed: the same Rényi divergences, an older conversion.

    It took epsilon = min over α of RDP(α) + log(1/delta) / (α − 1); today's conversion (Canonne, Kamath and
    Steinke, 2020, arXiv:2004.00010, proposition 12) is tighter. Integer orders are enough here.
    """
    from scipy.special import gammaln, logsumexp

    best = math.inf
    for order in range(2, 64):
        k = np.arange(order + 1)
        choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        terms = choose + (order - k) * math.log1p(-probability) + k * math.log(probability)
        divergence = logsumexp(terms + (k * k - k) / (2 * noise**2)) / (order - 1)
        best = min(best, steps * divergence + math.log(1 / delta) / (order - 1))
    return best

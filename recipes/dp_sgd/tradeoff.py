"""The trade-off between true and false positives that a training allows, and the noise that fits rates."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from recipes.dp_sgd.accounting import Ledger, first_that_holds, on_the_way

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution


_HALVINGS = 10
"""Of the ratio of 64 between the noises that are looked at, until it is half a percent."""


class Curve:
    """What a training of some noise allows, at all epsilons at once.

    (epsilon, delta(epsilon))-differential privacy for every epsilon: TPR ≤ e^ε FPR + δ(ε). The deltas are
    rounded up, so that no more is ruled out than there should be.
    """

    def __init__(self, noise_multiplier: float, probability: float, steps: int, coarse: float = 1.0) -> None:
        """With losses rounded up to a grid that is so many times as coarse as usual."""
        self.epsilons = np.linspace(-30.0, 30.0, 1201)
        loss = _loss(noise_multiplier, probability, steps, coarse=coarse)
        self.deltas = np.array(loss.get_delta_for_epsilon(self.epsilons))

    def most_true(self, false: float) -> float:
        """The highest true positive rate at a false positive rate."""
        return float(np.min(np.exp(self.epsilons) * false + self.deltas).clip(0, 1))

    def least_false(self, true: float) -> float:
        """The lowest false positive rate at a true positive rate."""
        return float(np.max(np.exp(-self.epsilons) * (true - self.deltas)).clip(0, 1))


@lru_cache(maxsize=256)
def _curve(noise_multiplier: float, probability: float, steps: int, coarse: float) -> Curve:
    """One that several attacks on the same training ask for is worked out once."""
    return Curve(noise_multiplier, probability, steps, coarse)


@lru_cache(maxsize=2)  # some have millions of numbers
def _loss(
    noise_multiplier: float,
    probability: float,
    steps: int,
    rounded_up: bool = True,
    coarse: float = 1.0,
) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution

    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        pessimistic_estimate=rounded_up,
        value_discretization_interval=1e-3 * coarse,
        sampling_prob=probability,
        use_connect_dots=rounded_up,  # which can only round up
    )
    return one.self_compose(steps)


def least_epsilon(ledger: Ledger, delta: float, contradicted: Callable[[Curve], bool]) -> float:
    """Epsilon, rounded down, of the stated training with the least noise that an attack's success rules out.

    Noise from an eighth of the stated to eight times as much is looked at, to half a percent.
    """
    probability = ledger.batch / ledger.examples
    bounds = ledger.noise_multiplier / 8, ledger.noise_multiplier * 8, _HALVINGS

    def ruled_out(place: int, coarse: float = 1.0) -> bool:
        return contradicted(_curve(on_the_way(*bounds, place), probability, ledger.steps, coarse))

    last = 2**_HALVINGS
    near = bisect.bisect_left(range(1, last), True, key=lambda place: ruled_out(place, 10.0)) + 1
    found = first_that_holds(ruled_out, last, near)
    if found == last and not ruled_out(last):
        return 0.0
    noise = on_the_way(*bounds, found)
    return float(_loss(noise, probability, ledger.steps, rounded_up=False).get_epsilon_for_delta(delta))


def drawn(ledger: Ledger) -> np.ndarray:
    """The stated trade-off: `[n, 2]`, a false positive rate and the highest true positive rate with it."""
    curve = _curve(ledger.noise_multiplier, ledger.batch / ledger.examples, ledger.steps, 1.0)
    false = np.linspace(0.0, 1.0, 201)
    return np.stack([false, [curve.most_true(at) for at in false]], axis=1)

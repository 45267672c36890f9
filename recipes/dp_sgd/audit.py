"""An attack on DP-SGD that bounds epsilon from below: how well can one tell whether an example was there?

The attacker sees every noisy gradient, knows all examples but one, the canary, and has chosen them all so
that the canary shows as much as it can: its gradient is longer than the clip, and its direction is known.

    many runs   train again and again, with the canary and without; how often a test is right about it
                bounds epsilon (Nasr et al., "Adversary instantiation", 2021, arXiv:2101.04535)
    one run     many canaries, each there or not by the toss of a coin, in one training; how many tosses are
                guessed bounds epsilon (Steinke, Nasr and Jagielski, 2023, arXiv:2305.08846)

Each gives two bounds. One holds whatever the mechanism is. The other holds the guesses against the whole
trade-off between false and true positives that is claimed, and finds the smallest noise with which they are
not too good to be true (Nasr et al., "Tight auditing", 2023, arXiv:2302.07956; for one run Mahloujifar, Melis
and Chaudhuri, 2024, arXiv:2410.22235): an epsilon of the same mechanism with less noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from recipes import progress
from recipes.dp_sgd import tradeoff
from recipes.dp_sgd.accounting import Ledger
from recipes.dp_sgd.gradients import Engine
from recipes.dp_sgd.training import Parts, Settings, Trainer
from recipes.training import one_thread

Scene = Literal["alone", "opposed"]
_LONG = 1000.0  # of an input: its gradient is clipped


@dataclass(frozen=True)
class Attack:
    """What is attacked: the recipe's own training, on examples of the attacker's making."""

    noise_multiplier: float = 1.1
    steps: int = 2
    examples: int = 8
    batch: int = 4
    engine: Engine = "fast"
    delta: float = 1e-5
    confidence: float = 0.95
    """Each bound holds with at least this probability, over the training's randomness."""
    seed: int = 0

    def ledger(self) -> Ledger:
        """What the training states."""
        return Ledger(self.noise_multiplier, self.batch, self.examples, "poisson", self.steps)

    def settings(self, seed: int) -> Settings:
        """The training's settings. Weights hardly move, so that the canary's gradient stays what it is."""
        return Settings(
            steps=self.steps,
            batch=self.batch,
            noise_multiplier=self.noise_multiplier,
            learning_rate=1e-9,
            engine=self.engine,
            seed=seed,
        )


@dataclass(frozen=True)
class Bound:
    """How well the attacker did, and what that says of epsilon."""

    stated: float
    """Epsilon as accounted for the steps that the training counts."""
    any_mechanism: float
    """Lower bound of epsilon, whatever the mechanism."""
    this_mechanism: float
    """Lower bound of epsilon if the mechanism is the stated one with an unknown noise, an eighth of the
    stated at the least."""
    trials: int
    """Trainings with and without the canary (many runs), or canaries (one run), behind the bounds."""
    right: tuple[float, float]
    """Many runs: true and false positive rate of the test behind `this_mechanism`. One run: the share of
    guesses that were right, and of canaries that were guessed."""
    points: np.ndarray
    """`[n, 2]`, false and true positive rates of the attacker's test at every threshold, as counted."""
    allowed: np.ndarray
    """`[n, 2]`, the highest true positive rate that is stated to be possible at a false positive rate."""

    @property
    def found_out(self) -> bool:
        """Whether the attacker does better than the stated mechanism allows.

        That holds at 95 %. Which epsilon is true instead, only `any_mechanism` bounds.
        """
        return self.this_mechanism > self.stated


# --- many runs ---------------------------------------------------------------------------------------


@one_thread()
def many_runs(attack: Attack, runs: int, parts: Parts = Parts()) -> Bound:  # noqa: B008 - it is frozen
    """Train `runs` times with the canary and `runs` times without, in each scene.

    The test is chosen on a quarter of the runs, among scenes, statistics and thresholds, and judged on the
    rest.
    """
    if runs < 20:
        raise ValueError(f"runs must be at least 20, not {runs}: a quarter of them chooses the test")
    with progress.bar(what="auditing", unit="training", total=4 * runs) as bar:
        tests = [
            (name, scores)
            for scene in ("alone", "opposed")
            for name, scores in _statistics(attack, *_worlds(attack, scene, runs, parts, bar.update))
        ]
    first = runs // 4
    goals = (partial(_any_mechanism, delta=attack.delta), _separation)
    chosen = [_choose(tests, first, 0.999, goal) for goal in goals]  # severe, as it looks at many
    rates = [_rates(with_[first:], without[first:], at, attack.confidence) for with_, without, at in chosen]
    ledger = attack.ledger()
    return Bound(
        stated=ledger.epsilon(attack.delta),
        any_mechanism=float(_any_mechanism(*rates[0], attack.delta)),
        this_mechanism=tradeoff.least_epsilon(
            ledger, attack.delta, lambda curve: float(rates[1][0]) > curve.most_true(float(rates[1][1]))
        ),
        trials=2 * (runs - first),
        right=(float(rates[1][0]), float(rates[1][1])),
        points=_points(chosen[1][0][first:], chosen[1][1][first:]),
        allowed=tradeoff.drawn(ledger),
    )


def _worlds(
    attack: Attack, scene: Scene, runs: int, parts: Parts, done: Callable[[], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """What the attacker sees with and without the canary: two `[runs, steps]`, in multiples of the clip."""
    seen: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for canary, run in itertools.product(seen, range(runs)):
        seen[canary].append(_see(attack, scene, canary, 2 * run + canary, parts))
        done()
    return np.stack(seen[True]), np.stack(seen[False])


def _see(attack: Attack, scene: Scene, canary: bool, run: int, parts: Parts) -> np.ndarray:
    """The noisy sums of one training along the canary's gradient, `[steps]`.

    The network is linear, without bias, so the gradient of an example is (p − y) xᵀ: along its own pixel,
    and nothing for a black image, which stands for an example that is not there.
    """
    inputs = torch.zeros(attack.examples, 2)
    labels = torch.zeros(attack.examples, dtype=torch.int64)
    inputs[1:, 0 if scene == "opposed" else 1] = _LONG
    labels[0] = 1  # the others have label 0: on the canary's pixel their gradients are its opposite
    inputs[0, 0] = _LONG if canary else 0.0
    trainer = Trainer(_flat(2), inputs, labels, attack.settings(_seed(attack, run)), parts=parts)
    return np.array([_along(step.noisy[0])[0] for step in trainer.remaining()])


def _seed(attack: Attack, run: int) -> int:
    return int(np.random.SeedSequence((attack.seed, run)).generate_state(1, np.uint64)[0]) >> 1


def _flat(pixels: int) -> nn.Linear:
    """A linear network of two classes whose weights are all 0."""
    network = nn.Linear(pixels, 2, bias=False)
    nn.init.zeros_(network.weight)
    return network


def _along(noisy: torch.Tensor) -> np.ndarray:
    """A noisy sum `[2, pixels]` along (1, −1)/√2, the way of a gradient of label 1: `[pixels]`."""
    return ((noisy[0] - noisy[1]) / math.sqrt(2)).double().numpy()


def _likelihood_ratio(seen: np.ndarray, attack: Attack) -> np.ndarray:
    """Log-likelihood ratio of "there" to "not there" for honest training, `[..., steps]` -> `[...]`."""
    q = attack.batch / attack.examples
    exponents = (2 * seen - 1) / (2 * attack.noise_multiplier**2)
    there = np.logaddexp(np.log1p(-q), math.log(q) + exponents) if q < 1 else exponents
    return there.sum(axis=-1)


def _statistics(attack: Attack, with_: np.ndarray, without: np.ndarray) -> Iterator[tuple[str, tuple]]:
    """What an attacker may look at, by name: scores `[runs]` with the canary and without."""

    q, noise = attack.batch / attack.examples, attack.noise_multiplier

    def fixed_size(seen: np.ndarray) -> np.ndarray:
        """Log-likelihood ratio if every batch has its size: the others always sum to as much."""
        shifts = seen + attack.batch
        there, gone = (
            np.logaddexp(np.log1p(-q), math.log(q) + (2 * m * shifts - m * m) / (2 * noise**2))
            for m in (2, 1)
        )
        return (there - gone).sum(axis=1)

    def nearest(seen: np.ndarray) -> np.ndarray:
        """How close two steps come: steps with the same noise differ by the canary alone."""
        one, other = np.triu_indices(seen.shape[1], 1)
        return np.abs(seen[:, one] - seen[:, other]).min(axis=1)

    for name, score in (
        ("likelihood ratio", lambda seen: _likelihood_ratio(seen, attack)),
        ("sum", lambda seen: seen.sum(axis=1)),
        ("largest", lambda seen: seen.max(axis=1)),
        *([("nearest pair of steps", nearest)] if with_.shape[1] > 1 else []),
        *([("likelihood ratio, fixed size", fixed_size)] if q < 1 else []),
    ):
        yield name, (score(with_), score(without))
        yield f"{name}, reversed", (-score(without), -score(with_))


def _choose(tests: list, first: int, confidence: float, goal) -> tuple[np.ndarray, np.ndarray, float]:
    """The statistic and threshold that do best on the first runs."""
    best, chosen = -math.inf, None
    for _, (with_, without) in tests:
        pooled = np.sort(np.concatenate([with_[:first], without[:first]]))
        thresholds = np.unique(pooled[np.linspace(0, len(pooled) - 1, 200).astype(int)])
        worth = goal(*_rates(with_[:first], without[:first], thresholds, confidence))
        if worth.max() > best:
            best, chosen = worth.max(), (with_, without, thresholds[worth.argmax()])
    return chosen


def _rates(
    with_: np.ndarray, without: np.ndarray, thresholds: float | np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """True and false positive rates of "above the threshold": the first from below, the second from above.

    Clopper and Pearson, each with half of the error. Both have the thresholds' shape.
    """
    from scipy.stats import beta

    error = (1 - confidence) / 2
    hits, alarms = (
        np.sum(scores > np.asarray(thresholds)[..., None], axis=-1) for scores in (with_, without)
    )
    with np.errstate(invalid="ignore"):  # of no hits, or of alarms alone
        low = np.where(hits > 0, beta.ppf(error, hits, len(with_) - hits + 1), 0.0)
        high = np.where(alarms < len(without), beta.ppf(1 - error, alarms + 1, len(without) - alarms), 1.0)
    return low, high


def _any_mechanism(true: np.ndarray, false: np.ndarray, delta: float) -> np.ndarray:
    """The epsilon that (epsilon, delta)-differential privacy needs for such rates: TPR ≤ e^ε FPR + δ."""
    return np.log(np.maximum(true - delta, false) / false)


def _separation(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """How far apart two normal distributions with such rates are."""
    from scipy.special import ndtri

    return ndtri(true) - ndtri(false)


# --- one run -----------------------------------------------------------------------------------------

_SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of canaries that are guessed; each has its part of the error


def one_run(attack: Attack, canaries: int, parts: Parts | None = None) -> Bound:
    """Train once on canaries, each with a pixel of its own and there by the toss of a coin; guess the tosses.

    The attacker guesses those with the highest and the lowest likelihood ratios, and abstains from the rest.
    """
    if canaries < 100:
        raise ValueError(f"canaries must be at least 100, not {canaries}")
    attack = replace(attack, batch=canaries * attack.batch // attack.examples, examples=canaries)
    tosses = np.random.default_rng(_seed(attack, 1)).random(canaries) < 0.5
    inputs = torch.zeros(canaries, canaries)
    inputs[range(canaries), range(canaries)] = torch.from_numpy(np.where(tosses, _LONG, 0.0)).float()
    labels = torch.ones(canaries, dtype=torch.int64)
    trainer = Trainer(
        _flat(canaries), inputs, labels, attack.settings(_seed(attack, 0)), parts=parts or Parts()
    )
    seen = np.stack([_along(step.noisy[0]) for step in trainer.remaining()], axis=1)  # [canaries, steps]
    scores = _likelihood_ratio(seen, attack)
    order = np.argsort(-scores)
    guesses = [(share, _right(tosses[order], max(2, int(share * canaries)))) for share in _SHARES]
    error = (1 - attack.confidence) / len(_SHARES)
    counts = [(right, guessed) for _, (right, guessed) in guesses]
    ledger = replace(attack.ledger(), steps=trainer.ledger.steps)
    best = max(counts, key=lambda count: one_run_bound(*count, canaries, error, attack.delta))
    return Bound(
        stated=ledger.epsilon(attack.delta),
        any_mechanism=one_run_bound(*best, canaries, error, attack.delta),
        this_mechanism=tradeoff.least_epsilon(
            ledger,
            attack.delta,
            lambda curve: any(_too_many_right(*count, canaries, error, curve) for count in counts),
        ),
        trials=canaries,
        right=(best[0] / best[1], best[1] / canaries),
        points=_points(scores[tosses], scores[~tosses]),
        allowed=tradeoff.drawn(ledger),
    )


def _right(there: np.ndarray, guessed: int) -> tuple[int, int]:
    """How many guesses are right, of how many: the first are said to be there, the last not to be."""
    each = guessed // 2
    return int(there[:each].sum() + (~there[-each:]).sum()), 2 * each


def one_run_bound(right: int, guessed: int, canaries: int, error: float, delta: float) -> float:
    """The epsilon up to which so many right guesses have a chance below `error` (Steinke et al. 2023)."""
    low, high = 0.0, 30.0
    if _chance(right, guessed, canaries, low, delta) >= error:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if _chance(right, guessed, canaries, middle, delta) < error:
            low = middle
        else:
            high = middle
    return low


def _chance(right: int, guessed: int, canaries: int, epsilon: float, delta: float) -> float:
    """An upper bound of the chance of so many right guesses about an (epsilon, delta)-private mechanism."""
    from scipy.stats import binom

    coin = binom(guessed, 1 / (1 + math.exp(-epsilon)))
    i = np.arange(1, right + 1)
    below = np.cumsum(coin.pmf(right - i)) / i  # P(right > coin ≥ right − i) / i
    return min(1.0, float(coin.sf(right - 1) + 2 * canaries * delta * below.max(initial=0.0)))


def _too_many_right(right: int, guessed: int, canaries: int, error: float, curve: tradeoff.Curve) -> bool:
    """Whether so many right guesses have a chance below `error` if the mechanism keeps to the curve.

    Mahloujifar et al., algorithm 3: if the chance were `error` or more, right and wrong guesses together
    would have to be more than there are.
    """
    of_right, of_wrong = error * right / canaries, error * (guessed - right) / canaries
    for i in range(right - 1, -1, -1):
        wrong = max(of_wrong, curve.least_false(of_right))
        of_right += i / (guessed - i) * (wrong - of_wrong)
        of_wrong = wrong
    return of_right + of_wrong > guessed / canaries


def _points(with_: np.ndarray, without: np.ndarray) -> np.ndarray:
    """False and true positive rates at every threshold: `[n, 2]`, from (0, 0) to (1, 1)."""
    pooled = np.sort(np.concatenate([with_, without]))[::-1]
    thresholds = [*pooled[:: max(1, len(pooled) // 400)], -math.inf]
    return np.array([(np.mean(without > at), np.mean(with_ > at)) for at in thresholds])

"""What to train, how privately, and how hard to attack it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recipes import data
from recipes.dp_sgd import accounting

if TYPE_CHECKING:
    from recipes.dp_sgd.training import Settings

_log = logging.getLogger("recipes.dp_sgd")


@dataclass(frozen=True)
class Config:
    """What to train, how privately, and how hard to attack it."""

    data: data.Source = "auto"
    """Where images come from: the real data set, stand-ins drawn here, or whichever can be had."""
    dataset: Literal["mnist", "fashion-mnist"] = "mnist"
    """All its training images count as private."""
    network: Literal["chapter", "scattering"] = "chapter"
    """The chapter's convolutional network, or a linear classifier on scattering features."""
    engine: Literal["fast", "vmap", "tf-privacy"] = "fast"
    """Per-example gradients from activations, by torch.func, or the chapter's own TensorFlow Privacy."""
    sampling: Literal["poisson", "shuffle"] | None = None
    """How batches are drawn. None: by Poisson sampling, but tf-privacy shuffles."""
    epochs: float | None = None
    """Passes over the data: epochs · N / batch steps. None: 1 (chapter), 27.3 (scattering: 200 steps)."""
    steps: int | None = None
    """Steps, instead of epochs."""
    batch: int | None = None
    """Expected examples a step. None: 250 (chapter), 8,192 (scattering)."""
    clip: float | None = None
    """The longest gradient of an example, L2. None: 1.0 (chapter), 0.1 (scattering)."""
    noise_multiplier: float | None = None
    """Standard deviation of the noise, as a multiple of the clip. None: 1.1 (chapter), or the least that
    keeps to the target epsilon."""
    target_epsilon: float | None = None
    """Take the least noise with which epsilon, by PLD, is at most this. None: 1 for scattering."""
    learning_rate: float | None = None
    """None: 0.15 (chapter), or what `scattering.settings` has (scattering)."""
    microbatches: int | None = None
    """Groups of a batch whose mean gradient is clipped; tf-privacy only. None: one example each."""
    delta: float = 1e-5
    """The delta of (epsilon, delta)-differential privacy; below 1 / N."""
    seed: int | None = 0
    """Of weights, batches and noise. Who knows it can take the noise away: None draws it in secret."""
    audit_runs: int = 1000
    """Trainings with a canary, and as many without, in each of two scenes, for the audit; 0 leaves it out."""
    faults: bool = False
    """Plant five faults, one at a time, and audit each with 1,000 trainings or more."""
    lesson: bool = False
    """Train at five noises, too, and with and without an outlier."""
    checkpoint: Path | None = None
    """Write training's whole state here every 20 steps, and take it up from here."""
    train: bool = False
    """Train the four classifiers that come with the recipe anew, and write them to models/."""

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch", "clip", "learning_rate", "target_epsilon", "microbatches"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, not {value}")
        accounting.check_delta(self.delta)
        accounting.check_seed(self.seed)
        noise = self.noise_multiplier
        if noise is not None:
            accounting.check_noise(noise)
        if noise is not None and self.target_epsilon is not None:
            raise ValueError(
                f"noise_multiplier {noise:g} and target_epsilon {self.target_epsilon:g} both set the noise: "
                f"give one{'' if noise else '; without noise epsilon is infinite'}"
            )
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs both set the length: give one")
        if self.audit_runs and self.audit_runs < 20:
            raise ValueError(f"audit_runs must be at least 20, or 0 for no audit, not {self.audit_runs}")
        if self.train and self.data == "embedded":
            raise ValueError("train needs the real data: the classifiers that are shipped are of real images")
        self._check_engine()

    def _check_engine(self) -> None:
        batch = self.batch or 250
        if self.engine != "tf-privacy":
            if self.microbatches not in (None, batch):
                raise ValueError(
                    f"microbatches {self.microbatches} of a batch of {batch}: a group of examples needs "
                    "twice the noise of one; only engine=tf-privacy offers it, as the chapter does"
                )
            return
        if self.sampling == "poisson":
            raise ValueError("engine=tf-privacy shuffles, as Keras does: leave sampling out, or say shuffle")
        if self.network != "chapter" or self.checkpoint or self.lesson or self.faults or self.train:
            raise ValueError(
                "engine=tf-privacy trains the chapter's network only, "
                "without checkpoint, lesson, faults or train"
            )
        if batch % (self.microbatches or batch):
            raise ValueError(
                f"microbatches {self.microbatches} do not divide the batch of {batch}: "
                "all groups must be of one size"
            )
        if self.target_epsilon is not None:
            raise ValueError(
                "target_epsilon needs Poisson batches, and engine=tf-privacy shuffles: set the noise"
            )


def warn_of_large_delta(delta: float, examples: int) -> None:
    """Warn if delta is so large that publishing one whole example at random would meet it."""
    if delta >= 1 / examples:
        _log.warning(
            "delta %g is not below 1/N = %.2g: to publish each example in the clear with probability delta "
            "would be called private",
            delta,
            1 / examples,
        )


def settings(config: Config, examples: int) -> Settings:
    """How to train on so many examples: the config, and the network's own settings where it says nothing.

    Raises:
        ValueError: the config asks for what so many examples cannot give.
    """
    from recipes.dp_sgd import scattering
    from recipes.dp_sgd.training import Settings

    if config.network == "chapter":
        base = Settings(steps=1, batch=min(250, examples))
    else:
        base = scattering.settings(config.dataset, config.target_epsilon or 1.0)
        base = replace(base, batch=min(base.batch, examples))
    batch = config.batch or base.batch
    if batch > examples:
        raise ValueError(f"batch must be at most {examples}, which is all there is, not {batch}")
    if config.epochs or (config.network == "chapter" and not config.steps):
        steps = max(1, int((config.epochs or 1) * examples / batch))
    else:
        steps = config.steps or base.steps
    sampling = config.sampling or ("shuffle" if config.engine == "tf-privacy" else "poisson")
    return replace(
        base,
        steps=steps,
        batch=batch,
        clip=config.clip or base.clip,
        noise_multiplier=_noise(config, sampling, batch / examples, steps),
        learning_rate=config.learning_rate or base.learning_rate,
        sampling=sampling,
        engine="fast" if config.engine == "tf-privacy" else config.engine,
        seed=config.seed,
    )


def _noise(config: Config, sampling: str, probability: float, steps: int) -> float:
    if config.noise_multiplier is not None:
        return config.noise_multiplier
    if config.target_epsilon is None and config.network == "chapter":
        return 1.1
    if sampling != "poisson":
        raise ValueError("target_epsilon needs Poisson batches: of shuffled ones only bounds are known")
    return accounting.noise_for(config.target_epsilon or 1.0, probability, steps, config.delta)

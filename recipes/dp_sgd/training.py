"""DP-SGD: draw a batch, clip each gradient, add them up, add noise, divide, step.

    g̃_t = (Σ_i clip(∇L(θ_t, x_i), C) + N(0, σ²C² I)) / B        (Abadi et al. 2016, algorithm 1)

with batches drawn by Poisson sampling, B their expected size, C the clip and σ the noise multiplier.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from recipes import progress
from recipes.dp_sgd.accounting import Ledger, check_noise, check_seed
from recipes.dp_sgd.gradients import ClippedSum, Engine, check_network, clipped_sum, cross_entropy, trainable
from recipes.dp_sgd.sampling import Sampler, Sampling
from recipes.files import written_whole


@dataclass(frozen=True)
class Settings:
    """How to train."""

    steps: int
    batch: int = 250
    """B: the expected number of examples a step."""
    clip: float = 1.0
    """C: the longest gradient of an example, L2 over all parameters."""
    noise_multiplier: float = 1.1
    """σ: the noise's standard deviation in each coordinate of the sum, as a multiple of the clip."""
    learning_rate: float = 0.15
    momentum: float = 0.0
    """How much of the last step's velocity is kept."""
    averaged: float = 0.0
    """The last share of the steps whose weights are averaged into the result; 0 takes the last weights."""
    sampling: Sampling = "poisson"
    engine: Engine = "fast"
    seed: int | None = None
    """Of batches and noise; None asks the operating system. Who knows it can take the noise away again."""
    chunk: int | None = None
    """Examples whose gradients are worked out at a time."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("clip", "learning_rate"):
            if not 1e-12 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number, at least 1e-12, not {getattr(self, name)}")
        check_noise(self.noise_multiplier)
        check_seed(self.seed)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1, not {self.momentum}")
        if not 0 <= self.averaged <= 1:
            raise ValueError(f"averaged must be from 0 to 1, not {self.averaged}")


def gaussian(like: Sequence[Tensor], deviation: float, generator: torch.Generator) -> list[Tensor]:
    """Independent normal noise for every coordinate, in the shapes of some tensors.

    Drawn in float64: in float32 no number is further than 5.8 deviations from 0.
    """
    drawn = (torch.normal(0.0, deviation, t.shape, generator=generator, dtype=torch.float64) for t in like)
    return [noise.to(tensor.dtype) for noise, tensor in zip(drawn, like, strict=True)]


def generators(seed: int | None) -> tuple[torch.Generator, torch.Generator]:
    """Two streams that say nothing of each other: of noise, and of batches.

    `manual_seed` would use 32 bits of the seed, which can be guessed one after the other; here the whole
    state is filled. Without a seed 256 bits come from the operating system.
    """
    entropy = secrets.randbits(256) if seed is None else seed
    streams = []
    for sequence in np.random.SeedSequence(entropy, pool_size=8).spawn(2):
        generator = torch.Generator().manual_seed(0)
        state = generator.get_state()
        words = torch.from_numpy(sequence.generate_state(624).astype(np.int64))
        state[24 : 24 + 8 * 624] = words.view(torch.uint8)  # after a header of three numbers
        streams.append(generator.set_state(state))
    return streams[0], streams[1]


Noise = Callable[[Sequence[Tensor], float, torch.Generator], list[Tensor]]
"""(tensors whose shapes to take, standard deviation, generator) -> noise."""


@dataclass(frozen=True)
class Parts:
    """What DP-SGD is put together from; `faults` swaps a part for a broken one."""

    sampler: Callable[[int, int, Sampling, torch.Generator], Sampler] = Sampler
    clipped_sum: Callable[..., ClippedSum] = clipped_sum
    noise: Noise = gaussian
    unaccounted_steps: int = 0


@dataclass(frozen=True)
class Step:
    """What happened in a step. Only `noisy` may be released; the rest is for who may see everything."""

    noisy: list[Tensor]
    """The noisy sum, before it is divided by B: what the weights are moved by."""
    examples: Tensor
    """`[B]` int64, which were in the batch."""
    clipped: ClippedSum


class Trainer:
    """Training that can be stopped and taken up again, and counts each release of a noisy gradient.

    Args:
        network: trained in place.
        inputs, labels: `[N, ...]` and `[N]`; all of them are to be hidden.
        settings: how.
        parts: what it is put together from.
        observe: called with each `Step`.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        settings: Settings,
        *,
        parts: Parts = Parts(),
        observe: Callable[[Step], None] | None = None,
    ) -> None:
        if len(inputs) != len(labels):
            raise ValueError(f"{len(inputs)} inputs and {len(labels)} labels: each input needs one")
        self.network, self.inputs, self.labels, self.settings = network, inputs, labels, settings
        self.parts, self.observe = parts, observe
        self.ledger = Ledger(settings.noise_multiplier, settings.batch, len(inputs), settings.sampling)
        self.noise, self.draws = generators(settings.seed)
        self.sampler = parts.sampler(len(inputs), settings.batch, settings.sampling, self.draws)
        self.parameters = trainable(network)
        self.velocity = [torch.zeros_like(p) for p in self.parameters]
        self.total = [torch.zeros_like(p) for p in self.parameters]
        self.added = 0
        """Weights that are in the total."""

    def step(self) -> Step:
        """Take one step, and count it."""
        settings = self.settings
        examples = next(self.sampler)
        clipped = self.parts.clipped_sum(
            self.network,
            self.inputs[examples],
            self.labels[examples],
            settings.clip,
            engine=settings.engine,
            chunk=settings.chunk,
        )
        noise = self.parts.noise(clipped.gradients, settings.noise_multiplier * settings.clip, self.noise)
        step = Step([g + n for g, n in zip(clipped.gradients, noise, strict=True)], examples, clipped)
        self.ledger.steps += 1
        with torch.no_grad():
            for p, velocity, noisy in zip(self.parameters, self.velocity, step.noisy, strict=True):
                velocity.mul_(settings.momentum).add_(noisy, alpha=1 / settings.batch)
                p.sub_(velocity, alpha=settings.learning_rate)
            if self.ledger.steps > settings.steps - self._averaged_steps():
                self.added += 1
                for total, p in zip(self.total, self.parameters, strict=True):
                    total.add_(p)
        if self.observe:
            self.observe(step)
        return step

    def remaining(self) -> Iterator[Step]:
        """Take the steps that are left, one at a time."""
        while self.ledger.steps < self.settings.steps:
            yield self.step()
        for _ in range(self.parts.unaccounted_steps):
            yield self.step()
            self.ledger.steps -= 1

    def run(self, checkpoint: Path | None = None, every: int = 20) -> Ledger:
        """Train to the end, and put the averaged weights in place.

        Args:
            checkpoint: a file that is written every so many steps, for `take_up`.
            every: steps between two writings.

        Raises:
            ValueError: training diverged, or the network is none for DP-SGD (`check_network`).
        """
        if self.ledger.steps < self.settings.steps:
            check_network(self.network, self.inputs, self.labels, self.settings.engine)
        with progress.bar(what="DP-SGD", total=self.settings.steps, initial=self.ledger.steps) as bar:
            for _ in self.remaining():
                bar.update()
                if checkpoint and (
                    self.ledger.steps % every == 0 or self.ledger.steps == self.settings.steps
                ):
                    self._write(checkpoint)
        if self.added:
            with torch.no_grad():
                for p, total in zip(self.parameters, self.total, strict=True):
                    p.copy_(total / self.added)
        return self.ledger

    def _averaged_steps(self) -> int:
        return math.ceil(self.settings.averaged * self.settings.steps)

    # --- checkpoints: all that the next step depends on; as secret as the noise ---

    def _state(self) -> dict[str, Tensor]:
        named = {
            **{f"weight.{i}": p.detach() for i, p in enumerate(self.parameters)},
            **{f"velocity.{i}": v for i, v in enumerate(self.velocity)},
            **{f"total.{i}": t for i, t in enumerate(self.total)},
            "noise": self.noise.get_state(),
            "draws": self.draws.get_state(),
            "everything else": torch.get_rng_state(),  # dropout knows no other
            "waiting": self.sampler.waiting,
            "counts": torch.tensor([self.ledger.steps, self.added]),
        }
        return {name: tensor.contiguous() for name, tensor in named.items()}

    def _fingerprint(self) -> str:
        """Of all that must be the same for a checkpoint to fit: settings, data, and what is not trained."""
        trained = {id(p) for p in self.parameters}
        fixed = [p.detach() for p in self.network.parameters() if id(p) not in trained]
        named = [(name, p.requires_grad) for name, p in self.network.named_parameters()]
        header = repr((self.settings, self.network, named)).encode()
        return _digest(header, [self.inputs, self.labels, *fixed, *self.network.buffers()])

    def _write(self, checkpoint: Path) -> None:
        state = self._state()
        about = {"training": self._fingerprint(), "content": _digest(b"", state.values())}
        with written_whole(checkpoint) as temporary:
            save_file(state, temporary, about)
        checkpoint.chmod(0o600)

    def take_up(self, checkpoint: Path | None) -> int:
        """Go on from a checkpoint, if it is there; how many steps it had.

        Raises:
            ValueError: it is no checkpoint, or one of another training.
        """
        if checkpoint is None or not checkpoint.exists():
            return 0
        try:
            with safe_open(checkpoint, "pt") as file:
                about = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in self._state()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{checkpoint} is no checkpoint: remove it, or name another file") from error
        if about.get("training") != self._fingerprint():
            raise ValueError(
                f"{checkpoint} is of another training (settings, data or network differ): "
                "remove it, or name another"
            )
        if about.get("content") != _digest(b"", state.values()):
            raise ValueError(f"{checkpoint} is damaged: remove it")
        with torch.no_grad():
            for name, into in (
                ("weight", self.parameters),
                ("velocity", self.velocity),
                ("total", self.total),
            ):
                for i, tensor in enumerate(into):
                    tensor.copy_(state[f"{name}.{i}"])
        self.noise.set_state(state["noise"])
        self.draws.set_state(state["draws"])
        torch.set_rng_state(state["everything else"])
        self.sampler.waiting = state["waiting"]
        self.ledger.steps, self.added = state["counts"].tolist()
        return self.ledger.steps


def _digest(header: bytes, tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(header)
    for tensor in tensors:
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def train_plainly(network: nn.Module, inputs: Tensor, labels: Tensor, settings: Settings) -> None:
    """The same training without privacy, in place: SGD on the same batches, nothing clipped, no noise."""
    trainer = Trainer(network, inputs, labels, settings)
    optimiser = torch.optim.SGD(trainer.parameters, settings.learning_rate, settings.momentum)
    steps = range(settings.steps)
    for _ in progress.bar(steps, "plain SGD"):
        batch = next(trainer.sampler)
        optimiser.zero_grad()
        if len(batch):
            cross_entropy(network(inputs[batch]), labels[batch]).sum().div(settings.batch).backward()
            optimiser.step()

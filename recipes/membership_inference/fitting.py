"""How targets and references are trained: to know their images by heart, regularised, or with DP-SGD."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recipes import training
from recipes.membership_inference.config import Training


@dataclass(frozen=True)
class Fit:
    """What came of a training; the network itself was trained in place."""

    epochs: int
    """Taken."""
    epsilon: float | None
    """Stated, rounded up; None without DP-SGD."""
    statement: str | None
    """What may be said of it: delta, neighbours, accountant, sampling; None without DP-SGD."""
    cpu_seconds: float


Examples = tuple[np.ndarray, np.ndarray]
"""Inputs `[N, ...]` float32, labels `[N]` integers."""


def fit(
    network: nn.Module, examples: Examples, how: Training, seed: int, kept: Examples | None = None
) -> Fit:
    """Train a network in place, and leave it in evaluation mode.

    Args:
        network: inputs -> logits.
        examples: what to train on.
        how: epochs, rates, regularisation.
        seed: of the order of the examples, of augmentation, and of DP-SGD's batches and noise.
        kept: examples that early stopping looks at.

    Raises:
        ValueError: early stopping has nothing to look at, or the network is none for DP-SGD.
    """
    begin = time.process_time()
    if how.epsilon is not None:
        epsilon, statement = _privately(network, examples, how, seed)
        return Fit(how.epochs, epsilon, statement, time.process_time() - begin)
    stop = EarlyStopping(network, kept, how.patience)

    def mirrored_at_first(images: Tensor) -> Tensor:
        return mirrored(images) if stop.epochs < how.mirrored_epochs else images

    training.train(
        network,
        *examples,
        epochs=how.epochs,
        batch_size=how.batch,
        learning_rate=how.learning_rate,
        weight_decay=how.weight_decay,
        optimiser=how.optimiser,
        augment=moved_and_mirrored if how.augment else mirrored_at_first,
        finished=stop,
        seed=seed,
    )
    stop.put_back()
    return Fit(stop.epochs, None, None, time.process_time() - begin)


def moved_and_mirrored(images: Tensor) -> Tensor:
    """Each image moved by up to four pixels and mirrored by the toss of a coin, by torchvision: `[B, C,
    H, W]`."""
    from torchvision.transforms import v2

    change = v2.Compose([v2.RandomCrop(images.shape[2:], padding=4), v2.RandomHorizontalFlip()])
    return torch.stack([change(image) for image in images])


def mirrored(images: Tensor) -> Tensor:
    """Each image mirrored by the toss of a coin, by torchvision: `[B, C, H, W]`."""
    from torchvision.transforms import v2

    change = v2.RandomHorizontalFlip()
    return torch.stack([change(image) for image in images])


class EarlyStopping:
    """Asked after each epoch whether to go on; remembers the best weights."""

    def __init__(self, network: nn.Module, kept: Examples | None, patience: int) -> None:
        if patience and kept is None:
            raise ValueError("early stopping (patience) needs examples that are kept for it")
        self.network, self.kept, self.patience = network, kept, patience
        self.epochs = self.best_epoch = 0
        self.best = -1.0
        self.weights: dict[str, Tensor] = {}

    def __call__(self) -> bool:
        self.epochs += 1
        if not self.patience:
            return False
        accuracy = training.accuracy(self.network, *self.kept)
        if accuracy > self.best:
            self.best, self.best_epoch = accuracy, self.epochs
            self.weights = {name: value.clone() for name, value in self.network.state_dict().items()}
        return self.epochs - self.best_epoch >= self.patience

    def put_back(self) -> None:
        """Take the best weights, if any were looked for."""
        if self.weights:
            self.network.load_state_dict(self.weights)


def _privately(network: nn.Module, examples: Examples, how: Training, seed: int) -> tuple[float, str]:
    """Train with recipe 5's DP-SGD; gives the epsilon that it states, and what may be said of it."""
    from recipes.dp_sgd import Settings, Trainer, noise_for
    from recipes.dp_sgd.accounting import rounded_up

    inputs, labels = torch.from_numpy(examples[0]), torch.from_numpy(examples[1].astype(np.int64))
    batch = min(how.batch, len(labels))
    steps = max(1, how.epochs * len(labels) // batch)
    settings = Settings(
        steps=steps,
        batch=batch,
        clip=how.clip,
        noise_multiplier=noise_for(how.epsilon, batch / len(labels), steps, how.delta),
        learning_rate=how.learning_rate,
        momentum=0.9,
        seed=seed,
    )
    network.train()
    ledger = Trainer(network, inputs, labels, settings).run()
    network.eval()
    return float(rounded_up(ledger.epsilon(how.delta))), ledger.statement(how.delta)

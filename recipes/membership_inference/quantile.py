"""Quantile regression: how confident would the target be of this image, had it not been trained on it?

Bertran et al., "Scalable membership inference attacks via quantile regression", 2023, arXiv:2307.03694: a
network is trained on non-members to predict the distribution of the target's confidence from the record
alone. No reference of the target's kind is needed, and the attacker need not know how the target was
trained.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes import progress, training


class Predictor(nn.Module):
    """Inputs `[B, ...]` and labels `[B]` -> mean and log of the standard deviation of phi, each `[B]`."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(shape) == 3:
            self.features = nn.Sequential(
                *(nn.Conv2d(shape[0], 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
                *(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
                *(nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU()),
                *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, 128)),
            )
        else:
            self.features = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 128))
        self.of_class = nn.Embedding(classes, 128)
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 2))
        nn.init.zeros_(self.head[2].weight)

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(inputs)
        mean, log_deviation = self.head(features * (1 + self.of_class(labels))).T
        return mean, log_deviation.clamp(-4, 4)


def scores(
    learned_from: tuple[np.ndarray, np.ndarray, np.ndarray],
    judged: tuple[np.ndarray, np.ndarray, np.ndarray],
    epochs: int = 15,
    seed: int = 0,
) -> np.ndarray:
    """How many standard deviations a record's phi is above what is expected of a non-member: `[N]` float32.

    Args:
        learned_from: phi `[P]`, inputs `[P, ...]` float32 and labels `[P]` of non-members that the
            attacker knows.
        judged: phi `[N]`, inputs and labels of the records.
        epochs: over what is learned from.
        seed: of weights and order.
    """
    phi, x, y = (torch.from_numpy(np.asarray(part)) for part in learned_from)
    centre, unit = phi.mean(), phi.std() + 1e-6
    classes = 1 + max(int(labels.max()) for _, _, labels in (learned_from, judged))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Predictor(tuple(x.shape[1:]), classes)
        optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
        steps = epochs * max(1, -(-(len(x) - 1) // 128))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in progress.bar(range(epochs), "quantile regression", unit="epoch"):
            for batch in training.batches(torch.randperm(len(x)), 128):
                mean, log_deviation = network(x[batch], y[batch].long())
                optimiser.zero_grad()
                expected = (phi[batch] - centre) / unit
                functional.gaussian_nll_loss(mean, expected, (2 * log_deviation).exp()).backward()
                optimiser.step()
                schedule.step()
    network.eval()
    found = []
    with torch.no_grad():
        for seen, inputs, labels in zip(*(torch.from_numpy(part).split(500) for part in judged), strict=True):
            mean, log_deviation = network(inputs, labels.long())
            found.append(((seen - centre) / unit - mean) / log_deviation.exp())
    return torch.cat(found).numpy()

"""The networks that are attacked: `[N, 1, 28, 28]` images in [0, 1] -> logits `[N, 10]`."""

from __future__ import annotations

from torch import nn


def linear() -> nn.Sequential:
    """The network of the attack from scratch: linear but for its max pooling, 10,210 parameters."""
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1014, 10))


def chapter() -> nn.Sequential:
    """The chapter's CNN, as it prints it: four convolutions, batch norm and ELU, 249,228 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.BatchNorm2d(20), nn.ELU()),
        *(nn.Conv2d(20, 70, 4, stride=2), nn.BatchNorm2d(70), nn.ELU()),
        *(nn.Conv2d(70, 256, 3, stride=2), nn.BatchNorm2d(256), nn.ELU()),
        *(nn.Conv2d(256, 10, 5), nn.Flatten()),
    )


def article() -> nn.Sequential:
    """The Huawei article's CNN, Keras' channels last made PyTorch's: 121,930 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1600, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def small(channels: int = 16, hidden: int = 100) -> nn.Sequential:
    """The CNN of Wong et al., 2020, with any width: two strided convolutions and two dense layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, channels, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2 * channels * 49, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
    )


def normed(channels: int = 32, hidden: int = 256) -> nn.Sequential:
    """The same with batch norm before each ReLU, which keeps bounds from growing or vanishing on the way."""
    return nn.Sequential(
        *(nn.Conv2d(1, channels, 4, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU()),
        *(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), nn.BatchNorm2d(2 * channels), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2 * channels * 49, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
        nn.Linear(hidden, 10),
    )

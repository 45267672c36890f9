"""The network of the article."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn


def alexnet(
    classes: int = 100, normalisation: Literal["batch", "group"] = "batch", seed: int = 0
) -> nn.Sequential:
    """AlexNet for images of 32 x 32 pixels, `[B, 3, 32, 32]` in [0, 1] -> logits; 2.5 million parameters.

    As Nasr et al. trained it on CIFAR-100, but for its first two kernels (5 x 5 in steps of two pixels each,
    not 11 x 11 in steps of four and 5 x 5 in steps of one), which see finer detail and cost a third more, and
    for normalisation, so that few epochs are enough.

    Args:
        classes: how many.
        normalisation: of batches; or of groups, without parameters, as DP-SGD needs it.
        seed: of the initial weights; the global generator is left alone.
    """

    def convolution(inside: int, outside: int, kernel: int, stride: int = 1) -> tuple[nn.Module, ...]:
        normal = (
            nn.BatchNorm2d(outside) if normalisation == "batch" else nn.GroupNorm(16, outside, affine=False)
        )
        return nn.Conv2d(inside, outside, kernel, stride, kernel // 2), normal, nn.ReLU()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            Standardise(),
            *convolution(3, 64, 5, stride=2),
            nn.MaxPool2d(2),
            *convolution(64, 192, 5, stride=2),
            nn.MaxPool2d(2),
            *convolution(192, 384, 3),
            *convolution(384, 256, 3),
            *convolution(256, 256, 3),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, classes),
        )


class Standardise(nn.Module):
    """Pixels from [0, 1] to about [-2, 2]: a fixed mean and deviation, which no image of anyone decides."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - 0.5) / 0.25

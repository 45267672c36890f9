"""The chapter's network, with one set of initial weights for PyTorch and Keras alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from recipes import data

SHAPES = ((8, 8, 1, 16), (4, 4, 16, 32), (512, 32), (32, 10))
"""The weights as Keras keeps them: [height, width, in, out] and [in, out]; a bias follows each."""


def initial_weights(seed: int) -> list[np.ndarray]:
    """Weights and biases in Keras' order and layout: Glorot's uniform distribution, and zeros."""
    random = np.random.default_rng(seed)
    arrays = []
    for shape in SHAPES:
        limit = np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
        arrays += [random.uniform(-limit, limit, shape), np.zeros(shape[-1])]
    return [array.astype(np.float32) for array in arrays]


def chapter(weights: Sequence[np.ndarray]) -> nn.Sequential:
    """The chapter's network, 26,010 parameters: `[B, 1, 28, 28]` -> logits `[B, 10]`.

    Convolutions run faster with the channels last, for private and plain training alike.
    """
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)),
    )
    with torch.no_grad():
        for parameter, array in zip(network.parameters(), _as_pytorch(weights), strict=True):
            parameter.copy_(torch.from_numpy(array))
    return network.to(memory_format=torch.channels_last)


def _as_pytorch(weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """From Keras' layout to PyTorch's; where Keras flattens [4, 4, 32], PyTorch flattens [32, 4, 4]."""
    first, a, second, b, third, c, fourth, d = weights
    third = third.reshape(4, 4, 32, 32).transpose(3, 2, 0, 1).reshape(32, 512)
    kernels = [np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)) for kernel in (first, second)]
    return [kernels[0], a, kernels[1], b, np.ascontiguousarray(third), c, np.ascontiguousarray(fourth.T), d]


def keras_weights(network: nn.Sequential) -> list[np.ndarray]:
    """The other way: the network's weights in Keras' order and layout."""
    first, a, second, b, third, c, fourth, d = (p.detach().numpy() for p in network.parameters())
    third = third.reshape(32, 32, 4, 4).transpose(2, 3, 1, 0).reshape(512, 32)
    return [first.transpose(2, 3, 1, 0), a, second.transpose(2, 3, 1, 0), b, third, c, fourth.T, d]


def images(pixels: np.ndarray) -> Tensor:
    """`[N, 28, 28]` uint8 -> `[N, 1, 28, 28]` float32 in [0, 1], as the network takes them."""
    return torch.from_numpy(data.channels_first(data.scale(pixels))).to(memory_format=torch.channels_last)


def labels(classes: np.ndarray) -> Tensor:
    """`[N]` uint8 -> `[N]` int64."""
    return torch.from_numpy(classes.astype(np.int64))

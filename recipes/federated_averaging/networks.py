"""The networks that clients train: softmax regression in NumPy, and McMahan's CNN in PyTorch.

A network's parameters are one vector, `[P]` float32, which is what clients and server send, add, clip, share
and average.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np


class Examples(NamedTuple):
    """A client's data, or a test set."""

    pixels: np.ndarray
    """`[N, 784]` float32 in [0, 1]."""
    labels: np.ndarray
    """`[N]` uint8."""


class Network(Protocol):
    """What federated averaging needs to know of a network."""

    size: int
    """How many parameters it has (P)."""
    in_step: bool
    """Whether `gradient` takes parameters and batches of many clients at once, `[K, P]` and `[K, B, …]`."""

    def initial(self, seed: int = 0) -> np.ndarray:
        """The parameters to begin with, `[P]` float32."""

    def gradient(self, parameters: np.ndarray, batch: Examples, out: np.ndarray) -> tuple[Any, Any]:
        """Of the mean cross-entropy, into `out` `[P]`; how many answers were right, and the sum of the
        cross-entropies in nats; of many clients `[K]` each."""

    def evaluate(self, parameters: np.ndarray, examples: Examples) -> tuple[float, float]:
        """Accuracy, and mean cross-entropy in nats."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis, without overflow; shape and dtype stay."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class SoftmaxRegression:
    """784 pixels to 10 classes: 7,850 parameters, zeros to begin with, as in the source chapter."""

    size = 7850
    in_step = True

    def initial(self, seed: int = 0) -> np.ndarray:
        return np.zeros(self.size, np.float32)

    @staticmethod
    def unpack(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Views of the vector `[…, P]`: weights `[…, 784, 10]` and bias `[…, 10]`."""
        return parameters[..., :7840].reshape(*parameters.shape[:-1], 784, 10), parameters[..., 7840:]

    def gradient(self, parameters: np.ndarray, batch: Examples, out: np.ndarray) -> tuple[Any, Any]:
        weights, bias = self.unpack(parameters)
        log_p = log_softmax(batch.pixels @ weights + bias[..., None, :])  # […, B, 10] float32
        true = np.eye(10, dtype=np.float32)[batch.labels]
        right = (log_p.argmax(-1) == batch.labels).sum(-1)
        loss = -(log_p * true).sum((-2, -1))
        error = (np.exp(log_p) - true) / np.float32(true.shape[-2])  # probability minus one-hot label
        by_weights, by_bias = self.unpack(out)
        np.matmul(batch.pixels.swapaxes(-2, -1), error, out=by_weights)
        np.sum(error, axis=-2, out=by_bias)
        return right, loss

    def evaluate(self, parameters: np.ndarray, examples: Examples) -> tuple[float, float]:
        weights, bias = self.unpack(parameters)
        log_p = log_softmax(examples.pixels @ weights + bias)
        right = log_p.argmax(1) == examples.labels
        return float(right.mean()), float(-log_p[np.arange(len(right)), examples.labels].mean())


class ConvolutionalNetwork:
    """The CNN of McMahan et al. for MNIST: two 5x5 convolutions of 32 and 64 channels, each with 2x2 max
    pooling, 512 hidden units: 1,663,370 parameters."""

    in_step = False
    shapes = ((32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (512, 3136), (512,), (10, 512), (10,))
    size = sum(int(np.prod(shape)) for shape in shapes)

    def initial(self, seed: int = 0) -> np.ndarray:
        """As PyTorch draws them: uniform within one over the root of the fan-in."""
        random = np.random.default_rng(seed)
        parts = []
        for weight, bias in zip(self.shapes[::2], self.shapes[1::2], strict=True):
            bound = 1 / np.sqrt(np.prod(weight[1:]))
            parts += [random.uniform(-bound, bound, np.prod(shape)) for shape in (weight, bias)]
        return np.concatenate(parts).astype(np.float32)

    def unpack(self, vector):
        """Views of a vector, NumPy's or PyTorch's, one for each weight and bias."""
        parts, start = [], 0
        for shape in self.shapes:
            count = int(np.prod(shape))
            parts.append(vector[start : start + count].reshape(shape))
            start += count
        return parts

    def images(self, pixels: np.ndarray):
        """`[B, 784]` to `[B, 1, 28, 28]`, in memory with channels last: pooling is many times as fast so."""
        import torch

        return torch.from_numpy(pixels).view(-1, 28, 28, 1).permute(0, 3, 1, 2)

    def logits(self, parts, images):
        """Weights and biases as `unpack` gives them, images as `images` does -> `[B, 10]`."""
        from torch.nn import functional

        hidden = images
        for weight, bias in (parts[:2], parts[2:4]):
            hidden = functional.conv2d(hidden, weight, bias, padding=2)
            hidden = functional.max_pool2d(hidden, 2).relu()
        hidden = functional.linear(hidden.flatten(1), *parts[4:6]).relu()
        return functional.linear(hidden, *parts[6:])

    def gradient(self, parameters: np.ndarray, batch: Examples, out: np.ndarray) -> tuple[Any, Any]:
        import torch

        leaves = [leaf.requires_grad_() for leaf in self.unpack(torch.from_numpy(parameters))]
        labels = torch.from_numpy(batch.labels.astype(np.int64))
        logits = self.logits(leaves, self.images(batch.pixels))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        for part, gradient in zip(self.unpack(out), torch.autograd.grad(loss, leaves), strict=True):
            part[:] = gradient
        return int((logits.argmax(1) == labels).sum()), float(loss) * len(labels)

    def evaluate(self, parameters: np.ndarray, examples: Examples) -> tuple[float, float]:
        import torch

        parts = self.unpack(torch.from_numpy(parameters))
        images = self.images(examples.pixels)
        with torch.no_grad():
            logits = torch.cat([self.logits(parts, part) for part in images.split(500)])
            labels = torch.from_numpy(examples.labels.astype(np.int64))
            loss = torch.nn.functional.cross_entropy(logits, labels)
        return float((logits.argmax(1) == labels).double().mean()), float(loss)


NETWORKS: dict[str, Network] = {"softmax": SoftmaxRegression(), "cnn": ConvolutionalNetwork()}
"""By name."""

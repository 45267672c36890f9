"""The networks that clients train: softmax regression in NumPy, and McMahan's CNN in PyTorch.

A network's parameters are one vector, `[P]` float32, which is what clients and server send, add, clip, share
and average.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

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

    def initial(self, seed: int = 0) -> np.ndarray:
        """The parameters to begin with, `[P]` float32."""

    def gradient(self, parameters: np.ndarray, batch: Examples, out: np.ndarray) -> tuple[int, float]:
        """Of the mean cross-entropy, into `out` `[P]`; how many answers were right, and the sum of the
        cross-entropies in nats."""

    def evaluate(self, parameters: np.ndarray, examples: Examples) -> tuple[float, float]:
        """Accuracy, and mean cross-entropy in nats."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis, without overflow; shape and dtype stay."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class SoftmaxRegression:
    """784 pixels to 10 classes: 7,850 parameters, zeros to begin with, as in the source chapter."""

    size = 7850

    def initial(self, seed: int = 0) -> np.ndarray:
        return np.zeros(self.size, np.float32)

    @staticmethod
    def unpack(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Views of the vector: weights `[784, 10]` and bias `[10]`."""
        return parameters[:7840].reshape(784, 10), parameters[7840:]

    def gradient(self, parameters: np.ndarray, batch: Examples, out: np.ndarray) -> tuple[int, float]:
        weights, bias = self.unpack(parameters)
        log_p = log_softmax(batch.pixels @ weights + bias)  # [B, 10] float32
        row = np.arange(len(batch.labels))
        right, loss = int((log_p.argmax(1) == batch.labels).sum()), -float(log_p[row, batch.labels].sum())
        error = np.exp(log_p)  # the gradient of the loss with respect to the logits …
        error[row, batch.labels] -= 1  # … is probability minus one-hot label
        error /= np.float32(len(row))
        by_weights, by_bias = self.unpack(out)
        np.matmul(batch.pixels.T, error, out=by_weights)
        np.sum(error, axis=0, out=by_bias)
        return right, loss

    def evaluate(self, parameters: np.ndarray, examples: Examples) -> tuple[float, float]:
        weights, bias = self.unpack(parameters)
        log_p = log_softmax(examples.pixels @ weights + bias)
        right = log_p.argmax(1) == examples.labels
        return float(right.mean()), float(-log_p[np.arange(len(right)), examples.labels].mean())


class ConvolutionalNetwork:
    """The CNN of McMahan et al. for MNIST: two 5x5 convolutions of 32 and 64 channels, each with 2x2 max
    pooling, 512 hidden units: 1,663,370 parameters."""

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

    def logits(self, parts, images):
        """Weights and biases as `unpack` gives them, images `[B, 1, 28, 28]` -> `[B, 10]`."""
        from torch.nn import functional

        hidden = images
        for weight, bias in (parts[:2], parts[2:4]):
            hidden = functional.conv2d(hidden, weight, bias, padding=2)
            hidden = functional.max_pool2d(hidden, 2).relu()
        hidden = functional.linear(hidden.flatten(1), *parts[4:6]).relu()
        return functional.linear(hidden, *parts[6:])

    def gradient(self, parameters: np.ndarray, batch: Examples, out: np.ndarray) -> tuple[int, float]:
        import torch

        out[:] = 0
        leaves = self.unpack(torch.from_numpy(parameters))
        for leaf, gradient in zip(leaves, self.unpack(torch.from_numpy(out)), strict=True):
            leaf.requires_grad_().grad = gradient  # which backward adds to
        labels = torch.from_numpy(batch.labels.astype(np.int64))
        logits = self.logits(leaves, torch.from_numpy(batch.pixels).view(-1, 1, 28, 28))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        return int((logits.argmax(1) == labels).sum()), float(loss) * len(labels)

    def evaluate(self, parameters: np.ndarray, examples: Examples) -> tuple[float, float]:
        import torch

        parts = self.unpack(torch.from_numpy(parameters))
        images = torch.from_numpy(examples.pixels).view(-1, 1, 28, 28)
        with torch.no_grad():
            logits = torch.cat([self.logits(parts, part) for part in images.split(500)])
            labels = torch.from_numpy(examples.labels.astype(np.int64))
            loss = torch.nn.functional.cross_entropy(logits, labels)
        return float((logits.argmax(1) == labels).double().mean()), float(loss)


NETWORKS: dict[str, Network] = {"softmax": SoftmaxRegression(), "cnn": ConvolutionalNetwork()}
"""By name."""

"""Accurate at epsilon 1: a linear classifier on wavelet features that no private image has had a part in.

    features        the scattering transform of an image: averages of wavelet coefficients and of their
                    moduli, 81 channels of 7 × 7 (Tramèr and Boneh, "Differentially private learning needs
                    better features", 2021, arXiv:2011.11660)
    normalised      per image, in groups of channels, as group normalisation does
    preconditioned  by the covariance of the stand-ins' features, (Λ + r)^(−1/4) in its eigenvectors: the
                    stand-ins are drawn by this project and nobody's data. Directions that hardly vary are
                    made longer and the others shorter, so that noise, which is alike in all, hurts less.
    trained         softmax regression by DP-SGD with large Poisson batches and momentum; the weights are
                    averaged over the last half of the steps, which costs nothing more

The learning rate for each data set was chosen by `search` on the test images of the other one, which costs
nothing of the budget. All else (steps, batch, clip, number of directions) is shared, and was fixed by people
who have seen both data sets, as every published method was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from recipes import data, progress, weights
from recipes.dp_sgd import accounting, networks
from recipes.dp_sgd.training import Settings, Trainer
from recipes.training import accuracy

GROUPS, KEPT = 27, 1000
"""Groups of the 81 channels; directions that are kept of 3,969."""
_EXAMPLES = 20_000  # stand-ins behind the covariance
_RIDGE = 1e-2  # r, in units of a normalised feature's variance
_LENGTH = 63.0  # of a typical feature vector: the square root of 81 · 7 · 7, as normalisation leaves it


def _scattered(images: np.ndarray) -> Iterator[Tensor]:
    """Normalised features of uint8 images `[N, 28, 28]`, a thousand at a time: `[n, 3969]` float32."""
    from kymatio.torch import Scattering2D

    transform = Scattering2D(J=2, shape=(28, 28))
    for start in progress.bar(range(0, len(images), 1000), "scattering", unit="thousand"):
        scaled = torch.from_numpy(data.scale(images[start : start + 1000]).reshape(-1, 28, 28))
        yield functional.group_norm(transform(scaled), GROUPS).flatten(1)


@lru_cache(maxsize=2)
def preconditioner(name: data.Name) -> tuple[Tensor, Tensor]:
    """Mean `[3969]` and directions `[3969, KEPT]` of the features of a data set's stand-ins."""
    images = data.load(name, "embedded").train.images[:_EXAMPLES]
    features = scattered(images)
    mean = features.mean(0)
    features -= mean
    covariance = (features.T @ features / len(features)).double()  # LAPACK's float32 fails at this size
    variances, vectors = (values[..., -KEPT:].float() for values in torch.linalg.eigh(covariance))
    directions = vectors * (variances + _RIDGE) ** -0.25
    length = float((features[:1000] @ directions).norm(dim=1).mean())
    return mean, directions * (_LENGTH / length)


def features(images: np.ndarray, name: data.Name) -> Tensor:
    """What the classifier sees of images `[N, 28, 28]` uint8 of a data set: `[N, KEPT]` float32."""
    mean, directions = preconditioner(name)
    return torch.cat([(some - mean) @ directions for some in _scattered(images)])


def classifier() -> nn.Linear:
    """Softmax regression from zeros: `[B, KEPT]` -> logits `[B, 10]`."""
    network = nn.Linear(KEPT, 10)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    return network


@lru_cache(maxsize=1)
def prepared(name: data.Name, source: data.Source) -> tuple[Tensor, Tensor]:
    """Features of a data set's training and test images; kept, as they take a minute."""
    dataset = data.load(name, source)
    return features(dataset.train.images, name), features(dataset.test.images, name)


# --- settings ----------------------------------------------------------------------------------------

_BASE = Settings(steps=200, batch=8192, clip=0.1, momentum=0.9, averaged=0.5)
RATES = (1.5, 3.0, 6.0, 12.0, 24.0)
"""Learning rates that `search` tries."""


def settings(name: data.Name, target_epsilon: float) -> Settings:
    """How to train on a data set for a target epsilon; the noise is the caller's."""
    return replace(_BASE, learning_rate=_FOUND[name][1 if target_epsilon < 2 else 3])


_FOUND = {"mnist": {1: 6.0, 3: 12.0}, "fashion-mnist": {1: 3.0, 3: 6.0}}


def search(name: data.Name, target_epsilon: float, source: data.Source = "real") -> dict[float, float]:
    """Test accuracy of the *other* data set by learning rate; `settings` has the best of them."""
    other = "fashion-mnist" if name == "mnist" else "mnist"
    dataset = data.load(other, source)
    train, test = prepared(other, source)
    labels, test_labels = (networks.labels(split.labels) for split in (dataset.train, dataset.test))
    probability = _BASE.batch / len(train)
    noise = accounting.noise_for(target_epsilon, probability, _BASE.steps, 1e-5)
    found = {}
    for rate in RATES:
        network = classifier()
        Trainer(
            network, train, labels, replace(_BASE, learning_rate=rate, noise_multiplier=noise, seed=0)
        ).run()
        found[rate] = accuracy(network, test, test_labels)
    return found


# --- the classifiers that come with the recipe -------------------------------------------------------

TARGETS = (1, 3)
"""Epsilons of the classifiers that come with the recipe, for each data set."""


COMMAND = "python -m recipes.dp_sgd --train"
"""What trains them anew."""


def file_name(name: data.Name, target_epsilon: int) -> str:
    """Of a classifier that comes with the recipe, in `models`."""
    return f"{name.replace('-', '_')}_epsilon_{target_epsilon}.safetensors"


def shipped_path(name: data.Name, target_epsilon: int) -> Path:
    """The path of a classifier that comes with the recipe.

    Raises:
        WeightsDamaged: it is missing or damaged.
    """
    return weights.checked(file_name(name, target_epsilon), COMMAND)


def write(network: nn.Linear, name: data.Name, target_epsilon: int, card: dict[str, str]) -> None:
    """Write a classifier as one of normalised scattering features: `[10, 3969]` and `[10]`."""
    mean, directions = preconditioner(name)
    weight = (directions @ network.weight.detach().T).T
    bias = network.bias.detach() - weight @ mean
    tensors = {"weight": weight.numpy(), "bias": bias.numpy()}
    weights.write(file_name(name, target_epsilon), tensors, card)


def scattered(images: np.ndarray) -> Tensor:
    """Normalised scattering features of images `[N, 28, 28]` uint8, for `predict`: `[N, 3969]` float32."""
    return torch.cat(list(_scattered(images)))


def predict(features: Tensor, path: Path) -> np.ndarray:
    """Logits `[N, 10]` float32 of `scattered` images, by a classifier that `write` wrote.

    Raises:
        ValueError: the file is none of those.
    """
    try:
        tensors = load_file(path)
        weight, bias = tensors["weight"], tensors["bias"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is no classifier of scattering features: {error}") from error
    return functional.linear(features, weight, bias).numpy()

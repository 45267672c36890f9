"""What privacy costs and buys: accuracy at several epsilons, and an outlier that is remembered or not."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

import torch

from recipes import data
from recipes.dp_sgd import networks
from recipes.dp_sgd.audit import Attack, one_run
from recipes.dp_sgd.training import Settings, Trainer, generators, train_plainly
from recipes.training import accuracy, one_thread

RATE = 1.0
"""The chapter's 0.15 makes steps of clipped gradients so short that the noise hardly matters."""
NOISES = (0.4, 0.6, 1.1, 2.0, 8.0)


class Point(NamedTuple):
    """A training at one noise."""

    noise_multiplier: float
    epsilon: float
    """By PLD."""
    accuracy: float
    """Of all test images."""
    bound: float
    """Epsilon that one audited run of as many steps, on batches drawn alike, shows at least (95 %)."""


def sweep(dataset: data.Dataset, settings: Settings, delta: float) -> Iterator[Point]:
    """The chapter's network at each noise multiplier, with the learning rate `RATE`."""
    inputs, labels = networks.images(dataset.train.images), networks.labels(dataset.train.labels)
    test = networks.images(dataset.test.images), networks.labels(dataset.test.labels)
    steps_an_epoch = round(len(labels) / settings.batch)
    for noise in NOISES:
        network = networks.chapter(networks.initial_weights(settings.seed or 0))
        how = replace(settings, noise_multiplier=noise, learning_rate=RATE)
        with one_thread():
            ledger = Trainer(network, inputs, labels, how).run()
        attack = Attack(
            noise_multiplier=noise,
            steps=settings.steps,
            examples=steps_an_epoch,
            batch=1,
            delta=delta,
            seed=settings.seed or 0,
        )
        bound = one_run(attack, steps_an_epoch * max(1, 4000 // steps_an_epoch))
        yield Point(noise, ledger.epsilon(delta), accuracy(network, *test), bound.this_mechanism)


@dataclass(frozen=True)
class Outlier:
    """The probability of a picture's label, by networks of which some were trained on the picture."""

    plain: tuple[tuple[float, float], ...]
    """By seed: trained with the picture, and without it."""
    private: tuple[tuple[float, float], ...]
    """The same by DP-SGD."""
    plain_accuracy: float
    """Of all test images, mean over the networks."""
    private_accuracy: float
    epsilon: float
    """Of each private training. Replacing costs twice: the picture is added, and another removed."""


PLAIN = Settings(steps=1600, batch=50, learning_rate=0.1)
PRIVATE = Settings(steps=150, batch=200, learning_rate=0.7, noise_multiplier=2.5)


@one_thread()
def outlier(dataset: data.Dataset, delta: float, seeds: int = 4) -> Outlier:
    """Train on 2,000 images, the last of them as it is or replaced by dots that are labelled 3."""
    inputs, labels = (
        networks.images(dataset.train.images[:2000]),
        networks.labels(dataset.train.labels[:2000]),
    )
    test = networks.images(dataset.test.images), networks.labels(dataset.test.labels)
    said: dict[tuple[bool, bool], list[float]] = defaultdict(list)
    accuracies: dict[bool, list[float]] = defaultdict(list)
    for seed, private, there in itertools.product(range(seeds), (False, True), (True, False)):
        dots = (torch.rand(1, 1, 28, 28, generator=generators(seed)[0]) < 0.5).float()
        network = networks.chapter(networks.initial_weights(seed))
        x = torch.cat([inputs[:-1], dots if there else inputs[-1:]])
        y = torch.cat([labels[:-1], torch.tensor([3]) if there else labels[-1:]])
        if private:
            ledger = Trainer(network, x, y, replace(PRIVATE, seed=seed)).run()
        else:
            train_plainly(network, x, y, replace(PLAIN, seed=seed))
        with torch.inference_mode():
            said[private, there].append(float(network(dots).softmax(1)[0, 3]))
        accuracies[private].append(accuracy(network, *test))
    pairs = {
        private: tuple(zip(said[private, True], said[private, False], strict=True))
        for private in (False, True)
    }
    return Outlier(
        plain=pairs[False],
        private=pairs[True],
        plain_accuracy=fmean(accuracies[False]),
        private_accuracy=fmean(accuracies[True]),
        epsilon=ledger.epsilon(delta),
    )

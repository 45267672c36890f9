"""What the noise buys and costs: accuracy at several epsilons, and one outlier with and without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from recipes import data
from recipes.dp_sgd import networks
from recipes.dp_sgd.audit import Attack, one_run
from recipes.dp_sgd.training import Settings, Trainer, train_plainly

NOISES = (0.4, 0.6, 0.8, 1.1, 2.0, 4.0, 8.0)


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
    """The chapter's network at each noise multiplier."""
    inputs, labels = networks.images(dataset.train.images), networks.labels(dataset.train.labels)
    test = networks.images(dataset.test.images), networks.labels(dataset.test.labels)
    steps_an_epoch = round(len(labels) / settings.batch)
    for noise in NOISES:
        network = networks.chapter(networks.initial_weights(settings.seed or 0))
        ledger = Trainer(network, inputs, labels, replace(settings, noise_multiplier=noise)).run()
        attack = Attack(
            noise_multiplier=noise,
            steps=settings.steps,
            examples=steps_an_epoch,
            batch=1,
            delta=delta,
            seed=settings.seed or 0,
        )
        bound = one_run(attack, steps_an_epoch * max(1, 4000 // steps_an_epoch))
        yield Point(noise, ledger.epsilon(delta), networks.accuracy(network, *test), bound.this_mechanism)


@dataclass(frozen=True)
class Outlier:
    """What models make of a picture that only some of them were trained on: the probability of its label."""

    plain_with: float
    plain_without: float
    private_with: float
    private_without: float
    epsilon: float
    """Of the private trainings."""


def outlier(dataset: data.Dataset, delta: float, seed: int = 0) -> Outlier:
    """Train on 1,000 images, the last of them as it is or replaced by dots that are labelled 3.

    Without privacy 40 epochs of plain SGD; with privacy as many of DP-SGD, noise multiplier 4. Replacing is
    removing one and adding another, so the two private models may differ by twice epsilon.
    """
    generator = torch.Generator().manual_seed(seed)
    odd = (torch.rand(1, 1, 28, 28, generator=generator) < 0.5).float()
    label = torch.tensor([3])
    inputs, labels = (
        networks.images(dataset.train.images[:1000]),
        networks.labels(dataset.train.labels[:1000]),
    )
    settings = Settings(steps=800, batch=50, noise_multiplier=4.0, seed=seed)
    probabilities, ledger = {}, None
    for private in (False, True):
        for there in (True, False):
            network = networks.chapter(networks.initial_weights(seed))
            x = torch.cat([inputs[:-1], odd if there else inputs[-1:]])
            y = torch.cat([labels[:-1], label if there else labels[-1:]])
            if private:
                ledger = Trainer(network, x, y, settings).run()
            else:
                train_plainly(network, x, y, settings)
            with torch.inference_mode():
                probabilities[private, there] = float(network(odd).softmax(1)[0, 3])
    return Outlier(
        plain_with=probabilities[False, True],
        plain_without=probabilities[False, False],
        private_with=probabilities[True, True],
        private_without=probabilities[True, False],
        epsilon=ledger.epsilon(delta),
    )

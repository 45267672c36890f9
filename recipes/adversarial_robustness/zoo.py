"""The networks that come with the recipe: how each was trained, written and is read."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes import analysis_by_synthesis, data, training, weights
from recipes.adversarial_robustness import defences, networks
from recipes.analysis_by_synthesis import AnalysisBySynthesis


@dataclass(frozen=True)
class Entry:
    """One network of the zoo."""

    build: Callable[[], nn.Module]
    """Untrained."""
    train: Callable[[data.Split, int], nn.Module]
    """Training images, seed -> trained, in evaluation mode."""
    about: str
    """What it is, in a few words."""


def tensors(split: data.Split, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The first images as PyTorch takes them: `[N, 1, 28, 28]` float32 in [0, 1], and labels `[N]` int64."""
    images = data.channels_first(data.scale(split.images[:count]))
    return torch.from_numpy(images), torch.from_numpy(split.labels[:count].astype(np.int64))


def _initial(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """With initial weights of a seed; PyTorch's global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _plain(split: data.Split, seed: int) -> nn.Module:
    from torchvision.transforms import RandomCrop

    network = _initial(networks.chapter, seed)
    images = data.channels_first(data.scale(split.images))
    training.train(network, images, split.labels, epochs=8, augment=RandomCrop(28, padding=1), seed=seed)
    return network


def _scratch(split: data.Split, seed: int) -> nn.Module:
    from recipes.adversarial_robustness import from_scratch, keras_twins

    return keras_twins.to_pytorch(from_scratch.train(split, seed=seed), networks.linear())


def _article(defend: bool) -> Callable[[data.Split, int], nn.Module]:
    def train(split: data.Split, seed: int) -> nn.Module:
        from recipes.adversarial_robustness import stale

        return stale.train(split, defend=defend, seed=seed)

    return train


def _adversarial(build: Callable[[], nn.Module], **settings: float) -> Callable[[data.Split, int], nn.Module]:
    def train(split: data.Split, seed: int) -> nn.Module:
        return defences.adversarial_training(_initial(build, seed), *tensors(split), seed=seed, **settings)

    return train


_robust = functools.partial(networks.small, 32, 256)

_one_step = _adversarial(
    _robust,
    steps=1,
    step_size=0.25,
    epochs=30,
    batch=100,
    rises_until=0.4,
    falls_from=0.4,
    ball_grows_until=0,
)


def _interval(split: data.Split, seed: int) -> nn.Module:
    examples = tensors(split)
    network = defences.interval_training(networks.normed(), *examples, seed=seed)
    return defences.interval_training(  # nearer to the ball of the test, with a rate that falls at once
        network, *examples, epsilon=0.32, epochs=25, learning_rate=5e-4, warmup=0.0, anew=False, seed=seed + 1
    )


def _abs(split: data.Split, seed: int) -> nn.Module:
    return analysis_by_synthesis.train(*tensors(split), seed=seed)


ENTRIES = {
    "scratch": Entry(networks.linear, _scratch, "the network of the attack from scratch"),
    "cnn": Entry(networks.chapter, _plain, "the chapter's CNN"),
    "abs": Entry(AnalysisBySynthesis, _abs, "analysis by synthesis"),
    "undefended": Entry(networks.article, _article(defend=False), "the article's CNN"),
    "stale": Entry(
        networks.article, _article(defend=True), "the article's CNN after its adversarial training"
    ),
    "fgsm": Entry(_robust, _one_step, "one FGSM step from a random start"),
    "pgd": Entry(_robust, _adversarial(_robust, steps=7, epochs=25), "PGD-7 adversarial training"),
    "certified": Entry(networks.normed, _interval, "interval bounds"),
}
"""By name."""


def file_name(name: str) -> str:
    """Of a network's weights, in `models`."""
    return f"mnist_{name}.safetensors"


def command(name: str) -> str:
    """What trains a network anew."""
    return f"python -m recipes.adversarial_robustness --train {name}"


def card(name: str) -> dict[str, str]:
    """What the training wrote beside the weights."""
    return weights.read_card(file_name(name))


def load(name: str) -> nn.Module:
    """A network that comes with the recipe, in evaluation mode.

    Raises:
        WeightsDamaged: its weights are missing or damaged.
        ValueError: they are of another network.
    """
    network = ENTRIES[name].build()
    try:
        network.load_state_dict(load_file(weights.checked(file_name(name), command(name))))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"models/{file_name(name)} holds no weights of {name}: {error}") from error
    network = network.to(memory_format=torch.channels_last)  # convolutions run faster so
    return network.requires_grad_(False).eval()


def train(name: str, dataset: data.Dataset, seed: int = 0) -> nn.Module:
    """Train a network anew, write its weights to models/, and give it.

    Raises:
        ValueError: the data are stand-ins; what is shipped is of real images.
    """
    if dataset.source != "real":
        raise ValueError(
            f"the networks that are shipped are trained on real images, not on {dataset.source} ones"
        )
    begin = time.process_time()
    network = ENTRIES[name].train(dataset.train, seed).requires_grad_(False).eval()
    seconds = time.process_time() - begin
    images = data.channels_first(data.scale(dataset.test.images))
    accuracy = training.accuracy(network, images, dataset.test.labels)
    figures = {"test_accuracy": f"{accuracy:.4f}", "cpu_seconds": f"{seconds:.0f}"}
    note = weights.card(ENTRIES[name].about, dataset, seed, command(name), **figures)
    weights.write(file_name(name), {key: value.numpy() for key, value in network.state_dict().items()}, note)
    return network

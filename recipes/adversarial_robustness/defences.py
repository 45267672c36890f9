"""Trainings that hold: on attacks made against the network as it is now, or on bounds of all attacks.

Papers: Madry et al., 2018, arXiv:1706.06083 (PGD); Wong, Rice and Kolter, "Fast is better than free", 2020,
arXiv:2001.03994 (one step from a random start); Gowal et al., 2018, arXiv:1810.12715 (interval bounds); Shi
et al., "Fast certified robust training with short warmup", 2021, arXiv:2103.17268 (initial weights, batch
norm).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes import progress
from recipes.adversarial_robustness import attacks, bounds


def adversarial_training(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.3,
    steps: int = 7,
    step_size: float = 0.1,
    epochs: int = 10,
    batch: int = 128,
    learning_rate: float = 2e-3,
    rises_until: float = 0.01,
    falls_from: float = 0.5,
    ball_grows_until: float = 0.1,
    seed: int = 0,
) -> nn.Module:
    """Train on adversarial examples that are made anew, against the network as it is, for every batch.

    From a random point of the ball, `steps` steps along the gradient's sign. One step with `step_size` 1.25
    ε is FGSM with a random start.

    Training with one step can collapse: within an epoch it learns to fool that one step, and nothing else
    (Wong et al. call it catastrophic overfitting). So with one step PGD attacks some training images after
    every epoch, and the best epoch is kept.

    Args:
        network: images -> logits, whose weights are trained in place.
        images: `[N, C, H, W]` float32 in [0, 1].
        labels: `[N]` int64.
        epsilon: Linf radius of the ball.
        steps: of the attack; each is `step_size`, in a ball of `epsilon` (smaller in smaller ones).
        rises_until: the share of the training after which the learning rate is whole.
        falls_from: the share after which it falls.
        ball_grows_until: the share over which the ball grows to `epsilon`; 0: it is whole at once.
        seed: of order and starts.

    Returns:
        The running average of the weights (it is more robust than the last ones), in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    average = copy.deepcopy(network).eval()
    best, most = average, -1.0  # kept with one step only
    steps_an_epoch = len(images) // batch
    optimiser = torch.optim.Adam(network.parameters(), learning_rate)
    for passed, places in _batches(len(images), batch, epochs, seed):
        shrunk = min(1, passed / ball_grows_until) if ball_grows_until else 1
        radius = epsilon * shrunk
        _set_rate(optimiser, learning_rate * _rate(passed, rises_until, falls_from))
        x, y = images[places], labels[places]
        moved = x + attacks.noise(x, radius, "linf", generator)
        if steps > 1:  # one step starts beyond black and white, too, as its authors have it
            moved = moved.clamp(0, 1)
        with attacks.frozen(network):
            for _ in range(steps):
                slope, _ = attacks.gradient(network, moved, y)
                moved = attacks.project(moved + step_size * shrunk * slope.sign(), x, radius, "linf")
        loss = functional.cross_entropy(network(moved), y)
        _step(optimiser, loss)
        step = round(passed * epochs * steps_an_epoch)
        _follow(average, network, step)
        if steps == 1 and step % steps_an_epoch == steps_an_epoch - 1:
            some, truth = images[:1000], labels[:1000]
            found = attacks.pgd(average, some, truth, epsilon, steps=20)
            held = 1 - float(attacks.fooled(average, found, truth).double().mean())
            if held > most:
                best, most = copy.deepcopy(average), held
    return best if steps == 1 else average


def interval_training(
    network: nn.Sequential,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.35,
    epochs: int = 80,
    batch: int = 256,
    learning_rate: float = 1e-3,
    warmup: float = 0.35,
    anew: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """Train on the worst logits that interval bounds allow, in a ball that grows to `epsilon`.

    Args:
        network: as `bounds.margins` takes it; trained in place.
        images: `[N, C, H, W]` float32 in [0, 1].
        labels: `[N]` int64.
        epsilon: larger than that of the test, as bounds of larger balls need smaller weights.
        warmup: the share of the training over which the ball grows.
        anew: draw the weights anew, such that boxes neither grow nor vanish on the way; else train on.

    Returns:
        The network, in evaluation mode.

    Raises:
        TypeError: no bound is known for one of its layers.
    """
    if anew:
        _draw_weights(network, seed)
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), learning_rate)
    for passed, places in _batches(len(images), batch, epochs, seed):
        radius = epsilon * (min(1, passed / warmup) if warmup else 1)
        _set_rate(optimiser, learning_rate * _rate(passed, 0.01, 1.2 * warmup))
        worst = bounds.margins(network, images[places], labels[places], radius)
        _step(optimiser, functional.cross_entropy(worst, labels[places]))
    return network.eval()


def _draw_weights(network: nn.Sequential, seed: int) -> None:
    """Normal, with standard deviation sqrt(2 pi) / fan-in: a box keeps its size (Shi et al., 2021)."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(
                layer.weight, std=math.sqrt(2 * math.pi) / layer.weight[0].numel(), generator=generator
            )
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _batches(examples: int, batch: int, epochs: int, seed: int) -> Iterator[tuple[float, Tensor]]:
    """Progress from 0 to 1, and the places of each batch's examples, shuffled every epoch."""
    generator = torch.Generator().manual_seed(seed)
    steps = examples // batch
    if not steps:
        raise ValueError(f"{examples} examples are fewer than a batch of {batch}")
    for epoch in progress.bar(range(epochs), "training", unit="epoch"):
        order = torch.randperm(examples, generator=generator)[: steps * batch]
        for step, places in enumerate(order.split(batch)):
            yield (epoch + step / steps) / epochs, places


def _rate(passed: float, rises_until: float, falls_from: float) -> float:
    """Share of the learning rate: it rises, stays, and falls, from a hundredth and to a hundredth."""
    if passed < falls_from:
        return min(1.0, 0.01 + passed / rises_until)
    return max(0.01, (1 - passed) / (1 - falls_from))


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 10.0)
    optimiser.step()


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, step: int) -> None:
    """Move the average a little towards the network: over a thousand steps, over fewer at first."""
    weight = max(1e-3, 1 - (step + 1) / (step + 100))
    for mean, now in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(now, weight)
    for old, now in zip(average.buffers(), network.buffers(), strict=True):  # statistics of batch norm
        old.copy_(now)

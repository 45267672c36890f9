"""From attacks to distances: for every image the nearest adversarial that an attack finds.

FGSM, PGD and DeepFool (`attacks`) at the least strength at which they succeed, and changes of few pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipes.adversarial_robustness import attacks
from recipes.adversarial_robustness.attacks import Norm, fooled, frozen

Search = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
"""Network, images `[N, C, H, W]` in [0, 1], labels `[N]`, randomness -> images of the same shape, of which
those that are misclassified count."""


@dataclass(frozen=True)
class Attack:
    """One attack of the set."""

    name: str
    norm: Norm
    """In which it looks for a small perturbation; what it finds counts in every norm."""
    search: Search

    def __post_init__(self) -> None:
        if self.norm not in attacks.NORMS:
            raise ValueError(f"norm must be one of {', '.join(attacks.NORMS)}, not {self.norm}")


def distances(images: Tensor, others: Tensor, norm: Norm) -> Tensor:
    """How far each image is from the other, `[N]`: Euclidean, largest change, or number of changed pixels."""
    difference = (others - images).flatten(1)
    match norm:
        case "l2":
            return difference.norm(dim=1)
        case "linf":
            return difference.abs().amax(1)
        case "l0":
            return (others != images).any(1).flatten(1).sum(1).to(images.dtype)
    raise ValueError(f"norm must be one of {', '.join(attacks.NORMS)}, not {norm}")


def bisect(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    attempt: Callable[[Tensor, Tensor], Tensor],
    highest: float,
    rounds: int = 12,
) -> Tensor:
    """The adversarial of each image at the least strength at which an attempt succeeds, by bisection.

    To 2^-`rounds` of the highest. It is the least if whatever succeeds does so at every larger strength, too,
    and some small one else.

    Args:
        attempt: places `[n]` of images, strengths `[n]` -> what is tried for these, `[n, C, H, W]`.
        highest: the strength to begin with; where it does not succeed, nothing is found.
    """
    low, high = torch.zeros(len(images)), torch.full((len(images),), float(highest))
    best, left = images.clone(), torch.arange(len(images))
    for number in range(rounds + 1):
        strength = high if number == 0 else (low + high) / 2
        tried = attempt(left, strength[left])
        success = fooled(network, tried, labels[left])
        best[left[success]] = tried[success]
        high[left[success]] = strength[left[success]]
        if number == 0:
            left = left[success]
        else:
            low[left[~success]] = strength[left[~success]]
        if not len(left):
            break
    return best


def nearer(network: nn.Module, images: Tensor, labels: Tensor, found: Tensor) -> Tensor:
    """The point nearest to the image, on the straight line to an adversarial, that is one, too; to a 512th
    of the way."""

    def attempt(places: Tensor, share: Tensor) -> Tensor:
        return images[places].lerp(found[places], share.to(images.dtype).view(-1, 1, 1, 1))

    return bisect(network, images, labels, attempt, 1, rounds=9)


def one_step(norm: Norm) -> Search:
    """FGSM (`linf`), or the same along the gradient itself (`l2`), with a small epsilon, by bisection."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, _: torch.Generator) -> Tensor:
        with frozen(network):
            slope, _logits = attacks.gradient(network, images, labels)
        direction = slope.sign() if norm == "linf" else slope / attacks.lengths(slope).clamp(min=1e-12)

        def attempt(places: Tensor, epsilon: Tensor) -> Tensor:
            return (images[places] + epsilon.view(-1, 1, 1, 1) * direction[places]).clamp(0, 1)

        return bisect(network, images, labels, attempt, 1 if norm == "linf" else 15)

    return search


def least_pgd(norm: Norm, steps: int = 40, rounds: int = 7) -> Search:
    """PGD with a small epsilon, by bisection (up to 0.5 in Linf, 6 in L2)."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        def attempt(places: Tensor, epsilon: Tensor) -> Tensor:
            return attacks.pgd(
                network, images[places], labels[places], epsilon, norm=norm, steps=steps, generator=generator
            )

        return bisect(network, images, labels, attempt, {"linf": 0.5, "l2": 6}[norm], rounds)

    return search


def fixed_pgd(epsilon: float, steps: int, restarts: int) -> Search:
    """PGD in one Linf ball; steps of a thirtieth of it, so that a hundred go far enough to come back."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return attacks.pgd(
            network,
            images,
            labels,
            epsilon,
            steps=steps,
            step_size=epsilon / 30,
            restarts=restarts,
            generator=generator,
        )

    return search


def deepfool(norm: Norm) -> Search:
    """DeepFool, and then the least part of its way that does."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, _: torch.Generator) -> Tensor:
        return nearer(network, images, labels, attacks.deepfool(network, images, labels, norm=norm))

    return search


def sparse(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Pixel after pixel, the one whose way to black or white the gradient says to help most; then put
    back."""
    moved, active = images.clone(), torch.arange(len(images))
    with frozen(network):
        for _ in range(60):
            slope, logits = attacks.gradient(network, moved[active], labels[active])
            going = logits.argmax(1) == labels[active]
            active, slope = active[going], slope[going]
            if not len(active):
                break
            now = moved[active]
            gain = torch.where(slope > 0, slope * (1 - now), -slope * now).flatten(1)
            pixels = gain.masked_fill((now != images[active]).flatten(1), -1).argmax(1)
            rows, flat = torch.arange(len(active)), now.flatten(1)
            flat[rows, pixels] = (slope.flatten(1)[rows, pixels] > 0).to(now)
            moved[active] = flat.view_as(now)
    return put_back(network, images, labels, moved, generator)


@torch.no_grad()
def put_back(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    found: Tensor,
    generator: torch.Generator,
    rounds: int = 100,
) -> Tensor:
    """Put back one changed pixel after the other, wherever the image stays adversarial (pointwise attack).

    In random order, round after round until one puts nothing back, `rounds` at most; all images at once.
    """
    flat, original = found.flatten(1).clone(), images.flatten(1)
    left = torch.nonzero(fooled(network, found, labels))[:, 0]
    for _ in range(rounds):
        if not len(left):
            break
        changed = flat[left] != original[left]
        order = (
            torch.rand(changed.shape, generator=generator)
            .masked_fill(~changed, -1)
            .argsort(1, descending=True)
        )
        counts, progress = changed.sum(1), torch.zeros(len(left), dtype=torch.bool)
        for turn in range(int(counts.max())):
            rows = torch.nonzero(turn < counts)[:, 0]
            pixels = order[rows, turn]
            trial = flat[left[rows]]
            trial[torch.arange(len(rows)), pixels] = original[left[rows], pixels]
            stays = fooled(network, trial.view(-1, *images.shape[1:]), labels[left[rows]])
            flat[left[rows[stays]]] = trial[stays]
            progress[rows[stays]] = True
        left = left[progress]
    return flat.view_as(images)

"""How far away the nearest adversarial is, at most, and how many images no attack and no bound can settle.

A median distance and an accuracy at some epsilon are what the attacks found: upper bounds of robustness,
for each image the least over all attacks. A verified accuracy is a lower bound. The truth is between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from recipes import cards
from recipes.adversarial_robustness import attacks
from recipes.adversarial_robustness.attacks import NORMS, Norm, answers, fooled, rising
from recipes.adversarial_robustness.search import Attack, distances

CLEAR = 1e-4
"""By how much of the largest logit another class must lead."""


@dataclass
class Measured:
    """What a set of attacks found out about one network and some images."""

    images: np.ndarray
    """`[N, C, H, W]` float32, as they were."""
    right: np.ndarray
    """`[N]` bool, which images are classified rightly to begin with; the others are at distance 0."""
    distance: dict[Norm, np.ndarray]
    """By norm, `[N]` float64: the least distance of an adversarial found, infinity where none was."""
    nearest: dict[Norm, np.ndarray]
    """By norm, `[N, C, H, W]` float32: that adversarial."""
    by: dict[Norm, list[str]]
    """By norm: which attack found it, for each image."""
    taken_for: dict[Norm, np.ndarray]
    """By norm, `[N]` int64: the class that the network sees in it."""
    medians: dict[str, float] = field(default_factory=dict)
    """By attack: the median distance by itself, in the attack's own norm."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By attack: CPU seconds."""

    def median(self, norm: Norm) -> float:
        """The median over images of the least distance; infinity if most images hold out."""
        return float(np.median(self.distance[norm]))

    def accuracy_at(self, norm: Norm, epsilon: float) -> float:
        """Share of the images for which nothing adversarial was found within epsilon."""
        return float(np.mean(self.distance[norm] > epsilon))


def measure(
    network: nn.Module, images: Tensor, labels: Tensor, attack_set: Sequence[Attack], seed: int = 0
) -> Measured:
    """Run every attack, try all that it gives on the network, and keep for each image what is nearest.

    Args:
        network: any PyTorch module from images in [0, 1] to logits, in evaluation mode.
        images: `[N, C, H, W]` float32 in [0, 1].
        labels: `[N]` int64.

    Raises:
        ValueError: see `attacks.check`; or no attack is given.
    """
    images = images.detach()
    attacks.check(network, images, labels)
    if not attack_set:
        raise ValueError("give at least one attack")
    seen = answers(network, images)
    wrong = (seen != labels).numpy()
    start = {norm: np.where(wrong, 0.0, np.inf) for norm in NORMS}
    pictures = {norm: images.numpy().copy() for norm in NORMS}
    measured = Measured(
        images.numpy(),
        ~wrong,
        start,
        pictures,
        by={norm: ["none"] * len(images) for norm in NORMS},
        taken_for={norm: seen.numpy().copy() for norm in NORMS},
    )
    for number, attack in enumerate(attack_set):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        with cards.Stopwatch() as watch:
            found, taken_for = settle(
                *(network, images, labels), attack.search(network, images, labels, generator)
            )
        alone = _take(measured, attack, found.numpy(), taken_for.numpy(), labels.numpy())
        measured.medians[attack.name] = float(np.median(alone))
        measured.seconds[attack.name] = watch.cpu
    return measured


def _take(
    measured: Measured, attack: Attack, found: np.ndarray, taken_for: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Keep what is nearer than anything before; gives the attack's own distances `[N]`."""
    images, others = torch.from_numpy(measured.images).double(), torch.from_numpy(found).double()
    for norm in NORMS:
        distance = np.where(taken_for != labels, distances(images, others, norm).numpy(), np.inf)
        distance = np.where(measured.right, distance, 0.0)
        nearer = distance < measured.distance[norm]
        measured.distance[norm][nearer] = distance[nearer]
        measured.nearest[norm][nearer] = found[nearer]
        measured.taken_for[norm][nearer] = taken_for[nearer]
        for place in np.flatnonzero(nearer):
            measured.by[norm][place] = attack.name
        if norm == attack.norm:
            alone = distance
    return alone


def settle(network: nn.Module, images: Tensor, labels: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Try what was found anew: is it inside [0, 1], misclassified, and so as a picture of 8 bits, too?

    An attack stops just behind the boundary, where rounding to one of 256 greys may lead back. So the way
    from the image is made longer, by up to a tenth, until the rounded picture and the unrounded one are
    both misclassified, and clearly so: of two equal logits either may win in another batch.

    Returns:
        What was found, moved on where rounding would undo it, and the class that each is taken for, `[N]`
        int64; the label where it is not adversarial in this sense.
    """
    settled, taken_for = found.clone(), labels.clone()
    left = torch.nonzero(within(found))[:, 0]
    for factor in (1.0, 1.0005, 1.002, 1.005, 1.01, 1.02, 1.04, 1.07, 1.1):
        if not len(left):
            break
        longer = found[left] if factor == 1 else images[left].lerp(found[left], factor).clamp(0, 1)
        seen, lead = _lead(network, longer, labels[left])
        if factor == 1:  # what is rightly classified, and clearly so, is not moved on
            near = lead > -CLEAR
            left, longer, seen, lead = left[near], longer[near], seen[near], lead[near]
        done = lead > CLEAR
        done[done.clone()] = _lead(network, eight_bits(longer[done]), labels[left[done]])[1] > CLEAR
        settled[left[done]], taken_for[left[done]] = longer[done], seen[done]
        left = left[~done]
    return settled, taken_for


@torch.no_grad()
def _lead(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest class but the label, `[N]`, and by what share of the largest logit it leads."""
    if not len(images):
        return labels, labels.to(torch.float32)
    logits = torch.cat([network(x) for x in images.split(attacks.BATCH)])
    other = logits.scatter(1, labels[:, None], -torch.inf).max(1)
    own = logits.gather(1, labels[:, None])[:, 0]
    return other.indices, (other.values - own) / logits.abs().amax(1).clamp(min=1e-30)


def within(images: Tensor) -> Tensor:
    """Which images `[N]` bool are inside [0, 1]."""
    return ((images >= 0) & (images <= 1)).flatten(1).all(1)


def eight_bits(images: Tensor) -> Tensor:
    """As saved to a picture of 8 bits a pixel and read again."""
    return (images * 255).round() / 255


def adversarial(network: nn.Module, images: Tensor, labels: Tensor, found: Tensor, epsilon: float) -> Tensor:
    """Which of the images found `[N]` bool an attack may claim: inside [0, 1] and the Linf ball (rounding of
    float32 aside: 1e-6), and misclassified."""
    near = distances(images, found, "linf") <= epsilon + 1e-6
    return within(found) & near & fooled(network, found, labels)


def interval(hits: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share, exact for a binomial count."""
    return tuple(map(float, stats.binomtest(hits, trials).proportion_ci(confidence, "exact")))


def robust_accuracies(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilons: Sequence[float],
    *,
    steps: int = 40,
    generator: torch.Generator,
) -> list[float]:
    """Accuracy under PGD in Linf at each epsilon; what is found in a ball counts in every larger one.

    Raises:
        ValueError: see `attacks.check`; or the epsilons do not rise from 0 or more.
    """
    rising(epsilons)
    broken, accuracies = fooled(network, images, labels), []
    for epsilon in epsilons:
        left = torch.nonzero(~broken)[:, 0]
        if len(left) and epsilon > 0:
            found = attacks.pgd(
                network,
                images[left],
                labels[left],
                epsilon,
                steps=steps,
                generator=generator,
            )
            broken[left] = adversarial(network, images[left], labels[left], found, epsilon)
        accuracies.append(float((~broken).double().mean()))
    return accuracies

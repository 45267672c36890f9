"""Attacks on networks that draw: towards what another class would have drawn (Schott et al., 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recipes.adversarial_robustness.attacks import Norm, fooled
from recipes.adversarial_robustness.search import Search, bisect, distances, put_back
from recipes.analysis_by_synthesis import AnalysisBySynthesis


class Tracked(nn.Module):
    """ABS for images that move a little at a time: each search goes on from the latents of the last one.

    An attack's steps change an image so little that a few steps of descent are enough, where a new search
    takes thousands of samples and 25. To which of the kept images a new one belongs is told by which is
    nearest. After so few steps the energies are a little too high; so that this does not make the image's
    class lose too early, its logit is raised by `slack`. What is found must be tried on the network itself.
    """

    def __init__(
        self,
        network: AnalysisBySynthesis,
        images: Tensor,
        latents: Tensor,
        steps: int = 5,
        candidates: int = 5,
        slack: float = 0.7,
    ) -> None:
        """Args: latents: the best of each class for the images, `[N, 10, 8]`."""
        super().__init__()
        self.network, self.images, self.descents = network, images, [(candidates, steps)]
        self.latents = latents.clone()
        logits = network.logits_at(images, self.latents)
        self.raised = slack * nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        now = images.detach()
        places = self._places(now)
        latents = self.network.search(now, self.latents[places], self.descents)
        self.latents[places] = latents
        return self.network.logits_at(images, latents) + self.raised[places]

    def prototypes(self, images: Tensor) -> Tensor:
        """What each class draws, `[N, classes, H, W]`."""
        return self.network.draw(self.latents[self._places(images)])

    def _places(self, images: Tensor) -> Tensor:
        return torch.cdist(images.flatten(1), self.images.flatten(1)).argmin(1)


class Latents:
    """The best latents of images; those asked for last are not looked for again."""

    def __init__(self) -> None:
        self.network = self.images = self.best = None

    def __call__(self, network: AnalysisBySynthesis, images: Tensor) -> Tensor:
        if network is not self.network or images is not self.images:
            self.network, self.images, self.best = network, images, network.search(images)
        return self.best


def tracked(search: Search, steps: int = 5, candidates: int = 5, latents: Latents | None = None) -> Search:
    """An attack on ABS that sees the real gradient at the best latents, which it keeps from step to step.

    Attacks that are given the same `latents` begin there, and only the first one looks for them.
    """
    latents = Latents() if latents is None else latents

    def on_tracked(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        moving = Tracked(network, images, latents(network, images), steps, candidates)
        return search(moving, images, labels, generator)

    return on_tracked


def towards(norm: Norm, others: int = 1, rounds: int = 9, rounds_back: int = 100) -> Search:
    """From what the image's class would draw towards what the nearest others would, as far as it takes.

    The difference of the two drawings is the gradient of the difference of the logits, for ABS at the best
    latents (its latent descent attack) as for the nearest neighbour. In L2 along it, in Linf along its
    sign, in L0 the pixels where it is largest, after which what is not needed is put back. For networks
    with `prototypes`: images -> `[N, classes, H, W]`.
    """

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            logits = network(images).scatter(1, labels[:, None], -torch.inf)
            ranks = logits.topk(min(others, logits.shape[1] - 1), 1).indices
            drawn = network.prototypes(images)
        best, least = images.clone(), torch.full((len(images),), torch.inf)
        rows = torch.arange(len(images))
        for other in ranks.T:
            way = (drawn[rows, other] - drawn[rows, labels])[:, None]
            found = bisect(network, images, labels, _along(images, way, norm), 1, rounds)
            if norm == "l0":
                found = put_back(network, images, labels, found, generator, rounds_back)
            size = distances(images, found, norm).masked_fill(~fooled(network, found, labels), torch.inf)
            best[size < least] = found[size < least]
            least = least.minimum(size)
        return best

    return search


def _along(images: Tensor, way: Tensor, norm: Norm) -> Callable[[Tensor, Tensor], Tensor]:
    ranks = way.abs().flatten(1).argsort(1, descending=True).argsort(1).view_as(images)

    def attempt(places: Tensor, share: Tensor) -> Tensor:
        direction, share = way[places], share.view(-1, 1, 1, 1)
        if norm == "l2":
            step = share * direction
        elif norm == "linf":  # where drawings hardly differ, a sign would be noise
            step = share * (direction / 0.05).clamp(-1, 1)
        else:
            drawn_otherwise = direction.abs() > 0.3  # the rest would be noise here, too
            step = direction.sign() * (drawn_otherwise & (ranks[places] < share * images[0].numel()))
        return (images[places] + step).clamp(0, 1)

    return attempt

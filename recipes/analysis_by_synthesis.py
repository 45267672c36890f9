"""A classifier that asks which class could best have drawn the image: analysis by synthesis (ABS).

Ten variational autoencoders, one a class, learn what its images look like. To classify an image, each class
looks for the latent z from which its decoder G draws the image best, first among samples of the prior, then
by gradient descent; the class with the least energy wins:

    E_y(x) = min over z of |x − G_y(z)|² + |z|² / 2        logit_y(x) = −E_y(x)

At the best z the energy's derivative with respect to z is 0, so that of E_y with respect to x is just
2 (x − G_y(z)). It comes with the forward pass, is as exact as the search is, and `forward` gives it to
whoever attacks.

Who sees what: nothing is hidden; the attacker knows the network and follows this gradient.
Paper:  Schott, Rauber, Bethge and Brendel, "Towards the first adversarially robust neural network model on
        MNIST", 2019, arXiv:1805.09190; Kingma and Welling, "Auto-encoding variational Bayes", 2014.
Status: simplified (no scale for each class is learned; 2,000 samples where the paper takes 8,000; 10 steps
        for the five likeliest classes and 15 more for two, where it takes 50 for all).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from recipes import progress

CLASSES, LATENT = 10, 8
LONGEST = 5.0
"""Norm that a latent may have."""


def encoder() -> nn.Sequential:
    """`[N, 1, 28, 28]` -> mean and log-variance of the latent, `[N, 2 · 8, 1, 1]`; 61,616 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5), nn.BatchNorm2d(32), nn.ELU()),
        *(nn.Conv2d(32, 32, 4, stride=2), nn.BatchNorm2d(32), nn.ELU()),
        *(nn.Conv2d(32, 64, 3, stride=2), nn.BatchNorm2d(64), nn.ELU()),
        nn.Conv2d(64, 2 * LATENT, 5),
    )


def decoder(normed: bool = False) -> nn.Sequential:
    """Latent `[N, 8, 1, 1]` -> image `[N, 1, 28, 28]` in (0, 1); 23,617 parameters, and 128 of batch norm,
    which only training needs."""

    def norm(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if normed else []

    return nn.Sequential(
        *(nn.ConvTranspose2d(LATENT, 32, 4), *norm(32), nn.ELU()),
        *(nn.ConvTranspose2d(32, 16, 5, stride=2), *norm(16), nn.ELU()),
        *(nn.ConvTranspose2d(16, 16, 5, stride=2), *norm(16), nn.ELU()),
        *(nn.ConvTranspose2d(16, 1, 4), nn.Sigmoid()),
    )


def without_norm(trained: nn.Sequential) -> nn.Sequential:
    """The same decoder, batch norm's scales and shifts, fixed by now, moved into the layers before it."""
    layers = [
        fuse_conv_bn_eval(layer, following, transpose=True)
        if isinstance(following, nn.BatchNorm2d)
        else layer
        for layer, following in pairwise([*trained.eval(), None])
        if not isinstance(layer, nn.BatchNorm2d)
    ]
    return nn.Sequential(*layers)


def train_decoder(
    images: Tensor,
    *,
    epochs: int = 32,
    batch: int = 32,
    learning_rate: float = 3e-3,
    precision: float = 2.0,
    seed: int = 0,
) -> nn.Sequential:
    """Train the autoencoder of one class, and give its decoder.

    Squared error plus Kullback–Leibler divergence, and Adam with its rate falling along a cosine.

    Args:
        images: `[N, 1, 28, 28]` float32 in [0, 1], of one class.
        precision: how much the squared error weighs beside the divergence; more draws sharper.
        seed: of weights, order and noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encode, decode = encoder(), decoder(normed=True)
        optimiser = torch.optim.Adam([*encode.parameters(), *decode.parameters()], learning_rate)
        steps = epochs * -(-len(images) // batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(epochs):
            for places in torch.randperm(len(images)).split(batch):
                batch_images = images[places]
                mean, log_variance = encode(batch_images).chunk(2, dim=1)
                latent = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
                error = (batch_images - decode(latent)).square().sum()
                divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
                optimiser.zero_grad()
                ((precision * error + divergence) / len(places)).backward()
                optimiser.step()
                schedule.step()
    return without_norm(decode)


class AnalysisBySynthesis(nn.Module):
    """Images `[N, 1, 28, 28]` in [0, 1] -> logits `[N, 10]`, the energies' negatives."""

    def __init__(
        self,
        samples: int = 2000,
        descents: Sequence[tuple[int, int]] = ((5, 10), (2, 15)),
        rate: float = 0.1,
        seed: int = 0,
    ) -> None:
        """With decoders that know nothing yet: `train`, or load a state dict.

        Args:
            samples: of the prior, with which every search begins (the paper: 8,000).
            descents: for how many classes, those with the least energy so far, how many steps of Adam on the
                latents follow (the paper: all ten, 50 at rate 0.05).
            rate: Adam's.
            seed: of the samples.
        """
        super().__init__()
        self.decoders = nn.ModuleList(decoder() for _ in range(CLASSES))
        self.samples, self.descents, self.rate, self.seed = samples, descents, rate, seed
        self._drawn: tuple[Tensor, Tensor] | None = None  # the samples, and what each class makes of them
        self.requires_grad_(False).eval()

    def load_state_dict(self, *arguments: Any, **settings: Any) -> Any:
        self._drawn = None
        return super().load_state_dict(*arguments, **settings)

    def forward(self, images: Tensor) -> Tensor:
        latents = self.search(images.detach())
        return self.logits_at(images, latents)

    def logits_at(self, images: Tensor, latents: Tensor) -> Tensor:
        """Logits `[N, 10]` with given latents `[N, 10, 8]`; differentiable by the images."""
        drawn = self.draw(latents)
        error = (images.flatten(1)[:, None] - drawn.flatten(2)).square().sum(2)
        return -(error + latents.square().sum(2) / 2)

    def draw(self, latents: Tensor) -> Tensor:
        """The images `[N, 10, 28, 28]` that each class draws from its latent, `[N, 10, 8]`."""
        drawn = [
            decode(z[:, :, None, None])[:, 0]
            for decode, z in zip(self.decoders, latents.unbind(1), strict=True)
        ]
        return torch.stack(drawn, 1)

    def search(
        self,
        images: Tensor,
        start: Tensor | None = None,
        descents: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """The best latent of each class, `[N, 10, 8]`: of the prior's samples, or `start`, and then
        descent."""
        latents = (self._best_samples(images) if start is None else start).clone()
        for candidates, steps in self.descents if descents is None else descents:
            with torch.no_grad():
                likely = self.logits_at(images, latents).topk(candidates, 1).indices
            for label in range(CLASSES):
                rows = (likely == label).any(1)
                if rows.any():
                    latents[rows, label] = self._descend(label, images[rows], latents[rows, label], steps)
        return latents

    def _descend(self, label: int, images: Tensor, latents: Tensor, steps: int) -> Tensor:
        """Adam on the latents `[N, 8]` of one class; what was best on the way is kept."""
        with torch.enable_grad():
            moving = latents.clone().requires_grad_()
            optimiser = torch.optim.Adam([moving], self.rate)
            best, least = latents.clone(), torch.full((len(images),), torch.inf)
            for step in range(steps + 1):  # the last one only looks at where the descent has come to
                error = (images - self.decoders[label](moving[:, :, None, None])).square().sum((1, 2, 3))
                energy = error + moving.square().sum(1) / 2
                better = energy.detach() < least
                best[better], least[better] = moving.detach()[better], energy.detach()[better]
                if step < steps:
                    optimiser.zero_grad()
                    energy.sum().backward()
                    optimiser.step()
                    with torch.no_grad():
                        norms = moving.norm(dim=1, keepdim=True)
                        moving.mul_((LONGEST / norms).clamp(max=1))
        return best

    @torch.no_grad()
    def _best_samples(self, images: Tensor) -> Tensor:
        """Of the prior's samples the one with least energy, for each class: `[N, 10, 8]`."""
        if self._drawn is None or len(self._drawn[0]) != self.samples:
            generator = torch.Generator().manual_seed(self.seed)
            samples = torch.randn(self.samples, LATENT, generator=generator)
            samples *= (LONGEST / samples.norm(dim=1, keepdim=True)).clamp(max=1)
            drawn = [
                torch.cat([decode(z[:, :, None, None]).flatten(1) for z in samples.split(1000)])
                for decode in self.decoders
            ]
            self._drawn = samples, torch.stack(drawn)
        samples, drawn = self._drawn
        flat = images.flatten(1)
        best = []
        for of_class in drawn:
            constant = of_class.square().sum(1) + samples.square().sum(1) / 2
            energies = torch.addmm(constant, flat, of_class.T, alpha=-2)
            best.append(samples[energies.argmin(1)])
        return torch.stack(best, 1)


def train(images: Tensor, labels: Tensor, *, epochs: int = 32, seed: int = 0) -> AnalysisBySynthesis:
    """Train the ten autoencoders, about a quarter of an hour of one core on MNIST.

    Args:
        images: `[N, 1, 28, 28]` float32 in [0, 1].
        labels: `[N]` int64.
    """
    network = AnalysisBySynthesis(seed=seed)
    for label in progress.bar(range(CLASSES), "training ABS", unit="class"):
        trained = train_decoder(images[labels == label], epochs=epochs, seed=seed * CLASSES + label)
        network.decoders[label].load_state_dict(trained.state_dict())
    return network.requires_grad_(False).eval()

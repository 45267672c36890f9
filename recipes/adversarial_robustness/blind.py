"""Attacks that see answers only: gradients estimated by moving pixels, and pixels put back one by one.

Papers: Schott et al., 2019, arXiv:1805.09190 (pointwise attack). The chapter wanted Foolbox 1.8's estimate of
gradients, coordinate by coordinate, which later versions dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recipes.adversarial_robustness import attacks
from recipes.adversarial_robustness.attacks import fooled
from recipes.adversarial_robustness.libraries import salt_and_pepper
from recipes.adversarial_robustness.search import Search, distances, nearer, put_back


class EstimatedGradients(nn.Module):
    """The same network, whose gradient is estimated from its answers: two questions for every pixel.

    Central differences, `(f(x + h e_i) − f(x − h e_i)) / 2h`, for all logits at once; `backward` multiplies
    with what they gave, so that every attack that wants gradients runs unchanged.
    """

    def __init__(self, network: nn.Module, width: float = 0.1, batch: int = 2000) -> None:
        """Args: width: h, how far a pixel is moved; batch: questions asked at once."""
        super().__init__()
        self.network, self.width, self.batch = network, width, batch
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if not images.requires_grad:
            return self.network(images)
        return _Estimate.apply(images, self)

    @torch.no_grad()
    def jacobian(self, image: Tensor) -> Tensor:
        """Of one image `[C, H, W]`: `[classes, pixels]`."""
        moves = self.width * torch.eye(image.numel()).view(-1, *image.shape)
        answers = [self.network(image + sign * part) for sign in (1, -1) for part in moves.split(self.batch)]
        above, below = torch.cat(answers).chunk(2)
        return (above - below).T / (2 * self.width)


class _Estimate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: Tensor, estimated: EstimatedGradients) -> Tensor:
        ctx.jacobians = torch.stack([estimated.jacobian(image) for image in images])
        ctx.shape = images.shape
        with torch.no_grad():
            return estimated.network(images)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        return torch.einsum("nk,nkp->np", upstream, ctx.jacobians).view(ctx.shape), None


def estimated(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """DeepFool on estimated gradients, as the chapter wants it."""
    guess = EstimatedGradients(network)
    return nearer(network, images, labels, attacks.deepfool(guess, images, labels, steps=10))


def pointwise(restarts: int = 3) -> Search:
    """Salt and pepper until the image is misclassified, then as many pixels put back as can be."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        best, fewest = images.clone(), torch.full((len(images),), torch.inf)
        for _ in range(restarts):
            found = put_back(
                network, images, labels, salt_and_pepper(network, images, labels, generator), generator
            )
            count = distances(images, found, "l0").masked_fill(~fooled(network, found, labels), torch.inf)
            best[count < fewest] = found[count < fewest]
            fewest = fewest.minimum(count)
        return best

    return search

"""Attacks from scratch: FGSM, PGD and DeepFool, on any PyTorch module from images to logits.

Papers: Goodfellow et al., "Explaining and harnessing adversarial examples", 2015, arXiv:1412.6572 (FGSM);
Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018, arXiv:1706.06083 (PGD);
Moosavi-Dezfooli et al., "DeepFool", 2016, arXiv:1511.04599.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["linf", "l2", "l0"]
NORMS: tuple[Norm, ...] = ("l2", "linf", "l0")
BATCH = 250
"""Images at once: of more, what the layers make does not stay in a processor's cache."""


def check(network: nn.Module, images: Tensor, labels: Tensor, epsilon: float | Tensor = 0.0) -> None:
    """What every attack needs, or one line that says what is wrong.

    Raises:
        ValueError: pixels outside [0, 1], wrong shape, labels out of range, a network in training mode, or a
            negative epsilon.
    """
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
        raise ValueError(
            f"images and labels must be PyTorch tensors, not {type(images).__name__}, {type(labels).__name__}"
        )
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise ValueError(
            f"images must be floats [N, channels, height, width], not {images.dtype} {list(images.shape)}"
        )
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images must be in [0, 1], not from {images.min():.3g} to {images.max():.3g}: "
            "scale them, and let the network normalise"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 [{len(images)}], not {labels.dtype} {list(labels.shape)}")
    if torch.as_tensor(epsilon).shape not in (torch.Size([]), images.shape[:1]):
        raise ValueError(f"epsilon must be one number, or one for each of the {len(images)} images")
    least, most = (float(f(torch.as_tensor(epsilon))) for f in (torch.min, torch.max))
    if not (least >= 0 and most < float("inf")):
        raise ValueError(f"epsilon must be a number from 0, not {least if least < 0 else most}")
    if any(module.training for module in network.modules()):
        raise ValueError(
            "the network is in training mode, where its answers depend on the batch: call .eval()"
        )
    try:
        with torch.no_grad():
            logits = network(images[:1])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the network takes no images of {list(images.shape[1:])}: {reason}") from error
    if logits.ndim != 2 or len(logits) != 1:
        raise ValueError(f"the network must give logits [N, classes], not {list(logits.shape)} for one image")
    if not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise ValueError(
            f"labels must be from 0 to {logits.shape[1] - 1}, not from {labels.min()} to {labels.max()}"
        )


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No gradients of weights, which no attack needs and which cost a third of the time."""
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, want in zip(network.parameters(), wanted, strict=True):
            parameter.requires_grad_(want)


def rising(epsilons: Sequence[float]) -> None:
    """Whether a curve's epsilons rise from 0 or more.

    Raises:
        ValueError: they do not.
    """
    if not all(epsilon >= 0 for epsilon in epsilons) or list(epsilons) != sorted(epsilons):
        raise ValueError(f"epsilons must rise, from 0 or more: {list(epsilons)}")


def _for_each(value: float | Tensor, images: Tensor) -> Tensor:
    """One number, or one for each image -> `[N, 1, 1, 1]`."""
    return torch.as_tensor(value, dtype=images.dtype).expand(len(images)).view(-1, 1, 1, 1)


@torch.enable_grad()
def gradient(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the cross-entropy by the images, and the logits, from one pass there and back; 0 where
    answers do not depend on the images."""
    images = images.detach().requires_grad_()
    logits = network(images)
    if not logits.requires_grad:
        return torch.zeros_like(images), logits
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    return torch.autograd.grad(loss, images)[0], logits.detach()


def fgsm(
    network: nn.Module, images: Tensor, labels: Tensor, epsilon: float | Tensor, *, clip: bool = True
) -> Tensor:
    """One step of `epsilon` along the gradient's sign: x + ε · sign(∇ loss).

    Args:
        images: `[N, C, H, W]` float32 in [0, 1].
        labels: `[N]` int64, the classes to move away from.
        epsilon: of the pixels' range from 0 to 1; one, or one for each image, `[N]`.
        clip: to [0, 1]; without, pixels leave the range that images have.

    Returns:
        Images of the same shape.

    Raises:
        ValueError: see `check`.
    """
    check(network, images, labels, epsilon)
    with frozen(network):
        moved = images + _for_each(epsilon, images) * gradient(network, images, labels)[0].sign()
    return moved.clamp(0, 1) if clip else moved


def pgd(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float | Tensor,
    *,
    norm: Norm = "linf",
    steps: int = 40,
    step_size: float | Tensor | None = None,
    restarts: int = 1,
    random_start: bool = True,
    stop_early: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Many small steps, each followed by a projection onto the ball and onto [0, 1].

    Args:
        images: `[N, C, H, W]` float32 in [0, 1].
        labels: `[N]` int64.
        epsilon: radius of the ball, or one for each image, `[N]`; pixels are from 0 to 1.
        norm: `linf` or `l2`.
        step_size: one, or one for each image, `[N]`; 2.5 · epsilon / steps if None.
        restarts: how often to begin anew with the images that are still classified rightly.
        random_start: begin somewhere in the ball, drawn from `generator`; else at the image.
        stop_early: leave an image alone once it is misclassified, which finds the same images in less time;
            a network that does not answer the same twice needs False.

    Returns:
        For each image an adversarial one, or the last that was tried.

    Raises:
        ValueError: see `check`; or the norm, steps or restarts are none.
    """
    check(network, images, labels, epsilon)
    if norm not in ("linf", "l2") or steps < 1 or restarts < 1:
        raise ValueError(
            f"pgd takes norm linf or l2, and at least one step and start, not {norm}, {steps}, {restarts}"
        )
    radius = _for_each(epsilon, images)
    step = 2.5 * radius / steps if step_size is None else _for_each(step_size, images)
    generator = generator or torch.Generator().manual_seed(0)
    found = images.clone()
    left = torch.arange(len(images))
    with frozen(network):
        for _ in range(restarts):
            if not len(left):
                break
            for places in left.split(BATCH):
                x, y, ball = images[places], labels[places], radius[places]
                start = project(x + noise(x, ball, norm, generator), x, ball, norm) if random_start else x
                found[places] = _ascend(network, start, x, y, ball, norm, steps, step[places], stop_early)
            left = left[~fooled(network, found[left], labels[left])]
    if len(left):  # what was misclassified to begin with needed no step
        wrong = left[fooled(network, images[left], labels[left])]
        found[wrong] = images[wrong]
    return found


def _ascend(
    network: nn.Module,
    moved: Tensor,
    images: Tensor,
    labels: Tensor,
    radius: Tensor,
    norm: Norm,
    steps: int,
    step_size: Tensor,
    stop_early: bool,
) -> Tensor:
    moved, active = moved.clone(), torch.arange(len(images))
    for _ in range(steps):
        slope, logits = gradient(network, moved[active], labels[active])
        if stop_early:
            going = logits.argmax(1) == labels[active]
            active, slope = active[going], slope[going]
            if not len(active):
                break
        direction = slope.sign() if norm == "linf" else slope / lengths(slope).clamp(min=1e-12)
        moved[active] = project(
            moved[active] + step_size[active] * direction, images[active], radius[active], norm
        )
    return moved


def lengths(differences: Tensor) -> Tensor:
    """L2 norm of each, `[N, 1, 1, 1]`."""
    return differences.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def noise(images: Tensor, epsilon: float | Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
    """A point of the ball, uniformly at random."""
    if norm == "linf":
        return epsilon * (2 * torch.rand(images.shape, generator=generator) - 1)
    direction = torch.randn(images.shape, generator=generator)
    share = torch.rand(len(images), 1, 1, 1, generator=generator) ** (1 / images[0].numel())
    return epsilon * share * direction / lengths(direction)


def project(moved: Tensor, images: Tensor, epsilon: float | Tensor, norm: Norm) -> Tensor:
    """The nearest point of the ball around each image, then of [0, 1] (which leaves it in the ball)."""
    difference = moved - images
    if norm == "linf":
        radius = torch.as_tensor(epsilon)
        difference = difference.clamp(-radius, radius)
    else:
        difference = difference * (epsilon / lengths(difference).clamp(min=1e-12)).clamp(max=1)
    return (images + difference).clamp(0, 1)


def deepfool(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
) -> Tensor:
    """Step after step to the nearest boundary, as if the network were linear there; little perturbation.

    Args:
        images: `[N, C, H, W]` float32 in [0, 1].
        labels: `[N]` int64.
        norm: `l2` or `linf`, in which the boundary is near.
        overshoot: how far beyond the boundary, as a share of the way.

    Returns:
        Images of the same shape, inside [0, 1], misclassified where that was reached in so many steps.

    Raises:
        ValueError: see `check`; or the norm is another.
    """
    check(network, images, labels)
    if norm not in ("l2", "linf"):
        raise ValueError(f"deepfool takes norm l2 or linf, not {norm}")
    moved = images.clone()
    with frozen(network):
        for active in torch.arange(len(images)).split(BATCH):
            for _ in range(steps):
                logits, slopes = _logits_and_slopes(network, moved[active], labels[active])
                going = logits.argmax(1) == labels[active]
                active, logits, slopes = active[going], logits[going], slopes[going]
                if not len(active):
                    break
                step = _to_boundary(logits, slopes, labels[active], norm)
                moved[active] = (moved[active] + (1 + overshoot) * step).clamp(0, 1)
    return moved


@torch.enable_grad()
def _logits_and_slopes(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[N, K]`, and the gradient of each less the label's, `[N, K, C, H, W]`: one pass for all
    classes."""
    images = images.detach().requires_grad_()
    logits = network(images)
    differences = logits - logits.gather(1, labels[:, None])
    slopes = [
        torch.autograd.grad(differences[:, other].sum(), images, retain_graph=True)[0]
        for other in range(logits.shape[1])
    ]
    return logits.detach(), torch.stack(slopes, 1)


def _to_boundary(logits: Tensor, slopes: Tensor, labels: Tensor, norm: Norm) -> Tensor:
    """The shortest step that makes some linearised logit as large as the label's."""
    gaps = (logits - logits.gather(1, labels[:, None])).abs() + 1e-6
    flat = slopes.flatten(2)
    sizes = (flat.norm(dim=2) if norm == "l2" else flat.abs().sum(2)).clamp(min=1e-12)
    distances = (gaps / sizes).scatter(1, labels[:, None], torch.inf)
    nearest = distances.argmin(1)
    rows = torch.arange(len(labels))
    distance, slope = distances[rows, nearest].view(-1, 1, 1, 1), slopes[rows, nearest]
    if norm == "linf":
        return distance * slope.sign()
    return distance * slope / lengths(slope).clamp(min=1e-12)


@torch.no_grad()
def fooled(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which images `[N]` bool are not classified as their labels say."""
    return answers(network, images) != labels


@torch.no_grad()
def answers(network: nn.Module, images: Tensor) -> Tensor:
    """The class that the network sees in each image, `[N]` int64."""
    return torch.cat([network(x).argmax(1) for x in images.split(BATCH)])

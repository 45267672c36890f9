"""Bounds that hold for every image in a ball: what no attack can do, ever.

Interval bound propagation (Gowal et al., 2018, arXiv:1810.12715) sends a box through the network, layer by
layer. CROWN (Zhang et al., 2018, arXiv:1811.00866) sends a linear function back from the logits, with the
boxes as bounds of every ReLU (together: CROWN-IBP, Zhang et al., 2020, arXiv:1906.06316); it is tighter.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.adversarial_robustness import attacks

LAYERS = nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.ELU, nn.MaxPool2d, nn.Flatten
"""Those that a bound is known for."""


def box(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Centre and radius of the Linf ball around images, cut to [0, 1]."""
    low, high = (images - epsilon).clamp(0, 1), (images + epsilon).clamp(0, 1)
    return (low + high) / 2, (high - low) / 2


def _ends(centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    return centre - radius, centre + radius


def box_through(layer: nn.Module, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The box that holds what a layer makes of a box.

    Raises:
        TypeError: no bound is known for such a layer.
    """
    match layer:
        case nn.Conv2d(padding_mode="zeros"):
            spread = functional.conv2d(
                radius, layer.weight.abs(), None, layer.stride, layer.padding, layer.dilation, layer.groups
            )
            return layer(centre), spread
        case nn.Linear():
            return layer(centre), functional.linear(radius, layer.weight.abs())
        case nn.BatchNorm1d() | nn.BatchNorm2d() if layer.affine and layer.track_running_stats:
            if layer.training:  # the statistics of the centres, not of images: they are there anyway
                axes = [0, *range(2, centre.ndim)]
                variance = centre.var(axes, unbiased=False)
            else:
                variance = layer.running_var
            scale = (layer.weight / (variance + layer.eps).sqrt()).abs()
            return layer(centre), radius * scale.view(1, -1, *[1] * (centre.ndim - 2))
        case nn.ReLU() | nn.ELU() | nn.MaxPool2d() if (
            getattr(layer, "alpha", 1) >= 0
        ):  # none of them falls where its input rises
            low, high = map(layer, _ends(centre, radius))
            return (low + high) / 2, (high - low) / 2
        case nn.Flatten():
            return layer(centre), layer(radius)
    raise _unknown(layer)


def _unknown(layer: nn.Module) -> TypeError:
    names = ", ".join(known.__name__ for known in LAYERS)
    return TypeError(f"no bound is known for {type(layer).__name__}: use a Sequential of {names}")


def margins(network: nn.Sequential, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Upper bounds of logit j less the label's logit, `[N, classes]`, over the ball; 0 at the label.

    All below 0 but the label's own: nothing in the ball is classified otherwise. A last layer that is
    linear is taken as one with the difference, which is tighter than the difference of two bounds.

    Raises:
        TypeError: the network is no Sequential, or has a layer for which no bound is known.
    """
    centre, radius = box(images, epsilon)
    body, last = _parts(network)
    for layer in body:
        centre, radius = box_through(layer, centre, radius)
    if last is None:
        low, high = _ends(centre, radius)
        return (high - low.gather(1, labels[:, None])).scatter(1, labels[:, None], 0)
    weight, bias = _differences(last)
    spread = torch.einsum("nof,nf->no", weight.abs()[labels], radius)
    return torch.einsum("nof,nf->no", weight[labels], centre) + spread + bias[labels]


def _parts(network: nn.Sequential) -> tuple[list[nn.Module], nn.Linear | None]:
    """All layers but the last, and the last if it is linear."""
    if not isinstance(network, nn.Sequential) or type(network).forward is not nn.Sequential.forward:
        raise TypeError(
            f"bounds go through a Sequential layer by layer, not through {type(network).__name__}"
        )
    for layer in network:
        if type(layer).forward not in {known.forward for known in LAYERS}:  # a subclass may do anything
            raise _unknown(layer)
    layers = list(network)
    return (layers[:-1], layers[-1]) if isinstance(layers[-1], nn.Linear) else (layers, None)


def _differences(last: nn.Linear) -> tuple[Tensor, Tensor]:
    """The last layer of `logit j less logit y`: weights `[y, j, features]` and biases `[y, j]`."""
    bias = _bias(last)
    return last.weight[None] - last.weight[:, None], bias[None] - bias[:, None]


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """`[out]`, zeros if the layer has none."""
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias


def crown_margins(network: nn.Sequential, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """The same bounds by CROWN, `[N, classes]`: linear in the image, with boxes as bounds of every ReLU.

    Going back from the logits, each ReLU between low < 0 < high is replaced by a line above it, from (low,
    0) to (high, high), where that makes the bound larger, and by a line below it, 0 or the identity,
    elsewhere. Around an ELU or max pooling there are two constants, the ends of its box.

    Raises:
        TypeError: as for `margins`.
        ValueError: the network is in training mode, where batch norm has no statistics of its own.
    """
    if any(layer.training for layer in network.modules()):
        raise ValueError("CROWN needs a network in evaluation mode: call .eval()")
    centre, radius = box(images, epsilon)
    body, last = _parts(network)
    boxes = []
    for layer in body:
        boxes.append((centre, radius))
        centre, radius = box_through(layer, centre, radius)
    if last is None:
        logits = torch.eye(centre.shape[1]).to(centre)
        slopes, constant = logits[None] - logits[labels][:, None], torch.zeros(()).to(centre)
    else:
        weight, bias = _differences(last)
        slopes, constant = weight[labels], bias[labels]  # [N, classes, …] and [N, classes]
    for layer, (centre, radius) in zip(reversed(body), reversed(boxes), strict=True):
        slopes, more = _back(layer, slopes, centre, radius)
        constant = constant + more
    flat, (centre, radius) = slopes.flatten(2), box(images, epsilon)
    middle = torch.einsum("nop,np->no", flat, centre.flatten(1))
    return middle + torch.einsum("nop,np->no", flat.abs(), radius.flatten(1)) + constant


def _back(layer: nn.Module, slopes: Tensor, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes by a layer's output `[N, classes, …]` -> by its input, and what the constant gains."""
    match layer:
        case nn.Flatten():
            return slopes.reshape(*slopes.shape[:2], *centre.shape[1:]), torch.zeros(())
        case nn.Linear():
            return slopes @ layer.weight, (slopes * _bias(layer)).flatten(2).sum(2)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            scale = layer.weight / (layer.running_var + layer.eps).sqrt()
            shift = layer.bias - layer.running_mean * scale
            shape = (1, 1, -1, *[1] * (centre.ndim - 2))
            return slopes * scale.view(shape), (slopes * shift.view(shape)).flatten(2).sum(2)
        case nn.Conv2d():
            flat = slopes.flatten(0, 1)
            _, transposed = torch.func.vjp(layer, centre.new_zeros(len(flat), *centre.shape[1:]))
            (back,) = transposed(flat)
            return back.unflatten(0, slopes.shape[:2]), (slopes.sum((3, 4)) * _bias(layer)).sum(2)
        case nn.ReLU():
            low, high = (each[:, None] for each in _ends(centre, radius))
            crossing = (low < 0) & (high > 0)
            above = torch.where(crossing, high / (high - low).clamp(min=1e-30), (low >= 0).to(low))
            below = torch.where(crossing, (high > -low).to(low), above)
            raised = torch.where(crossing, -low * above, 0)
            positive, negative = slopes.clamp(min=0), slopes.clamp(max=0)
            return positive * above + negative * below, (positive * raised).flatten(2).sum(2)
        case _:  # ELU, max pooling: between two constants
            low, high = (each[:, None] for each in _ends(*box_through(layer, centre, radius)))
            constant = (slopes.clamp(min=0) * high + slopes.clamp(max=0) * low).flatten(2).sum(2)
            return slopes.new_zeros(*slopes.shape[:2], *centre.shape[1:]), constant


@torch.no_grad()
def verified(
    network: nn.Sequential,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    crown: bool = True,
    batch: int = 100,
) -> Tensor:
    """For which images `[N]` bool it is proved that nothing within Linf `epsilon` is misclassified.

    By interval bounds, and by CROWN for those that they leave open; in float64, so that what rounding adds to
    a bound is some 1e-12 (the network's own arithmetic is taken to be exact). Without CROWN, float32 sorts
    out first what is far from proved.

    Args:
        crown: whether CROWN is tried, too.

    Raises:
        TypeError: the network has a layer for which no bound is known.
        ValueError: see `attacks.check`.
    """
    exact, rough = copy.deepcopy(network).double().eval(), copy.deepcopy(network).float().eval()
    attacks.check(exact, images.double(), labels, epsilon)
    proved = []
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        if not crown and (_worst(margins(rough, x.float(), y, epsilon), y) > 1).all():
            proved.append(torch.zeros(len(x), dtype=torch.bool))
            continue
        x = x.double()
        proof = _worst(margins(exact, x, y, epsilon), y) < 0
        unsettled = ~proof & (exact(x).argmax(1) == y)
        if crown and unsettled.any():
            x, y = x[unsettled], y[unsettled]
            proof[unsettled] = _worst(crown_margins(exact, x, y, epsilon), y) < 0
        proved.append(proof)
    return torch.cat(proved)


def verified_shares(
    network: nn.Sequential, images: Tensor, labels: Tensor, epsilons: Sequence[float]
) -> list[float]:
    """The share of images that bounds prove safe at each epsilon, from small ones to large.

    In a larger ball there is more to prove: what is not proved at one epsilon is not tried at the next.

    Raises:
        TypeError, ValueError: as for `verified`; or the epsilons do not rise from 0 or more.
    """
    attacks.rising(epsilons)
    shares, left = [], torch.arange(len(images))
    for epsilon in epsilons:
        if len(left):
            left = left[verified(network, images[left], labels[left], epsilon)]
        shares.append(len(left) / len(images))
    return shares


def _worst(margins: Tensor, labels: Tensor) -> Tensor:
    """The largest margin of a class that is not the label, `[N]`."""
    return margins.scatter(1, labels[:, None], -torch.inf).amax(1)

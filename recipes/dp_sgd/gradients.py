"""Gradients of single examples, clipped and summed.

    fast    one pass back through the activations; each layer's gradients then come from its inputs and its
            outputs' gradients. A fully connected layer needs no gradient of a single example at all: its
            norm is a product of two norms (Goodfellow, "Efficient per-example gradient computations",
            2015, arXiv:1510.01799), and the clipped sum is one matrix product (Bu et al., "Differentially
            private optimization on large model at small cost", 2023, arXiv:2210.00038). Convolutions
            are matrix products of patches.
    vmap    PyTorch's own vectorised gradients, for any network

B is the batch, C channels in, O channels or numbers out, D numbers in, T places of a convolution's kernel.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

Engine = Literal["fast", "vmap"]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs `[B, ...]`, labels `[B]`) -> the loss of each example `[B]`."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example: logits `[B, classes]`, labels `[B]` -> `[B]`."""
    return functional.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True)
class ClippedSum:
    """The sum of a batch's gradients, none of them longer than the clip."""

    gradients: list[Tensor]
    """In the order and the shapes of the network's trainable parameters."""
    norms: Tensor
    """`[B]`, L2 over all trainable parameters, before clipping."""
    losses: Tensor
    """`[B]`."""


def clipped_sum(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    clip: float,
    *,
    engine: Engine = "fast",
    loss: Loss = cross_entropy,
    chunk: int | None = None,
) -> ClippedSum:
    """Clip each example's gradient to an L2 norm of at most `clip`, and add them up.

    Args:
        network: inputs -> outputs, which treats each example by itself (`check_network`).
        inputs: `[B, ...]`; B may be 0.
        labels: `[B]`.
        clip: the bound C, above 0; infinity clips nothing.
        chunk: examples at a time, which bounds the memory; the engine's choice if None.

    Raises:
        ValueError: a gradient is not finite, or the fast engine does not know a layer.
    """
    if not clip > 0:
        raise ValueError(f"clip must be above 0, not {clip}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    of_chunk = {"fast": _fast, "vmap": _vmap}[engine]
    size = chunk or _chunk(network, inputs, engine)
    parts = [
        of_chunk(network, *part, clip, loss)
        for part in zip(inputs.split(size), labels.split(size), strict=True)
        if len(part[0])
    ]
    if not parts:
        none = inputs.new_zeros(0)
        return ClippedSum([torch.zeros_like(p) for p in trainable(network)], none, none)
    norms = torch.cat([part.norms for part in parts])
    if not bool(norms.isfinite().all()):
        worst = int((~norms.isfinite()).nonzero()[0])
        raise ValueError(
            f"the gradient of example {worst} of the batch is not finite: training diverged (try a smaller "
            "learning rate) or an input is not a number"
        )
    sums = [sum(layers[1:], start=layers[0]) for layers in zip(*(p.gradients for p in parts), strict=True)]
    return ClippedSum(sums, norms, torch.cat([part.losses for part in parts]))


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, each once."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _scale(norms: Tensor, clip: float) -> Tensor:
    """What to multiply each example's gradient by, `[B]`: min(1, C / norm)."""
    return (clip / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1.0)


def _chunk(network: nn.Module, inputs: Tensor, engine: Engine) -> int:
    """Examples at a time: few enough for the caches, or for a gradient each in 256 MB."""
    if engine == "vmap":
        return max(1, 2**26 // max(1, sum(p.numel() for p in trainable(network))))
    summed = (nn.Conv2d, nn.Linear) if inputs.dim() == 3 else nn.Conv2d  # with a gradient for each example
    kernels = sum(m.weight.numel() for m in network.modules() if isinstance(m, summed))
    return min(128, max(1, 2**24 // kernels)) if kernels else 4096


# --- is it the gradient of single examples? ----------------------------------------------------------


def check_network(
    network: nn.Module, inputs: Tensor, labels: Tensor, engine: Engine = "fast", loss: Loss = cross_entropy
) -> None:
    """Find out from two examples whether the network treats each by itself, and the engine knows it.

    That is no proof: a network may do on other inputs what it does not do on these.

    Raises:
        ValueError: it does not (batch normalisation, say), or the fast engine's gradients are not vmap's.
    """
    if not trainable(network):
        raise ValueError("the network has no parameter to train")
    if any(p.dtype not in (torch.float32, torch.float64) for p in trainable(network)):
        raise ValueError("the network must be float32 or float64: with less a clip is not exact")
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and (
            "BatchNorm" in type(module).__name__ or module.track_running_stats
        ):
            raise ValueError(
                f"{name} is a {type(module).__name__}: it mixes the examples of a batch, so that no "
                "example's gradient can be clipped by itself, and averages them without noise: take GroupNorm"
            )
    two = inputs[:2], labels[:2]
    _check_alone(network, *two, loss)
    was_training = [module for module in network.modules() if module.training]
    network.eval()  # without dropout, whose draws differ
    try:
        by_vmap = clipped_sum(network, *two, math.inf, engine="vmap", loss=loss)
        by_engine = clipped_sum(network, *two, math.inf, engine=engine, loss=loss)
    finally:
        for module in was_training:
            module.training = True
    pairs = zip([by_engine.norms, *by_engine.gradients], [by_vmap.norms, *by_vmap.gradients], strict=True)
    length = float(by_vmap.norms.sum())
    if not all(a.shape == b.shape and float((a - b).norm()) <= 1e-3 * length for a, b in pairs):
        raise ValueError(f"the fast engine's gradients of this network are wrong: {_OTHERWISE}")


def _check_alone(network: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss) -> None:
    """Raise ValueError if an example's loss depends on another's input, or the network keeps what it sees."""
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        seen = inputs.detach().clone().requires_grad_(inputs.is_floating_point())
        losses = loss(network(seen), labels)
        if len(losses) > 1 and seen.requires_grad and losses.requires_grad:
            (reach,) = torch.autograd.grad(losses[0], seen, allow_unused=True)
            if reach is not None and bool(reach[1:].any()):
                raise ValueError(
                    "an example's loss depends on the other examples of its batch: no gradient is its own"
                )
    for name, buffer in network.named_buffers():
        if not torch.equal(kept[name], buffer):
            raise ValueError(f"{name} changes with what the network sees, and no noise covers it")


# --- any network -------------------------------------------------------------------------------------


def per_example_gradients(
    network: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss = cross_entropy
) -> tuple[list[Tensor], Tensor]:
    """Every example's gradient by torch.func, `[B, *shape]` for each trainable parameter; losses `[B]`."""
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    fixed = {
        **{name: p for name, p in network.named_parameters() if not p.requires_grad},
        **dict(network.named_buffers()),
    }

    def loss_of_one(weights: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        outputs = torch.func.functional_call(network, (weights, fixed), (one[None],))
        return loss(outputs, label[None]).sum()

    gradients, losses = torch.func.vmap(
        torch.func.grad_and_value(loss_of_one), in_dims=(None, 0, 0), randomness="different"
    )(weights, inputs, labels)
    return list(gradients.values()), losses


def _vmap(network: nn.Module, inputs: Tensor, labels: Tensor, clip: float, loss: Loss) -> ClippedSum:
    gradients, losses = per_example_gradients(network, inputs, labels, loss)
    flat = [gradient.flatten(1) for gradient in gradients]
    norms = torch.stack([g.square().sum(1) for g in flat]).sum(0).sqrt()
    scale = _scale(norms, clip)
    sums = [(scale @ f).view(g.shape[1:]) for f, g in zip(flat, gradients, strict=True)]
    return ClippedSum(sums, norms, losses)


# --- fully connected layers and convolutions ---------------------------------------------------------


_IN_CACHE = 32  # examples whose patches are looked at together


@dataclass(frozen=True)
class _Use:
    """A layer at work: what came in, and what went out."""

    layer: nn.Linear | nn.Conv2d
    inputs: Tensor
    outputs: Tensor
    version: int


@dataclass(frozen=True)
class _Piece:
    """The gradients of one parameter, not yet clipped."""

    parameter: nn.Parameter
    squares: Tensor
    """`[B]`, the squared norm of each example's gradient."""
    weighted_sum: Callable[[Tensor], Tensor]
    """Factors `[B]` -> the sum of the gradients, each times its factor."""


def _fast(network: nn.Module, inputs: Tensor, labels: Tensor, clip: float, loss: Loss) -> ClippedSum:
    parameters = trainable(network)
    with _watched(network) as uses:
        try:
            losses = loss(network(inputs), labels)
        except RuntimeError as error:
            raise ValueError(_IN_PLACE) if "in-place" in str(error) else error from None
        _check_uses(parameters, uses, len(inputs))
        try:
            upstream = torch.autograd.grad(losses.sum(), [use.outputs for use in uses])
        except RuntimeError as error:
            raise ValueError(f"a layer has no part in the loss ({error}): {_OTHERWISE}") from None
    with torch.no_grad():
        pieces = [p for use, g in zip(uses, upstream, strict=True) for p in _pieces(use, g)]
        norms = torch.stack([piece.squares for piece in pieces]).sum(0).sqrt()
        scale = _scale(norms, clip)
        sums = {id(piece.parameter): piece.weighted_sum(scale) for piece in pieces}
    return ClippedSum([sums[id(parameter)] for parameter in parameters], norms, losses.detach())


def _pieces(use: _Use, upstream: Tensor) -> Iterator[_Piece]:
    """A layer's gradients from its inputs and the gradient of the loss at its outputs."""
    layer, inputs = use.layer, use.inputs.detach()
    if isinstance(layer, nn.Conv2d):
        upstream = upstream.permute(0, 2, 3, 1)
    if upstream.dim() == 2:  # [B, D] and [B, O]: each gradient is an outer product
        squares = upstream.square().sum(1)
        yield _Piece(
            layer.weight,
            squares * inputs.square().sum(1),
            lambda scale: (upstream * scale[:, None]).T @ inputs,
        )
    else:  # [B, T, D] and [B, T, O]: a sum of T outer products
        upstream = upstream.flatten(1, -2)
        weights = _room(layer, len(inputs), layer.weight.numel()).view(len(inputs), upstream.shape[-1], -1)
        for i in range(0, len(inputs), _IN_CACHE):
            some = slice(i, i + _IN_CACHE)
            seen = (
                _patches(layer, inputs[some]) if isinstance(layer, nn.Conv2d) else inputs[some].flatten(1, -2)
            )
            torch.bmm(upstream[some].transpose(1, 2), seen, out=weights[some])  # [B, O, D]
        yield _Piece(
            layer.weight,
            torch.linalg.vector_norm(weights.flatten(1), dim=1).square(),
            lambda scale: _in_shape(scale @ weights.flatten(1), layer),
        )
    if layer.bias is not None:
        biases = upstream if upstream.dim() == 2 else upstream.sum(1)  # [B, O]
        yield _Piece(layer.bias, biases.square().sum(1), lambda scale: scale @ biases)


_rooms: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


def _room(layer: nn.Module, batch: int, size: int) -> Tensor:
    """Memory `[batch, size]` that is used again and again: to get it anew costs as much as to fill it."""
    weight = layer.weight
    if layer not in _rooms or len(_rooms[layer]) < batch or _rooms[layer].dtype != weight.dtype:
        _rooms[layer] = weight.new_empty(batch, size)
    return _rooms[layer][:batch]


def _patches(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """What the kernel sees at each of its T places: `[B, C, H, W]` -> `[B, T, kh·kw·C]`."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = (0, 0) if layer.padding == "valid" else layer.padding
    images = functional.pad(images, (pw, pw, ph, ph)) if ph or pw else images
    batch, channels, height, width = images.shape
    down, right = (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1
    b, c, h, w = images.stride()
    seen = images.as_strided(
        (batch, down, right, kh, kw, channels),
        (b, sh * h, sw * w, dh * h, dw * w, c),
        images.storage_offset(),
    )
    return seen.reshape(batch, down * right, kh * kw * channels)


def _in_shape(weight: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """A weight as `_patches` orders it, in the layer's own order."""
    if isinstance(layer, nn.Linear):
        return weight.view_as(layer.weight)
    return weight.view(layer.out_channels, *layer.kernel_size, layer.in_channels).permute(0, 3, 1, 2)


@contextlib.contextmanager
def _watched(network: nn.Module) -> Iterator[list[_Use]]:
    """Note the inputs and outputs of the layers that are trained, and leave out gradients of weights."""
    uses: list[_Use] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        if not outputs.requires_grad:
            outputs.requires_grad_()
        uses.append(_Use(layer, inputs[0], outputs, outputs._version))

    layers = [m for m in network.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    for layer in layers:
        _check_layer(layer)
    parameters = trainable(network)
    in_place = [m for m in network.modules() if getattr(m, "inplace", False)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        for module in in_place:  # it would overwrite the outputs whose gradients are wanted
            module.inplace = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield uses
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module in in_place:
            module.inplace = True


_OTHERWISE = 'take engine="vmap", which knows every layer'
_IN_PLACE = f"a layer's outputs are changed in place, where the fast engine needs them: {_OTHERWISE}"


def _check_layer(layer: nn.Module) -> None:
    """Raise ValueError for a layer whose gradients the fast engine does not know."""
    name = type(layer).__name__
    if type(layer) not in (nn.Linear, nn.Conv2d):
        raise ValueError(f"the fast engine knows Linear and Conv2d, not {name}: {_OTHERWISE}")
    if not {key for key, _ in layer.named_parameters()} <= {"weight", "bias"}:
        raise ValueError(
            f"the fast engine does not know a {name} whose weight is made of others: {_OTHERWISE}"
        )
    if not layer.weight.requires_grad or (layer.bias is not None and not layer.bias.requires_grad):
        raise ValueError(
            f"the fast engine trains all of a layer or nothing, not a part of {name}: {_OTHERWISE}"
        )
    if isinstance(layer, nn.Conv2d) and (
        layer.groups != 1 or layer.padding_mode != "zeros" or layer.padding == "same"
    ):
        raise ValueError(
            "the fast engine knows Conv2d with one group and a number of zeros around, not groups="
            f"{layer.groups}, padding={layer.padding!r}, padding_mode={layer.padding_mode!r}: {_OTHERWISE}"
        )


def _check_uses(parameters: Sequence[nn.Parameter], uses: Sequence[_Use], batch: int) -> None:
    """Raise ValueError unless each layer was used once, on all examples, and its outputs are as they were."""
    if any(use.inputs.shape[:1] != (batch,) or use.outputs.shape[:1] != (batch,) for use in uses):
        raise ValueError(
            f"the fast engine wants the examples along the first axis of every layer: {_OTHERWISE}"
        )
    used = [id(p) for use in uses for p in use.layer.parameters(recurse=False)]
    if sorted(used) != sorted(id(p) for p in parameters):
        raise ValueError(
            f"the fast engine wants each layer to be used once, and weights not shared: {_OTHERWISE}"
        )
    if any(use.outputs._version != use.version for use in uses):
        raise ValueError(_IN_PLACE)

"""What is worked out before an input is known: masks of weights, once a session, and material for each query.

The provider and both parties run `deal`, each with a `Source` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from recipes.private_prediction import ring
from recipes.private_prediction.comparison import Comparison
from recipes.private_prediction.randomness import CLIENT, SERVER, Dealer, Source
from recipes.private_prediction.scales import Scale

Reveal = Literal["label", "logits"]

# ---- for weights, once a session


@dataclass
class WeightMasks:
    """What the provider knows of a layer."""

    scale: Scale
    weight: np.ndarray
    """`[inputs, outputs]` uint64."""
    bias: np.ndarray
    """`[outputs]` uint64."""


@dataclass
class SharedLayer:
    """What a party knows of a layer."""

    scale: Scale
    masked: np.ndarray
    """weight + mask `[inputs, outputs]` uint64, known to both."""
    share: np.ndarray
    """This party's share of the weight, `[inputs, outputs]` uint64."""
    bias: np.ndarray
    """This party's share of the bias, `[outputs]` uint64."""


def deal_weights(source: Dealer, scales: Sequence[Scale]) -> list[WeightMasks]:
    """The provider's part: it draws the masks."""
    return [
        WeightMasks(
            scale,
            source.mask_of(SERVER, scale.inputs, scale.outputs)[0],
            source.mask_of(SERVER, scale.outputs)[0],
        )
        for scale in scales
    ]


# ---- for each query


@dataclass
class SignMaterial:
    """For the signs of n numbers of `bits` bits, and the carries from their `low` lowest bits."""

    bits: int
    low: int
    mask: np.ndarray
    """`[n]` uint64: shares of a mask modulo 2**bits; at the provider the mask."""
    comparison: Any
    flips: np.ndarray
    """Planes; signs and carries are opened XOR these, signs XOR the mask's top bit, too."""


@dataclass
class LayerMaterial:
    """A party's material for one layer of one query."""

    constant: np.ndarray | None
    """`[batch, outputs]` uint64: what of the product does not depend on the input; None at the provider."""
    input_mask: np.ndarray
    """`[batch, inputs]` uint64: a share, or at the client the whole mask of the query's input."""
    sign: SignMaterial | None = None
    sign_mask: np.ndarray | None = None
    """`[n]`: shares of the masks of the signs, in the ring in which they are summed up."""
    products: np.ndarray | None = None
    """`[7, n]` uint64, ReLU's table. Row 2 p + e: shares of (sign) * (mask, rounded down and lifted), if the
    masked sign is p and the masked number's top bit 1 - e. Then the masks of sign and carry, and their
    product."""
    rank_mask: np.ndarray | None = None
    """`[batch, classes]`: shares of masks of ranks."""
    rank_table: np.ndarray | None = None
    """`[batch, classes, 2**bits]`: shares of the class where a masked rank is the highest, of 0 elsewhere."""


def deal(
    source: Source,
    comparison: Comparison,
    layers: Sequence[Any],
    batch: int,
    reveal: Reveal,
    mark: Callable[[str], None],
) -> list[LayerMaterial]:
    """All material of a query, layer by layer.

    Args:
        layers: `WeightMasks` at the provider, `SharedLayer` at a party.
        mark: told after each layer which it was.
    """
    materials = []
    for number, layer in enumerate(layers):
        scale = layer.scale
        if number:
            mask = whole = source.mask(batch, scale.inputs)
        else:
            mask, whole = source.mask_of(CLIENT, batch, scale.inputs)
        constant = None
        if isinstance(layer, SharedLayer):  # before the provider is through
            constant = layer.bias - ring.product(mask, layer.masked)
        product = source.share(
            (batch, scale.outputs), lambda mask=mask, layer=layer: ring.product(mask, layer.weight)
        )
        if constant is not None:
            constant += product
        material = LayerMaterial(constant, mask if whole is None else whole)
        if number < len(layers) - 1:
            _deal_relu(source, comparison, batch * scale.outputs, scale, material)
        elif reveal == "label":
            _deal_argmax(source, comparison, batch, scale, material)
        materials.append(material)
        mark(f"layer {number + 1}")
    return materials


def _deal_sign(
    source: Source, comparison: Comparison, numbers: int, bits: int, low: int
) -> tuple[SignMaterial, np.ndarray | None]:
    """Material, and at the provider the masks of sign and carry, `[1 or 2, n]` uint64 of 0 and 1."""
    mask = ring.lowest(source.mask(numbers), bits)
    material = comparison.deal(source, numbers, bits - 1, low, ring.lowest(mask, bits - 1))
    flips = source.mask_planes(1 + (low > 0), numbers)
    masks = None
    if isinstance(source, Dealer):
        masks = np.stack([ring.unpacked(flip, (numbers,)) for flip in flips])
        masks[0] ^= mask >> np.uint64(bits - 1)
    return SignMaterial(bits, low, mask, material, flips), masks


def _deal_relu(
    source: Source, comparison: Comparison, numbers: int, scale: Scale, material: LayerMaterial
) -> None:
    bits, drop = scale.ring_bits, scale.drop_bits
    material.sign, masks = _deal_sign(source, comparison, numbers, bits, drop)

    def products() -> np.ndarray:
        sign, carry = masks
        mask = material.sign.mask
        rounded = mask >> np.uint64(drop)
        top = mask >> np.uint64(bits - 1)  # 1: x + mask may have wrapped around
        lifted = rounded - (top << np.uint64(bits - drop))
        rows = np.stack([rounded, lifted])
        positive = sign * rows
        return np.concatenate([positive, rows - positive, [sign, carry, sign * carry]])

    material.products = source.share((7, numbers), products)


def _deal_argmax(
    source: Source, comparison: Comparison, batch: int, scale: Scale, material: LayerMaterial
) -> None:
    classes, kind = scale.outputs, rank_type(scale.outputs)
    material.sign, masks = _deal_sign(source, comparison, batch * pairs(classes), scale.ring_bits, 0)
    material.sign_mask = source.share((batch, pairs(classes)), lambda: _as(masks[0], kind, batch), kind)
    material.rank_mask = mask = source.mask(batch, classes, dtype=kind)
    size = rank_values(classes)

    def table() -> np.ndarray:
        winner = (mask + kind(classes - 1)) & kind(size - 1)
        return (np.arange(size, dtype=kind) == winner[..., None]) * np.arange(classes, dtype=kind)[:, None]

    material.rank_table = source.share((batch, classes, size), table, kind)


def _as(words: np.ndarray, kind: Any, batch: int) -> np.ndarray:
    return words.astype(kind).reshape(batch, -1)


def pairs(classes: int) -> int:
    """How many pairs of classes there are."""
    return classes * (classes - 1) // 2


def rank_type(classes: int) -> Any:
    """The unsigned type of ranks and labels."""
    return np.uint8 if classes <= 256 else np.uint16


def rank_values(classes: int) -> int:
    """Ranks are masked modulo this power of two."""
    return 1 << (classes - 1).bit_length()

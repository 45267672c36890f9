"""Fixed point without overflow: how many bits every layer's numbers need, proved from the weights.

Numbers of a layer's input carry `fraction_bits` after the point, so do weights, and their products
twice as many. What a layer gives is divided by 2**drop_bits, and must then fit a word of
`word_bits`, for every input that the client may send. Interval arithmetic over the weights gives the
largest number that can occur. The server does this once and announces the outcome: sizes, and a whole
number of bytes for each layer; the bound itself, to the bit, only where it leaves fewer bits after the
point than asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipes.private_prediction.mlp import Layer
from recipes.private_prediction.ring import WORD_BITS

_LONGEST_WORD = 48


@dataclass(frozen=True)
class Scale:
    """What everybody may know of a layer. [inputs] -> [outputs]."""

    inputs: int
    outputs: int
    weight_bits: int
    """Bits after the point of weights."""
    drop_bits: int
    """By how many bits the layer's outputs are cut."""
    fraction_bits: int
    """Bits after the point of outputs, once cut."""
    word_bits: int
    """Bits of a word that holds an output, or a difference of two; a multiple of 8."""

    @property
    def ring_bits(self) -> int:
        """Outputs before the cut are needed modulo 2**ring_bits, and so are the inputs; a multiple of 8."""
        return -(-(self.drop_bits + self.word_bits) // 8) * 8

    @property
    def input_fraction_bits(self) -> int:
        """Bits after the point of inputs."""
        return self.drop_bits + self.fraction_bits - self.weight_bits


def scales(layers: Sequence[Layer], fraction_bits: int, lowest: float, highest: float) -> list[Scale]:
    """Scales at which no number overflows, whatever the input in [lowest, highest].

    Args:
        fraction_bits: of inputs, weights and activations; of the last as many as fit.
        lowest, highest: the range of the network's inputs.

    Raises:
        ValueError: the numbers can become too large for the ring.
    """
    found: list[Scale] = []
    given = fraction_bits
    low, high = np.full(layers[0].weight.shape[1], lowest), np.full(layers[0].weight.shape[1], highest)
    for number, layer in enumerate(layers, 1):
        last = number == len(layers)
        low, high = _interval(layer, low, high, given, fraction_bits)
        largest = max(float(np.max(high)), -float(np.min(low)))
        reach = 1 + largest * (2 if last else 1)  # of the last, differences are compared
        whole = 1 + int(np.frexp(reach)[1])  # a sign, and bits before the point
        fraction = min(fraction_bits, _LONGEST_WORD - whole)
        drop = given + fraction_bits - fraction
        word = -(-(whole + fraction) // 8) * 8
        constants = max(float(np.abs(layer.weight).max()), float(np.abs(layer.bias).max()) * 2.0**given)
        if (
            fraction < 1
            or drop + word > WORD_BITS
            or constants * 2.0**fraction_bits >= 2.0 ** (WORD_BITS - 2)
        ):
            raise ValueError(
                f"layer {number} can give numbers of {reach:.3g}, too large for {WORD_BITS} bits with "
                f"{fraction_bits} of them after the point: scale the weights down, or use fewer fraction bits"
            )
        found.append(Scale(*layer.weight.shape[::-1], fraction_bits, drop, fraction, word))
        low, high, given = np.maximum(low, 0), np.maximum(high, 0), fraction
    return found


def _interval(
    layer: Layer, low: np.ndarray, high: np.ndarray, given: int, fraction_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Between which numbers a layer's outputs lie, given those of its inputs, which may be one unit off."""
    weight = np.rint(layer.weight.astype(np.float64) * 2.0**fraction_bits) / 2.0**fraction_bits
    up, down = np.maximum(weight, 0), np.minimum(weight, 0)
    slack = 2.0**-given * (1 + np.abs(weight).sum(axis=1))
    return up @ low + down @ high + layer.bias - slack, up @ high + down @ low + layer.bias + slack

"""Fixed point without overflow: how many bits every layer's numbers need, proved from the weights.

Numbers of a layer's input have some bits after the point, so have weights, and their products as many as
both together. They must fit the ring for every input that the client may send; interval arithmetic over
the weights gives the largest that can occur. Before ReLU, numbers are rounded to the bits that the next
layer takes. The server works all this out once, and announces it: sizes, and for each layer a whole number
of bytes. Everybody may know that; it bounds the weights a little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipes.private_prediction.mlp import Layer
from recipes.private_prediction.ring import WORD_BITS


@dataclass(frozen=True)
class Scale:
    """What everybody may know of a layer. [inputs] -> [outputs]."""

    inputs: int
    outputs: int
    input_bits: int
    """Bits after the point of inputs."""
    weight_bits: int
    """Bits after the point of weights."""
    drop_bits: int
    """By how many bits outputs are rounded; 0 for the last layer."""
    ring_bits: int
    """Outputs, and for the label their differences, are computed modulo 2**ring_bits; a multiple of 8."""

    @property
    def product_bits(self) -> int:
        """Bits after the point of outputs before they are rounded."""
        return self.input_bits + self.weight_bits


def scales(layers: Sequence[Layer], fraction_bits: int, lowest: float, highest: float) -> list[Scale]:
    """Scales at which no number overflows, whatever the input in [lowest, highest].

    Args:
        fraction_bits: of inputs and weights; activations have as many, or as many as fit.
        lowest, highest: the range of the network's inputs.

    Raises:
        ValueError: the numbers can become too large for the ring.
    """
    if not 1 <= fraction_bits <= 24:
        raise ValueError(f"fraction_bits must be from 1 to 24, not {fraction_bits}")
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest <= highest):
        raise ValueError(f"inputs must lie in a range of numbers, not from {lowest} to {highest}")
    for activation_bits in range(fraction_bits, 0, -1):
        found, problem = _scales(layers, fraction_bits, activation_bits, lowest, highest)
        if not problem:
            return found
    raise ValueError(problem)


def _scales(
    layers: Sequence[Layer], fraction_bits: int, activation_bits: int, lowest: float, highest: float
) -> tuple[list[Scale], str]:
    """Scales, or why there are none."""
    found: list[Scale] = []
    given = fraction_bits
    low, high = np.full(layers[0].weight.shape[1], lowest), np.full(layers[0].weight.shape[1], highest)
    for number, layer in enumerate(layers, 1):
        last = number == len(layers)
        low, high = _interval(layer, low, high, given, fraction_bits)
        reach = 1 + max(float(np.max(high)), -float(np.min(low))) * (2 if last else 1)  # differences
        constants = max(float(np.abs(layer.weight).max()), float(np.abs(layer.bias).max()) * 2.0**given)
        ring = -(-(1 + math.frexp(reach)[1] + given + fraction_bits) // 8) * 8  # a sign, and before the point
        fits = ring <= WORD_BITS and constants * 2.0**fraction_bits < 2.0 ** (WORD_BITS - 2)
        if not (fits and math.isfinite(reach)):
            return [], (
                f"layer {number} can give numbers of {reach:.3g}, too large for {WORD_BITS} bits with "
                f"{given + fraction_bits} of them after the point: scale the weights down, or use fewer "
                "fraction bits"
            )
        drop = 0 if last else given + fraction_bits - activation_bits
        found.append(Scale(*layer.weight.shape[::-1], given, fraction_bits, drop, ring))
        low, high, given = np.maximum(low, 0), np.maximum(high, 0), activation_bits
    return found, ""


def _interval(
    layer: Layer, low: np.ndarray, high: np.ndarray, given: int, fraction_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Between which numbers a layer's outputs lie, given those of its inputs, which may be one unit off."""
    weight = np.rint(layer.weight.astype(np.float64) * 2.0**fraction_bits) / 2.0**fraction_bits
    up, down = np.maximum(weight, 0), np.minimum(weight, 0)
    slack = 2.0**-given * (1 + np.abs(weight).sum(axis=1))
    return up @ low + down @ high + layer.bias - slack, up @ high + down @ low + layer.bias + slack

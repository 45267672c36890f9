"""Linear layers, rounding, ReLU and argmax on masked and shared numbers, in the order in which a query runs.

A number x is *masked* if both parties know x + r, and have shares of the mask r; it is *shared* if
each has a summand of it. Masks are used once. All of it is modulo 2**64, or a smaller power of two.

    x + r, w + s  masked    ->  x w    shared   (x + r) w - r (w + s) + r s, each party its part of it
    z             shared    ->  z + r  masked   one round: each tells the other its share, masked
    z + r         masked    ->  z > 0  masked   a `comparison` of z + r, known, with r, unknown, and a round
    both          masked    ->  relu   shared   looked up in a table of products of masks

What a party sends is its share of a number plus its share of a mask used for nothing else; but for the
last message, the server's share of what is revealed.
Weights are masked once a session; what does not depend on the input is worked out beforehand (`material`).

All of it is exact: what comes out is what `fixed_point` computes in the clear, bit for bit. Rounding on
shares would be cheaper if each party cut its own share; but then the result depends on the shares, a
party can hold it against its own, and learns the weights bit by bit (`hazards.cut_shares`).
(Masked evaluation: Ben-Efraim, Nielsen, Omri, "Turbospeedz", ACNS 2019; lifting to a larger ring by the
mask's top bit: Escudero, Ghosh, Keller, Rachuri, Scholl, CRYPTO 2020.)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from recipes.private_prediction import ring
from recipes.private_prediction.comparison import PROTOCOLS, Comparison
from recipes.private_prediction.material import (
    LayerMaterial,
    Reveal,
    SharedLayer,
    SignMaterial,
    rank_type,
    rank_values,
)
from recipes.private_prediction.mlp import Layer
from recipes.private_prediction.randomness import PARTIES, SERVER, Source
from recipes.private_prediction.scales import Scale


class Tally:
    """What a role has sent in each step of a protocol, and how long the step took."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self.rounds = 0
        self.steps: dict[str, list[float]] = {}
        """By step: rounds, bytes sent to the other party and the provider, seconds."""
        self.skip()

    def skip(self) -> None:
        """Begin anew: what happened since the last step belongs to none."""
        self._last = self._now()

    def mark(self, step: str) -> None:
        """All since the last call belongs to this step."""
        now = self._now()
        counted = self.steps.setdefault(step, [0, 0, 0.0])
        for place, (value, before) in enumerate(zip(now, self._last, strict=True)):
            counted[place] += value - before
        self._last = now

    def _now(self) -> tuple[int, int, float]:
        return self.rounds, sum(self._network.sent.values()), time.perf_counter()


class Party:
    """One of the two that compute: what it sends, and rounds."""

    def __init__(self, network: Any, source: Source, comparison: str) -> None:
        self.role: str = network.role
        self.index = PARTIES.index(self.role)
        self.other = PARTIES[1 - self.index]
        self.network, self.source = network, source
        self.comparison: Comparison = PROTOCOLS[comparison]()
        self.tally = Tally(network)

    def open_words(self, share: np.ndarray, bits: int) -> np.ndarray:
        """One round: the sum of both parties' shares, modulo 2**bits."""
        received = self._swap(ring.to_bytes(share, bits))
        return ring.lowest(share + ring.from_bytes(received, bits, share.shape), bits)

    def open_small(self, share: np.ndarray) -> np.ndarray:
        """The same for shares of a smaller unsigned type, modulo its range."""
        return share + np.frombuffer(self._swap(share.tobytes()), share.dtype).reshape(share.shape)

    def open_planes(self, share: np.ndarray) -> np.ndarray:
        """The same for bits, which add up by XOR."""
        return share ^ np.frombuffer(self._swap(share.tobytes()), np.uint8).reshape(share.shape)

    def tell(self, message: bytes) -> None:
        """A round in which only this party speaks."""
        self.tally.rounds += 1
        self.network.send({self.other: message})

    def listen(self) -> bytes:
        """A round in which only the other party speaks."""
        self.tally.rounds += 1
        return self.network.receive(self.other)

    def _swap(self, message: bytes) -> bytes:
        self.tally.rounds += 1
        return self.network.exchange({self.other: message})[self.other]


# ---- weights, once a session


def share_weights(party: Party, scales: Sequence[Scale], layers: Sequence[Layer] | None) -> list[SharedLayer]:
    """Mask the server's weights, and tell the client; from then on both have shares of them.

    Args:
        layers: the network at the server, None at the client.
    """
    shared = []
    for number, scale in enumerate(scales):
        weight_share, weight_mask = party.source.mask_of(SERVER, scale.inputs, scale.outputs)
        bias_share, bias_mask = party.source.mask_of(SERVER, scale.outputs)
        bits = scale.ring_bits
        if layers is not None:
            weight = ring.encode(layers[number].weight.T, scale.weight_bits) + weight_mask
            bias = ring.encode(layers[number].bias, scale.product_bits) + bias_mask
            message = ring.to_bytes(weight, bits) + ring.to_bytes(bias, bits)
            party.tell(message)
        else:
            message = party.listen()
        numbers = ring.from_bytes(message, bits, ((scale.inputs + 1) * scale.outputs,))
        weight, bias = (
            numbers[: -scale.outputs].reshape(scale.inputs, scale.outputs),
            numbers[-scale.outputs :],
        )
        known = np.uint64(party.index == 0)  # what both know counts once
        shared.append(SharedLayer(scale, weight, known * weight - weight_share, known * bias - bias_share))
    return shared


# ---- a query


def evaluate(
    party: Party,
    layers: Sequence[SharedLayer],
    materials: Sequence[LayerMaterial],
    inputs: np.ndarray | None,
    reveal: Reveal,
) -> np.ndarray | None:
    """The network on a batch; labels `[batch]` or logits `[batch, classes]` float64 at the client.

    Args:
        inputs: `[batch, inputs]` float at the client, None at the server.
    """
    party.tally.skip()
    public = open_input(party, layers[0].scale, materials[0], inputs)
    party.tally.mark("input")
    for number, (layer, material) in enumerate(zip(layers, materials, strict=True)):
        share = ring.product(public, layer.share) + material.constant
        if number < len(layers) - 1:
            following = materials[number + 1].input_mask
            active = relu(party, share.ravel(), material).reshape(share.shape)
            public = party.open_words(active + following, layers[number + 1].scale.ring_bits)
        party.tally.mark(f"layer {number + 1}")
    if reveal == "label":
        revealed = reveal_label(party, share, material)
    else:
        revealed = reveal_logits(party, share, layer.scale)
    party.tally.mark(reveal)
    return revealed


def open_input(party: Party, scale: Scale, material: LayerMaterial, inputs: np.ndarray | None) -> np.ndarray:
    """The client's inputs, masked, as both know them."""
    bits, shape = scale.ring_bits, material.input_mask.shape
    if inputs is None:
        return ring.from_bytes(party.listen(), bits, shape)
    public = ring.lowest(ring.encode(inputs, scale.input_bits) + material.input_mask, bits)
    party.tell(ring.to_bytes(public, bits))
    return public


def sign(party: Party, share: np.ndarray, material: SignMaterial) -> tuple[np.ndarray, np.ndarray]:
    """Open n shared numbers, masked, and where they are not negative, masked.

    Returns:
        number + mask `[n]` uint64, and planes: [number >= 0] XOR its mask; and, if `low` is not 0, the
        carry [low bits of number + mask < low bits of mask] XOR its mask.
    """
    bits = material.bits
    public = party.open_words(share + material.mask, bits)
    below = ring.lowest(public, bits - 1)
    less = party.comparison.less(party, below, bits - 1, material.low, material.comparison)
    opened = party.open_planes(less ^ material.flips)
    opened[0] ^= ~np.packbits((public >> np.uint64(bits - 1)).astype(np.uint8), bitorder="little")
    return public, opened


def relu(party: Party, share: np.ndarray, material: LayerMaterial) -> np.ndarray:
    """Shares modulo 2**64 of max(x, 0), rounded, from shares of x `[n]` modulo 2**ring_bits."""
    bits, drop = material.sign.bits, material.sign.low
    first = np.uint64(party.index == 0)
    half = first << np.uint64(drop - 1)  # to round to the nearest
    public, planes = sign(party, share + half, material.sign)
    positive, carry = (ring.unpacked(plane, public.shape).astype(bool) for plane in planes)  # masked
    not_top = (public >> np.uint64(bits - 1)) == 0
    *rows, positive_mask, carry_mask, both_masks = material.products
    product = np.where(positive, np.where(not_top, rows[3], rows[2]), np.where(not_top, rows[1], rows[0]))
    of_positive = _unmask(positive, positive_mask, first)
    # (positive XOR mask) * (carry XOR mask)
    with_mask = np.where(positive, carry_mask - both_masks, both_masks)
    carried = np.where(carry, of_positive - with_mask, with_mask)
    return (public >> np.uint64(drop)) * of_positive - product - carried


def _unmask(masked: np.ndarray, mask: np.ndarray, first: np.unsignedinteger) -> np.ndarray:
    """Shares of a bit, from the bit XOR a mask, shares of the mask, and this party's share of 1."""
    return np.where(masked, first - mask, mask)


def reveal_label(party: Party, share: np.ndarray, material: LayerMaterial) -> np.ndarray | None:
    """To the client the class `[batch]` int64 with the largest logit, the first one if there are two.

    Every class is compared with every other; the one that wins all has the highest rank.
    """
    batch, classes = share.shape
    kind = rank_type(classes)
    first, second = np.triu_indices(classes, 1)
    _, (plane,) = sign(party, (share[:, first] - share[:, second]).ravel(), material.sign)
    one = kind(party.index == 0)
    masked = ring.unpacked(plane, (batch, len(first))).astype(bool)
    wins = _unmask(masked, material.sign_mask, one)  # of the first of each pair
    losses = one - wins
    ranks = np.stack(
        [
            wins[:, first == k].sum(axis=1, dtype=kind) + losses[:, second == k].sum(axis=1, dtype=kind)
            for k in range(classes)
        ],
        axis=1,
    )
    opened = party.open_small(ranks + material.rank_mask) & kind(rank_values(classes) - 1)
    chosen = np.take_along_axis(material.rank_table, opened[..., None].astype(np.int64), axis=2)
    label = chosen.sum(axis=(1, 2), dtype=kind)
    if party.role == SERVER:
        party.tell(label.tobytes())
        return None
    return (label + np.frombuffer(party.listen(), kind)).astype(np.int64)


def reveal_logits(party: Party, share: np.ndarray, scale: Scale) -> np.ndarray | None:
    """To the client the logits."""
    if party.role == SERVER:
        party.tell(ring.to_bytes(share, scale.ring_bits))
        return None
    words = share + ring.from_bytes(party.listen(), scale.ring_bits, share.shape)
    return ring.decode(words, scale.product_bits, scale.ring_bits)


# ---- the same in the clear


def fixed_point(layers: Sequence[Layer], scales: Sequence[Scale], inputs: np.ndarray) -> np.ndarray:
    """The logits `[N, classes]` float64 that the protocol computes, without the protocol."""
    words = ring.encode(inputs, scales[0].input_bits)
    for layer, scale in zip(layers, scales, strict=True):
        weight = ring.encode(layer.weight.T, scale.weight_bits)
        words = ring.product(words, weight) + ring.encode(layer.bias, scale.product_bits)
        if scale.drop_bits:
            half = np.int64(1 << (scale.drop_bits - 1))
            words = np.maximum((words.view(np.int64) + half) >> np.int64(scale.drop_bits), 0).view(np.uint64)
    return ring.decode(words, scale.product_bits)

"""What can go wrong, shown: truncation where it fails, and a provider that takes sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipes.private_prediction import protocol, ring
from recipes.private_prediction.mlp import Layer
from recipes.private_prediction.randomness import CLIENT, PROVIDER, SERVER, Dealer
from recipes.private_prediction.rehearsal import Rehearsal


@dataclass(frozen=True)
class Truncation:
    """How often a shared number was off by more than one after it had been cut."""

    expected: float
    """Probability of a failure in the whole ring: |x| / 2**64."""
    in_the_ring: float
    """Frequency if each party cuts its share and takes the result for a share in the whole ring."""
    in_the_smaller_ring: float
    """Frequency if it is taken for a share modulo 2**(64 - drop_bits), as this recipe does."""


def truncation_failures(
    value: int, drop_bits: int, trials: int, generator: np.random.Generator
) -> Truncation:
    """Share a number many times, cut the shares, and count.

    The usual way, to cut and carry on in the whole ring (Mohassel and Zhang, "SecureML", 2017), fails
    whenever the shares' sum wraps around, which happens the more often the larger the number.
    """
    first = generator.integers(0, 1 << 64, trials, np.uint64)
    second = np.uint64(value % (1 << 64)) - first
    cut = np.uint64(drop_bits)
    whole = (first >> cut) - ((np.uint64(0) - second) >> cut)  # SecureML: party 1 cuts the negated share
    smaller = ring.drop(first, drop_bits, 0) + ring.drop(second, drop_bits, 1)
    quotient = value / (1 << drop_bits)
    wrong = [
        float(np.mean(np.abs(ring.decode(words, 0, bits) - quotient) > 1))
        for words, bits in ((whole, 64), (smaller, 64 - drop_bits))
    ]
    return Truncation(abs(value) / 2.0**64, *wrong)


def images_seen_by(rehearsal: Rehearsal, provider_helps: bool) -> np.ndarray:
    """What the server can make of the first query's input `[batch, inputs]`, with the provider or without.

    It takes the masked input for what it is, or takes off the mask if the provider has told the seeds.
    """
    first = rehearsal.terms.scales[0]
    batch = _batch(rehearsal)
    size = batch * first.inputs * first.ring_bits // 8
    message = next(m for sender, m in rehearsal.received[SERVER] if sender == CLIENT and len(m) == size)
    masked = ring.from_bytes(message, first.ring_bits, (batch, first.inputs))
    if provider_helps:
        source = _replayed(rehearsal)
        protocol.deal_weights(source, rehearsal.terms.scales)
        masked -= source.mask_of(CLIENT, batch, first.inputs)[0]
    return ring.decode(masked, first.input_fraction_bits, first.ring_bits)


def weights_seen_by(rehearsal: Rehearsal, provider_helps: bool) -> list[Layer]:
    """What the client can make of the network, with the provider or without."""
    scales = rehearsal.terms.scales
    masks = protocol.deal_weights(_replayed(rehearsal), scales)
    messages = [message for sender, message in rehearsal.received[CLIENT] if sender == SERVER]
    found = []
    for scale, mask, message in zip(scales, masks, messages[1:], strict=False):
        numbers = ring.from_bytes(message, scale.ring_bits, (scale.inputs + 1, scale.outputs))
        if provider_helps:
            numbers -= np.concatenate([mask.weight, mask.bias[None]])
        weight = ring.decode(numbers[:-1], scale.weight_bits, scale.ring_bits)
        bias = ring.decode(numbers[-1], scale.input_fraction_bits + scale.weight_bits, scale.ring_bits)
        found.append(Layer(weight.T.astype(np.float32), bias.astype(np.float32)))
    return found


def _batch(rehearsal: Rehearsal) -> int:
    """How many images the first query had, as the provider was told."""
    messages: Sequence[bytes] = [m for sender, m in rehearsal.received[PROVIDER] if sender == CLIENT]
    return int.from_bytes(messages[1], "little")


def _replayed(rehearsal: Rehearsal) -> Dealer:
    """A provider that draws the same again."""
    seeds = iter(rehearsal.seeds)
    return Dealer(lambda _: None, lambda _: next(seeds))

"""What can go wrong, shown: rounding that fails and tells, and a provider that takes sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipes.private_prediction import material, ring
from recipes.private_prediction.mlp import Layer
from recipes.private_prediction.randomness import CLIENT, PROVIDER, SERVER, Dealer
from recipes.private_prediction.rehearsal import Rehearsal


@dataclass(frozen=True)
class CutShares:
    """What happens if each party rounds a shared number by cutting the lowest bits of its own share."""

    expected: float
    """Probability that the result is off by more than one, |x| / 2**64."""
    failures: float
    """How often it was."""
    correlation: float
    """Of the result, where it was not, with the lowest bits of party 0's own share."""


def cut_shares(value: int, drop_bits: int, trials: int, generator: np.random.Generator) -> CutShares:
    """Share a number many times, cut the shares, and see.

    The usual way: one party cuts its share, the other the negative of its share (Mohassel and Zhang,
    "SecureML", 2017). It fails whenever the shares' sum wraps around, the more often the larger the number.
    And where it does not fail, the result is one of two neighbours, and which of them depends on the
    shares: whoever sees what follows from it can hold that against its own share. A client that asks for
    the same image often enough gets the weights so, logits or labels, although every message is uniform.
    """
    first = generator.integers(0, 1 << 64, trials, np.uint64)
    second = np.uint64(value % (1 << 64)) - first
    cut = np.uint64(drop_bits)
    result = ((first >> cut) - ((np.uint64(0) - second) >> cut)).view(np.int64).astype(np.float64)
    right = np.abs(result - value / (1 << drop_bits)) <= 1
    own = ring.lowest(first, drop_bits).astype(np.float64)
    correlation = np.corrcoef(result[right], own[right])[0, 1] if np.ptp(result[right]) else 0.0
    return CutShares(abs(value) / 2.0**64, float(np.mean(~right)), float(correlation))


def images_seen_by(rehearsal: Rehearsal, provider_helps: bool) -> np.ndarray:
    """What the server can make of the first query's input `[batch, inputs]`, with the provider or without.

    It takes the masked input for what it is, or takes off the mask if the provider has told the seeds.
    """
    first = rehearsal.terms.scales[0]
    batch = _batch(rehearsal)
    messages = [message for sender, message in rehearsal.received[SERVER] if sender == CLIENT]
    message = messages[2]  # after what it wants, and how many images there are
    masked = ring.from_bytes(message, first.ring_bits, (batch, first.inputs))
    if provider_helps:
        source = _replayed(rehearsal)
        material.deal_weights(source, rehearsal.terms.scales)
        masked -= source.mask_of(CLIENT, batch, first.inputs)[0]
    return ring.decode(masked, first.input_bits, first.ring_bits)


def weights_seen_by(rehearsal: Rehearsal, provider_helps: bool) -> list[Layer]:
    """What the client can make of the network, with the provider or without."""
    scales = rehearsal.terms.scales
    masks = material.deal_weights(_replayed(rehearsal), scales)
    messages = [message for sender, message in rehearsal.received[CLIENT] if sender == SERVER]
    found = []
    for scale, mask, message in zip(scales, masks, messages[1:], strict=False):
        numbers = ring.from_bytes(message, scale.ring_bits, (scale.inputs + 1, scale.outputs))
        if provider_helps:
            numbers -= np.concatenate([mask.weight, mask.bias[None]])
        weight = ring.decode(numbers[:-1], scale.weight_bits, scale.ring_bits)
        bias = ring.decode(numbers[-1], scale.product_bits, scale.ring_bits)
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

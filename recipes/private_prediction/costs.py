"""What a session costs by the protocol's formulas, and how long it would take on other networks.

B images, n = B * outputs numbers of `word_bits` in a layer with ReLU, or n = B * pairs of classes for the
label; C pieces of a number (`comparison.pieces`); 4 bytes of header a message. Per party, online:

    input           B * inputs * ring_bits / 8                            the client alone
    layer, ReLU     n * word_bits / 8  +  comparison  +  n / 8  +  n * ring_bits of the next layer / 8
    label           n * word_bits / 8  +  comparison  +  n / 8  +  B * classes        and B, the server
    logits          B * classes * word_bits / 8                           the server alone
    comparison      tables: (2 C - 1) n / 8          fss: nothing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recipes.parties import HEADER_BYTES
from recipes.private_prediction.comparison import BLOCK, LEAF, PROTOCOLS, pieces
from recipes.private_prediction.protocol import Reveal, pairs, rank_type, rank_values
from recipes.private_prediction.randomness import SEED_BYTES
from recipes.private_prediction.ring import plane_bytes
from recipes.private_prediction.scales import Scale

WORD_BYTES = 8


@dataclass(frozen=True)
class Cost:
    """Of one step; bytes with headers."""

    rounds: int = 0
    client: int = 0
    """Bytes from the client to the server."""
    server: int = 0
    """Bytes from the server to the client."""
    offline: int = 0
    """Bytes from the provider to both."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def online(self) -> int:
        """Bytes between client and server."""
        return self.client + self.server


def session(
    scales: Sequence[Scale], batches: Sequence[int], comparison: str, reveal: Reveal
) -> dict[str, Cost]:
    """Costs by step: `weights` once, and all queries together."""
    steps = {"weights": setup(scales)}
    for batch in batches:
        for step, cost in query(scales, batch, comparison, reveal).items():
            steps[step] = steps.get(step, Cost()) + cost
    return steps


def setup(scales: Sequence[Scale]) -> Cost:
    """Seeds from the provider, masked weights from the server."""
    weights = sum((scale.inputs + 1) * scale.outputs * scale.ring_bits // 8 for scale in scales)
    seeds = 2 * (HEADER_BYTES + 2 * SEED_BYTES)
    return Cost(len(scales), 0, weights + len(scales) * HEADER_BYTES, seeds)


def query(scales: Sequence[Scale], batch: int, comparison: str, reveal: Reveal) -> dict[str, Cost]:
    """Costs by step of a query with a batch of images."""
    first, last = scales[0], scales[-1]
    steps = {"input": Cost(1, _message(batch * first.inputs * first.ring_bits // 8))}
    for number, scale in enumerate(scales, 1):
        dealt = _message(WORD_BYTES * batch * scale.outputs)
        steps[f"layer {number}"] = Cost(offline=dealt)
        if scale is not last:
            signs = _signs(batch * scale.outputs, scale.word_bits, comparison)
            opened = _message(batch * scale.outputs * scales[number].ring_bits // 8)
            words = WORD_BYTES * batch * scale.outputs
            select = Cost(1, opened, opened, _message(words) + _message(4 * words))
            steps[f"layer {number}"] += signs + select
    if reveal == "logits":
        steps[reveal] = Cost(1, 0, _message(batch * last.outputs * last.word_bits // 8))
    else:
        size = np.dtype(rank_type(last.outputs)).itemsize
        signs = _signs(batch * pairs(last.outputs), last.word_bits, comparison)
        ranks = _message(size * batch * last.outputs)
        masks = _message(size * batch * pairs(last.outputs))
        table = masks + _message(size * batch * last.outputs * rank_values(last.outputs))
        steps[f"layer {len(scales)}"] += Cost(offline=signs.offline + table)
        steps[reveal] = Cost(
            signs.rounds + 2, signs.client + ranks, signs.server + ranks + _message(size * batch)
        )
    return steps


def _message(size: int) -> int:
    return HEADER_BYTES + size


def _signs(numbers: int, bits: int, comparison: str) -> Cost:
    """Of the signs of that many numbers."""
    plane = plane_bytes(numbers)
    rounds = PROTOCOLS[comparison].rounds
    opened, offline = 0, 0
    if comparison == "tables":
        count = len(pieces(bits - 1))
        opened = _message((2 * count - 1) * plane)
        tables = sum((1 << size) - 1 for size in pieces(bits - 1))
        products = (1 << count - 1) - 1, (1 << count) - 1
        offline = sum(_message(rows * plane) for rows in (tables, *products))
    else:
        keys = 16 * numbers * (max(bits - 1 - LEAF, 0) + 1)
        offline = 2 * (keys + HEADER_BYTES * -(-numbers // BLOCK))
    sent = _message(numbers * bits // 8) + opened + _message(plane)
    return Cost(2 + rounds, sent, sent, offline)


def projected(steps: Mapping[str, Cost], computing: float, round_trip: float, bandwidth: float) -> float:
    """Seconds that the steps take between machines: work, messages' way, and their length.

    Every round is one message's way, half a round trip; if both speak, they do so at the same time.

    Args:
        computing: seconds of work, as measured where messages take no time.
        round_trip: seconds there and back.
        bandwidth: bytes a second, each way.
    """
    rounds = sum(step.rounds for step in steps.values())
    longest = sum(max(step.client, step.server) for step in steps.values())
    return computing + rounds * round_trip / 2 + longest / bandwidth

"""What a session costs by the protocol's formulas, and how long it would take on other networks.

B images; n = B * outputs numbers in a layer with ReLU, n = B * pairs of classes for the label; a plane is
n / 8 bytes, rounded up; every message has a header of 4 bytes more. Bytes of each party, online:

    input           B * inputs * ring_bits / 8                            the client alone
    layer, ReLU     n * ring_bits / 8  +  comparison  +  2 planes  +  n * ring_bits of the next layer / 8
    label           n * ring_bits / 8  +  comparison  +  1 plane   +  B * classes    and B, the server
    logits          B * classes * ring_bits / 8                           the server alone
    comparison      tables: 2 planes a piece and a group, less 1 each     fss: nothing

With more than 256 classes ranks and labels take 2 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recipes.parties import HEADER_BYTES
from recipes.private_prediction.comparison import PROTOCOLS
from recipes.private_prediction.function_secret_sharing import BLOCK, LEAF
from recipes.private_prediction.material import Reveal, pairs, rank_type, rank_values
from recipes.private_prediction.randomness import SEED_BYTES
from recipes.private_prediction.ring import plane_bytes
from recipes.private_prediction.scales import Scale
from recipes.private_prediction.truth_tables import groups, pieces

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
            signs = _signs(batch * scale.outputs, scale.ring_bits, scale.drop_bits, comparison)
            opened = _message(batch * scale.outputs * scales[number].ring_bits // 8)
            select = Cost(1, opened, opened, _message(7 * WORD_BYTES * batch * scale.outputs))
            steps[f"layer {number}"] += signs + select
    if reveal == "logits":
        steps[reveal] = Cost(1, 0, _message(batch * last.outputs * last.ring_bits // 8))
    else:
        size = np.dtype(rank_type(last.outputs)).itemsize
        signs = _signs(batch * pairs(last.outputs), last.ring_bits, 0, comparison)
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


def _signs(numbers: int, bits: int, low: int, comparison: str) -> Cost:
    """Of the signs of that many numbers, and the carries from their low bits."""
    plane = plane_bytes(numbers)
    compared, dealt = (_tables if comparison == "tables" else _keys)(numbers, bits - 1, low)
    sent = _message(numbers * bits // 8) + compared + _message((1 + (low > 0)) * plane)
    return Cost(2 + PROTOCOLS[comparison]().rounds(bits - 1, low), sent, sent, dealt)


def _tables(numbers: int, bits: int, low: int) -> tuple[int, int]:
    """Bytes of each party, and of the provider, for comparisons by truth tables."""
    plane = plane_bytes(numbers)
    sizes = [pieces(group) for group in groups(bits, low)]
    count = sum(map(len, sizes))
    opened = _message((2 * count - 1) * plane)
    rows = [sum((1 << size) - 1 for group in sizes for size in group)]
    for group in sizes:
        rows += [(1 << len(group) - (group is sizes[-1])) - 1, (1 << len(group)) - 1]
    if len(sizes) > 1:
        opened += _message((2 * len(sizes) - 1) * plane)
        rows += [(1 << len(sizes) - 1) - 1, (1 << len(sizes)) - 1]
    return opened, sum(_message(count * plane) for count in rows)


def _keys(numbers: int, bits: int, low: int) -> tuple[int, int]:
    """The same by function secret sharing."""
    blocks = -(-numbers // BLOCK)
    keys = [16 * numbers * (max(width - LEAF, 0) + 1) for width in (bits, low) if width]
    return 0, 2 * sum(key + HEADER_BYTES * blocks for key in keys)


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

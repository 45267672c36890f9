"""Comparison by function secret sharing: no message at all, but long keys and much work.

Each party holds a key, and evaluates it at x, the public number, by walking down a tree of AES blocks
(distributed comparison function: Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar, Rathee, EUROCRYPT 2021,
figure 1, with one-bit outputs and the last 7 levels in one block).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recipes.private_prediction import ring
from recipes.private_prediction.randomness import Source

if TYPE_CHECKING:
    from recipes.private_prediction.comparison import Opening

LEAF = 7
"""A key's last block holds 2**LEAF results."""

BLOCK = 1 << 15
"""Keys that are made, sent and evaluated at once: few enough to stay in the processor's cache."""

_ONE = np.uint64(1)
_LABELS = np.uint64(7)  # the three lowest bits of a seed are no part of it
_KEY = bytes(range(16))  # of the fixed permutation; anybody may know it


@dataclass
class Key:
    """n keys of one party, and what both parties know."""

    root: np.ndarray
    """`[n, 2]` uint64: a seed of 125 bits each."""
    corrections: np.ndarray
    """`[levels, n, 2]` uint64: of a seed, and, in its lowest bits, of control left, value, control right."""
    leaf: np.ndarray
    """`[n, 2]` uint64: the correction of the last block."""


class FunctionSecretSharing:
    """Comparison by distributed comparison functions: no round, long keys."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._encrypt = Cipher(algorithms.AES(_KEY), modes.ECB()).encryptor()  # noqa: S305 - a permutation

    def rounds(self, bits: int, low: int) -> int:
        """See `Comparison`."""
        return 0

    def deal(
        self, source: Source, numbers: int, bits: int, low: int, threshold: np.ndarray | None
    ) -> list[list[Key | None]]:
        """See `Comparison`."""
        return [self._deal(source, numbers, width, threshold) for width in (bits, low) if width]

    def _deal(
        self, source: Source, numbers: int, bits: int, threshold: np.ndarray | None
    ) -> list[Key | None]:
        """Keys for the lowest bits of thresholds, block by block."""
        levels = max(bits - LEAF, 0)
        keys: list[Key | None] = []
        for start in range(0, numbers, BLOCK):
            few = slice(start, min(start + BLOCK, numbers))
            root = source.keys(few.stop - start)
            both = source.publish(
                (levels + 1, few.stop - start, 2),
                lambda root=root, few=few: self._corrections(
                    root, ring.lowest(threshold[few], bits), bits, levels
                ),
            )
            keys.append(None if both is None else Key(root & ~_first(_LABELS), both[:-1], both[-1]))
        return keys

    def less(
        self, party: Opening, public: np.ndarray, bits: int, low: int, material: list[list[Key]]
    ) -> np.ndarray:
        """See `Comparison`."""
        planes = []
        for width, keys in zip((bits, low), material, strict=False):
            below = ring.lowest(public, width)
            results = [
                self._evaluate(party.index, below[number * BLOCK : (number + 1) * BLOCK], width, key)
                for number, key in enumerate(keys)
            ]
            planes.append(np.packbits(np.concatenate(results), bitorder="little"))
        return np.stack(planes)

    def _evaluate(self, index: int, public: np.ndarray, bits: int, material: Key) -> np.ndarray:
        """Shares of the bits `[n]` uint8 from n keys."""
        levels = len(material.corrections)
        seed, control = material.root, np.full(public.size, -index).view(np.uint64)  # all ones or none
        value = np.zeros(public.size, np.uint64)
        for level, correction in enumerate(material.corrections):
            side = _bit(public, bits - 1 - level)
            block = self._blocks(seed | _first(side))
            corrected = correction & control[:, None]
            low = block[:, 0] ^ corrected[:, 0]
            value ^= low >> _ONE
            control = _spread(block[:, 0] ^ (corrected[:, 0] >> (side + side)))
            seed = block ^ corrected
            seed[:, 0] &= ~_LABELS
        leaf = self._blocks(seed | _first(_LABELS)) ^ (material.leaf & control[:, None])
        at = ring.lowest(public, bits - levels)
        word = np.where(at >> np.uint64(6), leaf[:, 1], leaf[:, 0])
        value ^= word >> (at & np.uint64(63))
        return (value & _ONE).astype(np.uint8)

    def _corrections(
        self, roots: list[np.ndarray], threshold: np.ndarray, bits: int, levels: int
    ) -> np.ndarray:
        """What turns two unrelated trees into keys: they agree wherever the walk to t has been left."""
        result = np.empty((levels + 1, threshold.size, 2), np.uint64)
        seeds = [root & ~_first(_LABELS) for root in roots]
        controls = [np.full(threshold.size, -party).view(np.uint64) for party in (0, 1)]
        value = np.zeros(threshold.size, np.uint64)  # what both keys sum to on the walk to t
        for level in range(levels):
            bit = _bit(threshold, bits - 1 - level)
            kept = [self._blocks(seed | _first(bit)) for seed in seeds]
            lost = [self._blocks(seed | _first(bit ^ _ONE)) for seed in seeds]
            correction = lost[0] ^ lost[1]
            kept_control, lost_control = ((b[0][:, 0] ^ b[1][:, 0]) & _ONE for b in (kept, lost))
            kept_control ^= _ONE  # on the walk the controls differ, elsewhere they are the same
            left = np.where(bit, lost_control, kept_control)
            right = left ^ kept_control ^ lost_control
            lost_value = (correction[:, 0] >> _ONE) & _ONE ^ value ^ bit  # who leaves to the left is less
            correction[:, 0] &= ~_LABELS
            correction[:, 0] |= left | lost_value << _ONE | right << np.uint64(2)
            value ^= ((kept[0][:, 0] ^ kept[1][:, 0]) >> _ONE) & _ONE ^ lost_value
            for party in (0, 1):
                corrected = correction & controls[party][:, None]
                controls[party] = _spread(kept[party][:, 0] ^ (corrected[:, 0] >> (bit + bit)))
                seeds[party] = kept[party] ^ corrected
                seeds[party][:, 0] &= ~_LABELS
            result[level] = correction
        leaves = [self._blocks(seed | _first(_LABELS)) for seed in seeds]
        below = _below(ring.lowest(threshold, bits - levels)) ^ _spread(value)[:, None]
        result[levels] = leaves[0] ^ leaves[1] ^ below
        return result

    def _blocks(self, inputs: np.ndarray) -> np.ndarray:
        """A one-way function of blocks `[n, 2]` uint64: AES with a known key, plus its input."""
        inputs = np.ascontiguousarray(inputs)
        outputs = np.frombuffer(self._encrypt.update(inputs.data.cast("B")), np.uint64).reshape(inputs.shape)
        return outputs ^ inputs


def _first(word: np.ndarray | np.uint64) -> np.ndarray:
    """Blocks with this first half and an empty second one."""
    return np.stack([word, np.zeros_like(word)], axis=-1)


def _bit(words: np.ndarray, position: int) -> np.ndarray:
    return (words >> np.uint64(position)) & _ONE


def _spread(words: np.ndarray) -> np.ndarray:
    """All bits of a word set as its lowest is."""
    return ~(words & _ONE) + _ONE


def _below(at: np.ndarray) -> np.ndarray:
    """`[n, 2]` uint64 with the lowest `at` (0 … 127) bits set."""
    full, sixty_four = ~np.uint64(0), np.uint64(64)
    ones = (_ONE << (at & np.uint64(63))) - _ONE
    return np.stack(
        [np.where(at < sixty_four, ones, full), np.where(at < sixty_four, 0, ones)], axis=-1
    ).astype(np.uint64)

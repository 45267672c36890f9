"""Is a public number less than a secret one that the provider knows? Two protocols for n such questions.

Both begin with x, which both parties know, and a threshold t, of which they know nothing, as it is the
mask of what they have opened. They end with XOR shares of the bits [x < t]. Each is named by what
it is made of:

`Tables`: x and t are cut into pieces of 4 bits. For each piece the parties hold a shared truth
table of [v < t] for all v, look x up in it, and get shares of "less" and "equal" without a word. One
round opens these bits, masked; what combines the pieces, less_1 + equal_1 (less_2 + equal_2 (...)), is
a polynomial over shared products of the masks (one-time truth tables: Ishai, Kushilevitz, Meldgaard,
Orlandi, Paskin-Cherniavsky, TCC 2013).

`FunctionSecretSharing`: each party holds a key, and evaluates it at x by walking down a tree of AES
blocks; no message at all (distributed comparison function: Boyle, Chandran, Gilboa, Gupta, Ishai,
Kumar, Rathee, EUROCRYPT 2021, figure 1, with one-bit outputs and the last 7 levels in one block).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from recipes.private_prediction import ring
from recipes.private_prediction.randomness import Dealer, Source

PIECE = 4
"""Bits of a piece whose truth table is shared."""

LEAF = 7
"""A key's last block holds 2**LEAF results."""

BLOCK = 1 << 15
"""Keys that are made, sent and evaluated at once: few enough to stay in the processor's cache."""

_ONE = np.uint64(1)
_LABELS = np.uint64(7)  # the three lowest bits of a seed are no part of it
_KEY = bytes(range(16))  # of the fixed permutation; anybody may know it


class Opening(Protocol):
    """What a comparison needs of a party."""

    index: int
    """0 or 1: who of the two this is."""

    def open_planes(self, share: np.ndarray) -> np.ndarray:
        """One round: the XOR of both parties' shares."""


class Comparison(Protocol):
    """n comparisons of numbers of `bits` bits."""

    rounds: int
    """Rounds that `less` takes."""

    def deal(self, source: Source, numbers: int, bits: int, threshold: np.ndarray | None) -> Any:
        """The material, from a threshold `[n]` uint64 that only the provider has."""

    def less(self, party: Opening, public: np.ndarray, bits: int, material: Any) -> np.ndarray:
        """A share of the plane `[ceil(n / 8)]` uint8 of [public < threshold], of public `[n]` uint64."""


# ---- truth tables


def pieces(bits: int) -> list[int]:
    """How many bits each piece has, from the highest; the first may be smaller."""
    return [bits % PIECE] * (bits % PIECE > 0) + [PIECE] * (bits // PIECE)


@dataclass
class TableMaterial:
    """Shares of n thresholds' tables and of products of masks; a row is a plane."""

    tables: np.ndarray
    """Rows [v < t] for v = 0 … 2**s - 2, of every piece of s bits."""
    equal_products: np.ndarray
    """`[2**(C-1), …]`: row S is the product of the masks of `equal` of the pieces in the set S."""
    less_products: list[np.ndarray]
    """k-th of C: `[2**k, …]`, the same for sets of the first k pieces, times the mask of the k-th `less`."""


class Tables:
    """Comparison by shared truth tables: one round."""

    rounds = 1

    def deal(
        self, source: Source, numbers: int, bits: int, threshold: np.ndarray | None
    ) -> TableMaterial | None:
        """See `Comparison`."""
        sizes = pieces(bits)
        subsets = 1 << len(sizes) - 1
        tables = source.share_planes(
            sum((1 << size) - 1 for size in sizes), numbers, lambda: _thermometers(threshold, bits)
        )
        if isinstance(source, Dealer):
            equal = _products(source.secret_planes(len(sizes) - 1, numbers))
            less = source.secret_planes(len(sizes), numbers)
        equal_products = source.share_planes(subsets - 1, numbers, lambda: equal[1:])
        less_products = source.share_planes(
            2 * subsets - 1,
            numbers,
            lambda: np.concatenate([mask & equal[: 1 << k] for k, mask in enumerate(less)]),
        )
        if isinstance(source, Dealer):
            return None
        return TableMaterial(
            tables, equal_products, np.split(less_products, [(1 << k) - 1 for k in range(1, len(sizes))])
        )

    def less(self, party: Opening, public: np.ndarray, bits: int, material: TableMaterial) -> np.ndarray:
        """See `Comparison`."""
        one = np.full((1, ring.plane_bytes(public.size)), 0xFF * (party.index == 0), np.uint8)  # a share of 1
        equal_products = np.concatenate([one, material.equal_products])  # the empty product
        less, equal = self._look_up(public, bits, material.tables, one)
        less_masks = [products[0] for products in material.less_products]
        equal_masks = [equal_products[1 << k] for k in range(len(equal))]
        opened = party.open_planes(np.stack([*less, *equal]) ^ np.stack([*less_masks, *equal_masks]))
        less, equal = opened[: len(less)], opened[len(less) :]

        # less_k + equal_k * (what comes below), as a polynomial in the masks of equal_0 … equal_k
        below = None
        for k in reversed(range(len(less))):
            here = (less[k] & equal_products[: 1 << k]) ^ material.less_products[k]
            if below is not None:
                here ^= (equal[k] & below[: 1 << k]) ^ below[1 << k :]
            below = here
        return below[0]

    def _look_up(
        self, public: np.ndarray, bits: int, tables: np.ndarray, one: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Shares of less and equal for every piece, but equal of the last, which nobody asks for."""
        public_planes = ring.planes(public, bits)[::-1]
        less, equal = [], []
        for size in pieces(bits):
            digit, public_planes = public_planes[:size], public_planes[size:]
            table, tables = tables[: (1 << size) - 1], tables[(1 << size) - 1 :]
            chosen = _one_hot(digit)
            less.append(np.bitwise_xor.reduce(chosen[:-1] & table))
            # equal(v) = [v - 1 < t] - [v < t], and -1 is always less
            above = np.bitwise_xor.reduce(chosen[1:] & table) ^ (chosen[0] & one[0])
            equal.append(above ^ less[-1])
        return less, equal[:-1]


def _one_hot(digit: np.ndarray) -> np.ndarray:
    """For numbers given by s planes, highest first: row v of `[2**s, …]` says where the number is v."""
    rows = np.full((1, digit.shape[1]), 0xFF, np.uint8)
    for plane in digit:
        rows = np.stack([rows & ~plane, rows & plane], axis=1).reshape(-1, digit.shape[1])
    return rows


def _thermometers(threshold: np.ndarray, bits: int) -> np.ndarray:
    """For every piece the rows [v < t], v = 0 … 2**s - 2."""
    threshold_planes = ring.planes(threshold, bits)[::-1]
    rows = []
    for size in pieces(bits):
        digit, threshold_planes = threshold_planes[:size], threshold_planes[size:]
        is_value = _one_hot(digit)
        for v in reversed(range(1, len(is_value) - 1)):
            is_value[v] ^= is_value[v + 1]  # v - 1 < t: t is v, or one of those above
        rows.append(is_value[1:])
    return np.concatenate(rows)


def _products(masks: np.ndarray) -> np.ndarray:
    """Row S of `[2**m, …]`: the product of the masks `[m, …]` in the set S."""
    products = np.full((1, masks.shape[1]), 0xFF, np.uint8)
    for mask in masks:
        products = np.concatenate([products, products & mask])
    return products


# ---- function secret sharing


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

    rounds = 0

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._encrypt = Cipher(algorithms.AES(_KEY), modes.ECB()).encryptor()  # noqa: S305 - a permutation

    def deal(self, source: Source, numbers: int, bits: int, threshold: np.ndarray | None) -> list[Key | None]:
        """See `Comparison`."""
        levels = max(bits - LEAF, 0)
        keys: list[Key | None] = []
        for start in range(0, numbers, BLOCK):
            few = slice(start, min(start + BLOCK, numbers))
            root = source.keys(few.stop - start)
            both = source.publish(
                (levels + 1, few.stop - start, 2),
                lambda root=root, few=few: self._corrections(root, threshold[few], bits, levels),
            )
            keys.append(None if both is None else Key(root & ~_first(_LABELS), both[:-1], both[-1]))
        return keys

    def less(self, party: Opening, public: np.ndarray, bits: int, material: list[Key]) -> np.ndarray:
        """See `Comparison`."""
        results = [
            self._evaluate(party.index, public[number * BLOCK : (number + 1) * BLOCK], bits, key)
            for number, key in enumerate(material)
        ]
        return np.packbits(np.concatenate(results), bitorder="little")

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


PROTOCOLS: dict[str, type[Comparison]] = {"tables": Tables, "fss": FunctionSecretSharing}
"""By the name that the command line gives them."""

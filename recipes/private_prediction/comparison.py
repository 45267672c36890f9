"""Is a public number less than a secret one that the provider knows? Two protocols for n such questions.

Both begin with x, which both parties know, and a threshold t, of which they know nothing, as it is the
mask of what they have opened. They end with XOR shares of the bits [x < t]. Each is named by what
it is made of:

`Tables`: x and t are cut into pieces of 4 bits. For each piece the parties hold a shared truth
table of [v < t] for all v, look x up in it, and get shares of "less" and "equal" without a word. One
round opens these bits, masked; what combines the pieces, less_1 + equal_1 (less_2 + equal_2 (...)), is
a polynomial over shared products of the masks (one-time truth tables: Ishai, Kushilevitz, Meldgaard,
Orlandi, Paskin-Cherniavsky, TCC 2013). Of long numbers the pieces are combined in groups, and
the groups in the same way in another round.

`FunctionSecretSharing`: each party holds a key, and evaluates it at x by walking down a tree of AES
blocks; no message at all (distributed comparison function: Boyle, Chandran, Gilboa, Gupta, Ishai,
Kumar, Rathee, EUROCRYPT 2021, figure 1, with one-bit outputs and the last 7 levels in one block).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from recipes.private_prediction import ring
from recipes.private_prediction.randomness import PARTIES, Dealer, Source

PIECE = 4
"""Bits of a piece whose truth table is shared."""

GROUP = 24
"""Bits that are combined at once, at most, but for the low ones: each piece doubles the products of masks."""

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
    """n comparisons of numbers of `bits` bits, and, if `low` is not 0, of their `low` lowest bits, too."""

    def rounds(self, bits: int, low: int) -> int:
        """Rounds that `less` takes."""

    def deal(self, source: Source, numbers: int, bits: int, low: int, threshold: np.ndarray | None) -> Any:
        """The material, from a threshold `[n]` uint64 that only the provider has."""

    def less(self, party: Opening, public: np.ndarray, bits: int, low: int, material: Any) -> np.ndarray:
        """Shares of planes `[1 or 2, ceil(n / 8)]` uint8 of [public < threshold], and of the low bits'."""


# ---- truth tables


def pieces(bits: int) -> list[int]:
    """How many bits each piece has, from the highest; the first may be smaller."""
    return [bits % PIECE] * (bits % PIECE > 0) + [PIECE] * (bits // PIECE)


def groups(bits: int, low: int) -> list[int]:
    """How many bits each group of pieces has, from the highest; the last has `low`, if that is not 0."""
    high = bits - low
    count = -(-high // GROUP)
    return [high // count + (number < high % count) for number in range(count)] + [low] * (low > 0)


@dataclass
class Chain:
    """Shares of products of masks, for less_0 + equal_0 (less_1 + equal_1 (...)); a row is a plane."""

    equal_products: np.ndarray
    """Row S: the product of the masks of `equal` in the set S; the empty product, row 0, is 1."""
    less_products: list[np.ndarray]
    """k-th of C: `[2**k, …]`, the same for sets of the first k, times the mask of the k-th `less`."""

    @property
    def masks(self) -> list[np.ndarray]:
        """Of all `less`, then of all `equal`."""
        equal = len(self.equal_products).bit_length() - 1
        return [p[0] for p in self.less_products] + [self.equal_products[1 << k] for k in range(equal)]

    def less(self, opened: np.ndarray) -> np.ndarray:
        """A share of the whole, from `less` and `equal` `[..., planes]` that are known, masked."""
        less, equal = opened[: len(self.less_products)], opened[len(self.less_products) :]
        below = None
        for k in reversed(range(len(less))):  # a polynomial in the masks of equal_0 … equal_(k-1)
            here = (less[k] & self.equal_products[: 1 << k]) ^ self.less_products[k]
            if below is not None:
                here ^= (equal[k] & below[: 1 << k]) ^ below[1 << k :]
            below = here
        return below[0]

    def all_equal(self, opened: np.ndarray) -> np.ndarray:
        """A share of the product of all `equal`."""
        equal, product = opened[len(self.less_products) :], self.equal_products
        for k in reversed(range(len(equal))):
            product = (equal[k] & product[: 1 << k]) ^ product[1 << k :]
        return product[0]


def _deal_chain(source: Source, numbers: int, length: int, last: bool) -> Chain | None:
    """For as many pairs; nobody asks whether the last pair is equal, if there is nothing below it."""
    equals = length - last
    if isinstance(source, Dealer):
        equal = _products(source.secret_planes(equals, numbers))
        less = source.secret_planes(length, numbers)
    equal_products = source.share_planes((1 << equals) - 1, numbers, lambda: equal[1:])
    less_products = source.share_planes(
        (1 << length) - 1,
        numbers,
        lambda: np.concatenate([mask & equal[: 1 << k] for k, mask in enumerate(less)]),
    )
    if isinstance(source, Dealer):
        return None
    one = np.full((1, ring.plane_bytes(numbers)), 0xFF * (source.party == PARTIES[0]), np.uint8)
    return Chain(
        np.concatenate([one, equal_products]),
        np.split(less_products, [(1 << k) - 1 for k in range(1, length)]),
    )


@dataclass
class TableMaterial:
    """For n comparisons."""

    tables: np.ndarray
    """Shares of rows [v < t] for v = 0 … 2**s - 2, of every piece of s bits; a row is a plane."""
    chains: list[Chain]
    """Of the pieces of each group, and, if there are several groups, of the groups."""


class Tables:
    """Comparison by shared truth tables: a round for the pieces, and another if there are several groups."""

    def rounds(self, bits: int, low: int) -> int:
        """See `Comparison`."""
        return 1 + (len(groups(bits, low)) > 1)

    def deal(
        self, source: Source, numbers: int, bits: int, low: int, threshold: np.ndarray | None
    ) -> TableMaterial:
        """See `Comparison`."""
        sizes = _sizes(bits, low)
        rows = sum((1 << size) - 1 for group in sizes for size in group)
        tables = source.share_planes(rows, numbers, lambda: _thermometers(threshold, bits, low))
        lengths = [len(group) for group in sizes] + [len(sizes)] * (len(sizes) > 1)
        lasts = [group is sizes[-1] for group in sizes] + [True]
        chains = [
            _deal_chain(source, numbers, *chain) for chain in zip(lengths, lasts[: len(lengths)], strict=True)
        ]
        return TableMaterial(tables, chains)

    def less(
        self, party: Opening, public: np.ndarray, bits: int, low: int, material: TableMaterial
    ) -> np.ndarray:
        """See `Comparison`."""
        sizes, chains = _sizes(bits, low), material.chains
        opened = self._open(
            party, chains[: len(sizes)], self._look_up(party, public, bits, sizes, material.tables)
        )
        less = [chain.less(bits_) for chain, bits_ in zip(chains, opened, strict=False)]
        equal = [chain.all_equal(bits_) for chain, bits_ in zip(chains, opened[:-1], strict=False)]
        whole = less[0]
        if len(sizes) > 1:
            (opened_groups,) = self._open(party, chains[-1:], [less + equal])
            whole = chains[-1].less(opened_groups)
        return np.stack([whole, less[-1]] if low else [whole])

    def _open(self, party: Opening, chains: list[Chain], shares: list[list[np.ndarray]]) -> list[np.ndarray]:
        """One round: each chain's bits, masked."""
        masked = [np.stack(bits) ^ np.stack(chain.masks) for chain, bits in zip(chains, shares, strict=True)]
        opened = party.open_planes(np.concatenate(masked))
        return np.split(opened, np.cumsum([len(one) for one in masked])[:-1])

    def _look_up(
        self, party: Opening, public: np.ndarray, bits: int, sizes: list[list[int]], tables: np.ndarray
    ) -> list[list[np.ndarray]]:
        """For every group, shares of less for every piece, then of equal, but of the very last piece."""
        planes = ring.planes(public, bits)[::-1]
        one = np.uint8(0xFF * (party.index == 0))  # a share of 1
        found = []
        for group in sizes:
            less, equal = [], []
            for size in group:
                digit, planes = planes[:size], planes[size:]
                table, tables = tables[: (1 << size) - 1], tables[(1 << size) - 1 :]
                chosen = _one_hot(digit)
                less.append(np.bitwise_xor.reduce(chosen[:-1] & table))
                # equal(v) = [v - 1 < t] - [v < t], and -1 is always less
                above = np.bitwise_xor.reduce(chosen[1:] & table) ^ (chosen[0] & one)
                equal.append(above ^ less[-1])
            found.append(less + (equal[:-1] if group is sizes[-1] else equal))
        return found


def _sizes(bits: int, low: int) -> list[list[int]]:
    """The pieces of each group."""
    return [pieces(group) for group in groups(bits, low)]


def _one_hot(digit: np.ndarray) -> np.ndarray:
    """For numbers given by s planes, highest first: row v of `[2**s, …]` says where the number is v."""
    rows = np.full((1, digit.shape[1]), 0xFF, np.uint8)
    for plane in digit:
        rows = np.stack([rows & ~plane, rows & plane], axis=1).reshape(-1, digit.shape[1])
    return rows


def _thermometers(threshold: np.ndarray, bits: int, low: int) -> np.ndarray:
    """For every piece the rows [v < t], v = 0 … 2**s - 2."""
    planes = ring.planes(threshold, bits)[::-1]
    rows = []
    for size in itertools.chain.from_iterable(_sizes(bits, low)):
        digit, planes = planes[:size], planes[size:]
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


PROTOCOLS: dict[str, type[Comparison]] = {"tables": Tables, "fss": FunctionSecretSharing}
"""By the name that the command line gives them."""

"""Comparison by shared truth tables: one round of messages, or two, and little work.

The public number x and the threshold t are cut into pieces of 4 bits. For each piece the parties hold a
shared truth table of [v < t] for all v, look x up in it, and get shares of "less" and "equal" without a
word. One round opens these bits, masked; what combines the pieces, less_1 + equal_1 (less_2 + equal_2
(...)), is a polynomial over shared products of the masks (one-time truth tables: Ishai, Kushilevitz,
Meldgaard, Orlandi, Paskin-Cherniavsky, TCC 2013). Of long numbers the pieces are combined in groups, and the
groups in the same way in another round.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recipes.private_prediction import ring
from recipes.private_prediction.randomness import PARTIES, Dealer, Source

if TYPE_CHECKING:
    from recipes.private_prediction.comparison import Opening

PIECE = 4
"""Bits of a piece whose truth table is shared."""

GROUP = 24
"""Bits that are combined at once, at most, but for the low ones: each piece doubles the products of masks."""


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

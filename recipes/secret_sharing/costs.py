"""What each operation costs, by formula: the docstrings of `arithmetic`, as something to compute with.

Sessions count what they really send; the two must agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.parties import HEADER_BYTES
from recipes.secret_sharing.field import Field
from recipes.secret_sharing.schemes import Additive

ELEMENT_BYTES = 8


@dataclass(frozen=True)
class Cost:
    """Of one operation on one element."""

    rounds: int = 0
    """Rounds in which every party sends to every other."""
    opened: int = 0
    """Numbers opened, each of which every party sends to every other."""
    triples: int = 0
    """Beaver triples used up."""
    deals: int = 0
    """Messages from the dealer to each party."""
    dealt: int = 0
    """Numbers that the dealer shares."""

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Cost(*(one + another for one, another in pairs))

    def times(self, count: int) -> Cost:
        """On `count` elements at the same time: as many rounds and messages, more of the rest."""
        return Cost(self.rounds, self.opened * count, self.triples * count, self.deals, self.dealt * count)

    def repeated(self, count: int) -> Cost:
        """`count` times, one after the other."""
        return Cost(*(one * count for one in vars(self).values()))

    def online_bytes(self, scheme: Additive) -> int:
        """Bytes between all parties."""
        connections = scheme.parties * (scheme.parties - 1)
        return connections * (self.rounds * HEADER_BYTES + self.opened * ELEMENT_BYTES)

    def offline_bytes(self, scheme: Additive) -> int:
        """Bytes from the dealer to all parties."""
        return scheme.parties * (self.deals * HEADER_BYTES + self.dealt * ELEMENT_BYTES * scheme.words)


LOCAL = Cost()
OPEN = Cost(rounds=1, opened=1)
MULTIPLY = OPEN.times(2) + Cost(triples=1, deals=1, dealt=3)
SQUARE = OPEN + Cost(deals=1, dealt=2)
TRUNCATE_PROBABILISTIC = OPEN + Cost(deals=1, dealt=2)


def operations(field: Field, fraction_bits: int) -> dict[str, Cost]:
    """Every operation of the calculator, on one element."""
    negative, zero = is_negative(field), is_zero(field)
    less = less_than(field)
    rounding = truncate_exact(field, fraction_bits)
    return {
        "x + y, x - y, 3 * x": LOCAL,
        "open": OPEN,
        "x * y (integers)": MULTIPLY,
        "x ** 2 (integers)": SQUARE,
        "dot of 100 (integers)": MULTIPLY.times(100),
        "select": MULTIPLY,
        "x < 0": negative,
        "x < y": less,
        "x == y": zero,
        "min, max": less + MULTIPLY,
        "rounding, exact": rounding,
        "rounding, probabilistic": TRUNCATE_PROBABILISTIC,
        "x * y (decimals, exact)": MULTIPLY + rounding,
        "x / y": divide(field),
    }


def levels(bits: int) -> int:
    """Depth of a binary tree over so many leaves: log2, rounded up."""
    return math.ceil(math.log2(bits))


def random_bits(field: Field) -> Cost:
    """A random number and its bits from the dealer."""
    return Cost(deals=1, dealt=field.bits + 1)


def less_than_bits(lengths: Sequence[int]) -> Cost:
    """Comparisons of public with shared bits, side by side."""
    depth = levels(max(lengths))
    triples = sum(2 * (length - 1) for length in lengths)
    return Cost(depth, 2 * triples, triples, depth, 3 * triples)


def is_negative(field: Field) -> Cost:
    """[x < 0]."""
    return random_bits(field) + OPEN + less_than_bits([field.bits]) + MULTIPLY


def less_than(field: Field) -> Cost:
    """[x < y]."""
    return is_negative(field).times(3) + MULTIPLY + MULTIPLY


def is_zero(field: Field) -> Cost:
    """[x = 0]."""
    depth, triples = levels(field.bits), field.bits - 1
    return random_bits(field) + OPEN + Cost(depth, 2 * triples, triples, depth, 3 * triples)


def truncate_exact(field: Field, bits: int) -> Cost:
    """x / 2^bits, rounded to the nearest; nothing is to be done for no bits."""
    if bits == 0:
        return LOCAL
    return random_bits(field) + OPEN + less_than_bits([field.bits, bits, bits]) + MULTIPLY


def divide(field: Field) -> Cost:
    """x / y."""
    places, negative = field.bits - 1, is_negative(field)
    prepared = negative.times(2) + MULTIPLY.times(3) + negative.times(places - 1) + MULTIPLY.times(places)
    return prepared + (negative + MULTIPLY.times(2)).repeated(places) + MULTIPLY


def power(exponent: int) -> Cost:
    """x to a public power, for integers."""
    digits = f"{exponent:b}"[1:] if exponent else ""
    return SQUARE.repeated(len(digits)) + MULTIPLY.repeated(digits.count("1"))


def check(scheme: Additive) -> int:
    """Bytes between all parties of one check of MACs, in 4 rounds; none without MACs."""
    connections = scheme.parties * (scheme.parties - 1)
    return connections * (4 * HEADER_BYTES + 32 + 32 + 32 + 40) if scheme.words == 2 else 0

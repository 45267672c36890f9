"""Arithmetic on shares: every operation of the calculator, in the order in which they build on another.

Adding, and multiplying by public numbers, are local: each party works on its own share. All else
opens masked values, using up random numbers that the dealer has shared beforehand. What is opened
is the sum of a value and a uniform random number that is used once, and so is uniform itself.

Every docstring says what an operation costs: the *rounds* in which all parties send to each other
at the same time, the numbers *opened* for an element of the result, and the *triples* it uses up.
l is the number of bits of the prime (46 by default), f the number of fraction bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.secret_sharing.field import check_between

if TYPE_CHECKING:
    from recipes.secret_sharing.session import Session


@dataclass(frozen=True, eq=False)
class Shared:
    """An array of numbers that are secret-shared: `+ - * / ** < <= > >= == !=` work on it.

    The other operand may be public: an int, a float or an array of them. Shapes broadcast as
    NumPy's do. Integers must stay within ±(prime - 1) / 2, and decimals with f fraction bits within
    that over 2^f, products of decimals before rounding within that over 4^f: beyond it a
    result wraps around, and as nobody sees it, nobody can say so.
    """

    session: Session
    shares: np.ndarray
    """`[parties in this process, words, *shape]` uint64."""
    fraction_bits: int = 0
    """The number stands for shared integer / 2^fraction_bits."""

    __array_ufunc__ = None  # so that `array * shared` comes here, and not to NumPy

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of numbers."""
        return self.shares.shape[2:]

    def __repr__(self) -> str:
        scheme = self.session.scheme
        return f"Shared(shape={self.shape}, {scheme.name} among {scheme.parties} parties)"

    def __getitem__(self, index: Any) -> Shared:
        index = index if isinstance(index, tuple) else (index,)
        if not any(one is Ellipsis for one in index):
            index = (*index, Ellipsis)
        numbers_first = np.moveaxis(self.shares, (0, 1), (-2, -1))  # so that any index means the same
        try:
            picked = numbers_first[(*index, slice(None), slice(None))]
        except IndexError as error:
            raise IndexError(f"an array of shape {self.shape} has nothing at {index}") from error
        return replace(self, shares=np.moveaxis(picked, (-2, -1), (0, 1)))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a single shared number has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Shared]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        raise TypeError("whether a shared number is true is secret: `decrypt` it, or use `select`")

    def reshape(self, *shape: int | Sequence[int]) -> Shared:
        """The same numbers in another shape, given as NumPy's."""
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
        return replace(self, shares=self.shares.reshape(*self.shares.shape[:2], *shape))

    def sum(self) -> Shared:
        """The sum of all numbers. Local."""
        flat = np.moveaxis(self.reshape(math.prod(self.shape)).shares, -1, 0)
        return replace(self, shares=self.session.field.total(flat))

    # ---- local operations

    def __add__(self, other: Any) -> Shared:
        x, y = self._alike(other)
        return replace(x, shares=x.session.field.add(x.shares, y.shares))

    def __sub__(self, other: Any) -> Shared:
        x, y = self._alike(other)
        return replace(x, shares=x.session.field.subtract(x.shares, y.shares))

    def __neg__(self) -> Shared:
        return replace(self, shares=self.session.field.subtract(np.zeros_like(self.shares), self.shares))

    def times(self, residues: np.ndarray, fraction_bits: int = 0) -> Shared:
        """The product with public residues `[*shape]` uint64. Local."""
        ndim = len(np.broadcast_shapes(self.shape, residues.shape))
        shares = self.session.field.multiply(self._with_axes(ndim).shares, residues)
        return replace(self, shares=shares, fraction_bits=self.fraction_bits + fraction_bits)

    # ---- operations that talk

    def __mul__(self, other: Any) -> Shared:
        if isinstance(other, Shared):
            return rescale(products([self._beside(other)])[0])
        return rescale(self.times(*self.session.encode(other)))

    def __pow__(self, exponent: int) -> Shared:
        return power(self, exponent)

    def __truediv__(self, other: Any) -> Shared:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Shared:
        return divide(other, self)

    def __lt__(self, other: Any) -> Shared:
        return less_than(self, other)

    def __ge__(self, other: Any) -> Shared:
        return 1 - (self < other)

    def __gt__(self, other: Any) -> Shared:
        return less_than(other, self)

    def __le__(self, other: Any) -> Shared:
        return 1 - (self > other)

    def __eq__(self, other: Any) -> Shared:  # type: ignore[override]
        return is_zero(self - other)

    def __ne__(self, other: Any) -> Shared:  # type: ignore[override]
        return 1 - (self == other)

    def __radd__(self, other: Any) -> Shared:
        return self + other

    def __rsub__(self, other: Any) -> Shared:
        return -self + other

    def __rmul__(self, other: Any) -> Shared:
        return self * other

    # ---- operands made to fit

    def integers(self) -> Shared:
        """The shared integers behind the numbers, without their scale."""
        return replace(self, fraction_bits=0)

    def _beside(self, other: Shared) -> tuple[Shared, Shared]:
        """Both operands with as many axes, after a check that they go together."""
        if other.session is not self.session:
            raise ValueError(f"{self} and {other} are of different sessions, so their shares do not match")
        ndim = len(np.broadcast_shapes(self.shape, other.shape))
        return self._with_axes(ndim), other._with_axes(ndim)

    def _alike(self, other: Any) -> tuple[Shared, Shared]:
        """Both operands with as many axes and fraction bits."""
        pair = self._beside(*_operands(self, other)[1:])
        most = max(one.fraction_bits for one in pair)
        x, y = (one.scaled_up(most - one.fraction_bits) for one in pair)
        return x, y

    def scaled_up(self, bits: int) -> Shared:
        """The same numbers with more fraction bits. Local."""
        return self.times(self.session.field.encode(1 << bits), bits) if bits else self

    def _with_axes(self, ndim: int) -> Shared:
        return self.reshape(*[1] * (ndim - len(self.shape)), *self.shape)


def concatenate(parts: Sequence[Shared]) -> Shared:
    """Along the first axis."""
    return replace(parts[0], shares=np.concatenate([part.shares for part in parts], axis=2))


def stack(parts: Sequence[Shared]) -> Shared:
    """Along a new first axis; all of one shape."""
    return replace(parts[0], shares=np.stack([part.shares for part in parts], axis=2))


def _operands(*numbers: Any) -> list[Shared]:
    """All of them shared, those that are public in the session of those that are.

    Raises:
        TypeError: none of them is shared.
    """
    session = next((one.session for one in numbers if isinstance(one, Shared)), None)
    if session is None:
        raise TypeError("one of the numbers must be shared: see `encrypt`")
    return [one if isinstance(one, Shared) else session.constant(one) for one in numbers]


# ---- products


def products(pairs: Sequence[tuple[Shared, Shared]]) -> list[Shared]:
    """Products of pairs of shared integers, all in one round (Beaver 1991).

    1. The dealer has shared a triple [a], [b], [c] with random a and b, and c = a * b.
    2. Open d = x - a and e = y - b, which are uniform because a and b are.
    3. x * y = (a + d) * (b + e) = c + e * a + d * (b + e), which is local.

    Cost: 1 round, 2 opened and 1 triple an element, however many pairs.
    """
    session = pairs[0][0].session
    shapes = [np.broadcast_shapes(x.shape, y.shape) for x, y in pairs]
    x = concatenate([_flat(x, shape) for (x, _), shape in zip(pairs, shapes, strict=True)])
    y = concatenate([_flat(y, shape) for (_, y), shape in zip(pairs, shapes, strict=True)])
    a, b, c = session.triples(x.shape)
    d, e = session.open(stack([x - a, y - b]))
    z = c + a.times(e) + (b + session.public(e)).times(d)
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = [z[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [
        replace(part.reshape(*shape), fraction_bits=one.fraction_bits + other.fraction_bits)
        for part, shape, (one, other) in zip(parts, shapes, pairs, strict=True)
    ]


def _flat(x: Shared, shape: tuple[int, ...]) -> Shared:
    return _broadcast(x, shape).reshape(math.prod(shape)).integers()


def square(x: Shared) -> Shared:
    """x * x, from a random [a] and its square: x^2 = a^2 + (x - a) * (x + a).

    Cost: 1 round, 1 opened, no triple but a square pair; rounding costs beside it for decimals.
    """
    a, c = x.session.square_pairs(x.shape)
    d = x.session.open(x.integers() - a)  # x^2 = (a + d)^2 = c + d * (2 * a + d)
    result = c + (a + a + x.session.public(d)).times(d)
    return rescale(replace(result, fraction_bits=2 * x.fraction_bits))


def dot(x: Any, y: Any) -> Shared:
    """The sum of x * y over all elements, rounded once.

    Cost for m elements each: 1 round, 2m opened, m triples; for decimals one rounding.
    """
    x, y = _operands(x, y)
    return rescale(products([x._beside(y)])[0].sum())


def power(x: Shared, exponent: int) -> Shared:
    """x to a public whole power, by repeated squaring from the exponent's highest bit.

    Cost for an exponent of k bits, of which h are 1: k - 1 squares and h - 1 products, one after the
    other.

    Raises:
        ValueError: the exponent is no whole number from 0.
    """
    if isinstance(exponent, bool) or not isinstance(exponent, int | np.integer) or exponent < 0:
        raise ValueError(f"exponent is {exponent!r}: it must be a whole number from 0, and public")
    if exponent == 0:
        return x.session.constant(np.ones(x.shape, np.int64))
    result = x
    for digit in f"{exponent:b}"[1:]:
        result = square(result)
        if digit == "1":
            result = result * x
    return result


def select(condition: Any, x: Any, y: Any) -> Shared:
    """x where the shared condition is 1, y where it is 0, and nobody knows which.

    Cost: 1 round, 2 opened, 1 triple.
    """
    condition, x, y = _operands(condition, x, y)
    x, y = x._alike(y)
    return y + condition * (x - y)


# ---- bits, and what can be told from them


def xor_public(x: Shared, bit: np.ndarray) -> Shared:
    """A shared bit, turned where the public one is 1. Local."""
    return x * (1 - 2 * bit) + bit


def xor(x: Shared, y: Shared) -> Shared:
    """[x != y] of shared bits. Cost: 1 round, 2 opened, 1 triple."""
    both = x * y
    return x + y - (both + both)


def less_than_bits(pairs: Sequence[tuple[np.ndarray, Shared]]) -> list[Shared]:
    """For each pair [c < r], where c is public and r is shared bit by bit, all pairs side by side.

    Reading from the lowest bit, c < r stays as it was where the bits are equal, and is decided anew
    where they differ. With `less` and `equal` for the higher and the lower half of a number,
    less = less_high + equal_high * less_low and equal = equal_high * equal_low: a tree of halves.

    Args:
        pairs: the bits of c `[b, *shape]` int64 and of r `[b, *shape]`, lowest first; b may differ.

    Cost for b bits: log2(b) rounded up rounds, 4 (b - 1) opened, 2 (b - 1) triples.
    """
    trees = []
    for c, r in pairs:
        less = r * (1 - c)  # at this bit alone: 0 < 1
        equal = 1 - xor_public(r, c)
        trees.append((less, equal))
    while any(len(less) > 1 for less, _ in trees):
        halves = [(less, equal, len(less) // 2 * 2) for less, equal in trees]
        wanted = []
        for less, equal, even in halves:
            wanted += [(equal[1:even:2], less[0:even:2]), (equal[1:even:2], equal[0:even:2])]
        done = iter(products(wanted))
        trees = [
            (
                concatenate([less[1:even:2] + next(done), less[even:]]),
                concatenate([next(done), equal[even:]]),
            )
            for less, equal, even in halves
        ]
    return [less[0] for less, _ in trees]


def is_negative(x: Shared) -> Shared:
    """[x < 0], exact over the whole field (Nishide and Ohta 2007).

    Modulo an odd prime, 2x is even for x from 0 to (prime - 1) / 2, and odd for the rest, which
    stand for negative numbers. The lowest bit of y = 2x comes from a random [r] whose bits are
    shared, too: open c = y + r. If the sum has not wrapped, c >= r and y = c - r; if it has, c < r and
    y = c - r + prime, which turns the lowest bit.

    Cost: 2 + log2(l) rounded up rounds, 4l - 1 opened, 2l - 1 triples.
    """
    session = x.session
    r, bits = session.random_bits(x.shape)
    c = session.open(x.integers() + x.integers() + r)
    c_bits = session.field.bits_of(c, session.field.bits)
    (wrapped,) = less_than_bits([(c_bits, bits)])
    return xor(wrapped, xor_public(bits[0], c_bits[0]))


def less_than(x: Any, y: Any) -> Shared:
    """[x < y], exact over the whole field.

    The sign of x - y tells, unless it wraps; and it cannot wrap where x and y have the same sign.
    Where they differ, x is the smaller if it is the negative one.

    Cost: 4 + log2(l) rounded up rounds, 12l + 1 opened, 6l - 1 triples.
    """
    x, y = _operands(x, y)
    x, y = x._alike(y)
    shape = np.broadcast_shapes(x.shape, y.shape)
    x, y = _broadcast(x.integers(), shape), _broadcast(y.integers(), shape)
    x_negative, y_negative, difference_negative = is_negative(stack([x, y, x - y]))
    both = x_negative * y_negative
    differ = x_negative + y_negative - (both + both)
    return x_negative - both + (1 - differ) * difference_negative


def is_zero(x: Shared) -> Shared:
    """[x = 0]: open c = x + r for a random [r] whose bits are shared; x is 0 where all bits are equal.

    Cost: 1 + log2(l) rounded up rounds, 2l - 1 opened, l - 1 triples.
    """
    session = x.session
    r, bits = session.random_bits(x.shape)
    c = session.open(x.integers() + r)
    c_bits = session.field.bits_of(c, session.field.bits)
    equal = 1 - xor_public(bits, c_bits)
    while len(equal) > 1:
        even = len(equal) // 2 * 2
        (both,) = products([(equal[0:even:2], equal[1:even:2])])
        equal = concatenate([both, equal[even:]])
    return equal[0]


def minimum(x: Any, y: Any) -> Shared:
    """The smaller of each pair. Cost: that of `less_than` and `select`."""
    return select(less_than(x, y), x, y)


def maximum(x: Any, y: Any) -> Shared:
    """The larger of each pair. Cost: that of `less_than` and `select`."""
    return select(less_than(x, y), y, x)


# ---- fixed point


def rescale(x: Shared) -> Shared:
    """After a product of two decimals: from 2f fraction bits back to f, as the session is set to."""
    session = x.session
    surplus = x.fraction_bits - session.fraction_bits
    if surplus <= 0:
        return x
    truncate = truncate_exact if session.truncation == "exact" else truncate_probabilistic
    return replace(truncate(x.integers(), surplus), fraction_bits=session.fraction_bits)


def truncate_exact(x: Shared, bits: int) -> Shared:
    """x / 2^bits, rounded to the nearest integer (halves up), for every x but the outermost.

    Make x positive by adding a public number. The rest x mod 2^bits follows from c = x + r, opened
    with a random [r] whose bits are shared, up to two wraps: of the sum modulo the prime, and of
    the difference of the lowest bits. Both are comparisons of public with shared bits. Less its
    rest, x is a multiple of 2^bits, and multiplying by the inverse divides it.

    Cost for bits = f: 2 + log2(l) rounded up rounds, 4l + 8f - 9 opened, 2l + 4f - 5 triples.

    Range: |x| < (prime - 1) / 2 - 2^(bits + 1), for decimals taken as shared integers.

    Raises:
        ValueError: bits is not from 0 to l - 2.
    """
    session, field = x.session, x.session.field
    check_between("bits", bits, 0, field.bits - 2)
    if bits == 0:
        return x
    fraction_bits, step = x.fraction_bits, 1 << bits
    offset = field.largest // step * step
    x = x.integers() + offset + step // 2
    r, r_bits = session.random_bits(x.shape)
    c = session.open(x + r)
    # The lowest bits of c if the sum has not wrapped modulo the prime, and of c + prime if it has
    lows = [c % np.uint64(step), (c + np.uint64(field.prime)) % np.uint64(step)]
    wrapped, *borrows = less_than_bits(
        [(field.bits_of(c, field.bits), r_bits), *((field.bits_of(low, bits), r_bits[:bits]) for low in lows)]
    )
    r_low = _sum_of_bits(r_bits[:bits])
    rests = [borrow * step + low.astype(np.int64) - r_low for low, borrow in zip(lows, borrows, strict=True)]
    rest = select(wrapped, rests[1], rests[0])
    quotient = (x - rest).times(field.inverse(field.encode(step))) - offset // step
    return replace(quotient, fraction_bits=fraction_bits)


def truncate_probabilistic(x: Shared, bits: int) -> Shared:
    """x / 2^bits, rounded up or down by chance, in one round; rarely wrong (Catrina and Saxena 2010).

    Open c = x' + r for a random [r] and shared [r / 2^bits], where x' is x made positive by adding
    2^(k - 1), and k bits hold every x' that is promised. Then c / 2^bits - r / 2^bits, both rounded
    down, is x' / 2^bits rounded down or up: up with a probability equal to the part that is cut off.
    If the sum wraps modulo the prime, which it does for x' out of `prime` values of r, the result is
    wrong by prime / 2^bits: the session's `failure_probability` is the bound 2^k / prime.

    Cost: 1 round, 1 opened, no triples.

    Range: |x| < 2^(k - 1), for decimals taken as shared integers, where
    k - 1 = session.integer_bits + 2 session.fraction_bits.

    Raises:
        ValueError: bits is not from 0 to k - 1, or k bits have no room in the field.
    """
    session = x.session
    check_between("the session's product_bits", session.product_bits, 0, session.field.bits - 2)
    check_between("bits", bits, 0, session.product_bits)
    offset = 1 << session.product_bits
    r, r_high = session.random_and_high(x.shape, bits)
    c = session.open(x.integers() + offset + r)
    session.truncations += c.size
    quotient = session.public(c >> np.uint64(bits)) - r_high - (offset >> bits)
    return replace(quotient, fraction_bits=x.fraction_bits)


def _sum_of_bits(bits: Shared) -> Shared:
    """The integers whose bits `[b, *shape]` these are, lowest first. Local."""
    field = bits.session.field
    places = field.encode(1 << np.arange(len(bits))).reshape(-1, *[1] * (len(bits.shape) - 1))
    weighted = bits.times(places)
    return replace(bits, shares=field.total(np.moveaxis(weighted.shares, 2, 0)))


# ---- division


def divide(x: Any, y: Any) -> Shared:
    """x / y with f fraction bits, cut off towards zero: long division, a bit of the quotient at a time.

    1. Take signs off, and scale x so that the integer quotient has f fraction bits.
    2. For every place i from the highest: if y * 2^i fits into what is left, subtract it, and bit i
       of the quotient is 1. Whether y * 2^i overflows the field is found out beforehand, for all
       places at once.
    3. Put the sign back.

    Where y is 0 everything fits, every bit is 1, and the result means nothing; nobody is warned.

    Cost: (l + 1)(2 + L) + l + 2 rounds with L = log2(l) rounded up, 8l^2 + 3 opened, 4l^2 - l + 2 triples.

    Range: |x| * 2^f for two integers or two decimals alike, |x| * 4^f for an integer by a decimal,
    |x| for a decimal by an integer, taken as shared integers, at most (prime - 1) / 2.
    """
    x, y = _operands(x, y)
    session, field = x.session, x.session.field
    x, y = x._beside(y)
    shape = np.broadcast_shapes(x.shape, y.shape)
    x, y = _broadcast(x, shape), _broadcast(y, shape)
    surplus = session.fraction_bits - x.fraction_bits + y.fraction_bits
    operands = stack([x.integers(), y.integers()])
    negative = is_negative(operands)
    signs = 1 - (negative + negative)  # 1 or -1
    (x, y), (sign,) = products([(operands, signs), (signs[:1], signs[1:])])
    rest = x.scaled_up(surplus).integers()
    places = np.arange(field.bits - 1).reshape(-1, *[1] * len(shape))
    at_0 = session.constant(np.ones((1, *shape), np.int64))
    fits = concatenate([at_0, is_negative(y - (field.largest >> places[1:]) - 1)])
    (multiples,) = products([(fits, y._with_axes(1 + len(shape)).times(field.encode(1 << places)))])
    quotient = session.constant(np.zeros(shape, np.int64))
    for i in reversed(range(len(places))):
        goes = 1 - is_negative(rest - multiples[i])
        taken, bit = products([(goes, multiples[i]), (goes, fits[i])])
        rest = rest - taken
        quotient = quotient + bit.times(field.encode(1 << i))
    return replace(products([(sign, quotient)])[0], fraction_bits=session.fraction_bits)


def _broadcast(x: Shared, shape: tuple[int, ...]) -> Shared:
    x = x._with_axes(len(shape))
    return replace(x, shares=np.broadcast_to(x.shares, (*x.shares.shape[:2], *shape)))

"""An expression in the clear, as the user goes through it before it is computed on shares.

On shares nobody would see a number leave the field, or a division by zero. The user knows all
numbers, and so can tell beforehand; and what the rounding of decimals can do to the result.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from recipes.secret_sharing.expression import Program
from recipes.secret_sharing.session import Session


@dataclass(frozen=True)
class Known:
    """A number as the user knows it, with what becomes of it on shares: its scale and its error."""

    value: Fraction
    error: Fraction
    """A bound on the difference between the shared number and this one."""
    fraction_bits: int
    session: Session

    def __post_init__(self) -> None:
        self._check(self.fraction_bits, self.session.field.largest)

    def _check(self, fraction_bits: int, largest: int) -> None:
        """Refuse a number that as a shared integer would be beyond `largest`."""
        if abs(self.value) * 2**fraction_bits <= largest < (abs(self.value) + self.error) * 2**fraction_bits:
            raise ValueError(
                f"{float(self.value):.6g} may be off by {float(self.error):.2g}, and so out of range:"
                f" {self.session.fraction_bits} fraction bits are too few here"
            )
        if abs(self.value) * 2**fraction_bits > largest:
            limit = Fraction(largest, 2**fraction_bits)
            raise ValueError(
                f"{float(self.value):.12g} is out of range: here a number must lie within"
                f" ±{float(limit):.12g} ({fraction_bits} fraction bits modulo {self.session.field.prime})"
            )

    def _alike(self, other: Known) -> tuple[Known, Known]:
        most = max(self.fraction_bits, other.fraction_bits)
        return replace(self, fraction_bits=most), replace(other, fraction_bits=most)

    def __add__(self, other: Known) -> Known:
        x, y = self._alike(other)
        return replace(x, value=x.value + y.value, error=x.error + y.error)

    def __neg__(self) -> Known:
        return replace(self, value=-self.value)

    def __sub__(self, other: Known) -> Known:
        return self + -other

    def __mul__(self, other: Known) -> Known:
        error = abs(self.value) * other.error + abs(other.value) * self.error + self.error * other.error
        bits, session = self.fraction_bits + other.fraction_bits, self.session
        product = _known(self.value * other.value, error, 0, session)
        surplus = bits - session.fraction_bits
        if surplus <= 0:
            return replace(product, fraction_bits=bits)
        if session.truncation == "exact":
            product._check(bits, session.field.largest - 2 ** (surplus + 1))
            step = Fraction(1, 2 ** (session.fraction_bits + 1))
        else:
            product._check(bits, 2**session.product_bits - 1)
            step = Fraction(1, 2**session.fraction_bits)
        return replace(product, error=product.error + step, fraction_bits=session.fraction_bits)

    def __pow__(self, exponent: int) -> Known:
        if exponent == 0:
            return Known(Fraction(1), Fraction(0), 0, self.session)
        result = self
        for digit in f"{exponent:b}"[1:]:
            result = result * result
            if digit == "1":
                result = result * self
        return result

    def __truediv__(self, other: Known) -> Known:
        f = self.session.fraction_bits
        if other.value == 0:
            raise ValueError("division by zero")
        if abs(other.value) <= other.error:
            raise ValueError(
                f"division by {float(other.value):.3g}, which may be zero with {f} fraction bits"
            )
        surplus = f - self.fraction_bits + other.fraction_bits
        self._check(self.fraction_bits + surplus, self.session.field.largest)
        quotient = self.value / other.value
        smallest = abs(other.value) - other.error
        error = (self.error + abs(quotient) * other.error) / smallest + Fraction(1, 2**f)
        return _known(quotient, error, f, self.session)

    def _truth(self, other: Known, relation: Callable[[Any, Any], bool]) -> Known:
        x, y = self._alike(other)
        error = x.error + y.error
        certain = error == 0 or abs(x.value - y.value) > error
        return Known(Fraction(relation(x.value, y.value)), Fraction(not certain), 0, self.session)

    def __lt__(self, other: Known) -> Known:
        return self._truth(other, operator.lt)

    def __le__(self, other: Known) -> Known:
        return self._truth(other, operator.le)

    def __gt__(self, other: Known) -> Known:
        return self._truth(other, operator.gt)

    def __ge__(self, other: Known) -> Known:
        return self._truth(other, operator.ge)

    def __eq__(self, other: Known) -> Known:  # type: ignore[override]
        return self._truth(other, operator.eq)

    def __ne__(self, other: Known) -> Known:  # type: ignore[override]
        return self._truth(other, operator.ne)


def _known(value: Fraction, error: Fraction, fraction_bits: int, session: Session) -> Known:
    """A number and its error, rounded to multiples of 2^-200 where they would become long fractions."""
    kept = _shortened(value)
    return Known(kept, _shortened(error + abs(kept - value), round_up=True), fraction_bits, session)


def _shortened(value: Fraction, round_up: bool = False) -> Fraction:
    if value.denominator.bit_length() <= 200:
        return value
    scaled = value * (1 << 200)
    return Fraction(math.ceil(scaled) if round_up else round(scaled), 1 << 200)


def _select_known(condition: Known, x: Known, y: Known) -> Known:
    x, y = x._alike(y)
    chosen = x if condition.value else y
    if not condition.error:
        return chosen
    return replace(chosen, error=abs(x.value - y.value) + x.error + y.error)


def rehearse(program: Program, numbers: Sequence[int | float], session: Session) -> Known:
    """The program in the clear.

    Raises:
        ValueError: a number leaves the field on the way, or a divisor is zero.
    """

    def known(index: int) -> Known:
        number = numbers[index]
        if not program.decimals[index]:
            return Known(Fraction(number), Fraction(0), 0, session)
        exact = Fraction(repr(number))  # as it was typed, not as floats have it
        integer = int(session.field.decode(session.encode(number)[0]))
        error = abs(Fraction(integer, 2**session.fraction_bits) - exact)
        return Known(exact, error, session.fraction_bits, session)

    return program.evaluate(known, _select_known)

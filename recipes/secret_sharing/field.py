"""Arithmetic modulo a prime, on whole arrays, exactly.

A residue is an integer from 0 to prime - 1; arrays of residues are uint64 of any shape. Signed
integers stand for residues as two's complement does for bits: -1 is prime - 1.
"""

from __future__ import annotations

import math
import operator
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

CHAPTER_PRIME = 67280421310721
"""The source chapter's modulus, a prime of 46 bits."""

Draw = Callable[[int], bytes]
"""Where randomness comes from: a number of bytes to so many bytes. Tests put in their own."""

_PIECE = 1 << 15  # residues worked on at a time: intermediate arrays then stay in the processor's cache
_MANY = 8  # pieces from which threads are worth their start
_FEW = 16  # arrays that NumPy goes through side by side, which with the result may be 32 at most
_SUMMANDS = 1 << 15  # residues of 48 bits whose sum fits into 64
_DRAWN_BITS = 48  # of randomness behind one residue, six bytes; the prime may not have more


@dataclass(frozen=True)
class Field:
    """The integers modulo a prime between 3 and 2^48.

    Raises:
        ValueError: `prime` is not an odd prime below 2^48.
    """

    prime: int = CHAPTER_PRIME

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "prime", operator.index(self.prime))
        except TypeError as error:
            raise ValueError(f"the modulus is {short(self.prime)}: it must be an odd prime") from error
        if not 3 <= self.prime < 1 << _DRAWN_BITS or not _is_prime(self.prime):
            raise ValueError(f"the modulus is {self.prime}: it must be an odd prime below 2^48")

    @property
    def bits(self) -> int:
        """Binary digits of the prime (l in the papers)."""
        return self.prime.bit_length()

    @property
    def largest(self) -> int:
        """The largest signed integer, (prime - 1) / 2."""
        return self.prime // 2

    @cached_property
    def _p(self) -> np.uint64:
        return np.uint64(self.prime)

    # ---- between integers and residues

    def encode(self, integers: Any) -> np.ndarray:
        """Signed integers, an int or an array of any integer dtype, as residues.

        Raises:
            ValueError: not integers, or beyond ±(prime - 1) / 2.
        """
        given = np.asarray(integers)
        if given.dtype == object and all(isinstance(one, int | np.integer) for one in given.flat):
            largest = max(given.flat, key=abs, default=0)  # Python's integers know no bounds, NumPy's do
            if abs(largest) > self.largest:
                self._refuse(largest)
            given = given.astype(np.int64)
        if given.dtype.kind not in "iub":
            raise ValueError(f"{short(integers)} is no integer, nor an array of integers")
        if given.size:
            for extreme in (given.min(), given.max()):
                if abs(int(extreme)) > self.largest:
                    self._refuse(int(extreme))
        residues = given.astype(np.int64)
        for piece in _pieces_of(residues):
            piece += (piece < 0) * np.int64(self.prime)
        return residues.view(np.uint64)

    def _refuse(self, integer: int) -> None:
        raise ValueError(
            f"{short(integer)} is too large: modulo {self.prime} integers reach from"
            f" -{self.largest} to {self.largest}"
        )

    def decode(self, residues: np.ndarray, reuse: bool = False) -> np.ndarray:
        """Residues as signed integers, int64; with `reuse` in the same memory, which then holds them."""
        residues = np.asarray(residues)
        signed = residues.view(np.int64) if reuse and residues.flags.forc else residues.astype(np.int64)
        for piece in _pieces_of(signed):
            piece -= (piece > self.largest) * np.int64(self.prime)
        return signed

    def bits_of(self, residues: np.ndarray, count: int) -> np.ndarray:
        """The lowest `count` binary digits: `[*shape]` uint64 to `[count, *shape]` int64, lowest first."""
        places = np.arange(count, dtype=np.uint64).reshape(-1, *[1] * np.ndim(residues))
        return ((residues >> places) & np.uint64(1)).astype(np.int64)

    # ---- residues, element by element with NumPy's broadcasting

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x + y."""
        return _piecewise(self._total, x, y)

    def subtract(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x - y."""
        return _piecewise(self._subtract, x, y)

    def _subtract(self, x: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        return self._once(np.add(x, np.subtract(self._p, y, out=out), out=out))

    def multiply(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x * y, exact although the product has up to 96 bits.

        In floating point x * y / prime is right to 3 * 2^-53 of itself, so less than one for a
        prime below 2^50, and its integer part q is the true quotient or one beside it. What is left,
        x * y - q * prime, then lies between -prime and 2 * prime, so that 64 bits hold it although
        they hold neither product.
        """
        return _piecewise(self._multiply, x, y)

    def _multiply(self, x: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        quotient = np.multiply(x, y, dtype=np.float64)
        quotient *= 1 / self.prime
        whole = np.multiply(quotient.astype(np.uint64), self._p)  # as a function it may wrap without a word
        rest = np.multiply(x, y, out=out)
        rest = np.add(rest, np.subtract(self._p, whole), out=out)
        return self._once(self._once(rest))

    def total(self, residues: np.ndarray) -> np.ndarray:
        """The sum over the first axis."""
        if len(residues) <= 1:
            return residues.sum(axis=0, dtype=np.uint64)
        if len(residues) <= _FEW:
            return _piecewise(self._total, *residues)
        starts = range(0, len(residues), _SUMMANDS)
        sums = [np.add.reduce(residues[start : start + _SUMMANDS]) % self._p for start in starts]
        return self.total(np.stack(sums))

    def _total(self, *rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        result = rows[0]
        for row in rows[1:]:
            result = self._once(np.add(result, row, out=out))
        return result

    def power(self, x: np.ndarray, exponent: int) -> np.ndarray:
        """x to a non-negative power, by repeated squaring."""
        result = np.ones_like(x)
        for digit in f"{exponent:b}":
            result = self.multiply(result, result)
            if digit == "1":
                result = self.multiply(result, x)
        return result

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """1 / x, by Fermat's little theorem; that of 0 is given as 0."""
        return self.power(x, self.prime - 2)

    def _once(self, x: np.ndarray) -> np.ndarray:
        """Take the prime off where x is not below it, in place: where it is, the difference wraps, and
        so is the larger."""
        x = np.asarray(x)
        return np.minimum(x, np.subtract(x, self._p), out=x)

    # ---- chance

    def random(self, shape: Sequence[int], draw: Draw = secrets.token_bytes) -> np.ndarray:
        """Residues drawn uniformly, `[*shape]` uint64: those beyond the prime are drawn again."""
        result = np.empty(math.prod(shape), np.uint64)
        in_pieces(lambda piece: self.fill(result[piece], draw), len(result), draw)
        return result.reshape(shape)

    def fill(self, piece: np.ndarray, draw: Draw = secrets.token_bytes) -> None:
        """Put uniformly drawn residues into `[N]` uint64."""
        done = 0
        while done < len(piece):
            wanted = len(piece) - done
            drawn = np.frombuffer(draw(6 * wanted), np.uint16)
            residues = drawn[: 2 * wanted].view(np.uint32).astype(np.uint64)
            residues |= drawn[2 * wanted :].astype(np.uint64) << np.uint64(32)
            residues &= np.uint64((1 << self.bits) - 1)
            kept = residues[residues < self._p]
            piece[done : done + len(kept)] = kept
            done += len(kept)


def in_pieces(work: Callable[[slice], None], count: int, draw: Draw) -> None:
    """`work(piece)` for pieces of `count` elements; on all cores if they are many and the operating
    system draws."""
    pieces = [slice(start, start + _PIECE) for start in range(0, count, _PIECE)]
    if len(pieces) >= _MANY and draw is secrets.token_bytes:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(work, pieces))
    else:
        for piece in pieces:
            work(piece)


def _pieces_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """Views of an array whose memory is in one piece, each small enough for the cache."""
    flat = array.ravel("K")
    return (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))


def _piecewise(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """`function(*arrays, out)`, for large arrays in pieces, so that what it puts aside stays in the cache."""
    sizes = [np.size(array) for array in arrays]
    if max(sizes) <= _PIECE or min(sizes) == 0:
        return function(*arrays)
    inputs = [["readonly"]] * len(arrays)
    pieces = np.nditer(
        [*arrays, None],
        ["external_loop", "buffered"],
        [*inputs, ["writeonly", "allocate"]],
        [np.uint64] * (len(arrays) + 1),
        buffersize=_PIECE,
    )
    with pieces:
        for *parts, out in pieces:
            function(*parts, out=out)
        return pieces.operands[-1]


def check_between(name: str, value: Any, least: int, most: int) -> None:
    """Refuse a setting that is no whole number, or out of its range.

    Raises:
        ValueError: with the name, the value and the range.
    """
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or not least <= value <= most:
        raise ValueError(f"{name} is {short(value)}: it must be a whole number from {least} to {most}")


def short(value: Any) -> str:
    """A value as it is shown in a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:30]}… ({len(text)} characters)"


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test, which is a proof below 3.3 * 10^24 with these bases."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    if number < 2 or any(number % base == 0 for base in bases):
        return number in bases
    twos = ((number - 1) & -(number - 1)).bit_length() - 1
    for base in bases:
        x = pow(base, (number - 1) >> twos, number)
        if x != 1 and all(pow(x, 1 << i, number) != number - 1 for i in range(twos)):
            return False
    return True

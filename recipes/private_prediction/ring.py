"""Arithmetic in the ring Z_2^64: fixed point, products, and words and bits as they travel.

A word is a uint64; sums and products wrap, which is the ring's arithmetic. The upper half of the ring
stands for negative numbers (two's complement). Bits of many numbers are kept as *planes*: plane k
holds bit k of eight numbers a byte, so that one operation works on all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WORD_BITS = 64


def encode(values: np.ndarray, fraction_bits: int) -> np.ndarray:
    """Words of real numbers of any shape, rounded to multiples of 2**-fraction_bits."""
    return np.rint(np.multiply(values, 2.0**fraction_bits, dtype=np.float64)).astype(np.int64).view(np.uint64)


def decode(words: np.ndarray, fraction_bits: int, bits: int = WORD_BITS) -> np.ndarray:
    """float64 of words, of which the lowest `bits` count, the highest of these being the sign."""
    unused = np.uint64(WORD_BITS - bits)
    return ((words << unused).view(np.int64) >> np.int64(unused)) / 2.0**fraction_bits


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Matrix product of words, `[n, m] @ [m, k] -> [n, k]`.

    PyTorch's kernel for integers is fifteen times as fast as NumPy's; signed and unsigned products
    are the same bits.
    """
    import torch

    factors = (torch.from_numpy(np.ascontiguousarray(words).view(np.int64)) for words in (left, right))
    return torch.mm(*factors).numpy().view(np.uint64)


def lowest(words: np.ndarray, bits: int) -> np.ndarray:
    """The words modulo 2**bits."""
    return words if bits == WORD_BITS else words & np.uint64((1 << bits) - 1)


def to_bytes(words: np.ndarray, bits: int) -> bytes:
    """The lowest `bits` (a multiple of 8) of every word, lowest byte first."""
    return np.ascontiguousarray(_as_bytes(words)[:, : bits // 8]).tobytes()


def from_bytes(message: bytes, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The words of `to_bytes`.

    Raises:
        ValueError: the message has not the length of that many words.
    """
    words = np.zeros(shape, np.uint64)
    _as_bytes(words)[:, : bits // 8] = np.frombuffer(message, np.uint8).reshape(words.size, bits // 8)
    return words


def _as_bytes(words: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(words).view(np.uint8).reshape(words.size, 8)


def planes(words: np.ndarray, bits: int) -> np.ndarray:
    """Bits 0 to `bits` - 1 of n words, `[bits, ceil(n / 8)]` uint8."""
    columns = _as_bytes(words)
    result = np.empty((bits, plane_bytes(words.size)), np.uint8)
    for k in range(bits):
        if k % 8 == 0:
            column = np.ascontiguousarray(columns[:, k // 8])
        result[k] = np.packbits(column & (1 << k % 8), bitorder="little")
    return result


def unpacked(plane: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The bits of a plane, as words 0 and 1."""
    size = int(np.prod(shape))
    return np.unpackbits(plane, count=size, bitorder="little").reshape(shape).astype(np.uint64)


def plane_bytes(numbers: int) -> int:
    """How many bytes a plane of that many numbers has."""
    return -(-numbers // 8)


class Stream:
    """Uniform numbers from a seed of 16 bytes: AES-128 in counter mode."""

    def __init__(self, seed: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._encryptor = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()

    def words(self, shape: tuple[int, ...], dtype: Any = np.uint64) -> np.ndarray:
        """Numbers of an unsigned type, uniform over its whole range."""
        drawn = np.zeros(shape, dtype)
        if drawn.size:
            self._encryptor.update_into(drawn.data.cast("B"), drawn.data.cast("B"))
        return drawn

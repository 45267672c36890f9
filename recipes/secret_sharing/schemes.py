"""Three ways to split a number into shares: additive, Shamir's, and additive with MACs.

Shares of an array `[*shape]` are one array `[parties, words, *shape]` of uint64 residues. A party
holds one word an element, or two where each share carries a MAC. All three are linear: adding
shares adds what they hide, and multiplying them by a public number multiplies it, so that one
arithmetic serves them all.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recipes.secret_sharing.field import Draw, Field, check_between, in_pieces
from recipes.secret_sharing.reed_solomon import wrong_points

_SMALL = 10_000  # the largest field whose elements `explain` goes through


class CheaterDetected(Exception):
    """Shares that cannot all be right.

    `parties` holds the indices of those that cheated, and is empty if that cannot be told.
    """

    def __init__(self, message: str, parties: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.parties = tuple(parties)


@dataclass(frozen=True)
class Additive:
    """All shares but one are drawn uniformly; the last makes their sum the secret.

    Any parties - 1 of them are independent of the secret. All are needed to reconstruct it, and
    none can be checked: a wrong share gives a wrong secret.

    Raises:
        ValueError: fewer than two parties, or more than 100.
    """

    parties: int = 3
    """n in the papers."""
    field: Field = dataclasses.field(default_factory=Field)

    name: ClassVar[str] = "additive"
    words: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_between("parties", self.parties, 2, 100)
        if not isinstance(self.field, Field):
            raise ValueError(f"the field is {self.field}: it must be a Field, as Field({self.field})")

    @property
    def needed(self) -> int:
        """How many shares reconstruct the secret; one fewer say nothing of it."""
        return self.parties

    def share(self, residues: np.ndarray, draw: Draw = secrets.token_bytes, key: np.ndarray | None = None):
        """`[*shape]` to shares `[parties, 1, *shape]`, uint64."""
        flat = np.ravel(residues)
        shares = np.empty((self.parties, flat.size), np.uint64)

        def split(piece: slice) -> None:
            *drawn, last = shares[:, piece]
            last[...] = flat[piece]
            for share in drawn:
                self.field.fill(share, draw)
                last[...] = self.field.subtract(last, share)

        in_pieces(split, flat.size, draw)
        return shares.reshape(self.parties, 1, *np.shape(residues))

    def constant(self, residues: np.ndarray, here: Sequence[int], keys: np.ndarray) -> np.ndarray:
        """Shares of a public number, for the parties in `here`: the first holds it, the others 0."""
        first = np.array([party == 0 for party in here], np.uint64)
        return np.multiply.outer(first, residues)[:, None]

    def reconstruct(
        self, shares: np.ndarray, parties: Sequence[int] | None = None
    ) -> tuple[np.ndarray, frozenset[int]]:
        """The secret, and which parties' shares were wrong as far as that can be told.

        Args:
            shares: `[len(parties), *shape]` uint64.
            parties: whose they are, in this order; all if not given.

        Raises:
            ValueError: too few shares.
            CheaterDetected: shares are wrong and cannot be corrected.
        """
        self._whose(shares, parties)
        return self.field.total(shares), frozenset()

    def _whose(self, shares: np.ndarray, parties: Sequence[int] | None) -> list[int]:
        named = self.check_enough(parties)
        if len(shares) != len(named):
            raise ValueError(f"{len(shares)} shares of {len(named)} parties: there must be one of each")
        return named

    def check_enough(self, parties: Sequence[int] | None) -> list[int]:
        """The parties, or all of them, after a check that their shares suffice.

        Raises:
            ValueError: they do not, or there is no such party.
        """
        named = list(range(self.parties)) if parties is None else [operator.index(one) for one in parties]
        if not set(named) <= set(range(self.parties)) or len(set(named)) != len(named):
            raise ValueError(f"parties {named}: each must be named once, from 0 to {self.parties - 1}")
        if len(named) < self.needed:
            raise ValueError(f"{len(named)} shares are too few: {self.needed} are needed")
        return named

    def explain(self, seen_shares: Mapping[int, int]) -> dict[int, int]:
        """For every secret, the share that must be missing if it were the true one.

        Each candidate fits what was seen, and with exactly one missing share, all of which are
        equally likely: so what was seen says nothing.

        Args:
            seen_shares: party to share, of one party fewer than reconstruct the secret.

        Returns:
            Candidate secret (0 to prime - 1) to the share of the first party that was not seen.

        Raises:
            ValueError: the field has more than 10,000 elements, or the shares seen are not one too few.
        """
        if self.field.prime > _SMALL:
            raise ValueError(f"the field has {self.field.prime} elements: explain goes through {_SMALL}")
        if not set(seen_shares) <= set(range(self.parties)) or len(seen_shares) != self.needed - 1:
            raise ValueError(
                f"shares of parties {sorted(seen_shares)} were seen: it must be {self.needed - 1}"
                f" of the parties 0 to {self.parties - 1}"
            )
        missing = min(set(range(self.parties)) - set(seen_shares))
        return {secret: self._share_for(secret, seen_shares, missing) for secret in range(self.field.prime)}

    def _share_for(self, secret: int, seen: Mapping[int, int], missing: int) -> int:
        """The share of party `missing` that completes those seen to `secret`."""
        return (secret - sum(map(int, seen.values()))) % self.field.prime


@dataclass(frozen=True)
class Authenticated(Additive):
    """Additive shares of x, and beside them additive shares of its MAC, alpha * x (SPDZ).

    No party knows the key alpha: the dealer draws it, and shares it among them. Whoever opens a wrong
    value must change the MAC to match, which takes knowing alpha: one guess in `prime` succeeds.
    """

    name: ClassVar[str] = "authenticated"
    words: ClassVar[int] = 2

    def share(self, residues: np.ndarray, draw: Draw = secrets.token_bytes, key: np.ndarray | None = None):
        """`[*shape]` to shares `[parties, 2, *shape]`, uint64; who shares must know the key."""
        mac = self.field.multiply(residues, np.asarray(key))
        return np.concatenate([super().share(residues, draw), super().share(mac, draw)], axis=1)

    def constant(self, residues: np.ndarray, here: Sequence[int], keys: np.ndarray) -> np.ndarray:
        """Shares of a public number c: the first party holds c, and each its share of alpha times c."""
        keys = keys.reshape(-1, 1, *[1] * np.ndim(residues))
        macs = self.field.multiply(keys, residues[None, None])
        return np.concatenate([super().constant(residues, here, keys), macs], axis=1)


@dataclass(frozen=True)
class Shamir(Additive):
    """Points of a random polynomial of degree t whose value at 0 is the secret; party i holds that at i + 1.

    Any t + 1 points fix the polynomial, t say nothing of its value at 0. Points beyond t + 1 are
    redundant: they stand in for missing ones, and of m points (m - t - 1) / 2 wrong ones can be
    corrected, because they are a Reed-Solomon code. That is a promise for so many only: with more
    wrong points another polynomial may be nearer, and points that are right be taken for wrong; with
    more than m - t - 1, or none redundant, nothing may be noticed at all.

    Raises:
        ValueError: the threshold is not between 1 and parties - 1, or the field is too small.
    """

    threshold: int | None = None
    """t in the papers, (parties - 1) / 2 rounded down if not given, but at least 1."""

    name: ClassVar[str] = "shamir"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is None:
            object.__setattr__(self, "threshold", max((self.parties - 1) // 2, 1))
        check_between("threshold", self.threshold, 1, self.parties - 1)
        if self.parties >= self.field.prime:
            raise ValueError(f"{self.parties} parties need a field of more elements than {self.field.prime}")

    @property
    def needed(self) -> int:
        """How many shares reconstruct the secret, t + 1; t say nothing of it."""
        return self.threshold + 1

    def share(self, residues: np.ndarray, draw: Draw = secrets.token_bytes, key: np.ndarray | None = None):
        """`[*shape]` to shares `[parties, 1, *shape]`, uint64."""
        coefficients = self.field.random((self.threshold, *np.shape(residues)), draw)
        x = np.arange(1, self.parties + 1, dtype=np.uint64).reshape(-1, *[1] * np.ndim(residues))
        y = np.zeros((self.parties, *np.shape(residues)), np.uint64)
        for coefficient in coefficients:  # Horner's scheme
            y = self.field.multiply(self.field.add(y, coefficient), x)
        return self.field.add(y, residues)[:, None]

    def constant(self, residues: np.ndarray, here: Sequence[int], keys: np.ndarray) -> np.ndarray:
        """Shares of a public number: every party holds it, the polynomial is constant."""
        return np.repeat(np.asarray(residues)[None, None], len(here), axis=0)

    def reconstruct(
        self, shares: np.ndarray, parties: Sequence[int] | None = None
    ) -> tuple[np.ndarray, frozenset[int]]:
        """The secret, and which parties' shares were wrong and have been corrected.

        Shares may be missing. With m shares up to (m - t - 1) / 2 wrong ones are corrected, element
        by element; with one redundant share a wrong one is noticed. If more are wrong, the secret or
        the blame may be wrong, too.

        Args:
            shares: `[len(parties), *shape]` uint64.
            parties: whose they are, in this order; all if not given.

        Raises:
            ValueError: fewer than t + 1 shares.
            CheaterDetected: the shares are on no polynomial, nor near enough to one.
        """
        named = self._whose(shares, parties)
        points, rows = [party + 1 for party in named], shares.reshape(len(named), -1)
        secret, fits = self._interpolate(points, rows)
        blamed: set[int] = set()
        while not fits.all():
            doubtful = np.flatnonzero(~fits)
            column = [int(y) for y in rows[:, doubtful[0]]]
            wrong = wrong_points(points, column, self.threshold, self.field.prime)
            if wrong is None:
                raise CheaterDetected(self._beyond_repair(len(named)))
            # most likely the same parties were wrong elsewhere, too
            good = [index for index, point in enumerate(points) if point not in wrong]
            values, fit = self._interpolate([points[index] for index in good], rows[np.ix_(good, doubtful)])
            secret[doubtful[fit]] = values[fit]
            fits[doubtful[fit]] = True
            blamed |= {point - 1 for point in wrong}
        return secret.reshape(shares.shape[1:]), frozenset(blamed)

    def _interpolate(self, points: Sequence[int], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The value at 0 of the polynomial through the first t + 1 points, `[N]`, and whether the
        other points lie on it, `[N]` bool."""
        base, rest = slice(0, self.needed), range(self.needed, len(points))
        fits = np.ones(rows.shape[1], bool)
        for index in rest:
            fits &= self._at(points[index], points[base], rows[base]) == rows[index]
        return self._at(0, points[base], rows[base]), fits

    def _at(self, x: int, points: Sequence[int], rows: np.ndarray) -> np.ndarray:
        """The value at x of the polynomial through `points`: Lagrange's formula."""
        weights = _lagrange(x, tuple(points), self.field.prime)
        return self.field.total(self.field.multiply(rows, np.array(weights, np.uint64)[:, None]))

    def _beyond_repair(self, count: int) -> str:
        correctable = (count - self.needed) // 2
        return (
            f"shares are wrong, and of {count} with threshold {self.threshold}"
            f" only {correctable} can be corrected" if correctable else
            f"a share is wrong; to correct one, {self.needed + 2} shares are needed and there are {count}"
        )  # fmt: skip

    def _share_for(self, secret: int, seen: Mapping[int, int], missing: int) -> int:
        """The share of party `missing` that completes those seen to `secret`."""
        points = [0, *(party + 1 for party in seen)]
        values, prime = [secret, *map(int, seen.values())], self.field.prime
        weights = _lagrange(missing + 1, tuple(points), prime)
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) % prime


@functools.cache
def _lagrange(x: int, points: tuple[int, ...], prime: int) -> list[int]:
    """The weight of the value at each of the points in the value at x."""
    weights = []
    for point in points:
        others = [other for other in points if other != point]
        above = math.prod(x - other for other in others)
        weights.append(above * pow(math.prod(point - other for other in others), -1, prime) % prime)
    return weights

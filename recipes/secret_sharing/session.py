"""A computation on shares: numbers in and out, what is opened, and what the dealer hands out.

The same code runs in every role: in one process arrays hold every party's shares; in a process of
its own a party holds its own shares alone, and the dealer and the user, who take no part in the
computing, hold none. What differs is the link (`recipes.secret_sharing.links`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

import numpy as np

from recipes.secret_sharing.arithmetic import Shared
from recipes.secret_sharing.field import Draw, check_between, short
from recipes.secret_sharing.links import DEALER, PARTIES, USER, Link, Local
from recipes.secret_sharing.schemes import Additive, CheaterDetected

_SEED, _NONCE = 32, 32  # bytes


class Session:
    """Shares numbers, computes on shares, and opens results.

    Args:
        scheme: how numbers are shared, among how many parties, over which field.
        fraction_bits: f, binary places of decimals: they are multiples of 2^-f.
        truncation: how products of decimals are rounded: exact, or probabilistic (one round).
        integer_bits: with probabilistic truncation, products of decimals are promised to be
            smaller than 2^integer_bits.
        cheater: a party that adds 1 to whatever it opens.
        link: how the roles reach each other; all in this process if not given.
        draw: where randomness comes from; for tests.

    Raises:
        ValueError: numbers of so many bits have no room in the field, or there is no such party.
    """

    def __init__(
        self,
        scheme: Additive | None = None,
        *,
        fraction_bits: int = 12,
        truncation: Literal["exact", "probabilistic"] = "exact",
        integer_bits: int = 12,
        cheater: int | None = None,
        link: Link | None = None,
        draw: Draw = secrets.token_bytes,
    ) -> None:
        self.scheme = scheme or Additive()
        self.field = self.scheme.field
        self.fraction_bits, self.integer_bits, self.truncation = fraction_bits, integer_bits, truncation
        self.cheater = cheater
        self._check_settings()
        self.link = link or Local(self.scheme.parties)
        self.draw = draw
        self.triples_used = 0
        self.truncations = 0
        """Results that were truncated with a probability of failure."""
        self.received: Counter[str] = Counter()
        """Numbers that the parties here got from the user, from the dealer, and by opening."""
        self.liars: frozenset[int] = frozenset()
        """Parties whose wrong shares were corrected."""
        self.record: list[tuple[str, np.ndarray]] | None = None
        """If a list, all that the parties here receive is appended: (from whom, `[k, ...]` residues)."""
        self._over = ""  # why, once somebody has cheated
        self._opened: list[tuple[np.ndarray, np.ndarray]] = []  # values and MAC shares since the last check
        self._key = self.field.random((), draw) if self.link.hosts(DEALER) else None
        self._key_shares = np.zeros(len(self.link.here), np.uint64)
        if self.scheme.words == 2:
            plain = Additive(self.scheme.parties, self.field)
            rows = self.link.deal(DEALER, lambda: plain.share(self._key, draw), (1,))
            self._key_shares = rows[:, 0]
            self._note(DEALER, rows)

    def _check_settings(self) -> None:
        room = self.field.bits - 2
        check_between("fraction_bits", self.fraction_bits, 0, room // 2)
        if self.truncation not in ("exact", "probabilistic"):
            raise ValueError(f"truncation is {self.truncation!r}: it must be exact or probabilistic")
        if self.truncation == "probabilistic":
            check_between("integer_bits", self.integer_bits, 0, room - 2 * self.fraction_bits)
        if self.cheater is not None:
            check_between("cheater", self.cheater, 0, self.scheme.parties - 1)

    # ---- numbers in and out

    def encrypt(self, numbers: Any) -> Shared:
        """Share an int, a float or an array of them, as the user who knows them.

        Raises:
            ValueError: not a number, or too large for the field.
        """
        residues, fraction_bits = self.encode(numbers)
        return self.input(residues.shape, fraction_bits, residues)

    def input(self, shape: tuple[int, ...], fraction_bits: int, residues: np.ndarray | None = None) -> Shared:
        """Numbers of the user, who alone gives `residues` `[*shape]`; every role calls this.

        Without MACs the user deals shares. With MACs, for which one must know the key, the dealer
        shares a random mask r and tells it to the user, who sends x - r to all parties.
        """
        if residues is None:
            residues = np.zeros(shape, np.uint64)
        if self.scheme.words == 1:
            rows = self.link.deal(USER, lambda: self.scheme.share(residues, self.draw), (1, *shape))
            self._note(USER, rows)
            return Shared(self, rows, fraction_bits)
        mask = self.field.random(shape, self.draw)  # only what the dealer draws is used
        shared_mask = self._dealt(lambda: mask, shape)
        mask = self.link.tell(DEALER, USER, mask)
        masked = np.broadcast_to(self.field.subtract(residues, mask), (self.scheme.parties, *shape))
        rows = self.link.deal(USER, lambda: masked, shape)
        self._note(USER, rows)
        difference = rows[0] if len(rows) else np.zeros(shape, np.uint64)
        return Shared(self, (shared_mask + self.public(difference)).shares, fraction_bits)

    def decrypt(self, x: Shared, parties: Sequence[int] | None = None) -> Any:
        """Open a number to everybody: an int or float, or an array of int64 or float64.

        With MACs, what was opened before is checked first, and the result after. Who cheats only in
        opening the result still learns it, but nobody accepts what it made of it. After a failed
        check the session is over: it has told the cheater the key.

        Args:
            x: what to open.
            parties: only their shares have arrived (Shamir's stand in for missing ones); all if not
                given.

        Raises:
            CheaterDetected: a share was changed, now or earlier in this session.
            ValueError: too few shares, or the number is of another session.
        """
        if not isinstance(x, Shared):
            raise TypeError(f"{short(x)} is not shared, so there is nothing to open")
        self.check()
        residues = self.open(x.integers(), parties)
        self.check()
        integers = self.field.decode(residues, reuse=True)
        values = integers / 2**x.fraction_bits if x.fraction_bits else integers
        return values.item() if x.shape == () else values

    def encode(self, numbers: Any) -> tuple[np.ndarray, int]:
        """Residues `[*shape]` of public numbers, and their fraction bits: 0 for integers.

        Raises:
            ValueError: not a number, or too large for the field.
        """
        given = np.asarray(numbers)
        if given.dtype.kind != "f":
            return self.field.encode(numbers), 0
        if not np.isfinite(given).all():
            raise ValueError(f"{short(numbers)} is not a finite number, so it cannot be shared")
        with np.errstate(over="ignore"):
            scaled = np.rint(given.astype(np.float64) * 2**self.fraction_bits)
        if np.abs(scaled).max(initial=0) > self.field.largest:
            limit = self.field.largest / 2**self.fraction_bits
            raise ValueError(
                f"{short(numbers)} is too large: with {self.fraction_bits} fraction bits modulo"
                f" {self.field.prime} decimals reach from {-limit:.0f} to {limit:.0f}"
            )
        return self.field.encode(scaled.astype(np.int64)), self.fraction_bits

    def constant(self, numbers: Any) -> Shared:
        """Public numbers in the form of shares, which hide nothing. Local."""
        residues, fraction_bits = self.encode(numbers)
        return self.public(residues, fraction_bits)

    def public(self, residues: np.ndarray, fraction_bits: int = 0) -> Shared:
        """Public residues in the form of shares, which hide nothing. Local."""
        shares = self.scheme.constant(residues, self.link.here, self._key_shares)
        return Shared(self, shares, fraction_bits)

    # ---- the one thing that parties send to each other

    def open(self, x: Shared, parties: Sequence[int] | None = None) -> np.ndarray:
        """The residues `[*shape]` that everybody sees. One round.

        Raises:
            CheaterDetected: Shamir's shares do not fit together, and cannot be corrected; or a party
                sent what is no residue.
        """
        if x.session is not self:
            raise ValueError(f"{x} is of another session, so its shares mean nothing here")
        if self._over:
            raise CheaterDetected(f"this session is over: {self._over}")
        rows = x.shares[:, 0]
        if self.cheater in self.link.here:
            lies = np.array([party == self.cheater for party in self.link.here], np.uint64)
            rows = self.field.add(rows, lies.reshape(-1, *[1] * len(x.shape)))
        everybodys = self.link.exchange(rows)
        if everybodys.size and everybodys.max() >= self.field.prime:
            # what is no residue would upset the arithmetic, and with it the checks
            party = int(np.argwhere(everybodys >= np.uint64(self.field.prime))[0, 0])
            self._stop(f"party {party} sent what is no number modulo the prime", [party])
        if parties is not None:
            everybodys = everybodys[self.scheme.check_enough(parties)]
        residues, wrong = self.scheme.reconstruct(everybodys, parties)
        self.liars |= wrong
        here = len(self.link.here)
        self._note(PARTIES, np.broadcast_to(everybodys, (here, *everybodys.shape)), here * residues.size)
        if self.scheme.words == 2:
            self._opened.append((residues.ravel(), x.shares[:, 1].reshape(len(x.shares), residues.size)))
        return residues

    def check(self) -> None:
        """Check the MACs of everything that was opened since the last check (SPDZ; Damgård et al. 2012).

        1. Each party commits to a seed, and opens it; from all seeds, and from what it saw opened, it
           derives public coefficients chi, random and not 0. Parties that were told different
           values so arrive at different coefficients.
        2. Each party computes sigma = sum of chi * (its MAC share - its key share * opened value).
        3. Each commits to sigma, and opens it. If all is right, they add up to 0.

        A party that opened one wrong value gets through by one guess in `prime`; with several
        wrong values, by at most one in (prime - 1) / 2. Which party it was, MACs cannot tell.

        Cost: nothing without MACs; with them 4 rounds of 32, 32, 32 and 40 bytes to each other party.

        Raises:
            CheaterDetected: a MAC does not fit.
        """
        if not self._opened or not self.link.here:
            return
        values = np.concatenate([value for value, _ in self._opened])  # [m]
        macs = np.concatenate([mac for _, mac in self._opened], axis=1)  # [k, m]
        self._opened = []
        seeds = self._committed([self.draw(_SEED) for _ in self.link.here], b"seed")
        chi = self._coefficients(b"".join(seeds) + hashlib.sha256(values).digest(), len(values))
        expected = self.field.multiply(self._key_shares[:, None], values[None])
        errors = self.field.multiply(chi, self.field.subtract(macs, expected))
        sigmas = self.field.total(errors.T)
        opened = self._committed([one.tobytes() + self.draw(_NONCE) for one in sigmas], b"sigma")
        total = sum(int(np.frombuffer(one[:8], np.uint64)[0]) for one in opened)
        if total % self.field.prime:
            self._stop("the MACs do not fit: a party has changed a share (MACs cannot tell which)")

    def _stop(self, reason: str, parties: Sequence[int] = ()) -> NoReturn:
        """End the session: a check that failed has told the cheater the key, and spared its values."""
        self._over = reason
        raise CheaterDetected(reason, parties)

    def _committed(self, messages: Sequence[bytes], label: bytes) -> list[bytes]:
        """Everybody's messages, of which none could depend on another's: hashes first. Two rounds."""
        here = self.link.here

        def digest(party: int, message: bytes) -> bytes:
            return hashlib.sha256(label + bytes([party]) + message).digest()

        def exchanged(rows: Sequence[bytes]) -> list[bytes]:
            array = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), len(rows[0]))
            return [row.tobytes() for row in self.link.exchange(array)]

        digests = exchanged([digest(*one) for one in zip(here, messages, strict=True)])
        opened = exchanged(messages)
        wrong = [i for i, message in enumerate(opened) if digest(i, message) != digests[i]]
        if wrong:
            self._stop(f"party {wrong[0]} opened something else than it had committed to", wrong)
        return opened

    def _coefficients(self, seed: bytes, count: int) -> np.ndarray:
        """`[count]` uint64, uniform from 1 to prime - 1, the same for the same seed."""
        numbers = itertools.count()

        def draw(size: int) -> bytes:
            return hashlib.shake_256(seed + next(numbers).to_bytes(8, "little")).digest(size)

        chi = self.field.random((count,), draw)
        while not chi.all():
            zeros = chi == 0
            chi[zeros] = self.field.random((int(zeros.sum()),), draw)
        return chi

    # ---- what the dealer shares beforehand

    def triples(self, shape: tuple[int, ...]) -> tuple[Shared, Shared, Shared]:
        """Random [a] and [b], and [a * b]."""

        def make() -> np.ndarray:
            a, b = self.field.random((2, *shape), self.draw)
            return np.stack([a, b, self.field.multiply(a, b)])

        self.triples_used += math.prod(shape)
        dealt = self._dealt(make, (3, *shape))
        return dealt[0], dealt[1], dealt[2]

    def square_pairs(self, shape: tuple[int, ...]) -> tuple[Shared, Shared]:
        """Random [a], and [a * a]."""

        def make() -> np.ndarray:
            a = self.field.random(shape, self.draw)
            return np.stack([a, self.field.multiply(a, a)])

        dealt = self._dealt(make, (2, *shape))
        return dealt[0], dealt[1]

    def random_bits(self, shape: tuple[int, ...]) -> tuple[Shared, Shared]:
        """Random [r], and the bits of r, lowest first: `[*shape]` and `[l, *shape]`."""

        def make() -> np.ndarray:
            r = self.field.random(shape, self.draw)
            return np.concatenate([r[None], self.field.bits_of(r, self.field.bits).astype(np.uint64)])

        dealt = self._dealt(make, (self.field.bits + 1, *shape))
        return dealt[0], dealt[1:]

    def random_and_high(self, shape: tuple[int, ...], bits: int) -> tuple[Shared, Shared]:
        """Random [r], and [r / 2^bits] rounded down."""

        def make() -> np.ndarray:
            r = self.field.random(shape, self.draw)
            return np.stack([r, r >> np.uint64(bits)])

        dealt = self._dealt(make, (2, *shape))
        return dealt[0], dealt[1]

    def _dealt(self, make: Callable[[], np.ndarray], shape: tuple[int, ...]) -> Shared:
        def shares() -> np.ndarray:
            return self.scheme.share(make(), self.draw, self._key)

        rows = self.link.deal(DEALER, shares, (self.scheme.words, *shape))
        self._note(DEALER, rows)
        return Shared(self, rows)

    # ---- accounts

    @property
    def product_bits(self) -> int:
        """With probabilistic truncation, products as shared integers are promised to be below 2^this."""
        return self.integer_bits + 2 * self.fraction_bits

    @property
    def failure_probability(self) -> float:
        """A bound on the probability that one probabilistic truncation goes wrong:
        2^(product_bits + 1) / prime."""
        return 2 ** (self.product_bits + 1) / self.field.prime

    def _note(self, source: str, rows: np.ndarray, count: int | None = None) -> None:
        """Take down what the parties here have received, `[k, ...]`."""
        self.received[source] += rows.size if count is None else count
        if self.record is not None:
            self.record.append((source, np.array(rows)))


@functools.cache
def _chapters() -> Session:
    """Three parties with additive shares modulo the chapter's prime, in this process."""
    return Session()


def encrypt(numbers: Any, session: Session | None = None) -> Shared:
    """Share an int, a float or an array of them: among the chapter's three parties, or in a session.

    Raises:
        ValueError: not a number, or too large for the field.
    """
    return (session or _chapters()).encrypt(numbers)


def decrypt(x: Shared) -> Any:
    """Open a shared number: an int or float, or an array of int64 or float64.

    Raises:
        CheaterDetected: a share was changed.
        TypeError: it is not shared.
    """
    session = x.session if isinstance(x, Shared) else _chapters()
    return session.decrypt(x)

"""How the roles of a computation reach each other: within one process, or over a network.

The roles are the user, who knows the numbers, the dealer, who knows the randomness, and the
parties, each of which knows its own shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recipes.parties import HEADER_BYTES, Network

USER, DEALER, PARTIES = "the user", "the dealer", "the parties"


def party(index: int) -> str:
    """The name of a party's role."""
    return f"party {index}"


def roles(parties: int) -> list[str]:
    """Everybody who takes part."""
    return [USER, DEALER, *map(party, range(parties))]


@dataclass
class Traffic:
    """What has been sent, frames' headers of 4 bytes included."""

    rounds: int = 0
    """Rounds, in each of which every party sends one message to every other."""
    online: int = 0
    """Bytes between the parties."""
    offline: int = 0
    """Bytes from the dealer, which can come before the numbers are known."""
    inputs: int = 0
    """Bytes from the user, and from the dealer to the user."""

    def enter(self, source: str, sent: int) -> None:
        """Bytes that the dealer or the user has sent to the parties."""
        if source == DEALER:
            self.offline += sent
        else:
            self.inputs += sent


class Link(Protocol):
    """How the roles of a computation reach each other. k is the number of parties in this process."""

    here: Sequence[int]
    """Which parties live in this process."""
    traffic: Traffic

    def hosts(self, role: str) -> bool:
        """Whether the role lives in this process."""

    def deal(self, source: str, make: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """`make()` `[n, *shape]`, called where the source lives, gives each party its row: `[k, *shape]`."""

    def tell(self, source: str, target: str, values: np.ndarray) -> np.ndarray:
        """The source's values, at the target; elsewhere the result means nothing."""

    def exchange(self, rows: np.ndarray) -> np.ndarray:
        """One round: every party sends its row of `[k, *shape]` to each other one: `[n, *shape]`."""


class Local:
    """All roles in one process. Bytes are counted as they would be sent."""

    def __init__(self, parties: int) -> None:
        self.here = range(parties)
        self.traffic = Traffic()

    def hosts(self, role: str) -> bool:
        """Yes."""
        return True

    def deal(self, source: str, make: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """Everybody's rows."""
        rows = make()
        self.traffic.enter(source, len(rows) * HEADER_BYTES + rows.nbytes)
        return rows

    def tell(self, source: str, target: str, values: np.ndarray) -> np.ndarray:
        """The values themselves."""
        self.traffic.inputs += HEADER_BYTES + values.nbytes
        return values

    def exchange(self, rows: np.ndarray) -> np.ndarray:
        """The rows themselves."""
        others = len(rows) - 1
        self.traffic.rounds += 1
        self.traffic.online += others * (len(rows) * HEADER_BYTES + rows.nbytes)
        return rows


class Remote:
    """One role in a process of its own, over a `Network`.

    A frame holds residues as 8 bytes each, lowest first, or the bytes of a commitment.
    """

    def __init__(self, network: Network, parties: int) -> None:
        self.network, self.parties = network, parties
        self.here: Sequence[int] = [i for i in range(parties) if party(i) == network.role]
        self.traffic = Traffic()
        self._sent = sum(network.sent.values())

    def hosts(self, role: str) -> bool:
        """Whether this process plays the role."""
        return self.network.role == role

    def deal(self, source: str, make: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """Send each party its row, or receive one's own."""
        if self.hosts(source):
            rows = np.ascontiguousarray(make())
            self.network.send({party(i): row.tobytes() for i, row in enumerate(rows)})
            self.traffic.enter(source, self._newly_sent())
        if self.here:
            return _array(self.network.receive(source), np.uint64, shape)[None]
        return np.zeros((0, *shape), np.uint64)

    def tell(self, source: str, target: str, values: np.ndarray) -> np.ndarray:
        """Send values from the dealer to the user, or receive them."""
        if self.hosts(source):
            self.network.send({target: values.tobytes()})
            self.traffic.inputs += self._newly_sent()
        if self.hosts(target):
            return _array(self.network.receive(source), values.dtype, values.shape)
        return values

    def exchange(self, rows: np.ndarray) -> np.ndarray:
        """Send one's own row to every other party, and receive theirs."""
        everybodys = np.zeros((self.parties, *rows.shape[1:]), rows.dtype)
        if self.here:
            (me,) = self.here
            others = [party(i) for i in range(self.parties) if i != me]
            received = self.network.exchange(dict.fromkeys(others, rows[0].tobytes()))
            self.traffic.online += self._newly_sent()
            self.traffic.rounds = self.network.rounds
            for i in range(self.parties):
                row = rows[0] if i == me else _array(received[party(i)], rows.dtype, rows.shape[1:])
                everybodys[i] = row
        return everybodys

    def _newly_sent(self) -> int:
        """Bytes that went into the sockets since the last time that this was asked."""
        before, self._sent = self._sent, sum(self.network.sent.values())
        return self._sent - before


def _array(message: bytes, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
    """A message's numbers, checked for their count.

    Raises:
        ValueError: more or fewer than the program expects at this point.
    """
    numbers = np.frombuffer(message, dtype)
    if numbers.size != math.prod(shape):
        raise ValueError(f"{numbers.size} numbers have come where {math.prod(shape)} are due")
    return numbers.reshape(shape)

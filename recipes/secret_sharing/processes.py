"""A computation with a process for every role: the user, the dealer and each party.

All run the same public program, and differ in what they know: the user knows the numbers, the
dealer the randomness, and a party its own shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from recipes.parties import Network
from recipes.secret_sharing.session import Role, Traffic

USER, DEALER = "the user", "the dealer"


def party(index: int) -> str:
    """The name of a party's role."""
    return f"party {index}"


def roles(parties: int) -> list[str]:
    """Everybody who takes part."""
    return [USER, DEALER, *map(party, range(parties))]


class Remote:
    """The link of one role to the others, over a `Network`; see `session.Link`.

    A frame holds residues as 8 bytes each, lowest first, or the bytes of a commitment.
    """

    def __init__(self, network: Network, parties: int) -> None:
        self.network, self.parties = network, parties
        self.here: Sequence[int] = [i for i in range(parties) if party(i) == network.role]
        self.traffic = Traffic()

    def hosts(self, role: Role) -> bool:
        """Whether this process plays the role."""
        return self.network.role == _name(role)

    def deal(self, source: Role, make: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """Send each party its row, or receive one's own."""
        if self.hosts(source):
            rows = np.ascontiguousarray(make())
            self._sent(source, {party(i): row.tobytes() for i, row in enumerate(rows)})
        if self.here:
            return _array(self.network.receive(_name(source)), np.uint64, shape)[None]
        return np.zeros((0, *shape), np.uint64)

    def tell(self, source: Role, target: Role, values: np.ndarray) -> np.ndarray:
        """Send values from the dealer to the user, or receive them."""
        if self.hosts(source):
            self._sent("user", {_name(target): values.tobytes()})
        if self.hosts(target):
            return _array(self.network.receive(_name(source)), values.dtype, values.shape)
        return values

    def exchange(self, rows: np.ndarray) -> np.ndarray:
        """Send one's own row to every other party, and receive theirs."""
        everybodys = np.zeros((self.parties, *rows.shape[1:]), rows.dtype)
        if self.here:
            (me,) = self.here
            others = [party(i) for i in range(self.parties) if i != me]
            before = sum(self.network.sent.values())
            received = self.network.exchange(dict.fromkeys(others, rows[0].tobytes()))
            self.traffic.online += sum(self.network.sent.values()) - before
            self.traffic.rounds = self.network.rounds
            for i in range(self.parties):
                row = rows[0] if i == me else _array(received[party(i)], rows.dtype, rows.shape[1:])
                everybodys[i] = row
        return everybodys

    def _sent(self, account: Role, messages: dict[str, bytes]) -> None:
        before = sum(self.network.sent.values())
        self.network.send(messages)
        sent = sum(self.network.sent.values()) - before
        if account == "dealer":
            self.traffic.offline += sent
        else:
            self.traffic.inputs += sent


def _name(role: Role) -> str:
    return USER if role == "user" else DEALER


def _array(message: bytes, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
    """A message's numbers, checked for their count.

    Raises:
        ValueError: more or fewer than the program expects at this point.
    """
    numbers = np.frombuffer(message, dtype)
    if numbers.size != int(np.prod(shape)):
        raise ValueError(f"{numbers.size} numbers have come where {int(np.prod(shape))} are due")
    return numbers.reshape(shape)

"""Correlated randomness: what the provider deals, as seeds wherever it can.

`Source` is what each role draws from. The three of them run the same program: where a party gets its
share of a random number, the provider gets the number itself, because it knows both parties' seeds.
Only what is *not* random, given those, has to travel: the server's share of a product of masks is
the product less the client's share. It is sent at once, while the provider works out the next.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from recipes.private_prediction.ring import Stream, plane_bytes

CLIENT, SERVER, PROVIDER = "client", "server", "provider"
PARTIES = (CLIENT, SERVER)
SEED_BYTES = 16


class Source(Protocol):
    """Randomness for one role. Shares add up modulo 2**(8 * itemsize) (words), or by XOR (planes)."""

    def mask(self, *shape: int, dtype: Any = np.uint64) -> np.ndarray:
        """A uniform number nobody but the provider knows: a party gets its share of it."""

    def mask_planes(self, rows: int, numbers: int) -> np.ndarray:
        """Uniform bits nobody but the provider knows, `[rows, ceil(numbers / 8)]` uint8."""

    def mask_of(self, owner: str, *shape: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A share of a mask that its owner knows, and the mask itself, or None at the other party."""

    def share(self, shape: tuple[int, ...], make: Callable[[], np.ndarray], dtype: Any = np.uint64) -> Any:
        """A share of what the provider makes, which may be anything; None at the provider."""

    def share_planes(self, rows: int, numbers: int, make: Callable[[], np.ndarray]) -> Any:
        """The same for planes."""

    def publish(self, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> Any:
        """What the provider makes `[...] uint64`, told to both parties; None at the provider."""

    def keys(self, numbers: int) -> Any:
        """Uniform 128-bit strings `[numbers, 2]` uint64: a party gets its own, the provider both."""


class Dealer:
    """The provider's source. It sees no message but those that say how much is needed."""

    def __init__(
        self, send: Callable[[dict[str, Any]], None], draw: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        """Draw the seeds, and send each party those that it is to know."""
        own, common = {party: draw(SEED_BYTES) for party in PARTIES}, draw(SEED_BYTES)
        send({party: own[party] + common for party in PARTIES})
        self._send, self._common = send, Stream(common)
        self._streams = [Stream(own[party]) for party in PARTIES]
        self._own = Stream(draw(SEED_BYTES))

    def mask(self, *shape: int, dtype: Any = np.uint64) -> np.ndarray:
        client, server = (stream.words(shape, dtype) for stream in self._streams)
        return client + server

    def mask_planes(self, rows: int, numbers: int) -> np.ndarray:
        client, server = (s.words((rows, plane_bytes(numbers)), np.uint8) for s in self._streams)
        return client ^ server

    def mask_of(self, owner: str, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        mask = self._streams[PARTIES.index(owner)].words(shape) + self._common.words(shape)
        return mask, mask

    def share(self, shape: tuple[int, ...], make: Callable[[], np.ndarray], dtype: Any = np.uint64) -> None:
        self._send({SERVER: _bytes(make() - self._streams[0].words(shape, dtype))})

    def share_planes(self, rows: int, numbers: int, make: Callable[[], np.ndarray]) -> None:
        self._send({SERVER: _bytes(make() ^ self._streams[0].words((rows, plane_bytes(numbers)), np.uint8))})

    def publish(self, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        self._send(dict.fromkeys(PARTIES, _bytes(make())))

    def keys(self, numbers: int) -> list[np.ndarray]:
        return [stream.words((numbers, 2)) for stream in self._streams]

    def secret_planes(self, rows: int, numbers: int) -> np.ndarray:
        """Uniform bits of which the provider will share what it makes of them."""
        return self._own.words((rows, plane_bytes(numbers)), np.uint8)


class Dealt:
    """A party's source: its two seeds, and the provider's messages."""

    def __init__(self, party: str, receive: Callable[[], bytes]) -> None:
        """Receive the seeds."""
        self.party, self._receive = party, receive
        seeds = receive()
        self._own, self._common = Stream(seeds[:SEED_BYTES]), Stream(seeds[SEED_BYTES:])

    def mask(self, *shape: int, dtype: Any = np.uint64) -> np.ndarray:
        return self._own.words(shape, dtype)

    def mask_planes(self, rows: int, numbers: int) -> np.ndarray:
        return self._own.words((rows, plane_bytes(numbers)), np.uint8)

    def mask_of(self, owner: str, *shape: int) -> tuple[np.ndarray, np.ndarray | None]:
        common = self._common.words(shape)
        if owner != self.party:
            return common, None
        own = self._own.words(shape)
        return own, own + common

    def share(self, shape: tuple[int, ...], make: object, dtype: Any = np.uint64) -> np.ndarray:
        return self._own.words(shape, dtype) if self.party == CLIENT else self._take(shape, dtype)

    def share_planes(self, rows: int, numbers: int, make: object) -> np.ndarray:
        return self.share((rows, plane_bytes(numbers)), make, np.uint8)

    def publish(self, shape: tuple[int, ...], make: object) -> np.ndarray:
        return self._take(shape, np.uint64)

    def keys(self, numbers: int) -> np.ndarray:
        return self._own.words((numbers, 2))

    def _take(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.frombuffer(self._receive(), dtype).reshape(shape)


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

"""Authenticated connections of one role to all others, which count rounds and bytes."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from recipes.parties import wire
from recipes.parties.handshake import Meeting, Tls
from recipes.parties.wire import HEADER_BYTES, PartyLost


@dataclass(frozen=True)
class Line:
    """A slower connection to be imitated."""

    delay: float = 0.0
    """Seconds that every message takes one way."""
    bandwidth: float = math.inf
    """Bytes a second."""


class Network:
    """The connections of one role to all others.

    `sent` counts the bytes sent to each role since the handshake, headers included, and `rounds`
    the calls of `exchange`.
    """

    def __init__(
        self,
        role: str,
        addresses: Mapping[str, tuple[str, int]],
        secret: bytes,
        listener: socket.socket,
        *,
        tls: Tls | None = None,
        line: Line | None = None,
        patience: float | None = None,
    ) -> None:
        """Connect to every other role of `addresses`; return when all connections stand.

        Args:
            role: which of the roles this process plays.
            addresses: host and port of each role.
            secret: what all roles know, and nobody else.
            listener: a listening socket at this role's address.
            tls: certificates; None for connections that are not encrypted.
            line: what to imitate, if anything.
            patience: seconds to wait for the others to appear, `PATIENCE` if None.

        Raises:
            PartyLost: a role cannot be reached in time, or does not know the secret.
            ValueError: bad certificates.
        """
        import asyncio  # here, as most who import this module for its constants never need it

        self.role, self.rounds = role, 0
        self.sent = dict.fromkeys((other for other in addresses if other != role), 0)
        self._line = line
        meeting = Meeting(role, secret, tls)
        self._streams, self._headers = meeting.streams, meeting.headers
        self._loop = asyncio.new_event_loop()
        try:
            self._loop.run_until_complete(meeting.join(addresses, listener, patience or wire.PATIENCE))
        except BaseException as error:
            self.__exit__(None, error)
            raise

    def __enter__(self) -> Network:
        return self

    def __exit__(self, _: object = None, error: BaseException | None = None, *__: object) -> None:
        farewell = None  # whoever fails just goes, as whoever dies
        if error is None or isinstance(error, PartyLost):
            farewell = error.role if error else ""
        self._loop.run_until_complete(self._leave(farewell))
        self._loop.close()

    async def _leave(self, farewell: str | None) -> None:
        """Close every connection, and end what still waits for one.

        Args:
            farewell: which role is lost, "" if all went well; None to say nothing.
        """
        import asyncio

        for role, (_, writer) in self._streams.items():
            if farewell is not None and role != farewell:
                writer.write(wire.FAREWELL + wire.framed(farewell.encode()))
            writer.close()
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        closed = [writer.wait_closed() for _, writer in self._streams.values()]
        with contextlib.suppress(TimeoutError):  # what was said last is to be sent
            await asyncio.wait_for(asyncio.gather(*closed, return_exceptions=True), 1)

    def send(self, messages: Mapping[str, bytes]) -> None:
        """Send each role its message."""
        self._run(self._transfer(messages, ()))

    def receive(self, role: str) -> bytes:
        """The next message of a role.

        Raises:
            PartyLost: it has closed the connection, or kept silent for `PATIENCE` seconds.
        """
        return self._run(self._transfer({}, [role]))[role]

    def exchange(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        """One round: send each role its message, and get one from each of them.

        Raises:
            PartyLost: as `receive`.
        """
        self.rounds += 1
        return self._run(self._transfer(messages, messages))

    def _run(self, work: Any) -> dict[str, bytes]:
        return self._loop.run_until_complete(work)

    async def _transfer(self, messages: Mapping[str, bytes], sources: Collection[str]) -> dict[str, bytes]:
        """Send and receive at the same time, so that no two wait for each other to read."""
        import asyncio

        sending = [self._write(role, message) for role, message in messages.items()]
        receiving = [self._read(role) for role in sources]
        done = await asyncio.gather(*sending, *receiving)
        return dict(zip(sources, done[len(sending) :], strict=True))

    async def _write(self, role: str, message: bytes) -> None:
        import asyncio

        _, writer = self._streams[role]
        whole = memoryview(message)
        if len(whole) > wire.LONGEST:
            raise ValueError(
                f"a message of {len(whole)} bytes, where {wire.LONGEST} are the most: ask for less at once"
            )
        parts = [whole[start : start + wire.PART] for start in range(0, len(whole), wire.PART)] or [whole]
        self.sent[role] += HEADER_BYTES + len(message)
        try:
            if self._line:
                await asyncio.sleep(self._line.delay)
            for number, part in enumerate(parts):
                if self._line:
                    await asyncio.sleep(len(part) / self._line.bandwidth)
                writer.write(part if number else len(whole).to_bytes(HEADER_BYTES, "little") + part)
                await asyncio.wait_for(wire.all_sent(writer), wire.PATIENCE)
        except (TimeoutError, OSError) as error:
            raise PartyLost(f"{self.role} lost {role}", role) from error

    async def _read(self, role: str) -> bytes:
        import asyncio

        reader, _ = self._streams[role]
        try:
            begun = self._headers.pop(role, None) or reader.readexactly(HEADER_BYTES)
            header = await asyncio.wait_for(begun, wire.PATIENCE)
            if header == wire.FAREWELL:
                await wire.hear_farewell(self.role, role, reader)
                raise EOFError  # it has ended well, but too early
            return await wire.read_body(reader, header, wire.LONGEST)
        except PartyLost:
            raise
        except (TimeoutError, OSError, EOFError) as error:
            raise PartyLost(f"{self.role} lost {role}", role) from error

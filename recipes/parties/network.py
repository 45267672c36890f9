"""Authenticated connections of one role to all others, which count rounds and bytes."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import secrets
import socket
import ssl
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

PROTOCOL = "secure-private-ai-cookbook parties 1"
HEADER_BYTES = 4
"""Every message is preceded by its length, 4 bytes, lowest first."""

PATIENCE = 30.0
"""Seconds for which a role may be silent before others take it for lost."""

_FAREWELL = b"\xff\xff\xff\xff"  # instead of a length: the sender goes; who is lost follows, if anybody
_PART = 1 << 20  # bytes that are sent or read at once
_LONGEST = 1 << 31  # bytes of a message
_HELLO_BYTES = 1024  # of strangers no more is read
_HELLO_SECONDS = 5.0  # and they are not waited for any longer
_GUESTS = 100  # nor are more of them heard at once


class PartyLost(OSError):
    """A role of the protocol died, closed its connection, or kept silent for too long: `role`."""

    def __init__(self, message: str, role: str = "") -> None:
        super().__init__(message)
        self.role = role


@dataclass(frozen=True)
class Tls:
    """What a role needs to show who it is, and to see who the others are."""

    certificate: Path
    """Its certificate (PEM), in which the role's name is a DNS name (`subjectAltName`)."""
    key: Path
    """The certificate's private key (PEM)."""
    authority: Path
    """The certificate of whoever has signed those of all roles (PEM)."""

    def context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        """For one side of a connection; both sides must show a certificate.

        Raises:
            ValueError: a file is missing, or is not what it should be.
        """
        try:
            context = ssl.create_default_context(purpose, cafile=self.authority)
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(
                f"{self.certificate}, {self.key} and {self.authority} are no certificate, its key and its "
                f"authority's certificate: {error.strerror or error}"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        return context


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
        self._secret, self._line = secret, line
        self._contexts = tls and {purpose: tls.context(purpose) for purpose in ssl.Purpose}
        self._loop = asyncio.new_event_loop()
        self._streams: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._headers: dict[str, asyncio.Task[bytes]] = {}  # of first messages, read ahead
        try:
            self._loop.run_until_complete(self._join(addresses, listener, patience or PATIENCE))
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
                writer.write(_FAREWELL + _framed(farewell.encode()))
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
        if len(whole) > _LONGEST:
            raise ValueError(
                f"a message of {len(whole)} bytes, where {_LONGEST} are the most: ask for less at once"
            )
        parts = [whole[start : start + _PART] for start in range(0, len(whole), _PART)] or [whole]
        self.sent[role] += HEADER_BYTES + len(message)
        try:
            if self._line:
                await asyncio.sleep(self._line.delay)
            for number, part in enumerate(parts):
                if self._line:
                    await asyncio.sleep(len(part) / self._line.bandwidth)
                writer.write(part if number else len(whole).to_bytes(HEADER_BYTES, "little") + part)
                await asyncio.wait_for(_sent(writer), PATIENCE)
        except (TimeoutError, OSError) as error:
            raise PartyLost(f"{self.role} lost {role}", role) from error

    async def _read(self, role: str) -> bytes:
        import asyncio

        reader, _ = self._streams[role]
        try:
            begun = self._headers.pop(role, None) or reader.readexactly(HEADER_BYTES)
            header = await asyncio.wait_for(begun, PATIENCE)
            if header == _FAREWELL:
                await self._hear_farewell(role)
                raise EOFError  # it has ended well, but too early
            return await _body(reader, header, _LONGEST)
        except PartyLost:
            raise
        except (TimeoutError, OSError, EOFError) as error:
            raise PartyLost(f"{self.role} lost {role}", role) from error

    # ---- making each other's acquaintance

    async def _join(
        self, addresses: Mapping[str, tuple[str, int]], listener: socket.socket, patience: float
    ) -> None:
        """Connect to the roles that are named before this one, and wait for the others to connect."""
        import asyncio

        roles = list(addresses)
        mine = roles.index(self.role)
        self._awaited, self._complete = set(roles[mine + 1 :]), asyncio.Event()
        door = asyncio.create_task(self._let_in(listener))
        calls = [self._call(role, *addresses[role]) for role in roles[:mine]]
        everybody = asyncio.gather(*calls, *([self._complete.wait()] if self._awaited else []))
        everybody.add_done_callback(_take_note)
        try:
            async with asyncio.timeout(patience):
                while not everybody.done():
                    await asyncio.wait([everybody, *self._headers.values()], timeout=0.1)
                    await self._check_who_has_gone()
                await everybody
        except TimeoutError as error:
            absent = [role for role in roles if role != self.role and role not in self._streams]
            raise PartyLost(f"{self.role} could not reach {', '.join(absent)}", absent[0]) from error
        finally:
            everybody.cancel()
            door.cancel()  # from here on nobody is let in
            listener.close()

    async def _check_who_has_gone(self) -> None:
        """Find out whether a role that has come is lost again, while others are waited for."""
        for role, header in list(self._headers.items()):
            if header.done() and header.exception():
                raise PartyLost(f"{self.role} lost {role}", role)
            if header.done() and header.result() == _FAREWELL:
                await self._hear_farewell(role)
                del self._headers[role]  # it has done its part

    async def _hear_farewell(self, role: str) -> None:
        """Raise PartyLost if the role goes because it has lost another."""
        try:
            lost = (await _frame(self._streams[role][0], _HELLO_BYTES)).decode(errors="replace")
        except (OSError, EOFError, ValueError) as error:
            raise PartyLost(f"{self.role} lost {role}", role) from error
        if lost:
            raise PartyLost(f"{self.role} heard from {role} that {lost} is lost", lost)

    async def _call(self, role: str, host: str, port: int) -> None:
        """Connect to a role, and prove to each other that we belong to this run.

        Raises:
            PartyLost: that role has another secret, or turns us away, or cannot be called at all.
        """
        context = self._contexts and self._contexts[ssl.Purpose.SERVER_AUTH]
        try:
            reader, writer = await _reach(host, port, ssl=context, server_hostname=context and role)
            await self._introduce(role, reader, writer)
        except PartyLost:
            raise
        except (EOFError, ConnectionResetError, BrokenPipeError) as error:
            raise PartyLost(f"{self.role} was turned away by {role}", role) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PartyLost(f"{self.role} could not reach {role}: {error}", role) from error

    async def _introduce(self, role: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The caller's half of the handshake."""
        hello = {"protocol": PROTOCOL, "from": self.role, "to": role, "nonce": secrets.token_hex(16)}
        _put(writer, hello)
        answer = json.loads(await _frame(reader, _HELLO_BYTES))
        proof = self._proof("accept", self.role, role, hello["nonce"], str(answer["nonce"]))
        if not hmac.compare_digest(proof, str(answer["proof"])):
            raise PartyLost(f"{self.role} and {role} have not been given the same secret", role)
        _put(writer, {"proof": self._proof("call", self.role, role, hello["nonce"], answer["nonce"])})
        self._keep(role, reader, writer)

    async def _let_in(self, listener: socket.socket) -> None:
        """Greet whoever connects, each in a task of its own."""
        import asyncio

        listener.setblocking(False)
        guests: set[asyncio.Task[None]] = set()
        while True:
            try:
                connection, address = await self._loop.sock_accept(listener)
            except OSError:  # too many open files
                await asyncio.sleep(0.1)
                continue
            if len(guests) >= _GUESTS:
                connection.close()
                continue
            guests.add(guest := asyncio.create_task(self._greet(connection, *address)))
            guest.add_done_callback(guests.discard)

    async def _greet(self, connection: socket.socket, host: str, port: int, *_: int) -> None:
        """Let an awaited role in; turn everybody else away, with one line."""
        import asyncio

        reader = asyncio.StreamReader(_PART)
        protocol = asyncio.StreamReaderProtocol(reader)
        context = self._contexts and self._contexts[ssl.Purpose.CLIENT_AUTH]
        writer, why = None, ""
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                transport, _ = await self._loop.connect_accepted_socket(
                    lambda: protocol, connection, ssl=context
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
                role = await self._welcome(reader, writer)
            self._keep(role, reader, writer)
            self._awaited.remove(role)
            if not self._awaited:
                self._complete.set()
            return
        except _Refused as error:
            why = str(error)
        except TimeoutError:
            why = "it kept silent"
        except ssl.SSLError as error:
            why = error.reason or str(error)
        except (ValueError, TypeError, KeyError, RecursionError):
            why = "it does not speak this protocol"
        except (OSError, EOFError, asyncio.CancelledError):  # whoever it was has gone, or we are going
            pass
        if why:
            said = f"{self.role}: a stranger at {host}:{port} was turned away: {why}"
            print(said, file=sys.stderr, flush=True)
        (writer or connection).close()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Which awaited role this is, once it has proved it.

        Raises:
            _Refused, ValueError, TypeError, KeyError, RecursionError: it is none, or no role at all.
        """
        hello = json.loads(await _frame(reader, _HELLO_BYTES))
        nonce, role = secrets.token_hex(16), hello["from"]
        if hello["protocol"] != PROTOCOL:
            raise _Refused("it speaks another version of the protocol")
        if hello["to"] != self.role or role not in self._awaited:
            raise _Refused("no such role is awaited")
        if self._contexts and ("DNS", role) not in writer.get_extra_info("peercert")["subjectAltName"]:
            raise _Refused("its certificate is not that of its role")
        proof = self._proof("accept", role, self.role, hello["nonce"], nonce)
        _put(writer, {"nonce": nonce, "proof": proof})
        try:
            answer = json.loads(await _frame(reader, _HELLO_BYTES))
        except EOFError as error:
            raise _Refused("it has another secret, or has gone") from error
        proof = self._proof("call", role, self.role, hello["nonce"], nonce)
        if not hmac.compare_digest(proof, str(answer["proof"])) or role not in self._awaited:
            raise _Refused("it has another secret")
        return role

    def _proof(self, *words: str) -> str:
        """HMAC of the words by the secret that all roles share, in hexadecimal."""
        return hmac.new(self._secret, json.dumps(words).encode(), hashlib.sha256).hexdigest()

    def _keep(self, role: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import asyncio

        # `drain` then waits until all is sent; asyncio's TLS would be confused by a limit of 0
        writer.transport.set_write_buffer_limits(high=1, low=0)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._streams[role] = reader, writer
        self._headers[role] = header = asyncio.create_task(reader.readexactly(HEADER_BYTES))
        header.add_done_callback(_take_note)


def _take_note(task: asyncio.Future[Any]) -> None:
    """Of its exception, as asyncio complains if nobody asks for that."""
    if not task.cancelled():
        task.exception()


class _Refused(Exception):
    """Somebody who is not let in, and why."""


async def _sent(writer: asyncio.StreamWriter) -> None:
    """Wait until all that was written has left this process."""
    import asyncio

    await writer.drain()
    # asyncio's TLS hands what it has encrypted to a transport of its own, which nobody else can wait for
    inner = getattr(getattr(writer.transport, "_ssl_protocol", None), "_transport", None)
    while inner and inner.get_write_buffer_size():
        await asyncio.sleep(0.001)


async def _reach(host: str, port: int, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as soon as somebody listens there."""
    import asyncio

    while True:
        try:
            return await asyncio.open_connection(host, port, limit=_PART, **options)
        except (socket.gaierror, ssl.SSLError, ConnectionResetError, BrokenPipeError):
            raise
        except OSError:  # not yet
            await asyncio.sleep(0.2)


def _framed(message: bytes) -> bytes:
    """The message, preceded by its length."""
    return len(message).to_bytes(HEADER_BYTES, "little") + message


def _put(writer: asyncio.StreamWriter, message: Mapping[str, str]) -> None:
    writer.write(_framed(json.dumps(message).encode()))


async def _frame(reader: asyncio.StreamReader, limit: int) -> bytes:
    return await _body(reader, await reader.readexactly(HEADER_BYTES), limit)


async def _body(reader: asyncio.StreamReader, header: bytes, limit: int) -> bytes | bytearray:
    """What follows a header; its sender may take its time, but must not pause for long."""
    import asyncio

    size = int.from_bytes(header, "little")
    if size > limit:
        raise ValueError(f"a message of {size} bytes where {limit} are the most")
    if size <= _PART:
        return await asyncio.wait_for(reader.readexactly(size), PATIENCE)
    body = bytearray(size)
    for start in range(0, size, _PART):
        part = min(_PART, size - start)
        body[start : start + part] = await asyncio.wait_for(reader.readexactly(part), PATIENCE)
    return body

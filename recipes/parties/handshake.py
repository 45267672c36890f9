"""How roles find each other, prove that they belong to the same run, and turn strangers away."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.parties import wire
from recipes.parties.wire import HEADER_BYTES, PartyLost

if TYPE_CHECKING:
    import asyncio

PROTOCOL = "secure-private-ai-cookbook parties 1"

_HELLO_SECONDS = 5.0  # that strangers are waited for
_GUESTS = 100  # no more of them are heard at once


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


class Meeting:
    """A role that connects to all others: how it calls some of them, and whom it lets in."""

    def __init__(self, role: str, secret: bytes, tls: Tls | None) -> None:
        """Connect to nobody yet.

        Raises:
            ValueError: bad certificates.
        """
        self._role, self._secret = role, secret
        self._contexts = tls and {purpose: tls.context(purpose) for purpose in ssl.Purpose}
        self.streams: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        """Connections to all that have proved that they know the secret, by role."""
        self.headers: dict[str, asyncio.Task[bytes]] = {}
        """Of their first messages, read ahead."""

    async def join(
        self, addresses: Mapping[str, tuple[str, int]], listener: socket.socket, patience: float
    ) -> None:
        """Connect to the roles that are named before this one, and wait for the others to connect.

        Raises:
            PartyLost: a role cannot be reached within `patience` seconds, or does not know the secret.
        """
        import asyncio

        roles = list(addresses)
        mine = roles.index(self._role)
        self._awaited, self._complete = set(roles[mine + 1 :]), asyncio.Event()
        door = asyncio.create_task(self._let_in(listener))
        calls = [self._call(role, *addresses[role]) for role in roles[:mine]]
        everybody = asyncio.gather(*calls, *([self._complete.wait()] if self._awaited else []))
        everybody.add_done_callback(_take_note)
        try:
            async with asyncio.timeout(patience):
                while not everybody.done():
                    await asyncio.wait([everybody, *self.headers.values()], timeout=0.1)
                    await self._check_who_has_gone()
                await everybody
        except TimeoutError as error:
            absent = [role for role in roles if role != self._role and role not in self.streams]
            raise PartyLost(f"{self._role} could not reach {', '.join(absent)}", absent[0]) from error
        finally:
            everybody.cancel()
            door.cancel()  # from here on nobody is let in
            listener.close()

    async def _check_who_has_gone(self) -> None:
        """Find out whether a role that has come is lost again, while others are waited for."""
        for role, header in list(self.headers.items()):
            if header.done() and header.exception():
                raise PartyLost(f"{self._role} lost {role}", role)
            if header.done() and header.result() == wire.FAREWELL:
                await wire.hear_farewell(self._role, role, self.streams[role][0])
                del self.headers[role]  # it has done its part

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
            raise PartyLost(f"{self._role} was turned away by {role}", role) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PartyLost(f"{self._role} could not reach {role}: {error}", role) from error

    async def _introduce(self, role: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The caller's half of the handshake."""
        hello = {"protocol": PROTOCOL, "from": self._role, "to": role, "nonce": secrets.token_hex(16)}
        wire.write_json(writer, hello)
        answer = json.loads(await wire.read_frame(reader, wire.HELLO_BYTES))
        proof = self._proof("accept", self._role, role, hello["nonce"], str(answer["nonce"]))
        if not hmac.compare_digest(proof, str(answer["proof"])):
            raise PartyLost(f"{self._role} and {role} have not been given the same secret", role)
        wire.write_json(
            writer, {"proof": self._proof("call", self._role, role, hello["nonce"], answer["nonce"])}
        )
        self._keep(role, reader, writer)

    async def _let_in(self, listener: socket.socket) -> None:
        """Greet whoever connects, each in a task of its own."""
        import asyncio

        listener.setblocking(False)
        guests: set[asyncio.Task[None]] = set()
        while True:
            try:
                connection, address = await asyncio.get_running_loop().sock_accept(listener)
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

        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(wire.PART)
        protocol = asyncio.StreamReaderProtocol(reader)
        context = self._contexts and self._contexts[ssl.Purpose.CLIENT_AUTH]
        writer, why = None, ""
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context)
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
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
            said = f"{self._role}: a stranger at {host}:{port} was turned away: {why}"
            print(said, file=sys.stderr, flush=True)
        (writer or connection).close()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Which awaited role this is, once it has proved it.

        Raises:
            _Refused, ValueError, TypeError, KeyError, RecursionError: it is none, or no role at all.
        """
        hello = json.loads(await wire.read_frame(reader, wire.HELLO_BYTES))
        nonce, role = secrets.token_hex(16), hello["from"]
        if hello["protocol"] != PROTOCOL:
            raise _Refused("it speaks another version of the protocol")
        if hello["to"] != self._role or role not in self._awaited:
            raise _Refused("no such role is awaited")
        if self._contexts and ("DNS", role) not in writer.get_extra_info("peercert")["subjectAltName"]:
            raise _Refused("its certificate is not that of its role")
        proof = self._proof("accept", role, self._role, hello["nonce"], nonce)
        wire.write_json(writer, {"nonce": nonce, "proof": proof})
        try:
            answer = json.loads(await wire.read_frame(reader, wire.HELLO_BYTES))
        except EOFError as error:
            raise _Refused("it has another secret, or has gone") from error
        proof = self._proof("call", role, self._role, hello["nonce"], nonce)
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
        self.streams[role] = reader, writer
        self.headers[role] = header = asyncio.create_task(reader.readexactly(HEADER_BYTES))
        header.add_done_callback(_take_note)


def _take_note(task: asyncio.Future[Any]) -> None:
    """Of its exception, as asyncio complains if nobody asks for that."""
    if not task.cancelled():
        task.exception()


class _Refused(Exception):
    """Somebody who is not let in, and why."""


async def _reach(host: str, port: int, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as soon as somebody listens there."""
    import asyncio

    while True:
        try:
            return await asyncio.open_connection(host, port, limit=wire.PART, **options)
        except (socket.gaierror, ssl.SSLError, ConnectionResetError, BrokenPipeError):
            raise
        except OSError:  # not yet
            await asyncio.sleep(0.2)

"""Messages on a connection: a length, that many bytes, and in the end a farewell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

HEADER_BYTES = 4
"""Every message is preceded by its length, 4 bytes, lowest first."""

PATIENCE = 30.0
"""Seconds for which a role may be silent before others take it for lost."""

FAREWELL = b"\xff\xff\xff\xff"  # instead of a length: the sender goes; who is lost follows, if anybody
PART = 1 << 20  # bytes that are sent or read at once
LONGEST = 1 << 31  # bytes of a message
HELLO_BYTES = 1024  # of strangers no more is read


class PartyLost(OSError):
    """A role of the protocol died, closed its connection, or kept silent for too long: `role`."""

    def __init__(self, message: str, role: str = "") -> None:
        super().__init__(message)
        self.role = role


def framed(message: bytes) -> bytes:
    """The message, preceded by its length."""
    return len(message).to_bytes(HEADER_BYTES, "little") + message


def write_json(writer: asyncio.StreamWriter, message: Mapping[str, str]) -> None:
    """Hand over a message; nobody waits until it is sent."""
    writer.write(framed(json.dumps(message).encode()))


async def read_frame(reader: asyncio.StreamReader, limit: int) -> bytes:
    """The next message, of at most `limit` bytes."""
    return await read_body(reader, await reader.readexactly(HEADER_BYTES), limit)


async def read_body(reader: asyncio.StreamReader, header: bytes, limit: int) -> bytes | bytearray:
    """What follows a header; its sender may take its time, but must not pause for long."""
    import asyncio

    size = int.from_bytes(header, "little")
    if size > limit:
        raise ValueError(f"a message of {size} bytes where {limit} are the most")
    if size <= PART:
        return await asyncio.wait_for(reader.readexactly(size), PATIENCE)
    body = bytearray(size)
    for start in range(0, size, PART):
        part = min(PART, size - start)
        body[start : start + part] = await asyncio.wait_for(reader.readexactly(part), PATIENCE)
    return body


async def all_sent(writer: asyncio.StreamWriter) -> None:
    """Wait until all that was written has left this process."""
    import asyncio

    await writer.drain()
    # asyncio's TLS hands what it has encrypted to a transport of its own, which nobody else can wait for
    inner = getattr(getattr(writer.transport, "_ssl_protocol", None), "_transport", None)
    while inner and inner.get_write_buffer_size():
        await asyncio.sleep(0.001)


async def hear_farewell(role: str, other: str, reader: asyncio.StreamReader) -> None:
    """Raise PartyLost if the other role goes because it has lost another."""
    try:
        lost = (await read_frame(reader, HELLO_BYTES)).decode(errors="replace")
    except (OSError, EOFError, ValueError) as error:
        raise PartyLost(f"{role} lost {other}", other) from error
    if lost:
        raise PartyLost(f"{role} heard from {other} that {lost} is lost", lost)

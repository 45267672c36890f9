"""All roles in threads of one process, for pictures and tests of what each of them sees."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from recipes.parties.wire import HEADER_BYTES, PartyLost


class Mailboxes:
    """What `Network` is, between threads of one process; keeps what each role was told."""

    def __init__(self, role: str, boxes: Mapping[tuple[str, str], queue.SimpleQueue[bytes | None]]) -> None:
        self.role, self.rounds, self._boxes = role, 0, boxes
        self.sent = {receiver: 0 for sender, receiver in boxes if sender == role}
        self.received: list[tuple[str, bytes]] = []
        """Every message, with its sender, in the order in which they were taken out."""

    def send(self, messages: Mapping[str, bytes]) -> None:
        """See `Network`."""
        for role, message in messages.items():
            self.sent[role] += HEADER_BYTES + len(message)
            self._boxes[self.role, role].put(bytes(message))

    def receive(self, role: str) -> bytes:
        """See `Network`."""
        message = self._boxes[role, self.role].get()
        if message is None:
            raise PartyLost(f"{self.role} lost {role}", role)
        self.received.append((role, message))
        return message

    def exchange(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        """See `Network`."""
        self.rounds += 1
        self.send(messages)
        return {role: self.receive(role) for role in messages}

    def leave(self) -> None:
        """Let nobody wait for this role any longer."""
        for role in self.sent:
            self._boxes[self.role, role].put(None)


def run_threads(plays: Mapping[str, Callable[[Mailboxes], Any]]) -> dict[str, Any]:
    """Play all roles in threads of this process, and give back what each of them returned.

    Raises:
        Whatever the first role raised that did not just lose another.
    """
    boxes = {(one, other): queue.SimpleQueue() for one in plays for other in plays if one != other}

    def play(role: str) -> Any:
        mailboxes = Mailboxes(role, boxes)
        try:
            return plays[role](mailboxes)
        finally:
            mailboxes.leave()

    with ThreadPoolExecutor(len(plays)) as pool:
        futures = {role: pool.submit(play, role) for role in plays}
    errors = [error for future in futures.values() if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, PartyLost)):
        raise error
    return {role: future.result() for role, future in futures.items()}

"""All three roles in threads of one process, to use from Python and to look at what each of them sees."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes import parties
from recipes.private_prediction import roles
from recipes.private_prediction.material import Reveal
from recipes.private_prediction.mlp import Layer
from recipes.private_prediction.randomness import CLIENT, PROVIDER, SERVER


@dataclass
class Rehearsal:
    """What came out, and what everybody saw."""

    answers: roles.Answers
    terms: roles.Terms
    received: dict[str, list[tuple[str, bytes]]]
    """By role: sender and content of every message, in the order in which they were read."""
    seeds: list[bytes]
    """What the provider drew."""
    reports: dict[str, dict[str, Any]]
    """By role: `steps`, by step rounds, bytes sent and seconds; and what else it reports."""


def rehearse(
    layers: Sequence[Layer],
    inputs: np.ndarray,
    *,
    reveal: Reveal = "label",
    comparison: str = "tables",
    batch: int = 1000,
    fraction_bits: int = 16,
    lowest: float = 0.0,
    highest: float = 1.0,
    draw: Callable[[int], bytes] = secrets.token_bytes,
) -> Rehearsal:
    """Hold a session in this process.

    Args:
        layers: the server's network (`mlp.read`).
        inputs: the client's, `[N, inputs]` float in [lowest, highest].
        draw: gives the provider n random bytes; anything but the default is for demonstrations.

    Raises:
        ValueError: the network does not fit the ring, or the inputs do not fit the network.
    """
    terms = roles.terms(layers, fraction_bits, lowest, highest, reveal)
    order = roles.Order(comparison, reveal)
    networks: dict[str, parties.Mailboxes] = {}
    seeds: list[bytes] = []

    def recorded(count: int) -> bytes:
        seeds.append(draw(count))
        return seeds[-1]

    def seen(part: Callable[[parties.Mailboxes], object]) -> Callable[[parties.Mailboxes], object]:
        return lambda network: part(networks.setdefault(network.role, network))

    done = parties.run_threads(
        {
            CLIENT: seen(lambda network: roles.ask(network, inputs, batch, order)),
            SERVER: seen(lambda network: roles.answer(network, layers, terms)),
            PROVIDER: seen(lambda network: roles.provide(network, recorded)),
        }
    )
    received = {role: network.received for role, network in networks.items()}
    reports = {CLIENT: done[CLIENT].report, SERVER: done[SERVER], PROVIDER: done[PROVIDER]}
    return Rehearsal(done[CLIENT], terms, received, seeds, reports)


def predict(layers: Sequence[Layer], inputs: np.ndarray, **settings: object) -> np.ndarray:
    """Labels `[N]` int64 or logits `[N, classes]` float64, computed on shares; settings as `rehearse`."""
    return rehearse(layers, inputs, **settings).answers.revealed

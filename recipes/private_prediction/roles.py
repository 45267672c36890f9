"""The session that client, server and provider hold: who says what to whom, and when.

server    -> both       the network's sizes and scales, and what it lets be revealed
client    -> both       which comparison it wants, and what is to be revealed
provider  -> both       seeds
server    -> client     the masked weights
then for every query:
client    -> both       how many images
provider  -> server     what the seeds do not give; keys of function secret sharing to both
server    -> client     ready
client   <-> server     the query (`protocol.evaluate`)
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes.private_prediction import material, protocol
from recipes.private_prediction.comparison import PROTOCOLS
from recipes.private_prediction.mlp import Layer
from recipes.private_prediction.randomness import CLIENT, PROVIDER, SERVER, Dealer, Dealt
from recipes.private_prediction.scales import Scale, scales

ROLES = (CLIENT, SERVER, PROVIDER)
VERSION = 1


@dataclass(frozen=True)
class Terms:
    """What the server announces."""

    scales: tuple[Scale, ...]
    lowest: float
    """Inputs must not be smaller than this."""
    highest: float
    """… and not greater than this."""
    reveal: material.Reveal
    """The most that the server lets the client learn: logits include the label."""

    def message(self) -> bytes:
        """For the other roles."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}).encode()

    @classmethod
    def of_message(cls, message: bytes) -> Terms:
        """What the server said.

        Raises:
            ValueError: it speaks another version of this protocol.
        """
        said = json.loads(message)
        if said.pop("version", None) != VERSION:
            raise ValueError(f"the server does not speak version {VERSION} of this protocol")
        return cls(**{**said, "scales": tuple(Scale(**scale) for scale in said["scales"])})


@dataclass(frozen=True)
class Order:
    """What the client asks for."""

    comparison: str
    reveal: material.Reveal

    def message(self) -> bytes:
        """For the other roles."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def of_message(cls, message: bytes) -> Order:
        """What the client said.

        Raises:
            ValueError: there is no such comparison.
        """
        order = cls(**json.loads(message))
        if order.comparison not in PROTOCOLS or order.reveal not in ("label", "logits"):
            raise ValueError(f"the client asks for {order}, which does not exist")
        return order


def terms(
    layers: Sequence[Layer], fraction_bits: int, lowest: float, highest: float, reveal: material.Reveal
) -> Terms:
    """What a server with these layers announces.

    Raises:
        ValueError: the numbers do not fit the ring, or there is nothing to compare.
    """
    if not layers:
        raise ValueError("a network has at least one layer")
    if reveal == "label" and len(layers[-1].bias) < 2:
        raise ValueError("a network with one output has no label: say --reveal logits")
    lowest, highest = float(np.float32(lowest)), float(np.float32(highest))  # as inputs are
    return Terms(tuple(scales(layers, fraction_bits, lowest, highest)), lowest, highest, reveal)


@dataclass
class Answers:
    """What the client has in the end."""

    revealed: np.ndarray
    """Labels `[N]` int64, or logits `[N, classes]` float64."""
    report: dict[str, Any]
    """`steps`: by step rounds, bytes sent, seconds; `online`, `offline`: seconds of each query; `total`."""


def ask(
    network: Any,
    inputs: np.ndarray,
    batch: int,
    order: Order,
    input_range: tuple[float, float] | None = None,
    said: Callable[[int], None] = lambda _: None,
) -> Answers:
    """The client's part.

    Args:
        network: connections to server and provider (`recipes.parties`).
        inputs: `[N, inputs]` float32.
        batch: images a query, at least 1.
        input_range: between which numbers this client takes inputs to lie, if the server is to mean the same.
        said: told after each query how many images are done.

    Raises:
        ValueError: the inputs are not what the network takes, or the server does not reveal so much.
    """
    started = time.perf_counter()
    offered = Terms.of_message(network.receive(SERVER))
    if input_range and input_range != (offered.lowest, offered.highest):
        raise ValueError(
            f"pixels are {input_range[0]:.4g} to {input_range[1]:.4g} here and {offered.lowest:.4g} to "
            f"{offered.highest:.4g} at the server: give both the same --mean and --std"
        )
    _check(offered, inputs, batch, order)
    network.send({role: order.message() for role in (SERVER, PROVIDER)})
    party = protocol.Party(network, Dealt(CLIENT, lambda: network.receive(PROVIDER)), order.comparison)
    party.tally.skip()
    layers = protocol.share_weights(party, offered.scales, None)
    party.tally.mark("weights")
    revealed, offline, online = [], [], []
    for start in range(0, len(inputs), batch):
        query = inputs[start : start + batch]
        begun = time.perf_counter()
        network.send({role: _number(len(query)) for role in (SERVER, PROVIDER)})
        materials = material.deal(
            party.source, party.comparison, layers, len(query), order.reveal, lambda _: None
        )
        network.receive(SERVER)  # it is ready, too
        ready = time.perf_counter()
        revealed.append(protocol.evaluate(party, layers, materials, query, order.reveal))
        offline.append(ready - begun)
        online.append(time.perf_counter() - ready)
        said(start + len(query))
    network.send({role: _number(0) for role in (SERVER, PROVIDER)})
    report = {"steps": party.tally.steps, "offline": offline, "online": online}
    return Answers(np.concatenate(revealed), {**report, "total": time.perf_counter() - started})


def answer(network: Any, layers: Sequence[Layer], offered: Terms) -> dict[str, Any]:
    """The server's part; what it sent in every step, and how many images it has seen masked.

    Raises:
        ValueError: the client asks for more than is revealed.
    """
    network.send({role: offered.message() for role in (CLIENT, PROVIDER)})
    order = Order.of_message(network.receive(CLIENT))
    if order.reveal == "logits" != offered.reveal:
        raise ValueError("the client asks for logits, but this server reveals labels only")
    party = protocol.Party(network, Dealt(SERVER, lambda: network.receive(PROVIDER)), order.comparison)
    party.tally.skip()
    shared = protocol.share_weights(party, offered.scales, layers)
    party.tally.mark("weights")
    images = 0
    while batch := _number_of(network.receive(CLIENT)):
        materials = material.deal(party.source, party.comparison, shared, batch, order.reveal, lambda _: None)
        network.send({CLIENT: b""})
        protocol.evaluate(party, shared, materials, None, order.reveal)
        images += batch
    return {"steps": party.tally.steps, "images": images}


def provide(network: Any, draw: Callable[[int], bytes] = secrets.token_bytes) -> dict[str, Any]:
    """The provider's part. It learns sizes and scales, and how many images there are."""
    offered = Terms.of_message(network.receive(SERVER))
    order = Order.of_message(network.receive(CLIENT))
    tally = protocol.Tally(network)
    source = Dealer(network.send, draw)
    tally.mark("seeds")
    masks = material.deal_weights(source, offered.scales)
    comparison, images = PROTOCOLS[order.comparison](), 0
    while batch := _number_of(network.receive(CLIENT)):
        tally.skip()
        material.deal(source, comparison, masks, batch, order.reveal, tally.mark)
        images += batch
    return {"steps": tally.steps, "images": images}


def _number(images: int) -> bytes:
    return images.to_bytes(4, "little")


def _number_of(message: bytes) -> int:
    return int.from_bytes(message, "little")


def _check(offered: Terms, inputs: np.ndarray, batch: int, order: Order) -> None:
    if order.reveal == "logits" != offered.reveal:
        raise ValueError("the server reveals labels only: say --reveal label")
    if not len(inputs) or batch < 1:
        raise ValueError(f"there is nothing to predict: {len(inputs)} inputs, {batch} a query")
    if inputs.shape[1] != offered.scales[0].inputs:
        raise ValueError(
            f"the network takes {offered.scales[0].inputs} inputs, and an image has {inputs.shape[1]} pixels"
        )
    lowest, highest = np.float32(offered.lowest), np.float32(offered.highest)
    if not (inputs.min() >= lowest and inputs.max() <= highest):
        raise ValueError(
            f"inputs lie between {inputs.min():.4g} and {inputs.max():.4g}, but the server takes them from "
            f"{lowest:.4g} to {highest:.4g}: give both the same --mean and --std"
        )

"""One role by itself, so that client, server and provider can be three machines."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes import progress
from recipes.files import written_whole
from recipes.parties import Network, Tls
from recipes.private_prediction import mlp, roles
from recipes.private_prediction.config import Config, client_images, input_range, server_terms, slow_line
from recipes.private_prediction.randomness import CLIENT, PROVIDER, SERVER

SHORTEST_SECRET = 16


@dataclass(frozen=True)
class Report:
    """What a role says that played by itself."""

    role: str
    images: int
    bytes_sent: int
    seconds: float
    accuracy: float | None = None
    """At the client: share of images whose encrypted prediction is the true label."""


def run(config: Config) -> Report:
    """Play `config.role` here, with the other two at their addresses.

    Raises:
        ValueError: flags, files or addresses that cannot be used; what the other roles want is refused.
        PartyLost: another role does not appear, is a stranger, or dies.
    """
    addresses = {role: _address(role, getattr(config, role)) for role in roles.ROLES}
    if len(set(addresses.values())) < len(addresses):
        raise ValueError("--client, --server and --provider must be three addresses")
    secret, tls = _secret(config), _tls(config)
    prepared = _prepare(config)  # before anybody else is kept waiting
    with _listen(config.role, *addresses[config.role]) as listener:
        if tls is None and not all(_is_loopback(host) for host, _ in addresses.values()):
            print(
                f"{config.role}: connections are not encrypted, and whoever listens to them learns "
                "everything: give --certificate, --key and --authority",
                file=sys.stderr,
            )
        print(f"{config.role}: waiting for the other two", file=sys.stderr, flush=True)
        line = slow_line(config) if config.imitate else None
        network = Network(config.role, addresses, secret, listener, tls=tls, line=line, patience=config.wait)
        with network:
            return _play(config, network, prepared)


def _prepare(config: Config) -> Any:
    """What a role has before it meets the others."""
    import torch  # takes seconds to load

    torch.set_num_threads(1)
    if config.role == CLIENT:
        return client_images(config)
    if config.role == SERVER:
        layers = mlp.read(config.model)
        return layers, server_terms(layers, config)
    return None


def _play(config: Config, network: Network, prepared: Any) -> Report:
    started = time.perf_counter()
    if config.role == PROVIDER:
        done = roles.provide(network)
    elif config.role == SERVER:
        done = roles.answer(network, *prepared)
    else:
        done = _ask(config, network, *prepared)
    seconds = time.perf_counter() - started
    sent = sum(network.sent.values())
    return Report(config.role, done["images"], sent, seconds, done.get("accuracy"))


def _ask(config: Config, network: Network, inputs: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    revealed = ask(config, network, inputs).revealed
    write_output(config, revealed)
    return {"images": len(inputs), "accuracy": share_right(predicted_labels(config, revealed), labels)}


def ask(config: Config, network: Network, inputs: np.ndarray) -> roles.Answers:
    """The client's part, with a progress bar on a terminal."""
    order = roles.Order(config.comparison, config.reveal)
    with progress.bar(what="classifying", unit="image", total=len(inputs)) as bar:
        return roles.ask(
            network, inputs, config.batch, order, input_range(config), lambda done: bar.update(done - bar.n)
        )


def predicted_labels(config: Config, revealed: np.ndarray) -> np.ndarray:
    """Labels, if these or logits were revealed."""
    return revealed if config.reveal == "label" else revealed.argmax(axis=1)


def share_right(predicted: np.ndarray, labels: np.ndarray | None) -> float | None:
    """Share of labels that are the true ones, None if these are not known."""
    return None if labels is None else float(np.mean(predicted == labels))


def write_output(config: Config, revealed: np.ndarray) -> None:
    """Write labels or logits to the file that the config names, if it does."""
    if config.output:
        with written_whole(config.output) as temporary, open(temporary, "wb") as file:
            np.save(file, revealed)


def _address(role: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{role} must be host:port, such as 192.0.2.7:7841, not {text}")
    return host.strip("[]"), int(port)


def _listen(role: str, host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"{role} cannot listen at {host}:{port}: {error.strerror or error}") from error


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _secret(config: Config) -> bytes:
    if config.secret_file is None:
        raise ValueError(
            f"--role {config.role} needs --secret-file, with the same secret for all three; make one with: "
            "python -c 'import secrets; print(secrets.token_hex(32))' > secret"
        )
    secret = _read(config.secret_file).strip()
    if len(secret) < SHORTEST_SECRET:
        raise ValueError(
            f"{config.secret_file} has {len(secret)} bytes; a secret has at least {SHORTEST_SECRET}"
        )
    return secret


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _tls(config: Config) -> Tls | None:
    files = (config.certificate, config.key, config.authority)
    if not any(files):
        return None
    if not all(files):
        raise ValueError("--certificate, --key and --authority go together")
    tls = Tls(*files)
    tls.context(ssl.Purpose.CLIENT_AUTH)  # find out now whether they are what they should be
    return tls

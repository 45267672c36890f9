"""Fetch a data set from a folder or from mirrors, however they misbehave.

A server may be away, slow, endless or wrong: each place has bounded time and memory, and a reason
is kept for every one that failed. What comes is checked by `recipes.formats` before it is used.
"""

from __future__ import annotations

import contextlib
import io
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from recipes import progress
from recipes.formats import RECORD, Refused, idx_key, idx_shape, read_cifar, read_idx, reason_of

CONNECT_SECONDS = 3.0  # all mirrors together have this long to accept a connection
READ_SECONDS = 10.0  # a body that sends nothing for so long is given up
PATIENCE_SECONDS = 60.0  # a body that has come for so long must have come …
SLOWEST = 1000.0  # … at this many bytes a second at least

_SLACK = 1_000_000  # bytes that packing may add to a file


def places(name: str, spec: Mapping, mirror: str) -> dict[str, str]:
    """Where to look for the data set `name`: place -> the folder that its files are in there.

    Args:
        name: the data set's name.
        spec: its table of `datasets/registry.toml`.
        mirror: a folder or http(s) address that goes before the registry's own, or "".
    """
    first = {mirror.strip(): "" if "archive" in spec else f"{name}/"} if mirror.strip() else {}
    return first | {address: "" for address in spec["mirrors"] if address != mirror}


def fetch(
    name: str, spec: Mapping, places: Mapping[str, str], failures: dict[str, str]
) -> dict[str, np.ndarray]:
    """Fetch the data set `name`, each of its files from the first place that has it right.

    Args:
        name: the data set's name, for progress bars.
        spec: its table of `datasets/registry.toml`.
        places: what `places` returned.
        failures: place -> why it is not asked; grows by those that fail.

    Returns:
        The arrays by name (`train_images`, `train_labels`, ...); none at all if a file was nowhere
        to be had.
    """
    order = [place for place in places if place not in failures]
    arrays: dict[str, np.ndarray] = {}
    for names, size, parse in _parts(spec):
        for place in list(order):
            try:
                arrays |= _first_right(place, [places[place] + n for n in names], size, parse, name)
                break
            except Refused as reason:
                failures[place] = str(reason)
                order.append(order.pop(0))  # the next file is asked of it last
        else:
            return {}
    return arrays


def _parts(spec: Mapping) -> list[tuple[list[str], int, Callable[[bytes], dict[str, np.ndarray]]]]:
    """The files of a data set: the names each may have, its greatest size, how its bytes are read."""
    if "archive" in spec:
        stem = spec["archive"]["name"].removesuffix(".gz")
        size = sum(spec[split] * RECORD for split in spec["records"])
        return [([f"{stem}.gz", f"{stem}.xz"], size, lambda body: read_cifar(body, spec))]
    return [
        (
            [f"{file}.gz", file],
            int(np.prod(idx_shape(file, spec))),
            lambda body, file=file: {idx_key(file): read_idx(body, file, spec)},
        )
        for file in spec["files"]
    ]


def _first_right(
    place: str, names: Sequence[str], size: int, parse: Callable[[bytes], dict[str, np.ndarray]], title: str
) -> dict[str, np.ndarray]:
    """The arrays of the first of `names` that `place` has right."""
    reasons = []
    for name in names:
        try:
            get = _download if is_address(place) else _read
            return parse(get(place, name, size + _SLACK, title))
        except FileNotFoundError:
            continue
        except Refused as reason:
            reasons.append(str(reason))
    raise Refused("; ".join(reasons) or f"{' and '.join(names)}: not there")


def is_address(place: str) -> bool:
    """Whether `place` is an http(s) address, and not a folder."""
    return place.lower().startswith(("http://", "https://"))


def without_password(place: str) -> str:
    """`place` as it may be shown."""
    scheme, separator, rest = place.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _read(folder: str, name: str, most: int, title: str) -> bytes:
    """A file of a folder, like `_download`."""
    path = Path(folder).expanduser() / name
    if not path.is_file():
        raise FileNotFoundError(name)
    try:
        with path.open("rb") as stream:
            return stream.read(most)
    except OSError as error:
        raise Refused(f"{name}: {reason_of(error)}") from error


def _download(base: str, name: str, most: int, title: str) -> bytes:
    """The body of an address, with a progress bar on a terminal.

    It comes in a thread, because a server that sends now and then a byte can hold a read for ever.

    Raises:
        FileNotFoundError: the server answered 404 (or 403, which some buckets say instead).
        Refused: any other failure.
    """
    import requests

    body, done = _Body(most), queue.SimpleQueue()
    url = f"{base.rstrip('/')}/{name}"
    threading.Thread(target=_get, args=(url, body, title, done), daemon=True).start()
    start = time.monotonic()
    while True:
        with contextlib.suppress(queue.Empty):
            error = done.get(timeout=0.5)
            break
        waited = time.monotonic() - start
        if waited > PATIENCE_SECONDS and body.tell() < waited * SLOWEST:
            raise Refused(f"{name}: too slow")
    if isinstance(error, requests.HTTPError) and error.response.status_code in (403, 404):
        raise FileNotFoundError(name)
    if isinstance(error, requests.HTTPError):
        raise Refused(f"{name}: the server answered {error.response.status_code}") from error
    if error is not None:
        raise Refused(f"{name}: {reason_of(error)}") from error
    return body.getvalue()


class _Body(io.BytesIO):
    """A body that takes no more than it should."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def write(self, chunk: bytes) -> int:
        if self.tell() + len(chunk) > self.most:
            raise Refused("larger than it can be")
        return super().write(chunk)


def _get(url: str, body: _Body, title: str, done: queue.SimpleQueue) -> None:
    """Fill `body` and say how it went: None, or the exception."""
    import pooch

    try:
        with progress.bytes_bar(title) as bar:  # pooch sets the total
            timeout = (CONNECT_SECONDS, READ_SECONDS)
            get = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=timeout)
            get(url, body, None)
        done.put(None)
    except Exception as error:  # a server may send anything, and libraries say anything to it
        done.put(error)


def unreachable(places: Mapping[str, str]) -> dict[str, str]:
    """Why each of `places` cannot be asked at all; all are tried at once, within seconds.

    Name look-ups ignore every timeout, so each runs in a thread that nobody waits for.
    """
    answers: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    failures: dict[str, str] = {}
    waiting = set()
    for place in places:
        if is_address(place):
            waiting.add(place)
            threading.Thread(target=_connect, args=(place, answers), daemon=True).start()
        elif "://" in place:
            failures[place] = "neither a folder nor an http(s) address"
        elif not Path(place).expanduser().is_dir():
            failures[place] = "no such folder"
    deadline = time.monotonic() + CONNECT_SECONDS
    while waiting:
        try:
            place, reason = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            failures |= dict.fromkeys(waiting, f"no answer within {CONNECT_SECONDS:.0f} s")
            break
        waiting.discard(place)
        if reason:
            failures[place] = reason
    return {place: failures[place] for place in places if place in failures}


def _connect(place: str, answers: queue.SimpleQueue) -> None:
    """Open a connection to an address (or to the proxy that leads there) and say how it went."""
    from requests.utils import get_environ_proxies, select_proxy

    try:
        proxy = select_proxy(place, get_environ_proxies(place)) or place
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname, port), timeout=CONNECT_SECONDS).close()
        answers.put((place, ""))
    except Exception as error:  # an address may be malformed in many ways
        answers.put((place, reason_of(error)))

"""Fetch a data set from a folder or from mirrors, and check every byte before it is used.

Nothing is unpickled and nothing is unpacked to disk. A body is read into memory up to the size that
the file can have, unpacked up to the size that it must have, and compared with the SHA-256 of the
registry; only then is it read as images, with `np.frombuffer`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import lzma
import queue
import socket
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

CONNECT_SECONDS = 3.0  # all mirrors together have this long to accept a connection
READ_SECONDS = 10.0  # a body that sends nothing for so long is given up
PATIENCE_SECONDS = 60.0  # a body that has come for so long must have come …
SLOWEST = 1000.0  # … at this many bytes a second at least

RECORD = 3074  # bytes of a CIFAR-100 record: coarse label, fine label, 32 x 32 pixels of 3 channels
_SLACK = 1_000_000  # bytes that packing may add to a file


class Refused(Exception):
    """A place did not give the file that was asked of it; the message says why."""


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
            int(np.prod(_idx_shape(file, spec))),
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


def idx_key(file: str) -> str:
    """`t10k-labels-idx1-ubyte` -> `test_labels`."""
    split, what = file.split("-")[:2]
    return f"{'test' if split == 't10k' else split}_{what}"


def _idx_shape(file: str, spec: Mapping) -> tuple[int, ...]:
    count = spec["test" if file.startswith("t10k") else "train"]
    return (count, *spec["shape"]) if "images" in file else (count,)


def read_idx(body: bytes, file: str, spec: Mapping) -> np.ndarray:
    """An IDX file of bytes, raw or packed: [N, 28, 28] or [N] uint8.

    Raises:
        Refused: truncated, or not the file that the registry describes.
    """
    shape = _idx_shape(file, spec)
    header = 4 + 4 * len(shape)
    content = unpack(body, header + int(np.prod(shape)), file)
    _check(hashlib.sha256(content).hexdigest(), spec["files"][file], file)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_cifar(body: bytes, spec: Mapping) -> dict[str, np.ndarray]:
    """CIFAR-100's binary archive, packed with gzip or xz, as images and fine and coarse labels.

    Records come back sorted by their SHA-256, so that every packing gives the same arrays.

    Raises:
        Refused: truncated, or not the records that the registry describes.
    """
    name = spec["archive"]["name"]
    official = hashlib.md5(body, usedforsecurity=False).hexdigest() == spec["archive"]["md5"]
    most = sum(spec[split] * RECORD for split in spec["records"]) + _SLACK
    bins: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(unpack(body, most, name)), mode="r:") as archive:
            for member in archive:
                split = member.name.removeprefix("cifar-100-binary/").removesuffix(".bin")
                if split in spec["records"] and member.isfile():
                    bins[split] = archive.extractfile(member).read()
    except Exception as error:  # whatever a parser may say to arbitrary bytes
        raise Refused(f"{name}: {_reason(error)}") from error
    arrays: dict[str, np.ndarray] = {}
    for split in spec["records"]:
        arrays |= _read_records(bins.get(split, b""), split, spec, official)
    return arrays


def unpack(body: bytes, most: int, what: str) -> bytes:
    """The contents of a gzip or xz file, or `body` itself if it is neither; `most` bytes and one more.

    Raises:
        Refused: truncated.
    """
    kinds = {b"\x1f\x8b": gzip.open, b"\xfd7": lzma.open}
    if body[:2] not in kinds:
        return body
    try:
        with progress(f"unpacking {what}", len(body)) as bar:
            stream = CallbackIOWrapper(bar.update, io.BytesIO(body))
            return kinds[body[:2]](stream).read(most + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise Refused(f"{what}: {_reason(error)}") from error


def _read_records(content: bytes, split: str, spec: Mapping, official: bool) -> dict[str, np.ndarray]:
    if len(content) != spec[split] * RECORD:
        raise Refused(f"{split}.bin: holds {len(content):,} bytes, {spec[split] * RECORD:,} expected")
    digests = record_digests(content)
    if not official:
        _check(digest_of_records(digests), spec["records"][split], f"{split}.bin")
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    records = records[np.argsort(np.array(digests), kind="stable")]
    return {
        f"{split}_images": np.ascontiguousarray(records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)),
        f"{split}_labels": records[:, 1].copy(),
        f"{split}_coarse_labels": records[:, 0].copy(),
    }


def record_digests(content: bytes) -> list[bytes]:
    """SHA-256 of each 3,074-byte record."""
    view = memoryview(content)
    return [hashlib.sha256(view[start : start + RECORD]).digest() for start in range(0, len(view), RECORD)]


def digest_of_records(digests: list[bytes]) -> str:
    """SHA-256 over the sorted digests: the same whatever the order of the records."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def digests_match(arrays: Mapping[str, np.ndarray], spec: Mapping) -> dict[str, bool]:
    """Put the published files together again and compare: IDX file or CIFAR split -> right or not."""
    right = {}
    for file, digest in spec.get("files", {}).items():
        array = arrays[idx_key(file)]
        header = np.array([0x0800 | array.ndim, *array.shape], ">u4")
        right[file] = hashlib.sha256(header.tobytes() + array.tobytes()).hexdigest() == digest
    for split, digest in spec.get("records", {}).items():
        labels = [arrays[f"{split}_{kind}"][:, None] for kind in ("coarse_labels", "labels")]
        pixels = arrays[f"{split}_images"].transpose(0, 3, 1, 2).reshape(spec[split], -1)
        right[split] = digest_of_records(record_digests(np.hstack([*labels, pixels]).tobytes())) == digest
    return right


def _check(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise Refused(f"{what}: wrong bytes (SHA-256 {found[:12]}…, expected {expected[:12]}…)")


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
        raise Refused(f"{name}: {_reason(error)}") from error


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
        raise Refused(f"{name}: {_reason(error)}") from error
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
        with progress(title) as bar:
            timeout = (CONNECT_SECONDS, READ_SECONDS)
            get = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=timeout)
            get(url, body, None)
        done.put(None)
    except Exception as error:  # a server may send anything, and libraries say anything to it
        done.put(error)


def progress(title: str, total: int = 1) -> tqdm:
    """A progress bar of bytes, on a terminal only; pooch sets the total of a download."""
    quiet = not sys.stderr.isatty()
    return tqdm(desc=title, total=total, unit="B", unit_scale=True, delay=1, disable=quiet)


def _reason(error: Exception) -> str:
    """An exception in a few words of one line."""
    import requests

    if isinstance(error, requests.Timeout | TimeoutError):
        return "stalled"
    if "Read timed out" in str(error):  # what a stalled body comes as
        return "stalled"
    if "IncompleteRead" in str(error):
        return "broken off"
    if isinstance(error, EOFError | zlib.error | lzma.LZMAError | tarfile.TarError | gzip.BadGzipFile):
        return "truncated or no archive"
    while error.args and isinstance(error.args[-1], Exception):  # requests wraps urllib3 wraps …
        error = error.args[-1]
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:120]


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
        answers.put((place, _reason(error)))

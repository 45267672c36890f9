"""Fetch a data set from a folder or from mirrors, and check every byte before it is believed.

Nothing is unpickled and no archive is unpacked to disk: IDX files and CIFAR's binary records are
read with `np.frombuffer`, after their SHA-256 has been found right.
"""

from __future__ import annotations

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
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

CONNECT_SECONDS = 3.0  # all mirrors together have this long to accept a connection
READ_SECONDS = 10.0  # a body that sends nothing for so long is given up

RECORD = 3074  # bytes of a CIFAR-100 record: coarse label, fine label, 32 x 32 pixels of 3 channels


class Refused(Exception):
    """A place did not give the file that was asked of it; the message says why."""


def fetch(name: str, spec: Mapping, places: Sequence[str]) -> tuple[dict[str, np.ndarray], dict]:
    """Fetch the data set `name` from the first of `places` that serves it whole and right.

    Args:
        name: the data set's name, for folders and progress bars.
        spec: its table of `datasets/registry.toml`.
        places: folders and http(s) base addresses that are laid out as `<place>/<data set>/...`;
            the registry's own mirrors are tried after them.

    Returns:
        The arrays by name (`train_images`, `train_labels`, ...; none at all if a file was nowhere
        to be had) and, for each place that failed, the reason.
    """
    mirrors = [(place, f"{name}/" if "files" in spec else "") for place in places]
    mirrors += [(mirror, "") for mirror in spec["mirrors"]]
    failures = unreachable([place for place, _ in mirrors])
    arrays: dict[str, np.ndarray] = {}
    for names, parse in _parts(spec):
        for place, folder in mirrors:
            if place in failures:
                continue
            try:
                arrays |= parse(_first_found(place, [folder + n for n in names], name))
                break
            except Refused as reason:
                failures[place] = str(reason)
        else:
            return {}, {place: failures[place] for place, _ in mirrors}
    return arrays, failures


def _parts(spec: Mapping) -> list[tuple[list[str], Callable[[bytes], dict[str, np.ndarray]]]]:
    """The files that make up a data set: the names each may have, and how its bytes are read."""
    if "archive" in spec:
        stem = spec["archive"]["name"].removesuffix(".gz")
        return [([f"{stem}.gz", f"{stem}.xz"], lambda body: read_cifar(body, spec))]
    return [
        ([f"{file}.gz", file], lambda body, file=file: {idx_key(file): read_idx(body, file, spec)})
        for file in spec["files"]
    ]


def idx_key(file: str) -> str:
    """`t10k-labels-idx1-ubyte` -> `test_labels`."""
    split, what = file.split("-")[:2]
    return f"{'test' if split == 't10k' else split}_{what}"


def read_idx(body: bytes, file: str, spec: Mapping) -> np.ndarray:
    """An IDX file of bytes, raw or gzip: [N, 28, 28] or [N] uint8.

    Raises:
        Refused: truncated, or not the file that the registry describes.
    """
    shape = (spec["test" if file.startswith("t10k") else "train"], *spec["shape"])
    shape = shape if "images" in file else shape[:1]
    header = 4 + 4 * len(shape)
    if body[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as stream:
                body = stream.read(header + int(np.prod(shape)) + 1)  # a bomb stops here
        except (OSError, EOFError, zlib.error) as error:
            raise Refused(f"{file}: {_reason(error)}") from error
    _check(hashlib.sha256(body).hexdigest(), spec["files"][file], file)
    return np.frombuffer(body, np.uint8, offset=header).reshape(shape)


def read_cifar(body: bytes, spec: Mapping) -> dict[str, np.ndarray]:
    """CIFAR-100's binary archive, packed with gzip or xz, as images and fine and coarse labels.

    Records come back sorted by their SHA-256, so that every packing gives the same arrays.

    Raises:
        Refused: truncated, or not the records that the registry describes.
    """
    official = hashlib.md5(body, usedforsecurity=False).hexdigest() == spec["archive"]["md5"]
    bins: dict[str, bytes] = {}
    try:
        with (
            progress("unpacking cifar-100", total=len(body)) as bar,
            tarfile.open(fileobj=CallbackIOWrapper(bar.update, io.BytesIO(body)), mode="r:*") as archive,
        ):
            for member in archive:  # in the archive's order: going back would unpack it again
                split = member.name.removeprefix("cifar-100-binary/").removesuffix(".bin")
                if split in spec["records"] and member.isfile():
                    bins[split] = archive.extractfile(member).read(spec[split] * RECORD + 1)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise Refused(f"{spec['archive']['name']}: {_reason(error)}") from error
    arrays: dict[str, np.ndarray] = {}
    for split in spec["records"]:
        arrays |= _read_records(bins.get(split, b""), split, spec, official)
    return arrays


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


def _first_found(place: str, names: Sequence[str], title: str) -> bytes:
    """The first of `names` that `place` serves."""
    missing: Refused | None = None
    for name in names:
        try:
            return _download(place, name, title) if is_address(place) else _read(Path(place) / name)
        except FileNotFoundError:
            missing = Refused(f"{' and '.join(names)}: not there")
    raise missing or Refused("nothing was asked of it")


def is_address(place: str) -> bool:
    """Whether `place` is an http(s) address, and not a folder."""
    return place.startswith(("http://", "https://"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Refused(f"{path.name}: {_reason(error)}") from error


def _download(base: str, name: str, title: str) -> bytes:
    """The body of an address, with a progress bar on a terminal.

    Raises:
        FileNotFoundError: the server answered 404 (or 403, which some buckets say instead).
        Refused: any other failure.
    """
    import pooch
    import requests

    body = io.BytesIO()
    timeout = (CONNECT_SECONDS, READ_SECONDS)
    try:
        with progress(title) as bar:
            get = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=timeout)
            get(f"{base.rstrip('/')}/{name}", body, None)
    except requests.HTTPError as error:
        if error.response.status_code in (403, 404):
            raise FileNotFoundError(name) from error
        raise Refused(f"{name}: the server answered {error.response.status_code}") from error
    except (requests.RequestException, OSError) as error:
        raise Refused(f"{name}: {_reason(error)}") from error
    return body.getvalue()


def progress(title: str, total: int = 1) -> tqdm:
    """A progress bar of bytes, on a terminal only; pooch sets the total of a download."""
    return tqdm(desc=title, total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty())


def _reason(error: Exception) -> str:
    """An exception in a few words of one line."""
    import requests

    if isinstance(error, requests.Timeout | TimeoutError) or "timed out" in str(error):
        return "stalled"
    if "IncompleteRead" in str(error):
        return "broken off"
    if isinstance(error, EOFError | zlib.error | lzma.LZMAError | tarfile.TarError | gzip.BadGzipFile):
        return "truncated or no archive"
    while error.args and isinstance(error.args[-1], Exception):  # requests wraps urllib3 wraps …
        error = error.args[-1]
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:120]


def unreachable(places: Sequence[str]) -> dict[str, str]:
    """Why each of `places` cannot be asked at all; all are tried at once, within seconds.

    Name look-ups ignore every timeout, so each runs in a thread that nobody waits for.
    """
    answers: queue.Queue[tuple[str, str]] = queue.Queue()
    failures: dict[str, str] = {}
    waiting = set()
    for place in dict.fromkeys(places):
        if is_address(place):
            waiting.add(place)
            threading.Thread(target=_connect, args=(place, answers), daemon=True).start()
        elif "://" in place:
            failures[place] = "neither a folder nor an http(s) address"
        elif not Path(place).is_dir():
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
    return failures


def _connect(place: str, answers: queue.Queue) -> None:
    """Open a connection to an address (or to the proxy that leads there) and say how it went."""
    url = urlsplit(place)
    try:
        proxy = urllib.request.getproxies().get(url.scheme)
        if proxy and not urllib.request.proxy_bypass(url.netloc):
            url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname, port), timeout=CONNECT_SECONDS).close()
        answers.put((place, ""))
    except (OSError, ValueError) as error:
        answers.put((place, _reason(error)))

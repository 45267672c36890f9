"""The files that the data sets come in: IDX, and CIFAR's binary records in a tar archive.

Nothing is unpickled and nothing is unpacked to disk. A file is unpacked in memory, up to the size
that it must have, and compared with the SHA-256 of the registry; only then is it read as images,
with `np.frombuffer`. Every function takes the data set's table of `datasets/registry.toml`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Mapping

import numpy as np
from tqdm.utils import CallbackIOWrapper

from recipes import progress

RECORD = 3074  # bytes of a CIFAR-100 record: coarse label, fine label, 32 x 32 pixels of 3 channels


class Refused(Exception):
    """A place did not give the file that was asked of it; the message says why."""


def idx_key(file: str) -> str:
    """`t10k-labels-idx1-ubyte` -> `test_labels`."""
    split, what = file.split("-")[:2]
    return f"{'test' if split == 't10k' else split}_{what}"


def idx_shape(file: str, spec: Mapping) -> tuple[int, ...]:
    """Shape of an IDX file's array."""
    count = spec["test" if file.startswith("t10k") else "train"]
    return (count, *spec["shape"]) if "images" in file else (count,)


def read_idx(body: bytes, file: str, spec: Mapping) -> np.ndarray:
    """An IDX file of bytes, raw or packed: [N, 28, 28] or [N] uint8.

    Raises:
        Refused: truncated, or not the file that the registry describes.
    """
    shape = idx_shape(file, spec)
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
    most = sum(spec[split] * RECORD for split in spec["records"]) + 1_000_000  # tar's headers
    bins: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(unpack(body, most, name)), mode="r:") as archive:
            for member in archive:
                split = member.name.removeprefix("cifar-100-binary/").removesuffix(".bin")
                if split in spec["records"] and member.isfile():
                    bins[split] = archive.extractfile(member).read()
    except Exception as error:  # whatever a parser may say to arbitrary bytes
        raise Refused(f"{name}: {reason_of(error)}") from error
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
        with progress.bytes_bar(f"unpacking {what}", len(body)) as bar:
            stream = CallbackIOWrapper(bar.update, io.BytesIO(body))
            return kinds[body[:2]](stream).read(most + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise Refused(f"{what}: {reason_of(error)}") from error


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


def reason_of(error: Exception) -> str:
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

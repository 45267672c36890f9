"""MNIST, Fashion-MNIST and CIFAR-100 as NumPy arrays, wherever they can be had.

    >>> from recipes.data import load
    >>> data = load("fashion-mnist")
    >>> data.train.images.shape, data.train.images.dtype
    ((60000, 28, 28), dtype('uint8'))

`load` looks in the cache, then in COOKBOOK_MIRROR (a folder, or an http address), then at the
public mirrors in `datasets/registry.toml`. What it finds is checked by SHA-256 before it is used.
With `source="embedded"` it draws stand-ins instead and touches neither disk nor network.

    COOKBOOK_DATA     the cache folder (default: the user's cache folder)
    COOKBOOK_MIRROR   where to look first: <mirror>/mnist/train-images-idx3-ubyte[.gz] …,
                      <mirror>/fashion-mnist/…, <mirror>/cifar-100-binary.tar.gz or .tar.xz

Command: python -m recipes.data list | fetch NAME | verify | where
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import logging
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from recipes import download, formats, stand_ins
from recipes.files import shipped, written_whole

Name = Literal["mnist", "fashion-mnist", "cifar-100"]
Source = Literal["real", "embedded", "auto"]

_log = logging.getLogger(__name__)


class DatasetUnavailable(OSError):
    """A real data set was found neither in the cache nor at any mirror."""


@dataclass(frozen=True)
class Split:
    """The training or the test part of a data set; its arrays are read-only."""

    images: np.ndarray
    """`[N, 28, 28]` or `[N, 32, 32, 3]` uint8."""
    labels: np.ndarray
    """`[N]` uint8, indices into `Dataset.class_names`."""
    coarse_labels: np.ndarray | None = None
    """`[N]` uint8, indices into `Dataset.coarse_class_names` (CIFAR-100 only)."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set, its classes, and where it came from."""

    name: str
    source: Literal["real", "embedded"]
    """`real`, or `embedded` for the stand-ins that are drawn here."""
    train: Split
    test: Split
    class_names: tuple[str, ...]
    """Class names by label (CIFAR-100: the fine ones)."""
    coarse_class_names: tuple[str, ...] = ()
    """CIFAR-100's coarse class names."""

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each split."""
        return {"train": len(self.train), "test": len(self.test)}

    def digest(self) -> str:
        """SHA-256 over all arrays, for the record; the same on every machine."""
        splits = (self.train, self.test)
        arrays = [array for s in splits for array in (s.images, s.labels, s.coarse_labels)]
        return _sha256(array for array in arrays if array is not None).hexdigest()


def load(name: Name, source: Source = "real") -> Dataset:
    """Load a data set, in the order of its files; CIFAR-100 sorted by the SHA-256 of its records.

    Args:
        name: `mnist`, `fashion-mnist` or `cifar-100`.
        source: `real`; `embedded` (stand-ins, no download); or `auto` (real if it can be had,
            else embedded, announced by a warning of the logger `recipes.data`).

    Raises:
        ValueError: no such data set or source.
        DatasetUnavailable: `source="real"` and no place had it; says which were tried, and what
            to put where.
    """
    spec = _spec(name)
    if source not in ("real", "embedded", "auto"):
        raise ValueError(f"source {source!r} is unknown: say 'real', 'embedded' or 'auto'")
    if source != "embedded":
        try:
            return _dataset(name, "real", spec, _real_arrays(name, spec))
        except DatasetUnavailable:
            if source == "real":
                raise
            _log.warning(
                "EMBEDDED STAND-IN DATA instead of %s, which is neither cached nor at any mirror"
                " (why: python -m recipes.data fetch %s)",
                spec["title"],
                name,
            )
    return _dataset(name, "embedded", spec, stand_ins.arrays(name, spec))


def scale(images: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1]: uint8 to float32, any shape."""
    return images.astype(np.float32) / np.float32(255)


def channels_first(images: np.ndarray) -> np.ndarray:
    """PyTorch's layout: `[N, 28, 28]` to `[N, 1, 28, 28]`, `[N, 32, 32, 3]` to `[N, 3, 32, 32]`."""
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def channels_last(images: np.ndarray) -> np.ndarray:
    """TensorFlow's layout: `[N, 28, 28]` to `[N, 28, 28, 1]`; colour images have it already."""
    return images[..., None] if images.ndim == 3 else images


@functools.cache
def registry() -> dict[str, dict]:
    """The tables of `datasets/registry.toml` by data set name."""
    return tomllib.loads(shipped("datasets", "registry.toml").read_text("utf-8"))


def cache_folder() -> Path:
    """`COOKBOOK_DATA`, or the user's cache folder."""
    import pooch

    return Path(os.environ.get("COOKBOOK_DATA") or pooch.os_cache("private-ai-cookbook")).expanduser()


def _spec(name: str) -> dict:
    if name not in registry():
        raise ValueError(f"data set {name!r} is unknown: there are {', '.join(registry())}")
    return registry()[name]


def _shapes(spec: Mapping) -> dict[str, tuple[int, ...]]:
    """The arrays of a data set and their shapes."""
    shapes = {}
    for split in ("train", "test"):
        shapes[f"{split}_images"] = (spec[split], *spec["shape"])
        shapes[f"{split}_labels"] = (spec[split],)
        if "coarse_classes" in spec:
            shapes[f"{split}_coarse_labels"] = (spec[split],)
    return shapes


def _dataset(name: str, source: str, spec: Mapping, arrays: Mapping[str, np.ndarray]) -> Dataset:
    for array in arrays.values():
        array.flags.writeable = False
    train, test = (
        Split(*(arrays.get(f"{split}_{part}") for part in ("images", "labels", "coarse_labels")))
        for split in ("train", "test")
    )
    coarse = spec.get("coarse_classes", {})
    classes = spec.get("classes") or sorted(fine for group in coarse.values() for fine in group)
    return Dataset(name, source, train, test, tuple(classes), tuple(coarse))


# ---- the real sets: the cache, and what fills it


def _real_arrays(name: str, spec: Mapping) -> dict[str, np.ndarray]:
    path = cache_folder() / f"{name}.npz"
    arrays, cache_says = _read_cache(path, spec)
    if arrays:
        return arrays
    places = download.places(name, spec, os.environ.get("COOKBOOK_MIRROR", ""))
    failures = download.unreachable(places)
    if len(failures) < len(places):  # else there is nothing that a lock could be waited for
        with _one_at_a_time(path) as writable:
            arrays, cache_says = _read_cache(path, spec)  # another process may have fetched it
            if arrays:
                return arrays
            if cache_says == "damaged":
                _log.warning("The cached %s is damaged and fetched again.", path)
            arrays = download.fetch(name, spec, places, failures)
            if arrays and writable:
                _write_cache(path, arrays)
    if not arrays:
        raise DatasetUnavailable(_advice(name, spec, path, cache_says, failures))
    return arrays


def _read_cache(path: Path, spec: Mapping) -> tuple[dict[str, np.ndarray] | None, str]:
    """The cached arrays, or None and why; their SHA-256 is compared with the one that was stored."""
    shapes = _shapes(spec)
    try:
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in shapes}
            intact = archive["sha256"].tobytes() == _sha256(arrays.values()).digest()
    except FileNotFoundError:
        return None, "not there"
    except OSError as error:
        return None, error.strerror or "unreadable"
    except Exception:  # whatever a parser may say to arbitrary bytes
        return None, "damaged"
    for key, shape in shapes.items():
        intact &= arrays[key].shape == shape and arrays[key].dtype == np.uint8
    return (arrays, "") if intact else (None, "damaged")


def _sha256(arrays: Iterable[np.ndarray]) -> hashlib._Hash:
    """SHA-256 over the bytes of the arrays, one after the other."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array))
    return sha


def _write_cache(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the cache; the caller holds its lock."""
    digest = _sha256(arrays[key] for key in _shapes(_spec(path.stem))).digest()
    packed = io.BytesIO()  # savez does not fail cleanly on a full disk, write_bytes does
    np.savez(packed, sha256=np.frombuffer(digest, np.uint8), **arrays)
    try:
        for left_over in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
            left_over.unlink()
        with written_whole(path) as temporary:
            temporary.write_bytes(packed.getbuffer())
    except OSError as error:
        _log.warning("%s; it is kept for this run only.", error.strerror)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[bool]:
    """Hold the lock beside `path`; yield whether its folder can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        advice = "set COOKBOOK_DATA to a folder that can"
        _log.warning("The cache %s cannot be written (%s): %s.", path.parent, error.strerror, advice)
        yield False
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("Another process is fetching %s; waiting for it.", path.stem)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            _log.warning("%s cannot be locked (%s); going on without.", lock.name, error.strerror)
        yield True


def _advice(name: str, spec: Mapping, path: Path, cache_says: str, failures: Mapping[str, str]) -> str:
    """One line: every place tried and why it failed, what to put where, and the other way."""
    tried = [f"{path} ({cache_says})"]
    tried += [f"{download.without_password(place)} ({reason})" for place, reason in failures.items()]
    if "archive" in spec:
        files = spec["archive"]["name"]
    else:
        files = " ".join(f"{name}/{file}.gz" for file in spec["files"])
    return (
        f"{name} is not available. Tried: {'; '.join(tried)}. To provide it, put {files} in a folder and"
        f' set COOKBOOK_MIRROR to that folder; or use the stand-ins: source="embedded", --data embedded.'
    )


# ---- the command line


def verify() -> dict[str, str]:
    """Check every cached data set against the published digests: name -> what was found."""
    found = {}
    for name, spec in registry().items():
        path = cache_folder() / f"{name}.npz"
        arrays, cache_says = _read_cache(path, spec)
        if arrays is None:
            found[name] = cache_says
        else:
            wrong = [part for part, right in formats.digests_match(arrays, spec).items() if not right]
            found[name] = f"WRONG: {', '.join(wrong)}" if wrong else "right"
    return found


def _list() -> None:
    """List the data sets."""
    for name, spec in registry().items():
        shape = "x".join(map(str, spec["shape"]))
        cached = "cached" if (cache_folder() / f"{name}.npz").exists() else "not cached"
        print(f"{name:14} {spec['train']:,} + {spec['test']:,} of {shape:8} {cached:11} {spec['title']}")


def _fetch(name: Name | Literal["all"], /) -> None:
    """Fetch a data set, or all of them, into the cache."""
    for one in registry() if name == "all" else [name]:
        sizes = load(one).sizes
        if not (cache_folder() / f"{one}.npz").is_file():
            raise OSError(f"{one} was fetched, but could not be kept in {cache_folder()}")
        print(f"{one}: {sizes['train']:,} + {sizes['test']:,} images in {cache_folder()}")


def _verify() -> None:
    """Check the cached data sets against the published digests."""
    found = verify()
    for name, verdict in found.items():
        print(f"{name:14} {verdict}")
    if any(verdict not in ("right", "not there") for verdict in found.values()):
        raise SystemExit(1)


def _where() -> None:
    """Print where data sets are looked for."""
    print(f"cache    {cache_folder()}")
    print(f"mirror   {os.environ.get('COOKBOOK_MIRROR') or '(COOKBOOK_MIRROR is not set)'}")
    for name, spec in registry().items():
        for mirror in spec["mirrors"]:
            print(f"{name:14} {mirror}")


def main() -> None:
    """The command line."""
    from recipes import shell

    commands = {"list": _list, "fetch": _fetch, "verify": _verify, "where": _where}
    with shell.one_line_errors("recipes.data"):
        shell.parse_subcommand(commands, "recipes.data")()


if __name__ == "__main__":
    from recipes.data import main  # this module's own classes, not their doubles in __main__

    main()

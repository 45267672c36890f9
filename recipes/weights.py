"""The weights that come with the cookbook: listed when they are written, checked before they are read.

`models/SHA256SUMS` lists them as `sha256sum` does. What a file is, what it was trained on and by which
command stands in its header, its card, which the training writes; models/README.md is made of these.

Command: python -m recipes.weights     write models/README.md anew
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.cards import write_json
from recipes.files import rewrite_between_marks, shipped, written_whole

if TYPE_CHECKING:
    from recipes.data import Dataset

SUMS = "SHA256SUMS"
BEGIN, END = "<!-- weights: written by `python -m recipes.weights` -->", "<!-- end of weights -->"


class WeightsDamaged(OSError):
    """Weights that come with the cookbook are missing, or are not what they were."""


def path_of(name: str) -> Path:
    """Where weights are; `name` is relative to `models`."""
    return shipped("models", name)


def checked(name: str, command: str) -> Path:
    """The path of weights, once they are found to be what was written.

    Args:
        name: relative to `models`.
        command: what trains them anew, for the message.

    Raises:
        WeightsDamaged: they are missing, or not what is listed.
    """
    path, listed = path_of(name), sums()
    if not path.is_file():
        fault = "is missing"
    elif listed.get(name) != _sha256(path):
        fault = f"is damaged, its SHA-256 is not the one in models/{SUMS}"
    else:
        return path
    raise WeightsDamaged(None, f"models/{name} {fault}; this trains it anew: {command}")


def is_there(path: Path, command: str) -> bool:
    """Whether there is a file; one that comes with the cookbook is checked, and must be there.

    Raises:
        WeightsDamaged: it comes with the cookbook, and is missing or damaged.
    """
    name = name_of(path)
    if name and (path.exists() or name in sums()):
        checked(name, command)
    return path.exists()


def name_of(path: Path) -> str | None:
    """The name of a file in `models`, relative to it; None if it is elsewhere."""
    home, path = path_of("").resolve(), path.resolve()
    return str(path.relative_to(home)) if path.is_relative_to(home) else None


def sums() -> dict[str, str]:
    """The SHA-256 of each file of weights, in hexadecimal, by its name relative to `models`.

    Raises:
        WeightsDamaged: there is no list, or it is none.
    """
    try:
        lines = path_of(SUMS).read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise WeightsDamaged(
            None, f"models/{SUMS} is missing; `make models` trains all weights anew"
        ) from None
    found = [re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line) for line in lines]
    if not all(found):
        raise WeightsDamaged(None, f"models/{SUMS} is damaged; `make models` trains all weights anew")
    return {match[2]: match[1] for match in found}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card(about: str, dataset: Dataset, seed: int, command: str, **figures: float | str) -> dict[str, str]:
    """What stands in the header of a file of weights.

    Args:
        about: what it is, in a few words.
        dataset: what it was trained on.
        seed: of the training.
        command: what trains it anew.
        figures: such as `test_accuracy`, a share, and `cpu_seconds`.

    Raises:
        ValueError: the data are stand-ins; weights that come with the cookbook are of real images.
    """
    if dataset.source != "real":
        raise ValueError(f"weights in models/ are trained on real images, not on {dataset.source} ones")
    known = {
        "about": about,
        "data": f"{dataset.name} {dataset.digest()}",
        "seed": str(seed),
        "command": command,
    }
    return known | {name: str(figure) for name, figure in figures.items()}


def read_card(name: str) -> dict[str, str]:
    """What the training wrote of weights: in their header, and for a folder of them in `card.json`.

    Raises:
        WeightsDamaged: they have no header.
    """
    from safetensors import SafetensorError, safe_open

    path = path_of(name)
    try:
        with safe_open(path, "np") as file:
            header = file.metadata()
    except (SafetensorError, OSError) as error:
        raise WeightsDamaged(None, f"models/{name} cannot be read: {error}") from error
    together = path.parent / "card.json"
    if not together.exists():
        return header
    return json.loads(together.read_text("utf-8")) | header | json.loads(header.get("trained", "{}"))


def write(name: str, tensors: Mapping[str, np.ndarray], card: Mapping[str, str]) -> None:
    """Write weights to `models`, in place of those that were there, and list them.

    Raises:
        OSError: the folder cannot be written, or the disk is full; all is as it was.
    """
    from safetensors.numpy import save_file

    whole = {key: np.asarray(tensor, order="C") for key, tensor in tensors.items()}
    with _replaced(name) as temporary:
        save_file(whole, temporary, dict(card))


def copy_in(folder: str, files: Sequence[Path], card: Mapping[str, str]) -> None:
    """Make copies of files the weights of a folder of `models`, with one card, in place of all that it held.

    Whenever this is interrupted, what is there is listed, old or new.
    """
    home = path_of(folder)
    home.mkdir(exist_ok=True)
    for path in files:
        with _replaced(f"{folder}/{path.name}") as temporary:
            shutil.copyfile(path, temporary)
    write_json(home / "card.json", card)
    wanted = {path.name for path in files}
    gone = [path for path in home.glob("*.safetensors") if path.name not in wanted]
    with _alone():
        _list({name: digest for name, digest in _listed().items() if path_of(name) not in gone})
    for path in gone:
        path.unlink()


@contextlib.contextmanager
def _replaced(name: str) -> Iterator[Path]:
    """Yield a temporary file that takes the place of weights, and of their line in the list, at once."""
    with _alone(), written_whole(path_of(name)) as temporary:
        yield temporary
        _list({**_listed(), name: _sha256(temporary)})


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let no other process write the list."""
    handle = os.open(path_of(""), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _listed() -> dict[str, str]:
    """The list, or an empty one in place of none."""
    return sums() if path_of(SUMS).exists() else {}


def _list(digests: Mapping[str, str]) -> None:
    with written_whole(path_of(SUMS)) as temporary:
        temporary.write_text("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)), "utf-8")


def table() -> str:
    """What each file is, as its training wrote it, in Markdown."""
    rows = ["| file | MB | what it is | trained on | seed | test accuracy | CPU seconds | command |"]
    rows.append(f"|{' --- |' * 8}")
    for name in sorted(sums()):
        card = read_card(name)
        accuracy = f"{100 * float(card['test_accuracy']):.2f} %" if "test_accuracy" in card else "–"
        seconds = f"{float(card['cpu_seconds']):,.0f}" if "cpu_seconds" in card else "–"
        megabytes = f"{path_of(name).stat().st_size / 1e6:.2f}"
        said = [card["about"], card["data"].split()[0], card["seed"], accuracy, seconds]
        cells = [f"`{name}`", megabytes, *said, f"`{card['command']}`"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Rewrite the table of models/README.md."""
    from recipes import shell

    with shell.one_line_errors("recipes.weights"):
        rewrite_between_marks(path_of("README.md"), BEGIN, END, table())


if __name__ == "__main__":
    main()

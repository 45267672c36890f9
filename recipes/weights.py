"""The weights that come with the cookbook: listed when they are written, checked before they are read.

`models/SHA256SUMS` lists them as `sha256sum` does. What a file is, what it was trained on and by which
command stands in its header, its card, which the training writes; models/README.md is made of these.

Command: python -m recipes.weights     write models/README.md anew
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
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
    path = path_of(name)
    if not path.is_file():
        fault = "is missing"
    elif sums().get(name) != _sha256(path):
        fault = f"is damaged, its SHA-256 is not the one in models/{SUMS}"
    else:
        return path
    raise WeightsDamaged(None, f"models/{name} {fault}; this trains it anew: {command}")


def is_there(path: Path, command: str) -> bool:
    """Whether there is a file; one that comes with the cookbook is checked, and must be there.

    Raises:
        WeightsDamaged: it comes with the cookbook, and is missing or damaged.
    """
    home = path_of("")
    if path.is_relative_to(home) and (name := str(path.relative_to(home))) in sums():
        checked(name, command)
    return path.exists()


def sums() -> dict[str, str]:
    """The SHA-256 of each file of weights, in hexadecimal, by its name relative to `models`."""
    lines = path_of(SUMS).read_text("utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


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
    """What the training wrote of weights: in their header, and for a folder of them in `card.json`."""
    from safetensors import safe_open

    path = path_of(name)
    with safe_open(path, "np") as file:
        header = file.metadata()
    together = path.parent / "card.json"
    if not together.exists():
        return header
    return json.loads(together.read_text("utf-8")) | header | json.loads(header.get("trained", "{}"))


def write(name: str, tensors: Mapping[str, np.ndarray], card: Mapping[str, str]) -> None:
    """Write weights to `models`, in place of those that were there, and list them.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    from safetensors.numpy import save_file

    whole = {key: np.asarray(tensor, order="C") for key, tensor in tensors.items()}
    with written_whole(path_of(name)) as temporary:
        save_file(whole, temporary, dict(card))
        digest = _sha256(temporary)
    _list({**sums(), name: digest})


def move_in(folder: str, files: Sequence[Path], card: Mapping[str, str]) -> None:
    """Make files the weights of a folder of `models`, with one card, in place of all that it held."""
    home = path_of(folder)
    home.mkdir(exist_ok=True)
    for path in files:
        shutil.move(path, home / path.name)
    write_json(home / "card.json", card)
    others = {name: digest for name, digest in sums().items() if not name.startswith(f"{folder}/")}
    _list(others | {f"{folder}/{path.name}": _sha256(home / path.name) for path in files})
    for path in home.glob("*.safetensors"):
        if path.name not in {path.name for path in files}:
            path.unlink()


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

"""Scores of attacks that take minutes are kept in files, as trained networks are."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recipes import weights
from recipes.files import written_whole
from recipes.membership_inference.config import COMMAND

VERSION = 1
"""Of the attacks whose scores are kept: whoever changes what comes of them adds one."""


@dataclass(frozen=True)
class Kept:
    """Where the scores of attacks on one target are kept."""

    target: str
    """Its kind, and a digest of what it answers, which no other target has."""
    folders: Sequence[Path] = ()
    """Where they are looked for; what is made now is written to the last one, if there is any."""

    def scores(self, attack: str, settings: Any, make: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
        """An attack's scores `[N]`, from a file or made now, and the CPU seconds that they took.

        Args:
            attack: its name.
            settings: all that the scores depend on besides the target; its `repr` is looked at.
            make: makes the scores.

        Raises:
            ValueError: a file is damaged.
        """
        name = self._file_name(attack, settings)
        for folder in self.folders:
            if weights.is_there(folder / name, COMMAND):
                return _read(folder / name)
        begin = time.process_time()
        made = make()
        seconds = time.process_time() - begin
        if self.folders:
            self.folders[-1].mkdir(parents=True, exist_ok=True)
            with written_whole(self.folders[-1] / name) as temporary:
                save_file({"scores": made}, temporary, {"cpu_seconds": str(seconds)})
        return made, seconds

    def _file_name(self, attack: str, settings: Any) -> str:
        digest = hashlib.sha256(repr((VERSION, self.target, attack, settings)).encode()).hexdigest()[:12]
        words = f"{self.target.split('_')[0]} {attack}".replace(",", "").replace(" ", "_")
        return f"{words}_{digest}.safetensors"


def _read(path: Path) -> tuple[np.ndarray, float]:
    try:
        with safe_open(path, "np") as file:
            return file.get_tensor("scores"), float(file.metadata()["cpu_seconds"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: remove it, and it is made anew ({error})") from error

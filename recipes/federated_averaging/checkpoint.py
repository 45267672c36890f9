"""What a long training needs to go on after an interruption: one file a run, written after each round."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.federated_averaging.config import Config
from recipes.files import written_whole

_FREE = {"data", "rounds", "target", "workers", "table", "delta", "checkpoints"}
"""What may differ between two parts of one run."""


@dataclass
class Progress:
    """A run so far."""

    model: np.ndarray
    """`[P]` float32."""
    pooled: np.ndarray
    """`[P]` float32, the model that is trained on the same examples in one place."""
    history: list[list[float]]
    """A row for each round that was run."""
    memory: dict[str, np.ndarray]
    """The algorithm's."""

    def write(self, path: Path) -> None:
        """Into a safetensors file, which is replaced at once or not at all."""
        from safetensors.numpy import save_file

        arrays = {"model": self.model, "pooled": self.pooled}
        arrays |= {f"memory {name}": array for name, array in self.memory.items()}
        with written_whole(path) as temporary:
            save_file(arrays, temporary, {"history": json.dumps(self.history)})

    @classmethod
    def read(cls, path: Path) -> Progress:
        """What `write` wrote.

        Raises:
            ValueError: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                history = json.loads(file.metadata()["history"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            model, pooled = arrays.pop("model"), arrays.pop("pooled")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it to begin anew") from None
        return cls(model, pooled, history, {name.split(" ", 1)[1]: a for name, a in arrays.items()})


def checkpoint_of(config: Config, data: str) -> Path | None:
    """The file of a run on these data, named by all that decides its course; None if none is wanted.

    Raises:
        ValueError: the folder cannot be made.
    """
    if config.checkpoints is None:
        return None
    kept = {name: value for name, value in vars(config).items() if name not in _FREE}
    course = json.dumps([data, kept])
    try:
        config.checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"checkpoints is {config.checkpoints}: {error.strerror}") from None
    name = hashlib.sha256(course.encode()).hexdigest()[:16]
    return config.checkpoints / f"federated-averaging-{name}.safetensors"

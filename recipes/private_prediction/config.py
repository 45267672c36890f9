"""What to predict and how, and what each role makes of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from recipes import data
from recipes.parties import Line
from recipes.private_prediction import mlp, roles
from recipes.private_prediction.material import Reveal


@dataclass(frozen=True)
class Config:
    """What to predict, and how."""

    data: data.Source = "auto"
    """Where images come from: the real data set, stand-ins drawn here, or whichever can be had."""
    dataset: data.Name = "mnist"
    """The data set whose test images the client has."""
    model: str = mlp.SHIPPED
    """The network's weights: a .safetensors file or a PyTorch state dict, of fully connected layers, each
    but the last followed by ReLU."""
    images: int = 1000
    """How many test images, from the first."""
    inputs: Path | None = None
    """The client's own inputs instead: an array [N, ...] in a .npy file, uint8 or numbers in [0, 1]."""
    output: Path | None = None
    """Write what the client learns to this .npy file: labels [N], or logits [N, classes]."""
    batch: int = 1000
    """Images a query."""
    comparison: Literal["tables", "fss"] = "tables"
    """Shared truth tables (least work and bytes in all) or function secret sharing (four rounds fewer)."""
    reveal: Reveal = "label"
    """What the client learns of each image; at the server, the most that it may learn."""
    fraction_bits: int = 16
    """Bits after the point of inputs and weights, 4 to 20."""
    mean: float = 0.0
    """Subtracted from pixels in [0, 1]; networks that were trained so need it (MNIST: 0.1307)."""
    std: float = 1.0
    """What pixels less `mean` are divided by (MNIST: 0.3081)."""
    round_trip: float = 50.0
    """Milliseconds there and back, of the network for which the time is projected."""
    bandwidth: float = 100.0
    """Megabits a second each way, of that network."""
    imitate: bool = False
    """Predict once more with every message held up as on that network, to check the projection."""
    datasite: bool = False
    """Predict the same through a PySyft datasite, too: remote execution under approval, about 10 s."""
    train: bool = False
    """Train the network that comes with the recipe anew, write its weights, and predict with it."""
    role: Literal["all", "client", "server", "provider"] = "all"
    """All three, each a process of its own on this machine; or only this one, here."""
    client: str = "127.0.0.1:7841"
    """Address of the client, host:port; this flag and all down to --wait are for --role."""
    server: str = "127.0.0.1:7842"
    """Address of the server."""
    provider: str = "127.0.0.1:7843"
    """Address of the provider."""
    secret_file: Path | None = None
    """A file with the secret that all three share, at least 16 bytes."""
    certificate: Path | None = None
    """This role's certificate (PEM), with the role as a DNS name; goes with --key and --authority."""
    key: Path | None = None
    """The certificate's private key (PEM)."""
    authority: Path | None = None
    """The certificate that signed those of all roles (PEM)."""
    wait: float = 120.0
    """Seconds to wait for the other roles."""

    def __post_init__(self) -> None:
        for name in ("images", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 4 <= self.fraction_bits <= 20:
            raise ValueError(f"fraction_bits must be from 4 to 20, not {self.fraction_bits}")
        for name, least in (("std", 1e-6), ("bandwidth", 1e-3), ("wait", 1e-3)):
            if not least <= getattr(self, name) <= 1e9:
                raise ValueError(f"{name} must be from {least:g} to 1e9, not {getattr(self, name)}")
        if not abs(self.mean) <= 1e9:
            raise ValueError(f"mean must be a number, at most 1e9, not {self.mean}")
        if not 0 <= self.round_trip <= 10_000:
            raise ValueError(f"round_trip must be from 0 to 10000 milliseconds, not {self.round_trip}")
        if self.train and (self.role != "all" or self.model != mlp.SHIPPED):
            raise ValueError(f"train writes {mlp.SHIPPED}: it goes with no other --model, and with no --role")


def client_images(config: Config) -> tuple[np.ndarray, np.ndarray | None]:
    """The client's inputs `[N, pixels]` float32, normalised, and their labels `[N]`, if it knows them.

    Raises:
        ValueError: there are not so many test images, or the file of inputs is not what it should be.
    """
    images, labels = _test_images(config) if config.inputs is None else (_own_images(config.inputs), None)
    inputs = (images - np.float32(config.mean)) / np.float32(config.std)
    return inputs.reshape(len(images), -1), labels


def _test_images(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1] and labels."""
    dataset = data.load(config.dataset, config.data)
    if config.images > len(dataset.test):
        raise ValueError(
            f"images must be at most {len(dataset.test)}, which is all of {dataset.source} {config.dataset}, "
            f"not {config.images}"
        )
    return data.scale(dataset.test.images[: config.images]), dataset.test.labels[: config.images]


def _own_images(path: Path) -> np.ndarray:
    """Numbers in [0, 1] from a .npy file."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, UnicodeError) as error:
        raise ValueError(f"{path} is no .npy file of numbers") from error
    if not isinstance(array, np.ndarray) or array.ndim < 2 or not array.size or array.dtype.kind not in "uf":
        raise ValueError(f"{path} must hold one array [N, ...] of uint8, or of floats in [0, 1]")
    if array.dtype == np.uint8:
        return data.scale(array)
    if not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            f"{path} has numbers from {array.min():.4g} to {array.max():.4g}: scale them to [0, 1]"
        )
    return array.astype(np.float32)


def server_terms(layers: Sequence[mlp.Layer], config: Config) -> roles.Terms:
    """What the server announces: scales for the whole range of normalised pixels."""
    return roles.terms(layers, config.fraction_bits, *input_range(config), config.reveal)


def input_range(config: Config) -> tuple[float, float]:
    """What black and white pixels are, once normalised; client and server must mean the same."""
    black, white = ((np.float32(x) - np.float32(config.mean)) / np.float32(config.std) for x in (0, 1))
    return float(black), float(white)


def slow_line(config: Config) -> Line:
    """The connection for which the time is projected."""
    return Line(config.round_trip / 2000, config.bandwidth * 1e6 / 8)

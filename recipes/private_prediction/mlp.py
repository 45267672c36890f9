"""The network: fully connected layers with ReLU between them, read from a weights file.

Any such network works: the layers are the 2-D tensors named `*.weight` of a PyTorch state dict, in its
order, or of a safetensors file, which keeps none, in the natural order of their names (fc2 before fc10); each
has a `*.bias` or none. Neither kind of file says which activation there was: it is taken to be ReLU.
"""

from __future__ import annotations

import itertools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes import data, training, weights

SHIPPED = "models/mnist_mlp.safetensors"
"""The network that comes with the recipe, as its `Config` names it."""
COMMAND = "python -m recipes.private_prediction --train"
"""What trains it anew."""


@dataclass(frozen=True)
class Layer:
    """A fully connected layer: x -> weight x + bias."""

    weight: np.ndarray
    """`[outputs, inputs]` float32."""
    bias: np.ndarray
    """`[outputs]` float32."""


def read(path: Path | str) -> list[Layer]:
    """Layers of a `.safetensors` file or of a PyTorch state dict.

    A state dict is read with `weights_only=True`: nothing in the file is executed.

    Raises:
        ValueError: the file holds something other than such a network.
        OSError: there is no such file.
    """
    path = weights.path_of(Path(path).name) if str(path) == SHIPPED else Path(path)
    if name := weights.name_of(path):
        weights.checked(name, COMMAND)
    tensors = _tensors(path)
    try:
        if path.suffix == ".safetensors":
            tensors = _in_order(tensors)
        return _layers(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """float32 arrays by name, of either kind of file."""
    if not path.is_file():
        raise FileNotFoundError(2, "it is no file" if path.exists() else "there is no such file", str(path))
    if Path(path).suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: Any = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
    else:
        tensors = _state_dict(path)
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor)
    return {name: tensor.detach().resolve_neg().float().numpy() for name, tensor in tensors.items()}


def _check_tensor(path: Path, name: Any, tensor: Any) -> None:
    """Raise ValueError unless these are plain numbers that the file really holds."""
    import torch

    plain = isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
    if (
        not plain
        or tensor.is_nested
        or tensor.is_quantized
        or tensor.is_complex()
        or tensor.device.type != "cpu"
    ):
        raise ValueError(f"{path} has {name!r}, which is no array of real numbers: save weights as float32")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{path} has {name!r}, of which it holds only a part")


def _state_dict(path: Path) -> Mapping[str, Any]:
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > 2 * path.stat().st_size + 10_000:
                raise ValueError(f"{path} is compressed, which PyTorch's files are not")
    try:
        with warnings.catch_warnings(action="ignore"):
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's and PyTorch's own, of many types, for files that are no such thing
        raise ValueError(
            f"{path} cannot be read as a PyTorch state dict ({type(error).__name__}): it must hold "
            "tensors and nothing else, as torch.save(network.state_dict(), FILE) writes it"
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(one, torch.Tensor) for one in tensors.values()):
        raise ValueError(f"{path} is no state dict: save it with torch.save(network.state_dict(), FILE)")
    return tensors


def _layers(tensors: Mapping[str, np.ndarray]) -> list[Layer]:
    """The layers, in the order in which their weights come.

    Raises:
        ValueError: these are no fully connected layers that fit together.
    """
    names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    strange = set(tensors) - {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    if not names or strange:
        what = f"{min(strange)} is neither" if strange else "there is none"
        raise ValueError(f"a network has tensors NAME.weight and NAME.bias only; {what}")
    layers = []
    for name in names:
        weight = np.ascontiguousarray(tensors[f"{name}.weight"])
        bias = tensors.get(f"{name}.bias", np.zeros(len(weight), np.float32))
        if weight.ndim != 2 or 0 in weight.shape or bias.shape != (len(weight),):
            raise ValueError(
                f"{name} has a weight of shape {weight.shape} and a bias of shape {bias.shape}; "
                "a fully connected layer has [outputs, inputs] and [outputs]"
            )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"{name} has weights that are not finite")
        if layers and layers[-1].weight.shape[0] != weight.shape[1]:
            raise ValueError(
                f"{name} takes {weight.shape[1]} inputs where the layer before it has "
                f"{layers[-1].weight.shape[0]} outputs"
            )
        layers.append(Layer(weight, np.ascontiguousarray(bias)))
    return layers


def _in_order(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors in the order of the numbers in their names, or in the only one in which layers fit together.

    Raises:
        ValueError: neither tells the order of the layers.
    """
    names = [name for name in tensors if name.endswith(".weight")]
    numbered = all(any(map(str.isdecimal, name)) for name in names)
    if numbered and len({tuple(_natural(name)) for name in names}) == len(names):
        order = sorted(names, key=_natural)
    else:
        fitting = list(itertools.islice(_orders(names, tensors), 2)) if len(names) <= 8 else []
        if len(fitting) != 1:
            raise ValueError(
                "the names of the layers do not tell their order: number them, as fc1 and fc2 are, or use a "
                "PyTorch state dict, which keeps it"
            )
        order = fitting[0]
    return {name: tensors[name] for name in order} | dict(tensors)


def _orders(
    names: Sequence[str], tensors: Mapping[str, np.ndarray], width: int | None = None
) -> Iterator[list[str]]:
    """All orders in which each layer takes what the one before it gives, the first one that many inputs."""
    if not names:
        yield []
    for first in names:
        if width in (None, tensors[first].shape[-1]):
            others = [name for name in names if name != first]
            yield from ([first, *order] for order in _orders(others, tensors, tensors[first].shape[0]))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which fc2 comes before fc10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def logits(layers: Sequence[Layer], inputs: np.ndarray) -> np.ndarray:
    """Outputs `[N, classes]` of inputs `[N, …]` float32, in the clear."""
    network = _network(layers)
    return training.predict(network, np.ascontiguousarray(inputs, np.float32))


def _network(layers: Sequence[Layer]) -> Any:
    """The same layers as a PyTorch module."""
    import torch

    modules: list[torch.nn.Module] = []
    for layer in layers:
        linear = torch.nn.Linear(*reversed(layer.weight.shape))
        linear.weight.data, linear.bias.data = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def train(source: data.Source, seed: int = 0, epochs: int = 12) -> tuple[list[Layer], float]:
    """The source's network, 784-500-10, trained on MNIST, and its accuracy on the test images."""
    import torch

    mnist = data.load("mnist", source)
    with (
        torch.random.fork_rng()
    ):  # initial weights come from PyTorch's global generator, which we leave alone
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Linear(784, 500), torch.nn.ReLU(), torch.nn.Linear(500, 10))
    images, test_images = (data.scale(s.images).reshape(-1, 784) for s in (mnist.train, mnist.test))
    training.train(
        network, images, mnist.train.labels, epochs=epochs, learning_rate=2e-3, weight_decay=0.05, seed=seed
    )
    layers = [
        Layer(network[place].weight.detach().numpy(), network[place].bias.detach().numpy())
        for place in (0, 2)
    ]
    return layers, training.accuracy(network, test_images, mnist.test.labels)


def write(layers: Sequence[Layer], card: Mapping[str, str]) -> None:
    """Write layers, as `fc1.weight`, `fc1.bias`, …, in place of the network that comes with the recipe."""
    tensors = {}
    for number, layer in enumerate(layers, 1):
        tensors |= {f"fc{number}.weight": layer.weight, f"fc{number}.bias": layer.bias}
    weights.write(Path(SHIPPED).name, tensors, card)

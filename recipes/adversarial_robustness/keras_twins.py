"""The same weights in Keras and in PyTorch, which order axes differently; and TensorFlow without its
greeting."""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    import tensorflow as tf


def tensorflow() -> ModuleType:
    """TensorFlow, quietly."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    return tensorflow


def fit(
    model: tf.keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    random: np.random.Generator,
) -> None:
    """Train a compiled model on shuffled examples; Keras itself would ask TensorFlow's global generator."""
    for _ in range(epochs):
        order = random.permutation(len(images))
        model.fit(images[order], labels[order], batch_size=batch_size, shuffle=False, verbose=0)


def to_pytorch(model: tf.keras.Model, module: nn.Sequential) -> nn.Sequential:
    """Copy a Keras model's weights into a PyTorch module of the same layers; gives it in evaluation mode.

    Raises:
        ValueError: the layers do not fit.
    """
    arrays = model.get_weights()
    parameters = list(module.parameters())
    if len(arrays) != len(parameters):
        raise ValueError(f"{len(arrays)} arrays in Keras do not fit {len(parameters)} in PyTorch")
    with torch.no_grad():
        for parameter, array, turn in zip(parameters, arrays, _turns(module), strict=True):
            turned = torch.from_numpy(np.ascontiguousarray(_first(array, turn)))
            if turned.shape != parameter.shape:
                raise ValueError(
                    f"{list(array.shape)} in Keras does not fit {list(parameter.shape)} in PyTorch"
                )
            parameter.copy_(turned)
    return module.eval()


def to_keras(module: nn.Sequential, model: tf.keras.Model) -> tf.keras.Model:
    """The other way."""
    parameters = [parameter.detach().numpy() for parameter in module.parameters()]
    model.set_weights([_last(array, turn) for array, turn in zip(parameters, _turns(module), strict=True)])
    return model


def _turns(module: nn.Sequential) -> list[int]:
    """For each parameter the channels that were flattened before it, 0 where none were."""
    turns, channels, flattened = [], 0, False
    for layer in module:
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        flattened = flattened or isinstance(layer, nn.Flatten)
        for parameter in layer.parameters():
            turns.append(channels if flattened and parameter.ndim == 2 else 0)
            if parameter.ndim == 2:
                channels = 0
    return turns


def _first(array: np.ndarray, flattened: int) -> np.ndarray:
    """Keras' [height, width, in, out] or [in, out] in PyTorch's order."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2 and flattened:
        side = round((len(array) / flattened) ** 0.5)
        return array.reshape(side, side, flattened, -1).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return array.T


def _last(array: np.ndarray, flattened: int) -> np.ndarray:
    """PyTorch's [out, in, height, width] or [out, in] in Keras' order."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 2 and flattened:
        side = round((array.shape[1] / flattened) ** 0.5)
        return array.reshape(-1, flattened, side, side).transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array.T

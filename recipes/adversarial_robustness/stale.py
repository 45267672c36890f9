"""The Huawei article's defence: adversarial training on examples that were made once, before it began.

Source: "Deep learning models in Python: model security and defence", Huawei Cloud community; a Keras CNN,
CleverHans' FGSM at epsilon 0.3, unclipped, and five more epochs on images and adversarial images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from recipes import data
from recipes.adversarial_robustness import keras_twins, networks

if TYPE_CHECKING:
    import tensorflow as tf

EPSILON = 0.3


def network(seed: int = 0) -> tf.keras.Sequential:
    """The article's CNN, untrained: `[N, 28, 28, 1]` -> probabilities `[N, 10]`, 121,930 parameters."""
    tensorflow = keras_twins.tensorflow()
    layers, initial = tensorflow.keras.layers, tensorflow.keras.initializers.GlorotUniform
    return tensorflow.keras.Sequential(
        [
            layers.Conv2D(
                32, 3, activation="relu", input_shape=(28, 28, 1), kernel_initializer=initial(seed)
            ),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu", kernel_initializer=initial(seed + 1)),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu", kernel_initializer=initial(seed + 2)),
            layers.Dense(10, activation="softmax", kernel_initializer=initial(seed + 3)),
        ]
    )


def train(split: data.Split, *, defend: bool, epochs: int = 5, seed: int = 0) -> nn.Sequential:
    """The network as a PyTorch module that gives logits, before or after the article's adversarial
    training."""
    model, random = network(seed), np.random.default_rng(seed)
    images = data.channels_last(data.scale(split.images))
    _fit(model, images, split.labels, epochs, random)
    if defend:
        adversarial = fgsm(model, images)  # the mistake: made once, against the network as it was
        _fit(model, np.concatenate([images, adversarial]), np.tile(split.labels, 2), epochs, random)
    return keras_twins.to_pytorch(model, networks.article())


def _fit(
    model: tf.keras.Model, images: np.ndarray, labels: np.ndarray, epochs: int, random: np.random.Generator
) -> None:
    model.compile("adam", "sparse_categorical_crossentropy")
    keras_twins.fit(model, images, labels, epochs=epochs, batch_size=32, random=random)


def fgsm(model: tf.keras.Model, images: np.ndarray, epsilon: float = EPSILON) -> np.ndarray:
    """The article's call of CleverHans: of probabilities taken for logits, against what the model itself
    says, and not cut to [0, 1]. `[N, 28, 28, 1]` float32 -> the same."""
    from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method

    return np.concatenate(
        [
            fast_gradient_method(model, images[i : i + 1000], epsilon, np.inf).numpy()
            for i in range(0, len(images), 1000)
        ]
    )


def as_keras(module: nn.Sequential) -> tf.keras.Sequential:
    """A trained network as the article has it, giving probabilities."""
    return keras_twins.to_keras(module, network())

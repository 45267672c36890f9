"""The attack from scratch: walk an image up the gradient of another class until the network believes it.

Source: "Reinventing adversarial machine learning: adversarial ML from scratch", Towards Data Science; a Keras
network of one convolution, max pooling and one dense layer, without an activation, 10,210 parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recipes import data
from recipes.adversarial_robustness import keras_twins

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Walk:
    """Targeted attacks on some digits, step by step."""

    images: np.ndarray
    """`[N, 28, 28]` float32, where they began."""
    labels: np.ndarray
    """`[N]`, what they are."""
    targets: np.ndarray
    """`[N]`, what they shall be taken for."""
    adversarial: np.ndarray
    """`[N, 28, 28]` float32, where they ended."""
    steps: np.ndarray
    """`[N]`, how many it took; as many as allowed where the target was not reached."""
    reached: np.ndarray
    """`[N]` bool."""
    path: np.ndarray
    """`[steps + 1, 28, 28]` float32, the way of the first digit."""
    confidences: np.ndarray
    """`[steps + 1, 10]`, what the network made of each of them."""

    @property
    def l2(self) -> np.ndarray:
        """`[N]`, L2 length of each perturbation."""
        return np.sqrt(np.square(self.adversarial - self.images).sum((1, 2)))

    @property
    def linf(self) -> np.ndarray:
        """`[N]`, the largest change of a pixel."""
        return np.abs(self.adversarial - self.images).max((1, 2))


def network(seed: int = 0) -> tf.keras.Sequential:
    """The article's network, untrained: `[N, 28, 28, 1]` -> logits `[N, 10]`, 10,210 parameters."""
    tensorflow = keras_twins.tensorflow()
    layers, initial = tensorflow.keras.layers, tensorflow.keras.initializers.GlorotUniform
    return tensorflow.keras.Sequential(
        [
            layers.Conv2D(6, 3, input_shape=(28, 28, 1), kernel_initializer=initial(seed)),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, kernel_initializer=initial(seed + 1)),
        ]
    )


def train(split: data.Split, *, epochs: int = 8, seed: int = 0) -> tf.keras.Sequential:
    """The article's network, trained on all images, with Adam."""
    tensorflow = keras_twins.tensorflow()
    trained = network(seed)
    trained.compile("adam", tensorflow.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(seed)
    images = data.channels_last(data.scale(split.images))
    keras_twins.fit(trained, images, split.labels, epochs=epochs, batch_size=64, random=random)
    return trained


def walk(
    model: tf.keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    targets: np.ndarray,
    *,
    step_size: float = 0.05,
    steps: int = 200,
) -> Walk:
    """Gradient ascent on the pixels until each digit is taken for its target.

    Each step is the gradient of the target's log-probability, divided by its largest entry and times
    `step_size`, and the image is cut to [0, 1]. All digits walk at once.

    Args:
        images: `[N, 28, 28]` float32 in [0, 1].
        labels, targets: `[N]` integers.

    Raises:
        ValueError: a target is the digit's own label.
    """
    if np.any(targets == labels):
        raise ValueError("targets must differ from labels: nothing would be attacked")
    tensorflow = keras_twins.tensorflow()

    @tensorflow.function(input_signature=[tensorflow.TensorSpec((None, 28, 28, 1), tensorflow.float32)])
    def look(pixels):
        with tensorflow.GradientTape() as tape:
            tape.watch(pixels)
            scores = tensorflow.nn.log_softmax(model(pixels, training=False))
        return scores, tape.batch_jacobian(scores, pixels)

    moved = images[..., None].astype(np.float32)
    rows, taken = np.arange(len(images)), np.full(len(images), steps)
    path, confidences = [], []
    for step in range(steps + 1):
        scores, slopes = (result.numpy() for result in look(moved))
        reached = scores.argmax(1) == targets
        taken = np.where(reached, np.minimum(taken, step), taken)
        if step <= taken[0]:
            path.append(moved[0, ..., 0].copy())
            confidences.append(np.exp(scores[0]))
        if reached.all() or step == steps:
            break
        slope = slopes[rows, targets]
        slope /= np.abs(slope).max((1, 2, 3), keepdims=True) + 1e-20
        moved = np.where(reached[:, None, None, None], moved, (moved + step_size * slope).clip(0, 1))
    return Walk(images, labels, targets, moved[..., 0], taken, reached, np.array(path), np.array(confidences))

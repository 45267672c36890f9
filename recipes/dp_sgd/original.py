"""The chapter's experiment on TensorFlow Privacy: its network, its optimiser, its constants."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recipes import data, progress

if TYPE_CHECKING:
    import tensorflow as tf


def train(
    weights: Sequence[np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    steps: int,
    batch: int = 250,
    microbatches: int = 250,
    clip: float = 1.0,
    noise_multiplier: float = 1.1,
    learning_rate: float = 0.15,
    seed: int | None = 0,
) -> list[np.ndarray]:
    """Train from some weights, on shuffled batches of one size, as Keras does.

    Args:
        weights: in Keras' order and layout, as `networks.initial_weights` makes them.
        images: `[N, 28, 28]` uint8.
        labels: `[N]` integers.
        microbatches: groups of a batch whose mean gradient is clipped; must divide the batch.
        seed: of the order, and of TensorFlow's noise, which has no generator of its own.

    Returns:
        The trained weights, in the same layout.

    Raises:
        ImportError: TensorFlow Privacy is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow logs its start at length
    try:
        import tensorflow as tf
        from tensorflow_privacy import DPKerasSGDOptimizer
    except ImportError as error:
        raise ImportError(
            f"engine=tf-privacy needs TensorFlow Privacy: run `make setup` ({error})"
        ) from error

    network = keras_network(weights)
    if seed is not None:
        tf.random.set_seed(seed)
    network.compile(
        DPKerasSGDOptimizer(
            l2_norm_clip=clip,
            noise_multiplier=noise_multiplier,
            num_microbatches=microbatches,
            learning_rate=learning_rate,
        ),
        # a loss for each example, so that each gradient can be clipped
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=tf.losses.Reduction.NONE),
    )
    random = np.random.default_rng(seed)
    waiting = np.empty(0, dtype=np.int64)
    for _ in progress.bar(range(steps), "TensorFlow Privacy"):
        if len(waiting) < batch:
            waiting = random.permutation(len(images))
        taken, waiting = waiting[:batch], waiting[batch:]
        network.train_on_batch(data.channels_last(data.scale(images[taken])), labels[taken])
    return network.get_weights()


def keras_network(weights: Sequence[np.ndarray]) -> tf.keras.Sequential:
    """The chapter's network with some weights, not compiled."""
    import tensorflow as tf

    layers = tf.keras.layers
    network = tf.keras.Sequential(
        [
            layers.Conv2D(16, 8, strides=2, padding="same", activation="relu", input_shape=(28, 28, 1)),
            layers.MaxPool2D(2, 1),
            layers.Conv2D(32, 4, strides=2, padding="valid", activation="relu"),
            layers.MaxPool2D(2, 1),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )
    network.set_weights(weights)
    return network

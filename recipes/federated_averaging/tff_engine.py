"""The same protocol on TensorFlow Federated: softmax regression, FedAvg, all clients in every round."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from recipes.federated_averaging.config import Config
from recipes.federated_averaging.networks import Examples
from recipes.federated_averaging.simulation import Round


def tff_rounds(clients: Sequence[Examples], config: Config) -> Iterator[Round]:
    """FedAvg on TensorFlow Federated's learning API: an endless run of rounds.

    Raises:
        ImportError: TensorFlow Federated is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow logs its start at length
    try:
        import tensorflow as tf
        import tensorflow_federated as tff
    except ImportError as error:
        raise ImportError(f"engine=tff needs TensorFlow Federated: run `make setup` ({error})") from error

    def dataset(examples: Examples) -> tf.data.Dataset:
        columns = {"x": examples.pixels, "y": examples.labels[:, None].astype(np.int32)}
        slices = tf.data.Dataset.from_tensor_slices(columns)
        return slices.batch(config.batch_size).repeat(config.local_epochs)

    datasets = [dataset(examples) for examples in clients]

    def model() -> tff.learning.models.VariableModel:
        dense = tf.keras.layers.Dense(10, kernel_initializer="zeros", input_shape=(784,))
        return tff.learning.models.from_keras_model(
            tf.keras.Sequential([dense]),
            input_spec=datasets[0].element_spec,
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[tf.keras.metrics.SparseCategoricalAccuracy("accuracy")],
        )

    with tff_runtime(tff):
        process = tff.learning.algorithms.build_weighted_fed_avg(
            model, client_optimizer_fn=tff.learning.optimizers.build_sgdm(config.learning_rate)
        )
        state = process.initialize()
        while True:
            state, metrics = process.next(state, datasets)
            train = metrics["client_work"]["train"]
            parts = process.get_model_weights(state).trainable
            vector = np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)
            yield Round(vector, float(train["accuracy"]), float(train["loss"]), tuple(range(len(clients))))


@contextlib.contextmanager
def tff_runtime(tff) -> Iterator[None]:
    """TFF's local runtime, whose `worker_binary` server ends with the block.

    Left alone, that server outlives the program and holds its output open: a pipe never ends. And of the
    code that TensorFlow makes, which it deletes, Python's bytecode would stay behind.
    """
    import psutil

    no_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    use_new_runtime = tff.backends.native.set_sync_local_cpp_execution_context
    use_new_runtime()
    try:
        yield
    except GeneratorExit:
        use_new_runtime()  # TFF ends the server of a runtime that nothing refers to any more …
        raise
    finally:
        sys.dont_write_bytecode = no_bytecode
        for child in psutil.Process().children(recursive=True):
            if child.name() == "worker_binary":  # … but an exception on its way out may refer to it
                child.kill()

"""DP-SGD beside its peers: the chapter's network, batches of 250, CPU seconds an epoch of 60,000 images.

All in one run, one thread, the peers in turns; the same batches. A step is everything from the batch to the
new weights, noise included. Plain PyTorch and Opacus run with channels last, as the recipe does, and with
channels first; Opacus only where its gradients are right (with channels last its modes "hooks" and "ghost"
are not, which is checked, and said). TensorFlow has a process of its own, and few steps: they take seconds.

    python benchmarks/dp_sgd.py [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")

import numpy as np

from recipes import cards, data
from recipes.dp_sgd import networks

TURNS, STEPS, WARM = 3, 40, 5
"""Turns of each peer; steps a turn, after some that are not timed."""
TENSORFLOW_STEPS = {"tf-privacy": 4, "keras": 40}
BATCH, CLIP, NOISE, RATE = 250, 1.0, 1.1, 0.15
EPOCH = 60_000 / BATCH


def batches(source: data.Source = "auto") -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the steps of one turn, `[steps · 250, …]`."""
    train = data.load("mnist", source).train
    order = np.random.default_rng(0).permutation(len(train))[: (STEPS + WARM) * BATCH]
    return train.images[order], train.labels[order]


def timed(step: Callable[[int], object], steps: int = STEPS, warm: int = WARM) -> float:
    """CPU seconds of an epoch of such steps."""
    for i in range(warm):
        step(i)
    start = time.process_time()
    for i in range(steps):
        step(warm + i)
    return (time.process_time() - start) / steps * EPOCH


# --- PyTorch -----------------------------------------------------------------------------------------


def pytorch_peers(images: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    """Each peer's name and what times one turn of it."""
    import torch

    torch.set_num_threads(1)
    layouts = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}
    targets = networks.labels(labels).split(BATCH)
    inputs = {
        name: [x.clone(memory_format=layout) for x in networks.images(images).split(BATCH)]
        for name, layout in layouts.items()
    }
    peers: dict[str, Callable[[], float]] = {}
    for engine in ("fast", "vmap"):
        peers[f"this recipe, {engine}"] = lambda engine=engine: ours(engine, inputs["channels last"], targets)
    for name, layout in layouts.items():
        peers[f"plain PyTorch, {name}"] = lambda name=name, layout=layout: plain(
            layout, inputs[name], targets
        )
        for mode in ("hooks", "ew", "ghost", "functorch"):
            if right(mode, layout, inputs[name][0], targets[0]):
                peers[f"Opacus {mode}, {name}"] = lambda mode=mode, name=name, layout=layout: opacus(
                    mode, layout, inputs[name], targets
                )
            else:
                print(f"Opacus {mode}, {name}: its gradients are not those of single examples; left out")
    return peers


def ours(engine: str, inputs: list, targets: list) -> float:
    """A turn of this recipe."""
    import torch

    from recipes.dp_sgd import Settings, Trainer

    network = networks.chapter(networks.initial_weights(0))
    how = Settings(
        steps=WARM + STEPS, batch=BATCH, clip=CLIP, noise_multiplier=NOISE, learning_rate=RATE, engine=engine
    )
    trainer = Trainer(network, torch.cat(inputs), torch.cat(targets), how)
    order = torch.arange(len(trainer.labels)).split(BATCH)  # the same batches as everyone else's
    trainer.sampler = iter(order)
    return timed(lambda _: trainer.step())


def plain(layout, inputs: list, targets: list) -> float:
    """A turn of SGD without privacy."""
    import torch

    network = networks.chapter(networks.initial_weights(0)).to(memory_format=layout)
    optimiser = torch.optim.SGD(network.parameters(), RATE)

    def step(i: int) -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs[i]), targets[i]).backward()
        optimiser.step()

    return timed(step)


def private(mode: str, layout, inputs, targets, noise: float):
    """Opacus: network, optimiser and loss, for steps of our own."""
    import torch
    from opacus import PrivacyEngine

    network = networks.chapter(networks.initial_weights(0)).to(memory_format=layout)
    made = PrivacyEngine().make_private(
        module=network,
        optimizer=torch.optim.SGD(network.parameters(), RATE),
        data_loader=torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(inputs, targets), batch_size=BATCH
        ),
        noise_multiplier=noise,
        max_grad_norm=CLIP,
        poisson_sampling=False,
        criterion=torch.nn.CrossEntropyLoss(),
        grad_sample_mode=mode,
    )
    return made[0], made[1], made[2] if mode == "ghost" else torch.nn.CrossEntropyLoss()


def right(mode: str, layout, inputs, targets) -> bool:
    """Whether Opacus' step without noise is this recipe's."""
    import torch

    from recipes.dp_sgd import clipped_sum

    reference = networks.chapter(networks.initial_weights(0))
    network, optimiser, loss = private(mode, layout, inputs, targets, 0.0)
    loss(network(inputs), targets).backward()
    optimiser.step()
    sums = clipped_sum(reference, inputs, targets, CLIP).gradients
    return all(
        torch.allclose(p - RATE / BATCH * s, q, atol=1e-6)
        for p, s, q in zip(reference.parameters(), sums, network.parameters(), strict=True)
    )


def opacus(mode: str, layout, inputs: list, targets: list) -> float:
    """A turn of Opacus."""
    network, optimiser, loss = private(mode, layout, inputs[0], targets[0], NOISE)

    def step(i: int) -> None:
        optimiser.zero_grad()
        loss(network(inputs[i]), targets[i]).backward()
        optimiser.step()

    return timed(step)


# --- TensorFlow --------------------------------------------------------------------------------------


def by_tensorflow(peer: str) -> float:
    """A turn of TensorFlow, in a process of its own."""
    done = subprocess.run(  # noqa: S603 - this Python, this script
        [sys.executable, __file__, "--tensorflow", peer], check=True, capture_output=True, text=True
    )
    return float(done.stdout.splitlines()[-1])


def tensorflow_turn(peer: str) -> float:
    """What that process does."""
    import tensorflow as tf
    from tensorflow_privacy import DPKerasSGDOptimizer

    from recipes.dp_sgd import original

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    network = original.keras_network(networks.initial_weights(0))
    if peer == "tf-privacy":
        optimiser, reduction = DPKerasSGDOptimizer(CLIP, NOISE, BATCH, learning_rate=RATE), "none"
    else:
        optimiser, reduction = tf.keras.optimizers.legacy.SGD(RATE), "sum_over_batch_size"
    network.compile(
        optimiser, tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    )
    images, labels = batches()
    inputs = np.split(images[..., None].astype(np.float32) / 255, len(images) // BATCH)
    targets = np.split(labels, len(images) // BATCH)
    return timed(lambda i: network.train_on_batch(inputs[i], targets[i]), TENSORFLOW_STEPS[peer], warm=2)


# --- the table ---------------------------------------------------------------------------------------


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tensorflow", choices=TENSORFLOW_STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tensorflow:
        print(tensorflow_turn(arguments.tensorflow))
        return
    warnings.filterwarnings("ignore")  # Opacus: that its generator is not cryptographic
    peers = pytorch_peers(*batches())
    peers |= {name: lambda name=name: by_tensorflow(name) for name in TENSORFLOW_STEPS}
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(TURNS):
        for name, peer in peers.items():
            seconds[name].append(peer())
            print(f"turn {turn + 1}, {name}: {seconds[name][-1]:.1f} CPU seconds an epoch", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    mine = medians["this recipe, fast"]
    print(f"\n{'':<32}{'CPU s an epoch':>16}{'times ours':>12}")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        print(f"{name:<32}{median:>16.1f}{median / mine:>12.2f}")
    if arguments.json:
        ratios: dict[str, dict[str, float]] = {
            "TensorFlow Privacy": {"an epoch": medians["tf-privacy"] / mine}
        }
        for name, median in medians.items():
            peer, _, how = name.partition(" ")
            if peer in ("Opacus", "plain"):
                ratios.setdefault(peer.replace("plain", "SGD without privacy"), {})[
                    how.removeprefix("PyTorch, ")
                ] = median / mine
        record = {"cpu_seconds_epoch": medians, "turns": seconds, "ratios": ratios}
        cards.write_json(arguments.json, record)


if __name__ == "__main__":
    main()

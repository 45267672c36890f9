"""Plain PyTorch training and evaluation of an image classifier; the recipes differ in the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from recipes import progress

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: on small work more gain nothing, and wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    network: torch.nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    optimiser: Literal["adamw", "sgd"] = "adamw",
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    finished: Callable[[], bool] | None = None,
    seed: int = 0,
) -> None:
    """Train a network in place: cross-entropy, the learning rate falling to 0 along a cosine.

    Args:
        network: images -> logits `[batch, classes]`.
        images: `[N, ...]` float32.
        labels: `[N]` integers.
        optimiser: AdamW; or SGD with Nesterov's momentum, whose rate rises for a fifth of the steps before it
            falls, and momentum the other way round (Smith and Topin 2018, arXiv:1708.07120).
        augment: what each batch is changed by, such as one of torchvision's transforms; it may draw from
            PyTorch's global generator, which is put back.
        finished: asked after each epoch, with the network in evaluation mode; True ends the training.
        seed: of the order of the examples, and of `augment`; the initial weights are the caller's.
    """
    import torch

    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * max(1, -(-(len(inputs) - 1) // batch_size))
    parameters, rates = network.parameters(), torch.optim.lr_scheduler
    how = {"lr": learning_rate, "weight_decay": weight_decay}
    if optimiser == "adamw":
        stepper = torch.optim.AdamW(parameters, **how)
        schedule = rates.CosineAnnealingLR(stepper, steps)
    else:
        stepper = torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **how)
        rise = 0.3 if steps == 5 else 0.2  # a rise of one step exactly is more than PyTorch can divide
        schedule = rates.OneCycleLR(stepper, learning_rate, steps, pct_start=rise)
    network.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in progress.bar(range(epochs), "training", unit="epoch"):
            for batch in batches(torch.randperm(len(inputs), generator=generator), batch_size):
                seen = augment(inputs[batch]) if augment else inputs[batch]
                stepper.zero_grad()
                torch.nn.functional.cross_entropy(network(seen), targets[batch]).backward()
                stepper.step()
                schedule.step()
            network.eval()
            if finished and finished():
                break
            network.train()
    network.eval()


def batches(order: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Batches of a size; a last one of a single example, which cannot be normalised, joins the one before."""
    import torch

    *whole, last = order.split(size)
    return [*whole[:-1], torch.cat([whole[-1], last])] if whole and len(last) == 1 else [*whole, last]


def predict(
    network: torch.nn.Module, images: np.ndarray | torch.Tensor, batch_size: int = 1000
) -> np.ndarray:
    """Logits `[N, classes]` float32 of images `[N, ...]` float32."""
    import torch

    with torch.no_grad():  # not inference mode, in which a network that searches by gradient could not
        return torch.cat([network(batch) for batch in torch.as_tensor(images).split(batch_size)]).numpy()


def accuracy(
    network: torch.nn.Module, images: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor
) -> float:
    """Share of images whose largest logit is the label's, counted one by one."""
    return float(np.mean(predict(network, images).argmax(axis=1) == np.asarray(labels)))

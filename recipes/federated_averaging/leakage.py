"""What one client's change tells of its images: all of them, if they are few.

Papers: Zhu, Liu and Han, 2019, arXiv:1906.08935 (gradients turned back by optimisation); Geiping et al.,
2020, arXiv:2003.14053 (the angle between gradients, and smooth images).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from recipes import progress
from recipes.federated_averaging.config import FEWEST, Config
from recipes.federated_averaging.networks import NETWORKS, ConvolutionalNetwork, Examples, SoftmaxRegression
from recipes.federated_averaging.privacy import shortened
from recipes.federated_averaging.simulation import client_update

IMAGES, BATCH = 100, 4
"""Images that `reconstruction_mse` attacks: of softmax regression one by one, of the CNN one batch."""


def image_from_change(change: np.ndarray) -> tuple[np.ndarray, int]:
    """The image and label of a client that took its steps on one single example, by softmax regression.

    A step on class j's weights is `rate * (y_j - p_j)` times the image, and on its bias the same without the
    image, so that dividing one by the other gives the image. Only the true class's bias grows.

    Args:
        change: `[7850]` float32.

    Returns:
        Pixels `[784]` float32, exact up to rounding, and the label.
    """
    weights, bias = SoftmaxRegression.unpack(change)
    label = int(bias.argmax())
    with np.errstate(divide="ignore", invalid="ignore"):
        return weights[:, label] / bias[label], label


def labels_from_change(change: np.ndarray, count: int) -> np.ndarray:
    """The labels of a small batch of an untrained network, from how the last layer's bias moved: `[count]`
    int64, sorted.

    The mean step on bias j is `rate * (share of class j - mean probability of j)`, and before anything is
    learned that probability is 1/10. So the lowest biases, of the classes that are not there, tell the rate,
    and with it the others tell their shares, which are multiples of 1 / count.
    """
    bias = change[-10:].astype(np.float64)
    unit = max(-np.sort(bias)[: 10 - min(count, 9)].mean() * 10, 1e-12)
    share = bias / unit + 0.1
    labels = []
    for _ in range(count):
        label = int(share.argmax())
        labels.append(label)
        share[label] -= 1 / count
    return np.sort(np.array(labels, np.int64))


def images_from_change(
    model: np.ndarray,
    change: np.ndarray,
    count: int,
    *,
    steps: int = 300,
    rate: float = 0.05,
    smooth: float = 1e-3,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The images of a client of the CNN that took one step on a small batch: by gradient descent on images
    whose gradient points where the client's did.

    Args:
        model: what the client was sent, `[1663370]` float32, untrained.
        change: what it sent back, minus that.
        count: images in its batch.
        steps: of Adam; about 7 CPU seconds for 300 of them on four images.
        smooth: weight of the total variation.

    Returns:
        Pixels `[count, 784]` float32 in [0, 1], and labels `[count]` int64, by label.
    """
    import torch
    from torch.nn import functional

    network = ConvolutionalNetwork()
    labels = torch.from_numpy(labels_from_change(change, count))
    target = -torch.from_numpy(change.astype(np.float32))
    target = target / target.norm().clamp(min=1e-30)
    leaves = [leaf.requires_grad_() for leaf in network.unpack(torch.from_numpy(model.copy()))]
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((count, 1, 28, 28), generator=generator).requires_grad_()
    optimiser = torch.optim.Adam([images], rate)
    milestones = [steps // 2, 3 * steps // 4, 7 * steps // 8]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, 0.3)
    for _ in progress.bar(range(steps), "getting images back"):
        loss = functional.cross_entropy(network.logits(leaves, images), labels)
        parts = torch.autograd.grad(loss, leaves, create_graph=True)
        gradient = torch.cat([part.flatten() for part in parts])
        variation = images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
        apart = 1 - gradient @ target / gradient.norm().clamp(min=1e-12) + smooth * variation
        (images.grad,) = torch.autograd.grad(apart, images)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach().flatten(1).numpy(), labels.numpy()


def images_from_sum(total: np.ndarray, labels: Sequence[int], rate: float) -> np.ndarray:
    """The images of clients that each took one step on one of their own, from the sum of their changes: what
    secure aggregation does not hide.

    Of an untrained softmax regression class j's weights have moved by `rate * sum (y_j - 1/10) x` over all
    images x: ten equations, which a few images of different classes solve.

    Args:
        total: `[7850]`.
        labels: of the images, all different; fewer than ten.

    Returns:
        Pixels `[len(labels), 784]` float64, in the order of the labels.
    """
    weights, _ = SoftmaxRegression.unpack(np.asarray(total, np.float64))
    moved = rate * (np.eye(10)[:, list(labels)] - 0.1)  # [10, images]
    return np.linalg.lstsq(moved, weights.T, rcond=None)[0]


def one_by_one(changes: Sequence[np.ndarray], config: Config) -> list[np.ndarray]:
    """What the server sees of each client's change `[P]` by itself: the change, shortened with `clip`, or
    with `secure` what covers it. Noise does not count: the server adds it, or it is covered, too."""
    if config.clip:
        changes = [shortened(change, config.clip) for change in changes]
    if not config.secure:
        return list(changes)
    from recipes.federated_averaging import secure_aggregation as sealing

    seen: list[np.ndarray] = []
    step = sealing.step_of(max(float(np.abs(change).max()) for change in changes), FEWEST)
    for start in range(0, len(changes), FEWEST):
        group = list(changes[start : start + FEWEST])
        others = [np.zeros_like(group[0])] * (FEWEST - len(group))
        view = sealing.aggregate([*group, *others], step=step).view
        seen += [sealing.restore(view[place].astype(np.uint64), step) for place in range(len(group))]
    return seen


def reconstruction_mse(examples: Examples, config: Config) -> float:
    """Mean squared error of pixels in [0, 1] that an attacker gets back from what the server sees of each
    client's change by itself; a sum of few may still tell much, see `images_from_sum`.

    Of softmax regression the first hundred images, each held by a client of its own; of the CNN the first
    four, a client's only batch.
    """
    model, small = NETWORKS[config.network].initial(config.seed), _one_step(config)
    if config.network == "cnn":
        batch = Examples(examples.pixels[:BATCH], examples.labels[:BATCH])
        (seen,) = one_by_one([client_update(model, batch, small).change], config)
        pixels, _ = images_from_change(model, seen, len(batch.labels))
        orders = itertools.permutations(range(len(pixels)))
        return min(_mse(pixels[list(order)], batch.pixels) for order in orders)
    alone = zip(examples.pixels[:IMAGES, None], examples.labels[:IMAGES, None], strict=True)
    changes = [client_update(model, Examples(*one), small).change for one in alone]
    found = [image_from_change(seen)[0] for seen in one_by_one(changes, config)]
    return _mse(np.nan_to_num(np.stack(found)).clip(0, 1), examples.pixels[: len(found)])


def _one_step(config: Config) -> Config:
    return Config(network=config.network, learning_rate=config.learning_rate)


def _mse(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean((one.astype(np.float64) - other) ** 2))

"""A Bayesian last layer for a network that is trained: how sure is it of its confidence in a record?

Laplace's approximation with Kronecker factors (Ritter, Botev and Barber 2018; Daxberger et al. 2021,
arXiv:2106.14806), as BMIA uses it: the weights of the last layer are normal around what was trained,

    precision = A (x) G + tau I,    A = sum of h h^T,  G = mean of diag(p) - p p^T

over the training examples, with h what comes into the layer (and a 1 for the bias) and p the probabilities.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from recipes.membership_inference.attacks import confidences


def inputs_and_logits(network: nn.Module, inputs: np.ndarray) -> tuple[Tensor, Tensor] | None:
    """What comes into the layer that gives the logits, with a column of ones, `[N, D + 1]`; logits `[N, C]`.

    None if no fully connected layer gives them.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda m, came_in, out: seen.__setitem__(m, (came_in[0], out)))
        for module in network.modules()
        if isinstance(module, nn.Linear)
    ]
    features, logits = [], []
    try:
        with torch.no_grad():
            for batch in torch.from_numpy(inputs).split(1000):
                logits.append(network(batch))
                features += [came_in for came_in, out in seen.values() if out is logits[-1]]
    finally:
        for hook in hooks:
            hook.remove()
    if len(features) != len(logits):
        return None
    ones = torch.ones(len(inputs), 1)
    return torch.cat([torch.cat(features).flatten(1), ones], dim=1), torch.cat(logits)


def deviations(
    network: nn.Module,
    inputs: np.ndarray,
    labels: np.ndarray,
    trained_on: np.ndarray,
    prior_precision: float = 1.0,
    draws: int = 64,
    seed: int = 0,
) -> np.ndarray | None:
    """The posterior's standard deviation of each record's phi, `[N]` float32; None without such a layer.

    Args:
        network: trained, in evaluation mode.
        inputs, labels: `[N, ...]` and `[N]`.
        trained_on: `[N]` bool, what it was trained on.
        prior_precision: tau.
        draws: of the last layer's weights.
        seed: of the draws.
    """
    seen = inputs_and_logits(network, inputs)
    if seen is None:
        return None
    features, logits = (part.double() for part in seen)
    own = torch.from_numpy(trained_on)
    p = torch.softmax(logits[own], dim=1)
    of_inputs = features[own].T @ features[own]
    of_outputs = (torch.diag(p.sum(0)) - p.T @ p) / len(p)
    values_in, vectors_in = torch.linalg.eigh(of_inputs)
    values_out, vectors_out = torch.linalg.eigh(of_outputs)
    precision = values_in.clamp_min(0)[:, None] * values_out.clamp_min(0) + prior_precision  # [D + 1, C]
    # the logits' covariance in the basis of G is diagonal: sum over d of (h V)_d^2 / precision
    spread = ((features @ vectors_in) ** 2 @ (1 / precision)).sqrt()  # [N, C]
    generator = torch.Generator().manual_seed(seed)
    total = total_squares = 0.0
    for _ in range(draws):
        noise = torch.randn(1, logits.shape[1], generator=generator, dtype=torch.float64)
        phi = confidences((logits + (spread * noise) @ vectors_out.T).numpy(), labels)
        total, total_squares = total + phi, total_squares + phi**2
    variance = total_squares / draws - (total / draws) ** 2
    return np.sqrt(np.maximum(variance, 1e-12)).astype(np.float32)

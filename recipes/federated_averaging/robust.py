"""Hostile clients, and means that they cannot move far. All of these need to see each client's change.

Papers: Blanchard et al., 2017, "Machine learning with adversaries" (Krum); Yin et al., 2018,
arXiv:1803.01498 (median, trimmed mean); Tolpegin et al., 2020, arXiv:2007.08432 (label flipping).
"""

from __future__ import annotations

import numpy as np

from recipes.federated_averaging.networks import Examples

REVERSED_BY = 10
"""How many times its length a hostile client sends its change, reversed."""


def turned(examples: Examples, classes: int = 10) -> Examples:
    """The same images with label y called 9 - y."""
    return Examples(examples.pixels, (classes - 1 - examples.labels).astype(examples.labels.dtype))


def median(changes: np.ndarray) -> np.ndarray:
    """Of each coordinate: `[m, P]` -> `[P]`."""
    return np.median(changes, axis=0)


def trimmed_mean(changes: np.ndarray, hostile: int) -> np.ndarray:
    """Of each coordinate, without as many of the largest and of the smallest as are hostile.

    Raises:
        ValueError: nothing would be left.
    """
    if 2 * hostile >= len(changes):
        raise ValueError(f"{hostile} hostile of {len(changes)} clients: trimming both ends leaves none")
    ordered = np.sort(changes, axis=0)
    return ordered[hostile : len(changes) - hostile].mean(axis=0)


def krum(changes: np.ndarray, hostile: int) -> np.ndarray:
    """The one change whose m - hostile - 2 nearest others are nearest to it.

    Raises:
        ValueError: m is less than 2 hostile + 3, with which hostile ones could stand together.
    """
    if len(changes) < 2 * hostile + 3:
        raise ValueError(
            f"{hostile} hostile of {len(changes)} clients: Krum needs at least {2 * hostile + 3}"
        )
    neighbours = len(changes) - hostile - 2
    products = changes @ changes.T
    squares = np.diag(products)
    apart = np.maximum(squares[:, None] + squares - 2 * products, 0)
    np.fill_diagonal(apart, np.inf)
    return changes[np.sort(apart, axis=1)[:, :neighbours].sum(axis=1).argmin()]


def robust_mean(kind: str, changes: np.ndarray, hostile: int) -> np.ndarray:
    """`median`, `trimmed-mean` or `krum` of changes `[m, P]` that all count alike: `[P]` float32.

    Args:
        hostile: how many of them may be.

    Raises:
        ValueError: too many are, or there is no such kind.
    """
    there = np.isfinite(changes).all(axis=1, keepdims=True)
    changes = np.where(there, changes, 0).astype(np.float64)  # who sends no numbers has sent nothing
    match kind:
        case "median":
            result = median(changes)
        case "trimmed-mean":
            result = trimmed_mean(changes, hostile)
        case "krum":
            result = krum(changes, hostile)
        case _:
            raise ValueError(f"aggregate is {kind}: it must be mean, median, trimmed-mean or krum")
    return result.astype(np.float32)

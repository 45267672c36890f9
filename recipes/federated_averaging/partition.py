"""Who holds which examples: equal parts, or parts that differ as those of real clients do.

Papers: McMahan et al., 2017, arXiv:1602.05629 (shards); Yurochkin et al., 2019, arXiv:1905.12022
(Dirichlet).
"""

from __future__ import annotations

import numpy as np

SHARDS = 2
"""Pieces of the sorted images that each client gets."""


def halves(labels: np.ndarray, clients: int) -> list[np.ndarray]:
    """Equal parts in the order in which the examples come."""
    return np.array_split(np.arange(len(labels)), clients)


def iid(labels: np.ndarray, clients: int, random: np.random.Generator) -> list[np.ndarray]:
    """Equal parts at random."""
    return np.array_split(random.permutation(len(labels)), clients)


def shards(labels: np.ndarray, clients: int, random: np.random.Generator) -> list[np.ndarray]:
    """Two pieces each of the examples sorted by label, so that most clients know two labels only."""
    pieces = np.array_split(np.argsort(labels, kind="stable"), SHARDS * clients)
    order = random.permutation(len(pieces))
    return [np.concatenate([pieces[place] for place in mine]) for mine in order.reshape(clients, SHARDS)]


def dirichlet(
    labels: np.ndarray, clients: int, alpha: float, random: np.random.Generator
) -> list[np.ndarray]:
    """Each label's examples split in proportions drawn from a symmetric Dirichlet distribution.

    A client may get none: the smaller alpha is and the more clients there are, the likelier.
    """
    mine: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == label))
        cuts = np.cumsum(random.dirichlet(np.full(clients, alpha)))[:-1] * len(places)
        for parts, part in zip(mine, np.split(places, cuts.round().astype(int)), strict=True):
            parts.append(part)
    return [random.permutation(np.concatenate(parts)) for parts in mine]


def partition(
    labels: np.ndarray, clients: int, kind: str, alpha: float, random: np.random.Generator
) -> list[np.ndarray]:
    """Places of each client's examples.

    Args:
        labels: `[N]`, of any integer dtype.
        kind: `halves`, `iid`, `dirichlet` or `shards`.
        alpha: of `dirichlet`, above 0.

    Raises:
        ValueError: some client gets no example, or there is no such kind.
    """
    match kind:
        case "halves":
            parts = halves(labels, clients)
        case "iid":
            parts = iid(labels, clients, random)
        case "shards":
            parts = shards(labels, clients, random)
        case "dirichlet":
            parts = dirichlet(labels, clients, alpha, random)
        case _:
            raise ValueError(f"partition is {kind}: it must be halves, iid, dirichlet or shards")
    empty = sum(len(part) == 0 for part in parts)
    if empty:
        raise ValueError(
            f"{empty} of {clients} clients would hold no example of {len(labels):,}: take fewer clients"
            + (", a larger alpha or another seed" if kind == "dirichlet" else "")
        )
    return parts

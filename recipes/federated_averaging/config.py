"""What is trained, by whom, with which algorithm, and what protects or attacks it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recipes.data import Source

Partition = Literal["halves", "iid", "dirichlet", "shards"]
Name = Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "scaffold"]
Aggregate = Literal["mean", "median", "trimmed-mean", "krum"]
FEWEST = 3
"""Clients in a round of secure aggregation: of two, each would know the other's change from the sum."""
LEAST_NOISE = 0.05
"""Below it accountants leave their numbers' range."""


@dataclass(frozen=True)
class Config:
    """What is trained, by whom, with which algorithm, and what protects or attacks it."""

    data: Source = "auto"
    """The images: real, embedded (stand-ins), or auto (real if they can be had)."""
    dataset: Literal["fashion-mnist", "mnist"] = "fashion-mnist"
    """Which ones."""
    engine: Literal["reference", "tff"] = "reference"
    """Ours (reference) or TensorFlow Federated (tff, for FedAvg with all clients in every round); both reach
    the same weights."""
    network: Literal["softmax", "cnn"] = "softmax"
    """Softmax regression in NumPy, or McMahan's CNN of 1,663,370 parameters in PyTorch."""
    order: Literal["file", "chapter", "shuffled"] = "file"
    """Order of the training images before they are dealt out."""
    partition: Partition = "halves"
    """Who holds which: equal parts in this order (halves), equal parts at random (iid), each class split by a
    Dirichlet distribution (dirichlet), or two pieces each of the images sorted by class (shards)."""
    clients: int = 2
    """Clients there are (K in the paper), from 1."""
    clients_per_round: int = 0
    """Clients that take part in a round (C · K in the paper); 0: all. With noise, as many as are expected."""
    alpha: float = 0.5
    """Of the Dirichlet distribution, from 0.001: the smaller, the more clients differ."""
    algorithm: Name = "fedavg"
    """What clients add to their gradients, and what the server does with the mean of their changes."""
    rounds: int = 1
    """Rounds of communication, from 1."""
    target: float = 0.0
    """End once the test accuracy, a share, is at least this; 0: never."""
    local_epochs: int = 1
    """Passes of a client over its data in a round (E in the paper), from 1."""
    batch_size: int = 32
    """Examples in a client's minibatch (B in the paper), from 1. Their order is drawn anew for every epoch;
    with `partition` halves it stays, as in the chapter."""
    learning_rate: float = 0.02
    """Step of the clients' SGD (eta in the paper), between 1e-9 and 1000."""
    server_rate: float = 1.0
    """Step of the server, between 1e-9 and 1000; 1 takes the mean of the clients' models as it is."""
    proximal: float = 0.01
    """FedProx: how strongly a client is drawn to the global model (mu in the paper), at least 0."""
    aggregate: Aggregate = "mean"
    """How the server makes one change out of the clients'."""
    secure: bool = False
    """Secure aggregation: the server sees the sum of the clients' changes only."""
    dropouts: int = 0
    """Clients of each round that are lost after the masks were agreed upon; with `secure` only. Fewer than
    half of those that take part."""
    clip: float = 0.0
    """L2 norm to which a client's change is shortened, above 0; 0: it is not."""
    noise: float = 0.0
    """Standard deviation of the Gaussian noise in the sum of changes, as a multiple of `clip`, from 0.05; 0:
    none."""
    delta: float = 1e-5
    """Of the privacy that is stated, between 0 and 1."""
    poison: Literal["none", "signs", "labels"] = "none"
    """What hostile clients do: send their change reversed and tenfold, or train on labels turned around. They
    keep to `clip`, which with `secure` nobody could check."""
    hostile: int = 0
    """How many clients are hostile, the first ones; trimmed mean and Krum are told so."""
    table: bool = False
    """Also count the rounds to 80 %, for the paper's settings of local work and for equal and unequal
    clients."""
    checkpoints: Path | None = None
    """A folder in which every round leaves what the next needs: the same command goes on from there."""
    workers: int = 1
    """Clients trained at once, in threads; it changes no result."""
    seed: int = 0
    """Of orders, partitions, initial weights and the choice of clients, from 0."""

    def __post_init__(self) -> None:
        for name in ("rounds", "local_epochs", "batch_size", "clients", "workers"):
            _between(name, getattr(self, name), 1, 1_000_000)
        for name in ("learning_rate", "server_rate"):
            _between(name, getattr(self, name), 1e-9, 1e3)
        for name in ("clip", "noise", "proximal"):
            _between(name, getattr(self, name), 0, 1e6)
        _between("target", self.target, 0, 1)
        _between("seed", self.seed, 0, 2**63)
        _between("clients_per_round", self.clients_per_round, 0, self.clients, "which is how many there are")
        _between("alpha", self.alpha, 1e-3, 1e6)
        _between("delta", self.delta, 1e-100, 0.999)
        if 0 < self.noise < LEAST_NOISE:
            raise ValueError(f"noise is {self.noise}: below {LEAST_NOISE} it hides nothing; 0 is none")
        _between("hostile", self.hostile, 0, self.clients)
        _between(
            "dropouts", self.dropouts, 0, (self.sampled - 1) // 2, "fewer than half of a round's clients"
        )
        self._check_together()

    def _check_together(self) -> None:
        sampled, hostile = self.sampled, self.tolerated
        privately = self.secure or self.clip or self.noise
        most = 60 if self.noise else 100
        for wrong, message in (
            (
                self.order == "chapter" and self.dataset != "fashion-mnist",
                f"order chapter is one of fashion-mnist, not of {self.dataset}",
            ),
            (self.noise and not self.clip, "noise hides a change of bounded length only: give clip, too"),
            (
                self.noise and self.aggregate != "mean",
                f"no epsilon is known for noise after aggregate {self.aggregate}: take the mean",
            ),
            (
                self.secure and self.aggregate != "mean",
                f"aggregate {self.aggregate} needs to see each client's change, and secure hides them",
            ),
            (
                self.secure and not FEWEST <= sampled <= most,
                f"clients_per_round is {sampled}: secure aggregation is for {FEWEST} to {most}"
                + (", as with noise their number varies" if self.noise else ""),
            ),
            (self.dropouts and not self.secure, "dropouts are survived by secure aggregation: give secure"),
            (
                self.secure and sampled - self.dropouts < FEWEST,
                f"with {self.dropouts} of {sampled} lost the sum is of fewer than three, and tells too much",
            ),
            (
                self.algorithm == "scaffold" and (privately or self.aggregate != "mean"),
                "scaffold sends a second vector, which nothing here hides or bounds",
            ),
            (
                self.clip and self.aggregate != "mean",
                f"clip is for the mean, and aggregate is {self.aggregate}: take one of both",
            ),
            (
                bool(self.hostile) != (self.poison != "none"),
                f"hostile is {self.hostile} and poison {self.poison}: the one needs the other",
            ),
            (
                self.aggregate == "trimmed-mean" and 2 * hostile >= sampled,
                f"a trimmed mean without {hostile} of {sampled} clients at each end has nothing left",
            ),
            (
                self.aggregate == "krum" and sampled < 2 * hostile + 3,
                f"Krum needs {2 * hostile + 3} clients in a round if {hostile} may be hostile, not {sampled}",
            ),
            (
                self.engine == "tff" and not self._known_to_tff(),
                "engine tff runs fedavg on softmax regression, in halves, with nothing that hides or attacks",
            ),
        ):
            if wrong:
                raise ValueError(message)

    def _known_to_tff(self) -> bool:
        same = "network partition algorithm clients_per_round aggregate secure clip noise poison server_rate"
        return all(getattr(self, name) == getattr(Config, name) for name in (*same.split(), "checkpoints"))

    @property
    def sampled(self) -> int:
        """Clients that take part in a round (m in the paper)."""
        return self.clients_per_round or self.clients

    @property
    def tolerated(self) -> int:
        """Hostile clients in a round that trimmed mean and Krum allow for: half as many again as are drawn on
        average, as there are more at times, rounded up; but no more than there are."""
        return min(self.hostile, -(-3 * self.hostile * self.sampled // (2 * self.clients)))


def _between(name: str, value: float, low: float, high: float, why: str = "") -> None:
    if not low <= value <= high:  # false for nan, too
        raise ValueError(
            f"{name} is {value}: it must lie between {low:g} and {high:,.0f}{f', {why}' if why else ''}"
        )

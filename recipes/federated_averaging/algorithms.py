"""What clients add to their gradients, and what the server does with the mean of their changes.

Every algorithm is federated averaging but for a line or two. A model is one vector, `[P]` float32.

Papers: McMahan et al., 2017, arXiv:1602.05629 (FedAvg); Hsu et al., 2019, arXiv:1909.06335 (server momentum);
Reddi et al., 2021, arXiv:2003.00295, Algorithm 2 (FedAdagrad, FedAdam, FedYogi); Li et al., 2020,
arXiv:1812.06127 (FedProx); Karimireddy et al., 2020, arXiv:1910.06378 (SCAFFOLD, option II).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Pull = Callable[[np.ndarray], np.ndarray]
"""A client's model `[P]` -> what is added to its gradient, `[P]`."""


class FedAvg:
    """The server moves the model by the mean of the clients' changes."""

    weighted = True
    """Whether clients count by their numbers of examples."""
    vectors = 1
    """How many vectors `[P]` a client sends, and receives, in a round."""

    def __init__(
        self,
        parameters: int,
        clients: int,
        *,
        server_rate: float = 1.0,
        momentum: float = 0.9,
        forgetting: float = 0.99,
        floor: float = 1e-3,
        proximal: float = 0.01,
    ) -> None:
        """Args:
        parameters: P.
        clients: how many there are, in all.
        server_rate: the server's step (eta in Reddi et al.).
        momentum: share of the mean change that is kept from round to round (beta_1).
        forgetting: share of the mean square that is kept (beta_2).
        floor: added to the root of the mean square (tau).
        proximal: of FedProx (mu).
        """
        self.parameters, self.clients, self.server_rate = parameters, clients, server_rate
        self.momentum, self.forgetting, self.floor, self.proximal = momentum, forgetting, floor, proximal
        self.memory: dict[str, np.ndarray] = {}
        """What the server or a client keeps from round to round: name to `[P]` float32."""

    def kept(self, name: str, start: float = 0) -> np.ndarray:
        """One entry of the memory, filled with `start` before it is first set: `[P]` float32."""
        return self.memory[name] if name in self.memory else np.full(self.parameters, start, np.float32)

    def pull(self, client: int, model: np.ndarray) -> Pull | None:
        """What a client adds to every gradient of this round; None: nothing."""
        return None

    def finished(self, client: int, change: np.ndarray, way: float) -> None:
        """A client has moved by `change` `[P]`, with steps that add up to `way`."""

    def step(self, model: np.ndarray, change: np.ndarray) -> np.ndarray:
        """The next global model `[P]`, from the mean change of the clients' `[P]`."""
        return model + np.float32(self.server_rate) * change


class ServerMomentum(FedAvg):
    """The server's changes go on as a ball rolls (FedAvgM)."""

    def step(self, model: np.ndarray, change: np.ndarray) -> np.ndarray:
        self.memory["mean"] = self.momentum * self.kept("mean") + change
        return super().step(model, self.memory["mean"])


class FedAdagrad(FedAvg):
    """Each parameter by its own step, which shrinks with the sum of its squared changes."""

    def joined(self, squares: np.ndarray, square: np.ndarray) -> np.ndarray:
        """The squares of the earlier rounds' changes and of this one's in one, `[P]`."""
        return squares + square

    def step(self, model: np.ndarray, change: np.ndarray) -> np.ndarray:
        mean = self.momentum * self.kept("mean") + (1 - self.momentum) * change
        square = self.joined(self.kept("square", self.floor**2), np.square(change))
        self.memory.update(mean=mean, square=square)
        return super().step(model, mean / (np.sqrt(square) + self.floor))


class FedAdam(FedAdagrad):
    """The same with the running mean of the squares."""

    def joined(self, squares: np.ndarray, square: np.ndarray) -> np.ndarray:
        return self.forgetting * squares + (1 - self.forgetting) * square


class FedYogi(FedAdagrad):
    """The same with squares that grow and shrink by steps of one size."""

    def joined(self, squares: np.ndarray, square: np.ndarray) -> np.ndarray:
        return squares - (1 - self.forgetting) * square * np.sign(squares - square)


class FedProx(FedAvg):
    """Clients are drawn back to the global model."""

    def pull(self, client: int, model: np.ndarray) -> Pull:
        return lambda local: np.float32(self.proximal) * (local - model)


class Scaffold(FedAvg):
    """Clients correct for where their own data would lead them, as far as it is not where all lead. All count
    alike."""

    weighted = False
    vectors = 2

    def pull(self, client: int, model: np.ndarray) -> Pull:
        correction = self.kept("all") - self.kept(f"client {client}")  # c - c_i in the paper
        return lambda _local: correction

    def finished(self, client: int, change: np.ndarray, way: float) -> None:
        before = self.kept(f"client {client}")
        after = before - self.kept("all") - change / np.float32(way)
        self.memory[f"client {client}"] = after
        self.memory["next"] = self.kept("next") + (after - before) / np.float32(self.clients)

    def step(self, model: np.ndarray, change: np.ndarray) -> np.ndarray:
        self.memory["all"] = self.kept("all") + self.memory.pop("next", np.float32(0))
        return super().step(model, change)


ALGORITHMS: dict[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedavgm": ServerMomentum,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fedprox": FedProx,
    "scaffold": Scaffold,
}
"""By name."""

"""Other libraries' attacks in this recipe's shape: Foolbox' and torchattacks'.

Papers: Carlini and Wagner, 2017, arXiv:1608.04644; Brendel et al., 2018, arXiv:1712.04248 (boundary);
Andriushchenko et al., 2020, arXiv:1912.00049 (Square); Croce and Hein, 2020, arXiv:2003.01690 (AutoAttack).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from recipes.adversarial_robustness.attacks import fooled, frozen
from recipes.adversarial_robustness.search import Search, nearer


def carlini_wagner(steps: int = 200, rounds: int = 6) -> Search:
    """Carlini and Wagner's L2 attack, by Foolbox."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return _foolbox(
            "L2CarliniWagnerAttack",
            *(network, images, labels, generator),
            steps=steps,
            binary_search_steps=rounds,
            initial_const=0.1,
            stepsize=0.02,
        )

    return search


def boundary(steps: int = 2000) -> Search:
    """The boundary attack by Foolbox: along the boundary, from noise, by answers alone."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        start = salt_and_pepper(network, images, labels, generator)
        ready = fooled(network, start, labels) & ~fooled(network, images, labels)
        found = images.clone()
        if ready.any():
            found[ready] = _foolbox(
                "BoundaryAttack",
                *(network, images[ready], labels[ready], generator),
                starting_points=nearer(network, images[ready], labels[ready], start[ready]),
                steps=steps,
                spherical_step=0.05,
                source_step=0.05,
            )
        return found

    return search


def salt_and_pepper(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Foolbox's: pixels made black or white at random, more and more of them."""
    return _foolbox("SaltAndPepperNoiseAttack", network, images, labels, generator, steps=100)


def _foolbox(
    name: str,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    starting_points: Tensor | None = None,
    **settings: object,
) -> Tensor:
    """Run an attack of Foolbox; it draws from PyTorch's and NumPy's global generators, which are put back."""
    import foolbox

    attack = getattr(foolbox.attacks, name)(**settings)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    begin = {} if starting_points is None else {"starting_points": starting_points}
    with frozen(network), seeded(generator):
        _, found, _ = attack(model, images, labels, epsilons=None, **begin)
    return found.detach().clamp(0, 1)


def auto_attack(epsilon: float) -> Search:
    """AutoAttack as torchattacks has it, Linf `epsilon`: APGD on the cross-entropy, then targeted APGD,
    targeted FAB and Square on what is left."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        import torchattacks

        seed = int(torch.randint(2**31, (), generator=generator))
        attack = torchattacks.AutoAttack(network, norm="Linf", eps=epsilon, seed=seed)
        found, right = images.clone(), ~fooled(network, images, labels)
        if right.any():
            with frozen(network), seeded(generator):
                found[right] = attack(images[right], labels[right]).detach()
        return found

    return search


def square(epsilon: float, queries: int = 1000) -> Search:
    """The Square attack by torchattacks: random squares, kept if they help; it sees logits, no gradient."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        import torchattacks

        seed = int(torch.randint(2**31, (), generator=generator))
        attack = torchattacks.Square(network, norm="Linf", eps=epsilon, n_queries=queries, seed=seed)
        with frozen(network), seeded(generator):
            return attack(images, labels).detach()

    return search


@contextlib.contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """PyTorch's and NumPy's global generators, which libraries draw from, seeded for a while and put back."""
    seed = int(torch.randint(2**31, (), generator=generator))
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002

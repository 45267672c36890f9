"""Does an evaluation deserve belief? Signs that it is too weak, looked for by machine.

A defence is claimed robust by some attack. If a longer, another or a blind attack does better than that
one, the number is not of the network but of the attack. The signs are those of Athalye, Carlini and Wagner,
"Obfuscated gradients give a false sense of security", 2018, arXiv:1802.00420, and Carlini et al., "On
evaluating adversarial robustness", 2019, arXiv:1902.06705.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipes.adversarial_robustness import attacks
from recipes.adversarial_robustness.attacks import fooled
from recipes.adversarial_robustness.libraries import square

Claim = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""The attack on which a claim rests: network, images, labels -> adversarial images."""

ALLOWED = 0.03
"""By how much an accuracy may be lower under another attack, and the claim still stand; of few images, one
may be."""


@dataclass(frozen=True)
class Check:
    """One sign, and what was measured."""

    name: str
    passed: bool
    measured: str


def run(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    claim: Claim,
    surrogate: nn.Module,
    *,
    epsilon: float = 0.3,
    seed: int = 0,
) -> list[Check]:
    """Look for every sign, in one Linf ball.

    Args:
        network: whose robustness is claimed.
        images: `[N, C, H, W]` float32 in [0, 1]; 200 are enough to see what is wrong.
        labels: `[N]` int64.
        claim: the attack by which it was measured.
        surrogate: another network, whose adversarials are transferred.
        epsilon: of the claim.

    Raises:
        ValueError: see `attacks.check`.
    """
    attacks.check(network, images, labels, epsilon)
    allowed, one_or_two = max(ALLOWED, 1.5 / len(images)), max(ALLOWED / 3, 1.5 / len(images))
    with torch.no_grad():
        repeats = torch.equal(network(images), network(images))
    generator = torch.Generator().manual_seed(seed)

    def under(found: Tensor) -> float:
        return 1 - float(fooled(network, found, labels).double().mean())

    def pgd(**settings: float) -> float:
        return under(
            attacks.pgd(
                *(network, images, labels),
                **{"epsilon": epsilon, "stop_early": repeats, "generator": generator} | settings,
            )
        )

    def no_worse(attack: str, accuracy: float, shown: str) -> Check:
        name = f"{attack} leave no less than is claimed"
        return Check(name, accuracy >= claimed - allowed, f"claimed {claimed:.1%}, {shown} {accuracy:.1%}")

    claimed = under(claim(network, images, labels))
    single = under(attacks.fgsm(network, images, labels, epsilon))
    many, more = pgd(steps=40), pgd(steps=100, restarts=5)
    blind = under(square(epsilon)(network, images, labels, generator))
    transferred = under(
        attacks.pgd(surrogate, images, labels, epsilon, stop_early=False, generator=generator)
    )
    anything = pgd(epsilon=1.0, steps=100, restarts=2)
    return [
        Check(
            "many steps leave no more than one step",
            many <= single + one_or_two,
            f"one step {single:.1%}, 40 steps {many:.1%}",
        ),
        no_worse("more steps and starts", more, "5 x 100 steps"),
        no_worse("gradient-free attacks", blind, "Square"),
        no_worse("adversarials of a surrogate", transferred, "transferred"),
        Check("the same image gets the same answer", repeats, "yes" if repeats else "no"),
        Check("everything breaks at epsilon 1", anything == 0, f"{anything:.1%} left"),
        *_gradients(network, images, labels),
    ]


def _gradients(network: nn.Module, images: Tensor, labels: Tensor) -> list[Check]:
    with attacks.frozen(network):
        slopes, logits = attacks.gradient(network, images, labels)
    right = logits.argmax(1) == labels
    seen = right if right.any() else torch.ones_like(right)
    vanished = float((slopes.flatten(1).abs().amax(1)[seen] == 0).double().mean())
    finite = bool(logits.isfinite().all() and slopes.isfinite().all())
    return [
        Check("loss and gradients are finite", finite, "yes" if finite else "no"),
        Check("gradients do not vanish", vanished <= 0.01, f"{vanished:.1%} of the images have none"),
    ]

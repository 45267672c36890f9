"""Can a network learn from images without giving any one of them away?

DP-SGD: each example's gradient is clipped, the batch's are added up, and noise is added that hides any
one of them. What the trained network tells of an example is bounded by epsilon, which an accountant works
out for the steps that were taken and the batches as they were drawn; and an attacker, who may see every noisy
gradient, tries to beat it.

Who sees what: the trainer sees all images, their gradients and the noise, and must keep them, and who was
        in which batch, to itself. Everyone else may see every noisy gradient and every network made of
        them. They know all other images, and may have chosen them. What is hidden is whether one image was
        there, up to epsilon: not what is common to many, nor that a test image looks like a three.
        Whoever has the seed takes the noise away again (`seed=None` draws it in secret).
Paper:  Abadi et al., "Deep learning with differential privacy", 2016, arXiv:1607.00133. Features: Tramèr and
        Boneh, 2021, arXiv:2011.11660. The papers behind gradients, accountants and attacks are named in
        `gradients`, `accounting` and `audit`.
Source: Tsukerman, "Machine Learning for Cybersecurity Cookbook", Packt 2019, chapter 8: a Keras network on
        TensorFlow Privacy, clip 1.0, noise 1.1, one epoch, "a typical value of epsilon is about 1".
        It shuffles, while its accountant is for Poisson batches; `preprocess_labels` returns nothing.
Status: simplified (noise from a Mersenne Twister, in floating point: a deployment wants a cryptographic
        generator, and noise that is safe in floating point: Jin et al., 2022, arXiv:2112.05307).
Expect: one epoch of the chapter's network, 240 Poisson batches, seeds 0 to 4: 72 % ± 3 (96 % without
        privacy), epsilon 0.302 by PLD and 0.731 by RDP at delta 1e-5; the chapter's accountant printed
        1.02 for it. Shuffled, as the chapter did, it is at least 2.97 and at most 3.92. On scattering
        features 98.5 % of MNIST and 88.8 % of Fashion-MNIST at epsilon 1, 98.8 % and 89.9 % at 3. The
        audit shows 2 to 3 of a stated 4.23, and finds all planted faults. Under half a minute.
Command: python -m recipes.dp_sgd --faults --plot dp.png
         python -m recipes.dp_sgd --network scattering --target-epsilon 1
         python -m recipes.dp_sgd --engine tf-privacy
"""

from importlib import import_module
from typing import Any

from recipes.dp_sgd.accounting import Ledger, budget, chapters_epsilon, epsilon, noise_for
from recipes.dp_sgd.config import Config
from recipes.dp_sgd.experiment import Result, main, run
from recipes.dp_sgd.report import describe, plot

_WITH_PYTORCH = {
    "Attack": "audit",
    "Parts": "training",
    "Settings": "training",
    "Trainer": "training",
    "check_network": "gradients",
    "clipped_sum": "gradients",
    "many_runs": "audit",
    "one_run": "audit",
    "per_example_gradients": "gradients",
    "planted": "faults",
}
"""Names whose modules import PyTorch: they are fetched when they are asked for."""


def __getattr__(name: str) -> Any:
    if name in _WITH_PYTORCH:
        return getattr(import_module(f"recipes.dp_sgd.{_WITH_PYTORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Attack",
    "Config",
    "Ledger",
    "Parts",
    "Result",
    "Settings",
    "Trainer",
    "budget",
    "chapters_epsilon",
    "check_network",
    "clipped_sum",
    "describe",
    "epsilon",
    "main",
    "many_runs",
    "noise_for",
    "one_run",
    "per_example_gradients",
    "planted",
    "plot",
    "run",
]

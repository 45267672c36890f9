"""How little must an image change before a network takes it for something else?

Six steps: walk a digit over a boundary by hand; measure networks by many attacks at once, and analysis by
synthesis (ABS) against a CNN; meet a defence whose own evaluation says 98 % and a better one 0 %; train
defences that hold; prove, image by image, what no attack can do; and look for the signs of an evaluation
that is too weak.

Who sees what: the attacker sees the network, its weights and the true label, and may change each pixel by at
        most epsilon (Linf), all pixels together by a length (L2), or a number of pixels at will (L0). The
        boundary attack sees labels only; Square and estimated gradients see logits. A distance or accuracy
        under attack is an upper bound of robustness: a better attack may find more. What is proved holds
        against every attack, within Linf epsilon, for the network in exact arithmetic.
Paper:  Goodfellow et al., 2015, arXiv:1412.6572; Madry et al., 2018, arXiv:1706.06083; Schott et al., 2019,
        arXiv:1805.09190 (ABS); Wong et al., 2020, arXiv:2001.03994; Croce and Hein, 2020, arXiv:2003.01690
        (AutoAttack); Gowal et al., 2018, arXiv:1810.12715, and Zhang et al., 2018, arXiv:1811.00866 (bounds);
        Athalye et al., 2018, arXiv:1802.00420 (signs of a weak evaluation).
Source: "Reinventing adversarial machine learning: adversarial ML from scratch", Towards Data Science;
        Tsukerman, "Machine Learning for Cybersecurity Cookbook", Packt 2019, chapter 8 (ABS and Foolbox 1.8;
        its code stops at undefined names); "Deep learning models in Python: model security and defence",
        Huawei Cloud community (CleverHans), whose defence is step three.
Status: reference.
Expect: on real MNIST, seed 0: 100 of 100 digits walk to the class chosen for them, by L2 1.43 on average. The
        Huawei article's defence is right for 98.3 % of the images made as those that it was trained on, 38 %
        under FGSM, 0.05 % under PGD with 40 steps (all test images). Under AutoAttack, of the first 1,000
        test images, which are harder than the rest: FGSM training 81.1 %, PGD-7 training 88.3 %, interval
        training 91.1 %. Of all 10,000, interval training is right for 97.6 % and proved safe in Linf 0.3 for
        91.8 %. ABS: 98.4 % clean; of 200 images the median L2 distance is twice the CNN's.
Command: python -m recipes.adversarial_robustness --plot robustness.png
         python -m recipes.adversarial_robustness --part defences --strong --attacked 1000
"""

from importlib import import_module
from typing import Any

from recipes.adversarial_robustness.config import Config
from recipes.adversarial_robustness.experiment import main, run
from recipes.adversarial_robustness.report import describe, plot
from recipes.adversarial_robustness.results import Defence, Result, Stale

_WITH_PYTORCH = {
    "adversarial_training": "defences",
    "attacks_on": "attack_set",
    "crown_margins": "bounds",
    "deepfool": "attacks",
    "fgsm": "attacks",
    "interval_training": "defences",
    "load": "zoo",
    "margins": "bounds",
    "measure": "evaluation",
    "pgd": "attacks",
    "verified": "bounds",
}
"""Names whose modules import PyTorch: they are fetched when they are asked for."""


def __getattr__(name: str) -> Any:
    if name in _WITH_PYTORCH:
        return getattr(import_module(f"recipes.adversarial_robustness.{_WITH_PYTORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Config",
    "Defence",
    "Result",
    "Stale",
    "adversarial_training",
    "attacks_on",
    "crown_margins",
    "deepfool",
    "describe",
    "fgsm",
    "interval_training",
    "load",
    "main",
    "margins",
    "measure",
    "pgd",
    "plot",
    "run",
    "verified",
]

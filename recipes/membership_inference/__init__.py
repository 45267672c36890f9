"""Does a trained network tell whom it was trained on?

Whoever has a record and may ask a network about it wants to know whether the record was in its training
set: in a hospital's, say. The recipe makes that attack in all the ways that matter, on a network that
knows its images by heart, on one that was kept from it, and on one that was trained with differential
privacy; and turns what the attacks find into a bound that the network's privacy cannot be better than.

Who sees what: the attacker has the record and its label, and may ask the target. Black-box it sees what
        the target answers; white-box it sees the weights, and so every layer's outputs and gradients. For
        the article's attack it knows some members by name; for those with references it can draw images
        like the members and knows how the target was trained; for quantile regression it has images that
        are no members. It never knows whether a record that it is judged on is a member.
Paper:  Nasr, Shokri and Houmansadr, "Comprehensive privacy analysis of deep learning", 2019,
        arXiv:1812.00910. Carlini et al., "Membership inference attacks from first principles", 2022,
        arXiv:2112.03570 (LiRA); Zarifzadeh, Liu and Shokri, 2024, arXiv:2312.03262 (RMIA); Liu et al.,
        2025, arXiv:2503.07482 (BMIA); Braennvall, 2026, arXiv:2603.11799 (BaVarIA); Bertran et al., 2023,
        arXiv:2307.03694 (quantile regression); Steinke, Nasr and Jagielski, 2023, arXiv:2305.08846 (the
        bound).
Source: an article on ML Privacy Meter, which attacks an AlexNet on CIFAR-100. The attack is not in ML
        Privacy Meter any more since 2022.
Status: simplified (AlexNet with normalisation and a finer first layer, on half of the images: the other
        half are the non-members; BMIA and BaVarIA as their papers have them, but for priors that are said
        where they are).
Expect: real images, seed 0. The over-fitted target is right about 98.9 % of its members and 41.1 % of
        test images. The threshold on the loss has a balanced accuracy of 83.4 %, and finds 1.1 % of
        members at a false positive rate of 1 %: as good as guessing. The article's attack has 84.2 to
        84.5 %. With eight references LiRA finds 48 %, RMIA 47 %, BaVarIA 44 %, BMIA 43 %; at 0.1 % they
        find 21, 22, 16 and 20 %. Epsilon is at least 5.9. Regularised (49.7 / 41.7 %): an AUC of at most
        0.68, and epsilon at least 1.9. DP-SGD at epsilon 8 (11.9 / 10.9 %): at most 0.53, and at least
        0.05. A minute, with the networks that come with the recipe; --profile full trains all 19 of
        them, 10,000 CPU seconds in all.
Command: python -m recipes.membership_inference --plot membership.png --report report
"""

from importlib import import_module
from typing import Any

from recipes.membership_inference.config import Config, Training
from recipes.membership_inference.experiment import Result, main, run

_FETCHED = {
    "Exploit": "inference_model",
    "Signals": "attacks",
    "alexnet": "networks",
    "audit": "auditing",
    "bavaria": "attacks",
    "bmia": "attacks",
    "describe": "report",
    "epsilon_lower_bound": "bound",
    "evaluate": "metrics",
    "lira": "attacks",
    "plot": "report",
    "rmia": "attacks",
    "roc": "metrics",
}
"""Names whose modules import PyTorch, or that few need: they are fetched when they are asked for."""


def __getattr__(name: str) -> Any:
    if name in _FETCHED:
        return getattr(import_module(f"recipes.membership_inference.{_FETCHED[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Config",
    "Exploit",
    "Result",
    "Signals",
    "Training",
    "alexnet",
    "audit",
    "bavaria",
    "bmia",
    "describe",
    "epsilon_lower_bound",
    "evaluate",
    "lira",
    "main",
    "plot",
    "rmia",
    "roc",
    "run",
]

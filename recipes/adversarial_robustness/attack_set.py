"""Which attacks a network is measured with."""

from __future__ import annotations

from torch import nn

from recipes.adversarial_robustness.attacks import NORMS
from recipes.adversarial_robustness.blind import estimated, pointwise
from recipes.adversarial_robustness.latent import Latents, towards, tracked
from recipes.adversarial_robustness.libraries import boundary, carlini_wagner
from recipes.adversarial_robustness.search import Attack, deepfool, least_pgd, one_step, sparse
from recipes.analysis_by_synthesis import AnalysisBySynthesis


def attacks_on(network: nn.Module, strong: bool = False) -> list[Attack]:
    """The attacks for a network, `[N, 1, 28, 28]` images in [0, 1] -> logits.

    On any: FGM and FGSM, DeepFool (L2), PGD (Linf), and pixel after pixel (L0); `strong` adds DeepFool
    (Linf), PGD and Carlini–Wagner (L2), pointwise (L0), boundary and estimated gradients, and longer
    searches. Networks that show what a class looks like to them (`prototypes`), and whose every answer takes
    a search, get fewer; `strong` attacks them towards it, too. ABS is attacked along what its classes draw,
    in all three norms; `strong` adds DeepFool and PGD, by the gradient at the best latents.
    """
    if isinstance(network, AnalysisBySynthesis):
        return _on_abs(strong)
    drawing = hasattr(network, "prototypes")
    if drawing and not strong:
        return [
            Attack("DeepFool L2", "l2", deepfool("l2")),
            Attack("DeepFool Linf", "linf", deepfool("linf")),
            Attack("sparse", "l0", sparse),
        ]
    chosen = [
        Attack("FGM", "l2", one_step("l2")),
        Attack("FGSM", "linf", one_step("linf")),
        Attack("DeepFool L2", "l2", deepfool("l2")),
    ]
    if not strong:
        return [
            *chosen,
            Attack("PGD Linf", "linf", least_pgd("linf", 10, 6)),
            Attack("sparse", "l0", sparse),
        ]
    chosen.append(Attack("DeepFool Linf", "linf", deepfool("linf")))
    if drawing:
        chosen += [Attack(f"prototypes {norm}", norm, towards(norm, 3)) for norm in NORMS]
    steps, rounds = (40, 6) if drawing else (100, 8)
    chosen += [
        Attack("PGD L2", "l2", least_pgd("l2", steps, rounds)),
        Attack("PGD Linf", "linf", least_pgd("linf", steps, rounds)),
        Attack("Carlini-Wagner", "l2", carlini_wagner(60, 4) if drawing else carlini_wagner()),
        Attack("boundary", "l2", boundary(300 if drawing else 2000)),
        Attack("sparse", "l0", sparse),
        Attack("pointwise", "l0", pointwise(1 if drawing else 10)),
    ]
    if not drawing:
        chosen.append(Attack("estimated gradients", "l2", estimated))
    return chosen


def _on_abs(strong: bool) -> list[Attack]:
    others, candidates, rounds_back = (3, 5, 100) if strong else (1, 3, 1)
    latents = Latents()
    chosen = []
    for norm, steps in (("l2", 5), ("linf", 5), ("l0", 3)):
        along = towards(norm, others, rounds_back=rounds_back)
        chosen.append(Attack(f"latent {norm}", norm, tracked(along, steps, candidates, latents)))
    if strong:
        chosen += [
            Attack("DeepFool L2", "l2", tracked(deepfool("l2"), latents=latents)),
            Attack("DeepFool Linf", "linf", tracked(deepfool("linf"), latents=latents)),
            Attack("PGD L2", "l2", tracked(least_pgd("l2", 20, 5), latents=latents)),
            Attack("PGD Linf", "linf", tracked(least_pgd("linf", 20, 5), latents=latents)),
        ]
    return chosen

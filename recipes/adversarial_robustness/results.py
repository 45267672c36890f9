"""What comes out of the experiment, part by part and under the names that a card knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recipes.adversarial_robustness.config import Config

if TYPE_CHECKING:
    from recipes.adversarial_robustness.checklist import Check
    from recipes.adversarial_robustness.evaluation import Measured
    from recipes.adversarial_robustness.from_scratch import Walk

EPSILONS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
"""Of the curves; the config's is added."""
TABLE = ("cnn", "nearest neighbour", "abs")
"""The networks of the ABS paper's table."""
DEFENCES = ("stale", "fgsm", "pgd", "certified")
"""Networks that are claimed robust in Linf 0.3."""
AUTOATTACKED = 1000
"""Images that AutoAttack takes on, in the strong evaluation."""


@dataclass(frozen=True)
class Defence:
    """What attacks and bounds say of one network in Linf."""

    epsilon: float
    """The config's, of all that is not a curve."""
    clean: float
    """Accuracy on all test images."""
    epsilons: tuple[float, ...]
    """Of the curves: EPSILONS and the config's."""
    attacked: tuple[float, ...]
    """Accuracy at each epsilon under PGD-40: the robust accuracy is at most this, on these images."""
    attacked_images: int
    """How many, from the first."""
    verified: tuple[float, ...]
    """Share of the same images that bounds prove safe at each: the robust accuracy is at least this."""
    proved: float
    """Share of all test images proved safe at the config's epsilon (by CROWN, too, if it or interval bounds
    prove anything of the attacked ones)."""
    pgd: float | None
    """Accuracy on all test images under PGD-100 with 10 restarts; those that are proved safe are not
    tried."""
    auto_attack: float | None
    """Accuracy on the first AUTOATTACKED test images."""
    images_under: dict[str, int]
    """By attack: on how many test images, from the first, its accuracy is."""
    found: int
    """Adversarials that AutoAttack or PGD-100 gave."""
    found_after_rounding: int
    """Of them, how many are misclassified also as pictures of 8 bits."""
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Stale:
    """The Huawei article's evaluation, and then a better one."""

    images: int
    """Test images that were attacked, from the first."""
    before: dict[str, float]
    """The undefended network, by attack."""
    after: dict[str, float]
    """After the article's adversarial training."""


@dataclass(frozen=True)
class Details:
    """The parts that were run, with their pictures; too much for a JSON file."""

    walk: Walk | None
    table: dict[str, Measured]
    stale: Stale | None
    defences: dict[str, Defence]


@dataclass(frozen=True)
class Result:
    """What came out; the dictionaries are by network."""

    data: str
    """Whether the images were real or embedded."""
    images: int
    """Attacked in the table."""
    clean_accuracy: dict[str, float]
    """Of all test images; of ABS and the nearest neighbour, unless `strong`, of those attacked."""
    median_distance: dict[str, dict[str, float | None]]
    """By norm; None where for most images nothing was found."""
    accuracy_at: dict[str, dict[str, float]]
    """By norm and epsilon, or by attack."""
    attacks: dict[str, dict[str, float | None]]
    """By attack: the median distance that it found by itself."""
    verified_accuracy: dict[str, float]
    """Of all test images, proved at the config's epsilon."""
    checklist: dict[str, dict[str, bool]]
    """By sign of a weak evaluation: whether it is absent."""
    rechecked: dict[str, list[int]]
    """Adversarials reported, and how many of them are misclassified as 8-bit pictures, too."""
    scratch_reached: int | None
    """Digits of 100 that were led to the class chosen for them."""
    scratch_l2: float | None
    """The mean length of these perturbations."""
    cnn_l2: float | None
    """Medians of the chapter's CNN, by norm."""
    cnn_linf: float | None
    cnn_l0: float | None
    abs_accuracy: float | None
    """Clean, as in `clean_accuracy`."""
    abs_l2: float | None
    """Its median."""
    abs_over_cnn: float | None
    """The ratio of the L2 medians."""
    stale_claimed: float | None
    """Accuracy on adversarials made as those of its training: against the undefended network."""
    stale_fgsm: float | None
    """The same, but against itself, and clipped to [0, 1]."""
    stale_pgd: float | None
    """Under PGD with 40 steps."""
    fgsm_auto_attack: float | None
    """Under AutoAttack, of the first AUTOATTACKED test images."""
    pgd_auto_attack: float | None
    certified_auto_attack: float | None
    fgsm_pgd: float | None
    """Under PGD-100 with 10 restarts, of all test images."""
    pgd_pgd: float | None
    certified_pgd: float | None
    certified_verified: float | None
    """As in `verified_accuracy`."""
    details: Details


def collect(
    config: Config,
    source: str,
    walk: Walk | None,
    table: dict[str, tuple[Measured, float]],
    stale: Stale | None,
    defences: dict[str, Defence],
) -> Result:
    """All parts' figures under the names that a card knows."""
    rows = {name: row for name, (row, _) in table.items()}
    limits = {"l2": 1.5, "linf": 0.3, "l0": 12}
    medians = {name: {norm: _finite(row.median(norm)) for norm in limits} for name, row in rows.items()}
    accuracy_at = {
        name: {f"{norm} {limit:g}": row.accuracy_at(norm, limit) for norm, limit in limits.items()}
        for name, row in rows.items()
    }
    for name, defence in defences.items():
        named = {
            "PGD-40": defence.attacked[defence.epsilons.index(defence.epsilon)],
            "PGD-100 x 10": defence.pgd,
            "AutoAttack": defence.auto_attack,
        }
        accuracy_at[name] = {attack: value for attack, value in named.items() if value is not None}

    def under(name: str, attack: str) -> float | None:
        return accuracy_at.get(name, {}).get(attack)

    cnn, abs_ = medians.get("cnn", {}), medians.get("abs", {})
    after = stale.after if stale else {}
    return Result(
        data=source,
        images=config.images,
        clean_accuracy={name: clean for name, (_, clean) in table.items()}
        | {name: defence.clean for name, defence in defences.items()},
        median_distance=medians,
        accuracy_at=accuracy_at,
        attacks={name: {k: _finite(v) for k, v in row.medians.items()} for name, row in rows.items()},
        verified_accuracy={name: defence.proved for name, defence in defences.items()},
        checklist={name: {c.name: c.passed for c in defence.checks} for name, defence in defences.items()},
        rechecked={name: [d.found, d.found_after_rounding] for name, d in defences.items() if config.strong},
        scratch_reached=None if walk is None else int(walk.reached.sum()),
        scratch_l2=None if walk is None else float(walk.l2.mean()),
        cnn_l2=cnn.get("l2"),
        cnn_linf=cnn.get("linf"),
        cnn_l0=cnn.get("l0"),
        abs_accuracy=table["abs"][1] if "abs" in table else None,
        abs_l2=abs_.get("l2"),
        abs_over_cnn=abs_["l2"] / cnn["l2"] if abs_.get("l2") and cnn.get("l2") else None,
        stale_claimed=after.get("FGSM on the undefended network"),
        stale_fgsm=after.get("  the same, clipped"),
        stale_pgd=after.get("PGD, 40 steps"),
        **{f"{name}_auto_attack": under(name, "AutoAttack") for name in DEFENCES[1:]},
        **{f"{name}_pgd": under(name, "PGD-100 x 10") for name in DEFENCES[1:]},
        certified_verified=defences["certified"].proved if defences else None,
        details=Details(walk, rows, stale, defences),
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None

"""The recipe as a whole: train or fetch the targets and their references, and audit each target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from recipes import data
from recipes.membership_inference.config import FULL, Config, Kind

if TYPE_CHECKING:
    from recipes.membership_inference.results import Audit
    from recipes.membership_inference.targets import Pool, Target


@dataclass(frozen=True)
class Audits:
    """What was audited, in full; it has no place in JSON."""

    of: dict[str, Audit]
    """By target."""
    images: np.ndarray
    """`[N, 32, 32, 3]` float32, the records in the order of `Audit.judged`."""
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What came out, of the first target; what came out of the others stands in `others`."""

    data: str
    """Whether the images were real or embedded."""
    target: str
    train_accuracy: float
    """On all members."""
    test_accuracy: float
    """On test images."""
    attacks: dict[str, dict[str, Any]]
    """By name: `auc`, `balanced_accuracy`, `tpr_at_fpr`, each with its interval, `precision` by false
    positive rate and share of members, `references`, `cpu_seconds`."""
    epsilon_lower_bound: float | None
    """From the best attack's guesses, at 95 %; None if members were not chosen by fair tosses."""
    others: tuple[dict[str, Any], ...]
    """The same of the other targets."""
    auc: float
    """Of BaVarIA with all references, which stands for all attacks; of the loss, if there are too few."""
    balanced_accuracy: float
    """Of the same."""
    balanced_accuracy_loss: float
    """Of the threshold on the loss."""
    balanced_accuracy_white_box: float
    """Of the article's attack with gradients, or as configured."""
    balanced_accuracy_black_box: float | None
    """Of the article's attack on the last outputs and the label; None if it was not made."""
    tpr_at_1_percent: float | None
    """Its true positive rate at a false positive rate of 1 %; None if there are too few non-members."""
    tpr_at_1_per_mille: float | None
    """At 0.1 %."""
    best_tpr_at_1_percent: float | None
    """Of whichever attack does best there, chosen in hindsight, without those that know members."""
    best_tpr_at_1_per_mille: float | None
    """The same at 0.1 %."""
    stated_epsilon: float | None
    """What the target's training states; None without DP-SGD."""
    judged: int
    """Records that the attacks were judged on."""
    training_cpu_seconds: float
    """Of target and references, now or when they were trained."""
    audits: Audits


def run(config: Config) -> Result:
    """Audit one target, or all three."""
    from recipes.membership_inference import page, targets
    from recipes.membership_inference.attacker import check_config
    from recipes.membership_inference.auditing import audit_with
    from recipes.membership_inference.references import in_parallel

    kinds = get_args(Kind) if config.target == "all" else (config.target,)
    if config.report:
        page.check_folder(Path(config.report))
    images = targets.pool(config)
    for kind in kinds:  # before hours of work
        check_config(config, targets.plan(kind, images, config), images.member)
    trained = targets.trained(kinds, images, config)
    arguments = [
        (one.network, one.plan, images.member, one.references, config, one.answers, kind, True, one.kept)
        for kind, one in trained.items()
    ]
    audits = dict(zip(trained, in_parallel(audit_with, arguments, None, "attacking networks"), strict=True))
    result = collect(images, trained, audits)
    if config.report:
        page.write(Path(config.report), result)
    if config.train:
        targets.ship(data.load("cifar-100", "real"), config.seed)
    return result


def collect(images: Pool, trained: Mapping[Kind, Target], audits: dict[str, Audit]) -> Result:
    """One result of all audits."""
    first, *others = audits.values()
    headline = first.attacks[first.headline].evaluation
    by_name = {name: attack.evaluation.balanced_accuracy for name, attack in first.attacks.items()}
    white_box = [name for name in by_name if name.startswith("inference model")]

    def rate_at(rate: float) -> float | None:
        return headline.points[rate].true_positives.value if rate in headline.points else None

    def best_at(rate: float) -> float | None:
        alike = [attack.evaluation.points for attack in first.attacks.values() if not attack.knows_members]
        return max((points[rate].true_positives.value for points in alike if rate in points), default=None)

    return Result(
        data=images.source,
        **{
            name: value
            for name, value in first.summary().items()
            if name in ("target", "train_accuracy", "test_accuracy", "attacks", "epsilon_lower_bound")
        },
        others=tuple(audit.summary() for audit in others),
        auc=headline.auc,
        balanced_accuracy=headline.balanced_accuracy,
        balanced_accuracy_loss=by_name["loss"],
        balanced_accuracy_white_box=by_name[white_box[0]],
        balanced_accuracy_black_box=by_name.get("inference model, output"),
        tpr_at_1_percent=rate_at(0.01),
        tpr_at_1_per_mille=rate_at(0.001),
        best_tpr_at_1_percent=best_at(0.01),
        best_tpr_at_1_per_mille=best_at(0.001),
        stated_epsilon=first.stated_epsilon,
        judged=len(first.judged),
        training_cpu_seconds=round(
            sum(
                network.fit.cpu_seconds
                for one in trained.values()
                for network in (one.answers, *one.references)
            )
        ),
        audits=Audits(audits, images.examples[0][first.judged].transpose(0, 2, 3, 1), images.class_names),
    )


def main() -> None:
    """Run the recipe from the command line."""
    from recipes import cards, command_line
    from recipes.membership_inference.report import describe, plot

    def of(target: str, name: str, source: str = "", published: str = "") -> cards.Experiment:
        shown = ("train_accuracy", "test_accuracy", "balanced_accuracy_white_box", "balanced_accuracy_loss")
        shown += ("auc", "tpr_at_1_percent", "tpr_at_1_per_mille")
        shown += ("best_tpr_at_1_percent", "best_tpr_at_1_per_mille", "epsilon_lower_bound")
        shown += ("stated_epsilon",) if target == "private" else ()
        return cards.Experiment(
            name, replace(Config(), target=target), shown, source=source, published=published
        )

    plan = cards.Plan(
        recipe="membership_inference",
        number=6,
        question="Does a trained network tell whom it was trained on?",
        dataset="cifar-100",
        experiments=(
            of(
                "overfitted",
                "AlexNet that knows its images by heart",
                source="0.742 black-box, 0.751 white-box (Nasr 2019, balanced accuracy)",
                published="TPR at 1 % 0.3575 with one reference (BMIA), at 0.1 % 0.276 with 256 (LiRA); "
                "on other networks",
            ),
            of("regularised", "augmented throughout, more weight decay, best epoch kept"),
            of("private", "DP-SGD"),
        ),
    )
    profiles = {"quick": Config(), "full": FULL}
    command_line.main("membership_inference", run, plot, describe, profiles, plan)

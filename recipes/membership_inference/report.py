"""A result in words and in pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.membership_inference import metrics
from recipes.membership_inference.experiment import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recipes.membership_inference.results import Attack, Audit

SEED = "(to all who do not know the seed, which stands in the config: with it the noise can be taken away)"
COUNT = (
    "references are counted as they are trained: half of them saw a given record, and half did not; where a "
    "paper speaks of one reference it means one that did not, which are two here"
)
TITLES = {"overfitted": "over-fitted", "regularised": "regularised", "private": "DP-SGD"}


def percent(share: float, digits: int = 1) -> str:
    """0.1234 -> 12.3 %."""
    return f"{100 * share:.{digits}f} %"


def rate_of(attack: Attack, rate: float) -> str:
    """The true positive rate at a false positive rate, with its interval; a dash below the floor."""
    point = attack.evaluation.points.get(rate)
    if point is None:
        return "–"
    t = point.true_positives
    return f"{100 * t.value:.2f} [{100 * t.low:.2f}, {100 * t.high:.2f}]"


def auc_of(attack: Attack) -> str:
    """The AUC, with its interval."""
    e = attack.evaluation
    return f"{e.auc:.3f} [{e.auc_low:.3f}, {e.auc_high:.3f}]"


def common_attack(audits: Collection[Audit]) -> str:
    """What to compare targets by: BaVarIA with as many references as all of them have, or the loss."""
    fewest = min(max(attack.references for attack in audit.attacks.values()) for audit in audits)
    name = f"BaVarIA, {fewest}"
    return name if all(name in audit.attacks for audit in audits) else "loss"


def rates(audit: Audit) -> list[float]:
    """The false positive rates that are shown."""
    return list(next(iter(audit.attacks.values())).evaluation.points)


def describe(result: Result) -> str:
    """The result in words, for a terminal."""
    return "\n\n".join(_describe(audit, result) for audit in result.audits.of.values())


def _describe(audit: Audit, result: Result) -> str:
    inside, outside = int(audit.member.sum()), int((~audit.member).sum())
    shown = rates(audit)
    lines = [
        f"{TITLES.get(audit.target, audit.target)} ({result.data} images): "
        f"{percent(audit.train_accuracy)} of its training images right, "
        f"{percent(audit.test_accuracy)} of others",
        f"judged on {inside:,} members and {outside:,} others; no false positive rate below "
        f"{100 * metrics.floor(outside):.2g} % can be shown",
        f"{'attack, references':<34}{'AUC':>6}  {'balanced':>8}  "
        + "  ".join(f"{f'TPR % at {100 * rate:g} % FPR':>24}" for rate in shown)
        + "   CPU s",
    ]
    for name, attack in audit.attacks.items():
        e = attack.evaluation
        lines.append(
            f"{name + (' *' if attack.knows_members else ''):<34}{e.auc:6.3f}  "
            + f"{percent(e.balanced_accuracy):>8}  "
            + "  ".join(f"{rate_of(attack, rate):>24}" for rate in shown)
            + f"  {attack.cpu_seconds:6,.0f}"
        )
    lines.append("* learned from members that the attacker knew; none of them is judged")
    lines.append(COUNT)
    for rate in shown[:1]:
        lines.append(f"the best at a false positive rate of {100 * rate:g} %, chosen in hindsight, by cost:")
        lines += [
            f"  {references} references, {seconds:,.0f} CPU seconds: {name}, {percent(true)}"
            for references, seconds, name, true in by_cost(audit, rate)
        ]
    lines += [
        article_line(audit),
        epsilon_line(audit),
        *([audit.statement, SEED] if audit.statement else []),
        exposure_line(audit),
    ]
    return "\n".join(lines)


def epsilon_line(audit: Audit) -> str:
    """What the attacks say of epsilon."""
    if audit.bound is None:
        return "that members were chosen by fair tosses of a coin is not said: no bound of epsilon"
    bound = audit.bound
    stated = "" if audit.stated_epsilon is None else f"; stated: {audit.stated_epsilon:g}"
    return (
        f"epsilon is at least {bound.epsilon:.2f} at 95 % (delta {bound.delta:g}, one record added or "
        f"removed{stated}): {bound.attack} is right in {bound.right:,} of {bound.guessed:,} guesses"
    )


def article_line(audit: Audit) -> str:
    """Whether the article's attack is better than a threshold on the loss, which needs no training."""
    of = {name: attack.evaluation.balanced_accuracy for name, attack in audit.attacks.items()}
    better = {name: of[name] > of["loss"] for name, attack in audit.attacks.items() if attack.knows_members}
    said = [
        f"{name.removeprefix('inference model, ')} {'beats' if beats else 'does not beat'} it "
        f"({percent(of[name])})"
        for name, beats in better.items()
    ]
    return f"beside the threshold on the loss ({percent(of['loss'])}), the inference model: {', '.join(said)}"


def exposure_line(audit: Audit) -> str:
    """Whether it is always the same members that are exposed."""
    exposed = audit.exposed
    if exposed.seeds < 2:
        return f"the {len(exposed.records)} most exposed members are known of one attack seed only"
    return (
        f"of the {len(exposed.records)} most exposed members, {exposed.seeds} attack seeds (pairs of "
        f"references) have {percent(exposed.stability, 0)} in common, two by two; by chance it would be "
        f"{percent(exposed.by_chance)}"
    )


def plot(result: Result) -> Figure:
    """The ROC curves of each target, with logarithmic axes."""
    from matplotlib.figure import Figure

    audits = result.audits.of
    figure = Figure(figsize=(4.6 * len(audits), 4.4), layout="constrained")
    for axes, audit in zip(figure.subplots(1, len(audits), squeeze=False)[0], audits.values(), strict=True):
        plot_roc(axes, audit)
    return figure


def shown_attacks(audit: Audit) -> list[str]:
    """Those that a picture has room for: the loss, the article's first, and the best with each number of
    references, by AUC."""
    inference = [name for name in audit.attacks if name.startswith("inference model")]
    names = ["loss", "quantile regression", *inference[:1]]
    numbers = sorted({attack.references for attack in audit.attacks.values()} - {0})
    for number in numbers:
        of_number = {n: a.evaluation.auc for n, a in audit.attacks.items() if a.references == number}
        names.append(max(of_number, key=of_number.__getitem__))
    return names


def plot_roc(axes: Axes, audit: Audit) -> None:
    """One target's ROC curves, from the lowest false positive rate that can be shown."""
    lowest = metrics.floor(int((~audit.member).sum()))
    for name in shown_attacks(audit):
        false, true = metrics.roc(audit.attacks[name].scores, audit.member)
        axes.plot(np.maximum(false, lowest / 3), np.maximum(true, lowest / 3), linewidth=1.4, label=name)
    axes.plot((lowest, 1), (lowest, 1), ":", color="tab:grey", linewidth=1, label="guessing")
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(lowest, 1),
        ylim=(lowest, 1.1),
        xlabel="false positive rate",
        ylabel="true positive rate",
    )
    axes.set_title(
        f"{TITLES.get(audit.target, audit.target)}: {percent(audit.train_accuracy, 0)} of members right, "
        f"{percent(audit.test_accuracy, 0)} of others",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def by_cost(audit: Audit, rate: float) -> list[tuple[int, float, str, float]]:
    """The best attack for each number of references: references, CPU seconds, name, true positive rate.

    Without those that know members, which no seconds buy.
    """
    found = {}
    for name, attack in audit.attacks.items():
        if attack.knows_members:
            continue
        true = attack.evaluation.points[rate].true_positives.value
        if true > found.get(attack.references, (0, 0.0, "", -1.0))[3]:
            found[attack.references] = (attack.references, attack.cpu_seconds, name, true)
    return [found[number] for number in sorted(found)]


def precision_table(audit: Audit, rate: float) -> Mapping[str, Mapping[float, metrics.Rate]]:
    """By attack: the precision at a false positive rate, for each share of members among the records."""
    return {
        name: {prior: attack.evaluation.points[rate].precision(prior) for prior in metrics.PRIORS}
        for name, attack in audit.attacks.items()
    }


def by_class(result: Result, audit: Audit) -> list[tuple[str, Any]]:
    """The classes by the AUC of the headline attack, the most exposed first: name, (AUC, low, high)."""
    found = metrics.auc_by_class(audit.attacks[audit.headline].scores, audit.member, audit.labels)
    named = [(result.audits.class_names[label], values) for label, values in found.items()]
    return sorted(named, key=lambda one: -one[1][0])


def most_exposed_pictures(result: Result, audit: Audit, count: int) -> list[tuple[np.ndarray, str, int]]:
    """The members that are exposed most: image `[32, 32, 3]`, class, and how many attack seeds found it."""
    exposed = audit.exposed
    return [
        (
            result.audits.images[record],
            result.audits.class_names[audit.labels[record]],
            int(found),
        )
        for record, found in zip(exposed.records[:count], exposed.found_by[:count], strict=True)
    ]

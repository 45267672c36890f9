"""A result in words and in pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.dp_sgd.experiment import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def describe(result: Result) -> str:
    """The result in words, for a terminal."""
    drawn = "Poisson batches" if result.sampling == "poisson" else "shuffled batches"
    plain = "" if result.plain_accuracy is None else f", without privacy {result.plain_accuracy:.2%}"
    cost = f"{result.cpu_seconds_epoch:.3g} CPU seconds an epoch"
    lines = [
        f"{result.network} network, {result.engine}, {result.steps:,} steps on {drawn} ({result.data} images)"
        + (f", {result.resumed_from:,} of them from the checkpoint" if result.resumed_from else ""),
        f"test accuracy {result.accuracy:.2%}{plain}",
        cost + ("" if result.slowdown is None else f", {result.slowdown:.3g} times plain SGD's"),
        "",
        result.statement,
    ]
    if result.seed is not None:
        lines.append(
            f"(to all who do not know the seed, {result.seed}: with it the noise can be taken away; "
            "--seed None draws one in secret)"
        )
    if result.sampling == "poisson" and result.epsilon_shuffle_high is not None:
        lines.append(
            f"had the batches been shuffled, epsilon would be at least {result.epsilon_shuffle_low:.3g}, "
            f"at most {result.epsilon_shuffle_high:.3g}: Poisson figures are for Poisson batches"
        )
    if result.epsilon_lower_bound is not None:
        lines += [
            "",
            "audit of this code on examples of an attacker's making: epsilon is at least (95 %), if the",
            "mechanism is the stated one with less noise, and whatever it is",
            f"  many runs  stated {result.epsilon_audited:.3g}: {result.epsilon_lower_bound:.3g}, "
            f"{result.epsilon_lower_bound_any:.3g}",
            f"  one run    stated {result.epsilon_audited_one_run:.3g}: "
            f"{result.epsilon_lower_bound_one_run:.3g}",
        ]
    if result.faults is not None:
        lines += [
            "",
            f"planted faults: in {result.faults_found} of {len(result.faults)} the attacker does better "
            "than the stated mechanism allows",
        ]
        lines += [
            f"  {name:<28} stated {stated:5.3g}: {bound:.3g}, {anyhow:.3g}"
            for name, (stated, bound, anyhow) in result.faults.items()
        ]
    if result.sweep:
        lines += ["", "noise  epsilon  one audited run: at least  accuracy"]
        lines += [
            f"{noise:5.3g}  {epsilon:7.3g}  {bound:26.3g}  {accuracy:8.2%}"
            for noise, epsilon, accuracy, bound in result.sweep
        ]
    if result.outlier is not None:
        odd = result.outlier
        lines += ["", "probability of an outlier's label, trained with it / without it, by seed:"]
        for name, pairs, accuracy in (
            ("plain SGD", odd.plain, odd.plain_accuracy),
            ("DP-SGD", odd.private, odd.private_accuracy),
        ):
            told = "  ".join(f"{there:.3f}/{gone:.3f}" for there, gone in pairs)
            lines.append(f"  {name:<10} {told}   ({accuracy:.1%} of the test images right)")
    return "\n".join(lines)


def plot(result: Result) -> Figure:
    """Gradients before and after clipping, the attacker's test, and accuracy against epsilon."""
    from matplotlib.figure import Figure

    panels = [_plot_norms]
    panels += [_plot_attack] if result.bound is not None else []
    panels += [_plot_sweep] if result.sweep else []
    figure = Figure(figsize=(4.6 * len(panels), 4), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        panel(axes, result)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _plot_norms(axes: Any, result: Result) -> None:
    norms = result.norms.clip(1e-3 * result.clip)
    bins = np.geomspace(1e-3 * result.clip, max(norms.max(), 1.01 * result.clip), 46)
    axes.hist(norms, bins, color="tab:grey", alpha=0.6, label="before clipping")
    axes.hist(np.minimum(norms, result.clip), bins, histtype="step", color="tab:red", label="after clipping")
    axes.axvline(result.clip, color="tab:red", linestyle=":", linewidth=1, label="the clip")
    axes.set(
        xscale="log",
        xlabel="L2 norm of an example's gradient",
        ylabel="examples",
        title=f"{len(result.norms):,} gradients after training",
    )
    axes.legend(frameon=False)


def _plot_attack(axes: Any, result: Result) -> None:
    bound = result.bound
    axes.fill_between(
        *bound.allowed.T, 1, color="tab:red", alpha=0.12, label="ruled out by the stated mechanism"
    )
    axes.plot(*bound.allowed.T, color="tab:red", linewidth=1)
    axes.plot(*bound.points.T, color="tab:blue", label=f"attacker, {bound.trials:,} trainings")
    axes.plot((0, 1), (0, 1), color="tab:grey", linestyle=":", linewidth=1, label="guessing")
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1.01),
        xlabel="false positive rate",
        ylabel="true positive rate",
        title=f"Audit: stated ε = {bound.stated:.3g}, shown ≥ {bound.this_mechanism:.3g}",
    )
    axes.legend(frameon=False, loc="lower right")


def _plot_sweep(axes: Any, result: Result) -> None:
    from recipes.dp_sgd.lesson import RATE as lesson_rate

    _, epsilons, accuracies, bounds = np.array(result.sweep).T
    axes.plot(epsilons, accuracies, "o-", label="stated (PLD)")
    seen = bounds > 0
    axes.plot(
        bounds[seen], accuracies[seen], "<", color="tab:red", label="shown by one audited run, at least"
    )
    axes.hlines(accuracies[seen], bounds[seen], epsilons[seen], color="tab:red", linewidth=1, alpha=0.5)
    for noise, epsilon, accuracy, _ in result.sweep:
        axes.annotate(
            f"σ = {noise:g}", (epsilon, accuracy), textcoords="offset points", xytext=(6, -10), fontsize=8
        )
    if result.plain_accuracy is not None:
        axes.axhline(
            result.plain_accuracy, color="tab:grey", linestyle="--", label="without privacy, as configured"
        )
    axes.set(
        xscale="log",
        xlabel=f"ε at δ = {result.delta:g}",
        ylabel="test accuracy",
        title=f"One epoch, learning rate {lesson_rate:g}",
    )
    axes.legend(frameon=False, loc="lower right")

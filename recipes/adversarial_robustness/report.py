"""A result in words and in pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.adversarial_robustness.results import EPSILONS, Details, Result, Stale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "cnn": (1.09, 0.08, 0.075, 0.0, 8.7, 0.19),
    "nearest neighbour": (1.54, 0.53, 0.19, 0.22, 10, 0.34),
    "abs": (2.24, 0.80, 0.23, 0.08, 16.3, 0.69),
}
"""Schott et al., 2019, from their curves: median and accuracy at L2 1.5, Linf 0.3, L0 12."""
_NAMES = {
    "cnn": "CNN",
    "abs": "ABS",
    "stale": "stale adversarial training",
    "fgsm": "FGSM, random start",
    "pgd": "PGD-7 training",
    "certified": "interval training",
}


def describe(result: Result) -> str:
    """The result in words, for a terminal."""
    details, lines = result.details, [f"{result.data} images"]
    if details.walk is not None:
        walk = details.walk
        lines += [
            "",
            f"from scratch: {walk.reached.sum()} of {len(walk.reached)} digits led to the class chosen for "
            f"them, in {walk.steps.mean():.1f} steps; on average L2 {walk.l2.mean():.2f}, "
            f"Linf {walk.linf.mean():.2f}",
        ]
    if details.table:
        lines += ["", *_table(result)]
    if details.stale is not None:
        lines += ["", *_stale(details.stale)]
    if details.defences:
        lines += ["", *_defences(result)]
    return "\n".join(lines)


def _table(result: Result) -> list[str]:
    lines = [
        "median distance / accuracy at L2 1.5, Linf 0.3, L0 12; "
        f"{result.images} images, least over all attacks",
        "(clean: of all test images; without --strong, of those attacked for all but the CNN)",
        f"{'':20} {'clean':>7} {'L2':>13} {'Linf':>13} {'L0':>13}",
    ]
    for name, row in result.details.table.items():
        cells = [
            f"{row.median(norm):6.3g} /{row.accuracy_at(norm, limit):5.0%}"
            for norm, limit in (("l2", 1.5), ("linf", 0.3), ("l0", 12))
        ]
        paper = PAPER[name]
        there = [f"{paper[i]:6.3g} /{paper[i + 1]:5.0%}" for i in (0, 2, 4)]
        lines.append(f"{_NAMES.get(name, name):20} {result.clean_accuracy[name]:7.2%} " + " ".join(cells))
        lines.append(f"{'  the paper':20} {'':7} " + " ".join(there))
    return lines


def _stale(stale: Stale) -> list[str]:
    width = max(map(len, stale.before))
    rows = [f"{name:{width}}  {stale.before[name]:8.2%} {stale.after[name]:8.2%}" for name in stale.before]
    return [f"{f'accuracy, {stale.images:,} images':{width}}    before    after", *rows]


def _defences(result: Result) -> list[str]:
    from recipes.adversarial_robustness.evaluation import interval

    (epsilon,) = {defence.epsilon for defence in result.details.defences.values()}
    lines = [f"in Linf {epsilon:g}; clean and proved: of all test images; 95 % intervals"]
    for name, defence in result.details.defences.items():
        lines.append(f"{_NAMES[name]}: clean {defence.clean:.2%}, proved {defence.proved:.2%}")
        for attack, value in result.accuracy_at[name].items():
            images = defence.images_under[attack]
            low, high = interval(round(value * images), images)
            lines.append(f"  {attack}: {value:.1%} of {images:,} images left ({low:.1%} to {high:.1%})")
        failed = [check for check in defence.checks if not check.passed]
        lines += [f"  FLAG  {check.name}: {check.measured}" for check in failed]
        if not failed:
            lines.append(f"  passes all {len(defence.checks)} checks of its evaluation")
        if defence.found:
            lines.append(
                f"  {defence.found:,} adversarials checked again: in the ball, misclassified; "
                f"as 8-bit pictures {defence.found_after_rounding:,}"
            )
    return lines


def plot(result: Result) -> Figure:
    """What was run: digits on their way over a boundary, CNN beside ABS, and accuracy between its bounds."""
    from matplotlib.figure import Figure

    details = result.details
    parts = [
        (draw, wanted)
        for draw, wanted in (
            (draw_walk, details.walk is not None),
            (draw_table, bool(details.table)),
            (draw_stale, details.stale is not None),
            (draw_curves, bool(details.defences)),
        )
        if wanted
    ]
    heights = [{draw_walk: 2.4, draw_table: 6.3, draw_stale: 3.6, draw_curves: 5}[draw] for draw, _ in parts]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    panels = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for (draw, _), panel in zip(parts, panels, strict=True):
        draw(panel, details)
    return figure


def draw_walk(figure: Any, details: Details, most: int = 8) -> None:
    """The first digit's way, with the network's confidence under each picture."""
    walk = details.walk
    places = np.unique(np.linspace(0, len(walk.path) - 1, most).round().astype(int))
    for axes, place in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        confidence = walk.confidences[place]
        seen = confidence.argmax()
        axes.imshow(walk.path[place], cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"step {place}", fontsize=9)
        axes.set_xlabel(
            f"{seen}: {confidence[seen]:.2f}", color="tab:red" if seen != walk.labels[0] else "black"
        )
        axes.set(xticks=[], yticks=[])
    figure.suptitle(f"A {walk.labels[0]} on its way to {walk.targets[0]}, and what the network believes")


def draw_table(figure: Any, details: Details, digits: int = 8) -> None:
    """The images, network by network their nearest adversarials in L2, and what was added."""
    rows = list(details.table.items())
    digits = min(digits, *(len(row.images) for _, row in rows))
    axes = figure.subplots(1 + 2 * len(rows), digits, squeeze=False)
    for place in range(digits):
        axes[0][place].imshow(rows[0][1].images[place, 0], cmap="gray", vmin=0, vmax=1)
    axes[0][0].set_ylabel("original", fontsize=8)
    for number, (name, row) in enumerate(rows):
        pictures = row.nearest["l2"][:digits, 0]
        added = pictures - row.images[:digits, 0]
        for place in range(digits):
            distance = row.distance["l2"][place]
            upper, lower = axes[2 * number + 1][place], axes[2 * number + 2][place]
            upper.imshow(pictures[place], cmap="gray", vmin=0, vmax=1)
            lower.imshow(added[place], cmap="RdBu_r", vmin=-1, vmax=1)
            answer = f"{row.taken_for['l2'][place]} ({distance:.2f})"
            upper.set_title(answer if np.isfinite(distance) else "none found", fontsize=9)
        axes[2 * number + 1][0].set_ylabel(f"{_NAMES.get(name, name)}\nadversarial", fontsize=8)
        axes[2 * number + 2][0].set_ylabel("added", fontsize=8)
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
    figure.suptitle(
        "The nearest adversarials found: what each is taken for (and its L2 distance);\n"
        "below, what was added (red: brighter, blue: darker)"
    )


def draw_stale(figure: Any, details: Details) -> None:
    """Before and after the article's defence, by ever better attacks."""
    axes, stale = figure.subplots(), details.stale
    places = np.arange(len(stale.before))
    for shift, shares, label, colour in (
        (-0.2, stale.before, "undefended", "tab:grey"),
        (0.2, stale.after, "“defended”", "tab:orange"),
    ):
        bars = axes.barh(places + shift, list(shares.values()), 0.4, label=label, color=colour)
        axes.bar_label(bars, [f"{share:.1%}" for share in shares.values()], padding=2, fontsize=8)
    axes.set_yticks(places, list(stale.before))
    axes.invert_yaxis()
    axes.set(xlabel="accuracy", xlim=(0, 1.1), title="A defence that only looks like one")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def draw_curves(figure: Any, details: Details) -> None:
    """Robust accuracy against epsilon: at most the solid line, at least the dashed one; whole and from
    near."""
    whole, near = figure.subplots(1, 2)
    for number, (name, defence) in enumerate(details.defences.items()):
        colour, images = f"C{number}", defence.attacked_images
        for axes in (whole, near):
            label = _NAMES[name] if axes is whole else None
            _curve(axes, defence.epsilons, defence.attacked, images, colour, "-", label)
            if max(defence.verified[1:]) > 0:
                _curve(axes, defence.epsilons, defence.verified, images, colour, "--", None)
            for value, marker in ((defence.auto_attack, "v"), (defence.pgd, "x")):
                if value is not None:
                    axes.plot(defence.epsilon, value, marker, color=colour)
    for axes in (whole, near):
        axes.axvline(defence.epsilon, color="0.8", linewidth=1, zorder=0)
        axes.set(xlabel="epsilon, Linf", xlim=(0, EPSILONS[-1]))
        axes.spines[["top", "right"]].set_visible(False)
    whole.set(ylabel="robust accuracy", ylim=(0, 1), title="whole")
    near.set(ylim=(0.75, 1), title="its upper quarter")
    for style, label in (("-", "left by PGD-40: at most"), ("--", "proved: at least")):
        whole.plot([], [], style, color="0.3", label=label)
    for marker, label in (("v", "AutoAttack"), ("x", "PGD-100 x 10")):
        if defence.auto_attack is not None:
            whole.plot([], [], marker, color="0.3", label=label)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    figure.suptitle("Between what attacks reach and what is proved (bands: 95 %, Clopper–Pearson)")


def _curve(
    axes: Any,
    epsilons: tuple[float, ...],
    shares: tuple[float, ...],
    images: int,
    colour: str,
    style: str,
    label: str | None,
) -> None:
    from recipes.adversarial_robustness.evaluation import interval

    low, high = zip(*(interval(round(share * images), images) for share in shares), strict=True)
    axes.plot(epsilons, shares, style, color=colour, label=label)
    axes.fill_between(epsilons, low, high, color=colour, alpha=0.12, linewidth=0)

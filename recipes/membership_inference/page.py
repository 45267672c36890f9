"""A page for someone who has to sign off a model: what its training images have to fear. No network
needed."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from recipes.files import check_writable, written_whole
from recipes.membership_inference import metrics, report
from recipes.membership_inference.experiment import Result
from recipes.membership_inference.report import TITLES, percent
from recipes.membership_inference.results import Audit

_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 80rem; margin: 2rem auto;
padding: 0 1rem }
table { border-collapse: collapse; font-size: .88rem; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
tr.best td { background: #eef4ff }
p, ul { max-width: 60rem }
img.plot { max-width: 100% }
figure { display: inline-block; margin: .4rem; text-align: center; font-size: .75rem; width: 6.2rem;
         vertical-align: top }
figure img { width: 96px; height: 96px; image-rendering: pixelated }
.finding { border-left: 4px solid #36c; padding: .3rem 1rem; background: #f5f8ff }
small { color: #555 }
"""
NAME = "membership_inference.html"
EXPOSED = 16
"""Records that are shown."""


def check_folder(folder: Path) -> None:
    """Make the folder, if it is not there, and find out whether the page can be written to it.

    Raises:
        ValueError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}") from error
    check_writable(folder / NAME)


def write(folder: Path, result: Result) -> Path:
    """Write `membership_inference.html` into a folder.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / NAME
    with written_whole(path) as temporary:
        temporary.write_text(page(result), "utf-8")
    return path


def page(result: Result) -> str:
    """The page's HTML."""
    stands = sorted({audit.headline for audit in result.audits.of.values()})
    parts = "\n".join(_target(audit, result) for audit in result.audits.of.values())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Membership inference: an audit</title><style>{_STYLE}</style></head><body>
<h1>Does the network tell whom it was trained on?</h1>
<p>Each attack below gives every record a score, which is high where the attack takes the record for
one that the
network was trained on, a member. All are judged on the same records, none of which an attack learned from.
The attack that stands for all, {escape(" or ".join(stands))}, was chosen before any was seen.
Intervals hold with 95 %, each by itself: of many attacks the best looks better than it is. They are Clopper
and Pearson's, widened where the threshold comes from the same records; DeLong's for the AUC; of a precision,
what the intervals of both rates allow.</p>
{_summary(result)}
<p><img class="plot" alt="ROC curves of each target with logarithmic axes" src="{_plot(result)}"></p>
{parts}
<h2>How to read this</h2>
<ul>
<li><b>TPR at a low FPR</b> is the share of members that an attack finds while it accuses so few
others. An attack
that finds 1 % of the members at an FPR of 0.1 % is sure of them, whatever its average is.</li>
<li><b>Precision</b> is the share of true members among those accused. It depends on how common
members are among
the records that an attacker looks at: 50 %, 10 % or 1 %.</li>
<li><b>Epsilon is at least</b>: had the training been differentially private with a smaller epsilon,
so many right
guesses would have had a chance below 5 %. It is no upper bound: another attack may do better.</li>
<li>Attacks with a star know some members by name. Attacks with references train networks as the target was
trained; their seconds are counted. {_sentence(report.COUNT)}</li>
</ul>
</body></html>
"""


def _table(head: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr{' class=best' if best else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>\n"
        for row, best in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>\n{body}</tbody></table>"


def _sentence(text: str) -> str:
    return escape(f"{text[0].upper()}{text[1:]}.")


def _summary(result: Result) -> str:
    head = (
        "target",
        "members right",
        "others right",
        "AUC",
        "TPR at 1 % FPR",
        "epsilon at least",
        "stated",
    )
    rows = []
    name = report.common_attack(result.audits.of.values())
    for audit in result.audits.of.values():
        attack = audit.attacks[name]
        at_one = f"{report.rate_of(attack, 0.01)} %" if 0.01 in report.rates(audit) else "–"
        rows.append(
            (
                (
                    TITLES.get(audit.target, audit.target),
                    percent(audit.train_accuracy),
                    percent(audit.test_accuracy),
                    report.auc_of(attack),
                    at_one,
                    "–" if audit.bound is None else f"{audit.bound.epsilon:.2f}",
                    "none" if audit.stated_epsilon is None else f"{audit.stated_epsilon:g}",
                ),
                False,
            )
        )
    return (
        f"{_table(head, rows)}<p>AUC and TPR are those of {escape(name)}, which all targets have; the bound "
        "is that of the attack which did best on one half of the records, and counted on the other.</p>"
    )


def _target(audit: Audit, result: Result) -> str:
    shown, best = report.rates(audit), audit.headline
    inside, outside = int(audit.member.sum()), int((~audit.member).sum())
    head = (
        "attack, references",
        "AUC",
        "balanced accuracy",
        *(f"TPR % at {100 * r:g} % FPR" for r in shown),
        "CPU s",
    )
    rows = [
        (
            (
                name + (" *" if attack.knows_members else ""),
                report.auc_of(attack),
                percent(attack.evaluation.balanced_accuracy),
                *(report.rate_of(attack, rate) for rate in shown),
                f"{attack.cpu_seconds:,.0f}",
            ),
            name == best,
        )
        for name, attack in audit.attacks.items()
    ]
    lines = report.epsilon_line(audit), report.article_line(audit), report.exposure_line(audit)
    return f"""<h2>{escape(TITLES.get(audit.target, audit.target))}</h2>
<p class="finding">{"<br>".join(map(_sentence, lines))}</p>
{f"<p>{escape(audit.statement)} {escape(report.SEED)}</p>" if audit.statement else ""}
<p>{inside:,} members and {outside:,} others are judged; the lowest false positive rate that can be shown is
{100 * metrics.floor(outside):.2g} %. The images are {escape(result.data)}.</p>
{_table(head, rows)}
{_costs(audit, shown)}
{_precision(audit, shown)}
{_classes(result, audit)}
{_exposed(result, audit)}"""


def _costs(audit: Audit, shown: Sequence[float]) -> str:
    if not shown:
        return ""
    head = ("references", "CPU s", "the best attack, in hindsight", f"TPR at {100 * shown[0]:g} % FPR")
    rows = [
        ((str(references), f"{seconds:,.0f}", name, percent(true)), False)
        for references, seconds, name, true in report.by_cost(audit, shown[0])
    ]
    return f"<h3>What an attack costs, and buys</h3>{_table(head, rows)}"


def _precision(audit: Audit, shown: Sequence[float]) -> str:
    if not shown:
        return ""
    rate = shown[min(1, len(shown) - 1)]
    head = ("attack", *(f"{100 * prior:g} % are members" for prior in metrics.PRIORS))
    rows = [
        (
            (name, *(f"{percent(p.value)} [{percent(p.low)}, {percent(p.high)}]" for p in by_prior.values())),
            False,
        )
        for name, by_prior in report.precision_table(audit, rate).items()
        if name in report.shown_attacks(audit)
    ]
    return f"<h3>Precision at a false positive rate of {100 * rate:g} %</h3>{_table(head, rows)}"


def _classes(result: Result, audit: Audit) -> str:
    found = report.by_class(result, audit)
    ends = found if len(found) <= 10 else [*found[:5], *found[-5:]]
    rows = [((name, f"{value:.3f} [{low:.3f}, {high:.3f}]"), False) for name, (value, low, high) in ends]
    return (
        f"<h3>Classes that are exposed most, and least</h3><p>AUC of {escape(audit.headline)}, in each of "
        f"{len(found)} classes.</p>{_table(('class', 'AUC'), rows)}"
    )


def _exposed(result: Result, audit: Audit) -> str:
    exposed = audit.exposed
    figures = [
        f'<figure><img alt="{escape(name)}" src="{_picture(image)}">{escape(name)}<br>'
        f"<small>{found} of {exposed.seeds} seeds</small></figure>"
        for image, name, found in report.most_exposed_pictures(result, audit, EXPOSED)
    ]
    return (
        "<h3>The members that are exposed most</h3><p>Of all attack seeds together; below each, how many "
        f"seeds have it among their {len(exposed.records)} surest.</p>{''.join(figures)}"
    )


def _plot(result: Result) -> str:
    file = io.BytesIO()
    report.plot(result).savefig(file, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _picture(image: np.ndarray) -> str:
    """`[32, 32, 3]` float32 in [0, 1] as a PNG in base64."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, np.ascontiguousarray(image.clip(0, 1)), format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

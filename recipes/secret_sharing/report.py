"""A result in words, tables and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recipes.secret_sharing import costs
from recipes.secret_sharing.calculator import Config, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def describe(result: Result) -> str:
    """The result in words and tables."""
    return "\n\n".join([_outcome(result), _views(result), _account(result), cost_table(result.config)])


def _outcome(result: Result) -> str:
    lines = [f"{result.expression}  =  {result.value}   (in the clear: {result.expected})"]
    if result.value is None:
        lines = [f"{result.expression}  has no result: {result.verdict}"]
    elif result.verdict:
        lines.append(f"caught: {result.verdict}")
    elif result.config.cheat is not None:
        right = "right all the same" if result.agrees else "WRONG"
        lines.append(
            f"party {result.config.cheat} cheated, which {result.scheme} shares do not show: {right}"
        )
    elif not result.agrees:
        lines.append("WRONG: a truncation has failed")  # exact ones cannot
    elif result.error_bound >= 1 and isinstance(result.value, bool):
        lines.append("the two sides are closer than decimals are exact: it might as well be the opposite")
    elif result.error_bound:
        lines.append(f"decimals are rounded: the value is right to {result.error_bound:.2g}")
    if result.failure_probability:
        lines.append(f"with a probability of at most {result.failure_probability:.2g} it is nonsense")
    return "\n".join(lines)


def _views(result: Result) -> str:
    lines = [
        f"{len(result.shares[0])} numbers, shared among {result.parties} parties ({result.scheme}) modulo"
        f" {result.config.prime}; any {result.threshold} of them learn no more than the result tells"
    ]
    for party, shares in enumerate(result.shares):
        told = ", ".join(map(str, shares)) if result.config.show_shares else f"{len(shares)} shares"
        lines.append(
            f"party {party} saw {told}; {result.numbers_dealt:,} numbers from the dealer;"
            f" {result.numbers_opened:,} opened, all masked but a result"
        )
    return "\n".join(lines)


def _account(result: Result) -> str:
    where = "counted on the sockets" if result.processes else "as they would be sent"
    return (
        f"{result.rounds} rounds, {result.bytes_sent:,} bytes between the parties ({where}),"
        f" {result.triples:,} triples; {result.bytes_offline:,} bytes from the dealer,"
        f" {result.bytes_inputs:,} for the inputs"
    )


def cost_table(config: Config) -> str:
    """What every operation costs with these settings, by formula."""
    scheme = config.sharing()
    lines = [f"{'one operation':26} rounds  opened  triples   bytes sent   bytes dealt"]
    for name, cost in costs.operations(scheme.field, config.fraction_bits).items():
        online, offline = cost.online_bytes(scheme), cost.offline_bytes(scheme)
        lines.append(
            f"{name:26} {cost.rounds:6} {cost.opened:7,} {cost.triples:8,} {online:12,} {offline:13,}"
        )
    return "\n".join(lines)


def plot(result: Result) -> Figure:
    """A picture, its shares (of four parties at most) and what they make together; and the costs."""
    from matplotlib.figure import Figure

    from recipes.data import load

    data = load("fashion-mnist", result.config.data)
    session = result.config.session()
    picture = session.encrypt(data.train.images[0].astype(np.int64))
    parties = session.scheme.parties
    shown = {f"party {i} of {parties}": picture.shares[i, 0] for i in range(min(parties, 4))}
    session.cheater = None
    shown = {"secret": data.train.images[0], **shown, "put together": session.decrypt(picture)}

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=[1, 2])
    above.suptitle(f"A picture ({data.name}, {data.source}) and its {result.scheme} shares", fontsize=10)
    for axes, (title, pixels) in zip(above.subplots(1, len(shown)), shown.items(), strict=True):
        axes.imshow(pixels, cmap="gray_r")
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    _plot_costs(below.subplots(1, 2, sharey=True), result.config)
    return figure


def _plot_costs(axes: np.ndarray, config: Config) -> None:
    """Rounds and bytes of each operation that talks, as bars."""
    scheme = config.sharing()
    table = costs.operations(scheme.field, config.fraction_bits)
    talking = {name: cost for name, cost in table.items() if cost.rounds}
    amounts = {
        "rounds": [cost.rounds for cost in talking.values()],
        f"bytes between {scheme.parties} parties": [cost.online_bytes(scheme) for cost in talking.values()],
    }
    for axis, (title, values) in zip(axes, amounts.items(), strict=True):
        axis.plot(values, list(talking), "o")
        for name, value in zip(talking, values, strict=True):
            axis.annotate(f"{value:,}", (value, name), (6, -3), textcoords="offset points", fontsize=8)
        axis.set(xscale="log", xlim=(min(values) / 2, max(values) * 20))
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()

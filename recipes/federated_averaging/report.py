"""A run as text and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.federated_averaging.table import LIMIT, TARGET

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recipes.federated_averaging.experiment import Result

_NAMES = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}
_SHOWN = 12
"""Rounds that get a line."""


def describe(result: Result) -> str:
    """The result as text: lines of rounds, then what they cost and what they gave away."""
    lines = [
        f"Federated averaging: {_NAMES[result.dataset]} ({result.data_source}), {result.network},"
        f" {result.clients} clients ({result.partition}), {result.algorithm}, engine {result.engine}",
        "round   train accuracy   train loss   test accuracy"
        + ("   trained in one place" if result.centralised_accuracy else ""),
    ]
    for place in _places(result.rounds):
        train = (result.train_accuracy[place], result.train_loss[place])
        shown = ["–" if figure is None else f"{figure:.6f}" for figure in train]
        line = f"{place + 1:5}   {shown[0]:>14}   {shown[1]:>10}   {result.test_accuracy[place]:13.4f}"
        alone = f"   {result.centralised_accuracy[place]:20.4f}" if result.centralised_accuracy else ""
        lines.append(line + alone)
    if result.rounds_to_target:
        lines.append(f"The target was reached in round {result.rounds_to_target}.")
    lines += [_wire(result), _leak(result)]
    if result.epsilon is not None:
        lines.append(_privacy(result))
    return "\n".join([*lines, *_table(result)])


def _places(rounds: int) -> list[int]:
    """Which rounds to show: all, or a dozen from the first to the last."""
    if rounds <= _SHOWN:
        return list(range(rounds))
    return sorted({round(place * (rounds - 1) / (_SHOWN - 1)) for place in range(_SHOWN)})


def _wire(result: Result) -> str:
    line = f"A client sent {result.bytes_up:,} and received {result.bytes_down:,} bytes in a round"
    if result.aggregate_error is None:
        return f"{line}; the server saw every client's change."
    return (
        f"{line}; the server saw the sum of the changes, whose mean was right to {result.aggregate_error:.2f}"
        " quantisation steps."
    )


def _leak(result: Result) -> str:
    asked = "a client's batch of four images" if result.network == "cnn" else "a client with a single image"
    if result.aggregate_error is not None:
        asked = f"{asked}, sealed and by itself,"
    return (
        f"Out of what the server sees of {asked} an attacker gets pixels back with a mean squared error of"
        f" {result.reconstruction_mse:.1e}."
    )


def _privacy(result: Result) -> str:
    from recipes.dp_sgd.accounting import rounded_up

    server = "to it every change is in the clear"
    if result.epsilon_against_server is not None:
        server = f"epsilon is {rounded_up(result.epsilon_against_server)} against it"
    return (
        f"({rounded_up(result.epsilon)}, {result.delta:g})-differentially private by PLD, if a client comes"
        f" or goes: {result.rounds} rounds of the Gaussian mechanism, clients drawn one by one. The server"
        f" knows who took part; {server}. Whoever has the seed takes the noise away again."
    )


def _table(result: Result) -> list[str]:
    if not result.table:
        return []
    lines = [
        f"Rounds to {TARGET:.0%}, 100 clients, 10 a round, softmax regression:",
        f"{'local work':14}   {'rate':>4}   {'iid':>8}   {'shards':>8}",
    ]
    for row in result.table:
        shown = [f"over {LIMIT}" if number is None else str(number) for number in (row.iid, row.shards)]
        lines.append(f"{row.name:14}   {row.learning_rate:4}   {shown[0]:>8}   {shown[1]:>8}")
    return lines


def plot(result: Result) -> Figure:
    """Test accuracy a round, federated and, where that was trained, in one place."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rounds = range(1, result.rounds + 1)
    few = result.rounds <= 30
    if result.centralised_accuracy:
        style = "s--" if few else "--"
        axes.plot(rounds, result.centralised_accuracy, style, color="0.5", label="one model, same examples")
    who = "Alice and Bob" if result.clients == 2 else f"{result.clients} clients, {result.partition}"
    axes.plot(rounds, result.test_accuracy, "o-" if few else "-", label=f"{result.algorithm}, {who}")
    axes.set(xlabel="round", ylabel="accuracy on the test images")
    axes.set_xlim(0.5, result.rounds + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    network = {"softmax": "softmax regression", "cnn": "CNN"}[result.network]
    axes.set_title(f"{_NAMES[result.dataset]} ({result.data_source}), {network}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)  # where it hides no point
    return figure

"""The recipe's experiment: encrypted prediction of test images, counted, timed and held against plaintext."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recipes import data, parties, progress
from recipes.files import check_writable
from recipes.private_prediction import alone, costs, mlp, roles
from recipes.private_prediction.alone import Report, predicted_labels, share_right, write_output
from recipes.private_prediction.config import Config, client_images, server_terms, slow_line
from recipes.private_prediction.randomness import CLIENT, PROVIDER, SERVER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAN = (0.5, 1000.0)
"""Round trip in milliseconds and megabits a second of a local network."""


@dataclass(frozen=True)
class Result:
    """What came out, over all images."""

    images: int
    accuracy: float | None
    """Share of images whose encrypted prediction is the true label; None if these are not known."""
    plaintext_accuracy: float | None
    """The same for the network in the clear, float32."""
    agreement: int
    """Images whose encrypted label is the one that the same layers give in the clear."""
    disagreements: tuple[tuple[int, int, int, float], ...]
    """The others: image, label in the clear, encrypted label, gap between the two logits in the clear."""
    max_logit_error: float
    """Largest difference of a logit from the one in the clear, in a session that reveals logits."""
    rounds_online: int
    """Messages one after the other in one query."""
    bytes_online: int
    """Between client and server, in all queries; weights not included."""
    bytes_offline: int
    """From the provider, in all queries; seeds included."""
    bytes_weights: int
    """From the server to the client, once a session: the masked weights."""
    seconds_online: float
    """From the inputs to the labels, all queries."""
    seconds_offline: float
    """Dealing, and what the parties work out before they know the input."""
    seconds_total: float
    """The whole session: weights, offline, online; without the start of the processes."""
    seconds_lan: float
    """Projected for one query on a local network, online."""
    seconds_wan: float
    """Projected for one query on the network that the config names, online."""
    seconds_imitated: float | None
    """Measured for one query with messages held up as on that network, None if that was not asked for."""
    reveal: str
    model: str
    data: str
    """Which data were used: real or embedded test images, or a file of the client's."""
    datasite_agreement: int | None
    """Images whose label the PySyft datasite gives as the plaintext one, None if it was not asked."""
    datasite_seconds: float | None
    datasite_owner_saw_images: bool | None
    """Whether the datasite's owner could read the images."""
    queries: int
    steps: dict[str, dict[str, float]]
    """By step: rounds, bytes from client, server and provider as counted, and seconds, all queries."""


def run(config: Config) -> Result | Report:
    """Play all three roles in processes of their own, or one role in this one.

    Raises:
        ValueError: bad weights, flags that do not fit together, or inputs that the network does not take.
        PartyLost: a process died.
    """
    if config.output:
        check_writable(config.output)
    if config.role != "all":
        return alone.run(config)
    if config.train:
        _train(config)
    layers = mlp.read(config.model)
    source = _available(config)
    config = dataclasses.replace(config, data="auto" if source == "file" else source)
    inputs, labels = client_images(config)
    expected = mlp.logits(layers, _check_inputs(inputs, layers, config))
    offered = server_terms(layers, config)  # what does not fit is found before anybody starts
    played = session(config)
    exact = played if config.reveal == "logits" else session(dataclasses.replace(config, reveal="logits"))
    slow = session(config, slow_line(config)) if config.imitate else None
    logits = np.array(exact[CLIENT]["revealed"])
    revealed = np.array(played[CLIENT]["revealed"])
    predicted = predicted_labels(config, revealed)
    plain = expected.argmax(axis=1)
    write_output(config, revealed)
    return Result(
        images=len(inputs),
        accuracy=share_right(predicted, labels),
        plaintext_accuracy=share_right(plain, labels),
        agreement=int(np.sum(predicted == plain)),
        disagreements=_disagreements(expected, plain, predicted),
        max_logit_error=float(np.abs(logits - expected).max()),
        reveal=config.reveal,
        model=config.model,
        data=source,
        **_counted(config, len(inputs), offered, played),
        seconds_imitated=slow and fmean(slow[CLIENT]["online"]),
        **_datasite(config, layers, inputs, plain),
    )


def play(network: parties.Network, settings: dict[str, Any]) -> dict[str, Any]:
    """One role's part, in a process of its own, from a config as JSON holds it."""
    import torch

    torch.set_num_threads(1)  # two parties, two cores
    config = Config(**settings)
    if network.role == PROVIDER:
        return roles.provide(network)
    if network.role == SERVER:
        layers = mlp.read(config.model)
        return roles.answer(network, layers, server_terms(layers, config))
    inputs, _ = client_images(config)
    answers = alone.ask(config, network, inputs)
    return {"revealed": answers.revealed.tolist(), **answers.report}


def _available(config: Config) -> Literal["real", "embedded", "file"]:
    """Which data there are; decided once, so that all processes have the same."""
    return "file" if config.inputs else data.load(config.dataset, config.data).source


def _check_inputs(inputs: np.ndarray, layers: Sequence[mlp.Layer], config: Config) -> np.ndarray:
    takes = layers[0].weight.shape[1]
    if inputs.shape[1] != takes:
        raise ValueError(
            f"{config.model} takes {takes} inputs, and an image of {config.inputs or config.dataset} has "
            f"{inputs.shape[1]} numbers: name another --dataset, or --inputs"
        )
    return inputs


def session(config: Config, line: parties.Line | None = None) -> dict[str, Any]:
    """All three roles as processes, each told what it needs to know; what each of them reports.

    The client's report: `revealed`, `steps`, and seconds (`roles.ask`); the others': `steps`, `images`.
    """
    images = {name: getattr(config, name) for name in ("data", "dataset", "images", "batch", "comparison")}
    images["inputs"] = config.inputs and str(config.inputs)
    scaling = {name: getattr(config, name) for name in ("mean", "std", "reveal")}
    weights = {"model": config.model, "fraction_bits": config.fraction_bits}
    settings = {CLIENT: images | scaling, SERVER: scaling | weights, PROVIDER: {}}
    with progress.paused():  # the client draws
        return parties.run_processes(play, settings, line)


def _disagreements(
    expected: np.ndarray, plain: np.ndarray, predicted: np.ndarray
) -> tuple[tuple[int, int, int, float], ...]:
    return tuple(
        (int(i), int(plain[i]), int(predicted[i]), float(expected[i, plain[i]] - expected[i, predicted[i]]))
        for i in np.flatnonzero(plain != predicted)
    )


def _counted(config: Config, images: int, offered: roles.Terms, played: dict[str, Any]) -> dict[str, Any]:
    """Rounds, bytes and seconds, as the processes counted them."""
    client, server, provider = (played[role] for role in roles.ROLES)
    steps = {
        step: {
            "rounds": rounds,
            "client_bytes": sent,
            "server_bytes": server["steps"][step][1],
            "provider_bytes": provider["steps"].get("seeds" if step == "weights" else step, [0, 0])[1],
            "seconds": seconds,
        }
        for step, (rounds, sent, seconds) in client["steps"].items()
    }
    queries = len(client["online"])
    working = [step for name, step in steps.items() if name != "weights"]
    first = costs.query(offered.scales, min(config.batch, images), config.comparison, config.reveal)
    networks = {"lan": LAN, "wan": (config.round_trip, config.bandwidth)}
    return {
        "queries": queries,
        "steps": steps,
        "rounds_online": int(sum(step["rounds"] for step in working)) // queries,
        "bytes_online": sum(step["client_bytes"] + step["server_bytes"] for step in working),
        "bytes_offline": sum(step["provider_bytes"] for step in steps.values()),
        "bytes_weights": steps["weights"]["server_bytes"],
        "seconds_online": sum(client["online"]),
        "seconds_offline": sum(client["offline"]),
        "seconds_total": client["total"],
        **{
            f"seconds_{name}": costs.projected(first, fmean(client["online"]), trip / 1e3, width * 1e6 / 8)
            for name, (trip, width) in networks.items()
        },
    }


def _datasite(
    config: Config, layers: Sequence[mlp.Layer], inputs: np.ndarray, plain: np.ndarray
) -> dict[str, Any]:
    if not config.datasite:
        return dict.fromkeys(("datasite_agreement", "datasite_seconds", "datasite_owner_saw_images"))
    from recipes.private_prediction import datasite

    report = datasite.predict([(layer.weight, layer.bias) for layer in layers], inputs)
    return {
        "datasite_agreement": int(np.sum(report.labels == plain)),
        "datasite_seconds": report.seconds,
        "datasite_owner_saw_images": report.owner_read_the_images,
    }


def describe(result: Result | Report) -> str:
    """The result in words, for a terminal."""
    if isinstance(result, Report):
        said = f"{result.role}: {result.images:,} images, {result.seconds:.3g} s, "
        right = "" if result.accuracy is None else f", {result.accuracy:.2%} right"
        return f"{said}{result.bytes_sent:,} bytes sent{right}"
    each = result.seconds_online / result.queries
    lines = [
        f"{result.images:,} images ({result.data})"
        + (": the network has learned real digits, and these are drawn" if result.data == "embedded" else ""),
        *(
            [f"right on shares {result.accuracy:.2%}, in the clear {result.plaintext_accuracy:.2%}"]
            if result.accuracy is not None
            else []
        ),
        f"label as in the clear: {result.agreement:,} of {result.images:,}",
        *(
            f"  image {image}: {clear} in the clear, {encrypted} encrypted, logits {gap:.2g} apart"
            for image, clear, encrypted, gap in result.disagreements
        ),
        f"largest logit error, in a session that reveals logits: {result.max_logit_error:.2g}",
        "",
        f"{'step':<10}{'rounds':>8}{'client':>14}{'server':>14}{'provider':>16}  bytes",
    ]
    lines += [
        f"{name:<10}{step['rounds']:>8,}{step['client_bytes']:>14,}{step['server_bytes']:>14,}"
        f"{step['provider_bytes']:>16,}"
        for name, step in result.steps.items()
    ]
    lines += [
        "",
        f"a query: {result.rounds_online} rounds, {each:.3g} s online here; projected for a local network "
        f"{result.seconds_lan:.3g} s, for --round-trip and --bandwidth {result.seconds_wan:.3g} s",
        f"all: {result.seconds_online:.3g} s online, {result.seconds_offline:.3g} s offline, "
        f"{result.seconds_total:.3g} s the session",
    ]
    if result.seconds_imitated is not None:
        lines.append(f"that network imitated: {result.seconds_imitated:.3g} s a query")
    if result.datasite_agreement is not None:
        saw = "read" if result.datasite_owner_saw_images else "could not read"
        lines.append(
            f"PySyft datasite, under approval: label as in the clear for {result.datasite_agreement:,} of "
            f"{result.images:,}, {result.datasite_seconds:.3g} s; its owner {saw} the images"
        )
    return "\n".join(lines)


def plot(result: Result | Report) -> Figure:
    """Who sends how many bytes in which step, and how long a query takes where.

    Raises:
        ValueError: one role by itself does not know what the others sent.
    """
    from matplotlib.figure import Figure

    if isinstance(result, Report):
        raise ValueError("--plot needs all three roles: one by itself does not know what the others send")

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    steps = list(result.steps)
    for place, role in enumerate(roles.ROLES):
        heights = [result.steps[step][f"{role}_bytes"] / result.images for step in steps]
        left.bar(np.arange(len(steps)) + 0.27 * (place - 1), heights, 0.25, label=f"from the {role}")
    left.set(yscale="log", ylabel="bytes an image", title=f"What is sent for {result.images:,} images")
    left.set_ylim(1, 10 * left.get_ylim()[1])
    left.set_xticks(np.arange(len(steps)), [f"{s}\n(once)" if s == "weights" else s for s in steps])
    left.legend(frameon=False)
    times = {
        "here": result.seconds_online / result.queries,
        "local\nnetwork": result.seconds_lan,
        "wide\nnetwork": result.seconds_wan,
    }
    bars = right.bar(list(times), list(times.values()), color="tab:grey")
    right.bar_label(bars, [f"{seconds:.3g} s" for seconds in times.values()])
    right.set(
        ylabel="seconds a query, online", title=f"{result.rounds_online} rounds a query; networks projected"
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _train(config: Config) -> None:
    """Rewrite the weights that come with the recipe.

    Raises:
        ValueError: only stand-ins are at hand; the network that is shipped is one of real digits.
    """
    from recipes import cards, weights

    mnist = data.load("mnist", config.data)
    if mnist.source != "real":
        raise ValueError(
            "train needs the real MNIST: the network that comes with the recipe is one of real digits"
        )
    with cards.Stopwatch() as watch:
        layers, accuracy = mlp.train("real")
    figures = {"test_accuracy": f"{accuracy:.4f}", "cpu_seconds": f"{watch.cpu:.0f}"}
    mlp.write(layers, weights.card("784-500-10, ReLU, of pixels in [0, 1]", mnist, 0, mlp.COMMAND, **figures))


def main() -> None:
    """Run the recipe from the command line."""
    from recipes import cards, command_line

    everything = Config(images=10_000)
    plan = cards.Plan(
        recipe="private_prediction",
        number=3,
        question="Can a server classify images it cannot see, with a network its client cannot see?",
        dataset="mnist",
        experiments=(
            cards.Experiment(
                "all test images",
                everything,
                shown=("accuracy", "agreement", "max_logit_error", "rounds_online", "bytes_online"),
                source="0.9742 (printed as 9742/10048)",
            ),
            cards.Experiment(
                "the same by function secret sharing",
                dataclasses.replace(everything, comparison="fss"),
                shown=("accuracy", "agreement", "rounds_online", "bytes_online"),
            ),
            cards.Experiment(
                "one image, 50 ms there and back, imitated",
                Config(images=1, comparison="fss", imitate=True),
                shown=("seconds_wan", "seconds_imitated", "rounds_online"),
            ),
            cards.Experiment(
                "through a PySyft datasite, whose owner sees the images",
                Config(datasite=True),
                shown=("datasite_agreement", "datasite_seconds"),
            ),
        ),
    )
    profiles = {"quick": Config(), "full": Config(images=10_000, datasite=True)}
    command_line.main("private_prediction", run, plot, describe, profiles, plan)

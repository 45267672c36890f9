"""One run on Flower, beside the same in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recipes import cards
from recipes.data import load
from recipes.federated_averaging.config import Config
from recipes.federated_averaging.flower.deployment import ENVIRONMENT, Deployment, deployment
from recipes.federated_averaging.flower.settings import settings_of
from recipes.federated_averaging.simulation import clients_of, federated_rounds
from recipes.files import check_writable

CLOSE = 1e-6
"""How far a weight may lie from the simulation's."""


@dataclass(frozen=True)
class Options:
    """How it is run."""

    patience: float = 60.0
    """Seconds that a round goes on after its first update, for clients that have not answered; above 0."""
    kill: int | None = None
    """Kill the last client's SuperNode after this round, from 1, to see that the others go on."""
    environment: Path = ENVIRONMENT
    """The virtual environment in which Flower is installed."""
    json: Path | None = None
    """Write config, result, environment and seconds to this file."""


@dataclass(frozen=True)
class Result:
    """What came of the run, one entry a round in every tuple."""

    data_source: str
    """`real` or `embedded`."""
    took_part: tuple[tuple[int, ...], ...]
    """Clients whose changes were averaged."""
    missing: tuple[tuple[int, ...], ...]
    """Clients that were chosen, but did not answer in time."""
    test_accuracy: tuple[float, ...]
    """The global model on all test images."""
    distance: float
    """The largest of a weight from that of the simulation, in which no client is missing."""
    model: np.ndarray = field(repr=False)
    """`[P]` float32, the last global model."""


def run(config: Config, options: Options) -> Result:
    """Run it on Flower, with a line for each round, and then in this process.

    Raises:
        DatasetUnavailable: the real data were asked for and cannot be had.
        OSError: Flower is not installed, or one of its processes failed.
        ValueError: Flower cannot run this config here.
    """
    from safetensors.numpy import load_file

    settings = settings_of(config) | {"patience": options.patience}
    with deployment(options.environment) as parties:
        data = load(config.dataset, config.data)
        parties.start(config.clients, settings | {"data": data.source})  # the same for all
        _follow(parties, config, options)
        model, rounds = load_file(parties.model)["model"], parties.rounds()
    with contextlib.closing(federated_rounds(clients_of(data, config), config)) as endless:
        simulated = list(itertools.islice(endless, config.rounds))
    took_part = [tuple(row["clients"]) for row in rounds]
    return Result(
        data_source=data.source,
        took_part=tuple(took_part),
        missing=tuple(
            tuple(sorted(set(step.clients).difference(came)))
            for step, came in zip(simulated, took_part, strict=True)
        ),
        test_accuracy=tuple(row["test_accuracy"] for row in rounds),
        distance=float(np.abs(model - simulated[-1].model).max()),
        model=model,
    )


def _follow(parties: Deployment, config: Config, options: Options) -> None:
    """Say how each round went, until the model is there; kill who is to be killed."""
    said, last, killed = 0, config.clients - 1, False
    while True:
        # asked first, so that nothing is missed
        done, ended = parties.model.exists(), not parties.running("run")
        rounds = parties.rounds()
        kill = bool(options.kill) and not killed and len(rounds) >= options.kill
        if kill:
            parties.kill(f"SuperNode {last}")
        for number, row in enumerate(rounds[said:], start=said + 1):
            clients = " ".join(map(str, row["clients"]))
            print(f"round {number}: clients {clients}, test accuracy {row['test_accuracy']:.4f}", flush=True)
        if kill:
            print(f"killed the SuperNode of client {last}", flush=True)
        said, killed = len(rounds), killed or kill
        if done:
            return
        parties.check("SuperLink", *(name for name in parties.processes if "Node" in name and not said))
        if ended:
            raise OSError(f"the run on Flower failed: {parties.last_words('run')}")
        time.sleep(0.05)


def describe(result: Result) -> str:
    """What the launcher prints at the end."""
    gone = {}
    for number, clients in enumerate(result.missing, start=1):
        for client in clients:
            gone.setdefault(client, []).append(str(number))
    if gone:
        who = "; ".join(f"client {client} in round {', '.join(numbers)}" for client, numbers in gone.items())
        return (
            f"the models of Flower and of the simulation differ, by up to {result.distance:.2g},"
            f" as clients were missing: {who} ({result.data_source})"
        )
    return (
        f"largest distance of a weight from the simulation's: {result.distance:.2g}, at most {CLOSE:.0e}"
        f" {'as' if result.distance <= CLOSE else 'was'} expected ({result.data_source})"
    )


def check(config: Config, options: Options) -> None:
    """Find out before the work whether the flags agree and the result can be written.

    Raises:
        ValueError: they do not, or it cannot.
    """
    settings_of(config)
    if not 0 < options.patience < math.inf:
        raise ValueError(f"patience is {options.patience}: it must be some seconds, above 0")
    if options.kill is not None and not 1 <= options.kill < config.rounds:
        raise ValueError(
            f"kill is {options.kill}: it must be a round before the last, {config.rounds}, from 1"
        )
    if options.json:
        check_writable(options.json)


def main() -> None:
    """Run it from the command line."""
    import tyro

    from recipes import shell

    program = "recipes.federated_averaging.flower"
    with shell.one_line_errors(program):
        command = dataclasses.make_dataclass(
            "Command", [("config", Config, Config(rounds=3)), ("options", Options, Options())], frozen=True
        )
        title = "Recipe: federated averaging, on Flower."
        parsed = shell.parse(tyro.conf.OmitArgPrefixes[command], program, description=title)
        check(parsed.config, parsed.options)
        with cards.Stopwatch() as watch:
            result = run(parsed.config, parsed.options)
        print(describe(result), flush=True)
        if parsed.options.json:
            cards.write_json(parsed.options.json, cards.run_record(parsed.config, result, watch))
        if result.distance > CLOSE and not any(result.missing):
            raise SystemExit(1)

"""Flower's simulation engine for federated_averaging.py: Ray, an actor for each core, `client_update` of this
recipe in each. It runs in processes with an environment of their own, and takes PyTorch out of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from federated_averaging_work import CORES, Models, chosen_in, first_of

from recipes import federated_averaging as fa

FOLDER = Path(__file__).resolve().parent
PATIENCE = 900.0
"""Seconds after which Flower is given up."""
REPLY, PACKAGES = "reply: ", "COOKBOOK_PACKAGES"

# ---- what the benchmark's process does


def by_flower(clients: Sequence[fa.Examples], config: fa.Config, python: Path) -> Models:
    """Flower's simulation engine, in processes with an environment of their own."""
    with tempfile.TemporaryDirectory(prefix="flower") as name:
        folder = Path(name)
        np.save(folder / "pixels.npy", np.stack([one.pixels for one in clients]))
        np.save(folder / "labels.npy", np.stack([one.labels for one in clients]))
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)), "utf-8")
        with _flower(folder, python) as ask:
            while True:
                ask("round")
                yield _Saved(lambda: (ask("save"), np.load(folder / "model.npy"))[1])


class _Saved:
    """A model that is fetched, and so paid for, when it is looked at."""

    def __init__(self, fetch: Callable[[], np.ndarray]) -> None:
        self._fetch = fetch

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self._fetch()


@contextlib.contextmanager
def _flower(folder: Path, python: Path) -> Iterator[Callable[[str], str]]:
    """Start Flower; the function says a word to its server and waits for the answer."""
    code = "import sys, federated_averaging_flower as f; f.flower_simulation(sys.argv[1])"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(FOLDER), str(FOLDER.parent)]),
        PACKAGES: sysconfig.get_path("purelib"),
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    log = folder / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(  # noqa: S603 - our own code
            [python, "-c", code, folder],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        alarm = threading.Timer(PATIENCE, _end, (process,))
        alarm.start()

        def ask(word: str) -> str:
            with contextlib.suppress(BrokenPipeError):
                print(word, file=process.stdin, flush=True)
            for line in process.stdout:
                if line.startswith(REPLY):
                    return line.removeprefix(REPLY).strip()
            raise SystemExit(f"Flower failed, or took over {PATIENCE:.0f} s:\n{log.read_text()[-2000:]}")

        try:
            yield ask
        finally:
            alarm.cancel()
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                process.stdin.close()  # its server ends, and Ray with it
                process.wait(20)
            _end(process)


def _end(process: subprocess.Popen) -> None:
    """Kill Flower and all that Ray started, if anything is left."""
    import psutil

    left = []
    with contextlib.suppress(psutil.Error):
        left = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in left:
        with contextlib.suppress(psutil.Error):
            one.kill()


# ---- what Flower's processes do, in its environment


def flower_simulation(folder: str) -> None:
    """Flower's server, which runs a round for each line of the input, and its clients."""
    from flwr.app import Context
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    config = _held(folder)[0]
    server, client = ServerApp(), ClientApp()
    client.train()(flower_client)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        grid.pull_interval = 0.002
        model = fa.NETWORKS[config.network].initial(config.seed)
        while len(list(grid.get_node_ids())) < config.clients:
            time.sleep(0.1)
        number = 0
        for word in sys.stdin:
            if word.strip() == "round":
                answers = _answers(grid, folder, model, chosen_in(config, number), not number)
                model = fa.server_update(model, answers)
                number += 1
            elif word.strip() == "save":
                np.save(Path(folder) / "model.npy", model)
            print(REPLY, flush=True)

    run_simulation(
        server,
        client,
        num_supernodes=config.clients,
        backend_config={
            "init_args": {"num_cpus": CORES, "_temp_dir": f"{folder}/ray"},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


def _answers(
    grid: Any, folder: str, model: np.ndarray, chosen: Sequence[int], first: bool
) -> list[fa.Update]:
    """Send the model to one node for each chosen client; their updates."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

    sent = ArrayRecord({"model": Array(model)})
    common = {"folder": folder, "packages": os.environ[PACKAGES], "first": first}
    messages = [
        Message(
            RecordDict({"model": sent, "asked": ConfigRecord(common | {"client": client})}),
            message_type="train",
            dst_node_id=node,
        )
        for node, client in zip(grid.get_node_ids(), chosen, strict=False)
    ]
    updates = {}
    for reply in grid.send_and_receive(messages):
        if reply.has_error():
            raise RuntimeError(reply.error.reason)
        figures = reply.content["figures"]
        names = ("examples", "correct", "loss", "steps")
        change = reply.content["change"]["change"].numpy()
        updates[figures["client"]] = fa.Update(change, *(figures[name] for name in names))
    return [updates[client] for client in chosen]


def flower_client(message: Any, context: Any) -> Any:
    """A client's round, in an actor of Ray."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

    asked = message.content["asked"]
    config, pixels, labels = _held(asked["folder"])
    if config.network == "cnn":
        _find_torch(asked["packages"])
    examples = fa.Examples(pixels[asked["client"]], labels[asked["client"]])
    if asked["first"]:
        (examples,) = first_of([examples], config)
    update = fa.client_update(message.content["model"]["model"].numpy(), examples, config)
    figures = {name: getattr(update, name) for name in ("examples", "correct", "loss", "steps")}
    content = {
        "change": ArrayRecord({"change": Array(update.change)}),
        "figures": MetricRecord({"client": asked["client"], **figures}),
    }
    return Message(RecordDict(content), reply_to=message)


@functools.cache
def _held(folder: str) -> tuple[fa.Config, np.ndarray, np.ndarray]:
    """The config, which a process reads once, and everybody's data."""
    config = fa.Config(**json.loads((Path(folder) / "config.json").read_text("utf-8")))
    pixels, labels = (np.load(Path(folder) / f"{name}.npy", mmap_mode="c") for name in ("pixels", "labels"))
    return config, np.asarray(pixels), np.asarray(labels)


@functools.cache
def _find_torch(packages: str) -> None:
    """Make the other environment's PyTorch importable, last of all: whatever Flower has is Flower's own.

    In clients only, and once they run: Flower's modules import TensorFlow if there is one, which then fails.
    """
    sys.path.append(packages)

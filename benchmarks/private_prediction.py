"""Encrypted prediction beside CrypTen: the same network, the same test images, the label revealed.

All in one run, the peers in turns, every party a process with one thread. This recipe's figures are
online, from the inputs to the label, and end to end, with the provider's work and what the
parties do before they know the input. CrypTen makes its triples as it needs them, so it has one
figure, from the plain input to the label. By default party 0 makes them, who could then unmask
everything; a provider of its own, as ours is, takes another process. Weights are encrypted before
either clock starts; CrypTen opens them, masked, in every query. CrypTen's bytes are those that its
first party sends and receives, as it counts them: with two parties, all that is sent. Function secret
sharing predicts all images in one turn only, and CrypTen with a provider of its own never does, as both
take long.

    python benchmarks/private_prediction.py [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1")

import numpy as np
import psutil

from recipes import cards, data
from recipes.private_prediction import mlp, prediction

TURNS = 3
QUERIES = {1: 10, 64: 4}
"""How many queries a turn are timed, by images a query, after one that is not."""
LARGEST, FEW = 1000, 2
"""Images a query where all test images are predicted; queries of so many where not all are."""
OURS = {"tables": "tables", "fss": "function secret sharing"}
CLOCKS = ("online", "end to end")
CRYPTEN = {"CrypTen": "TFP", "CrypTen with a provider of its own": "TTP"}
RECORDED = "PySyft 0.2.9, recorded, not in this run", {"batch of 64": "4.62 s"}
PATIENCE = 180.0
"""Seconds after which CrypTen is given up."""


def _lists() -> dict[str, Any]:
    return defaultdict(lambda: defaultdict(list))


@dataclass
class Record:
    """What was measured, by system and size of the query."""

    source: str
    plain: np.ndarray
    """Labels in the clear, of all images."""
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=_lists)
    rounds: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    bytes: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    labels: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    memory: int = 0

    def keep(self, system: str, batch: int, seconds: list[float], rounds: int, count: int) -> None:
        """Keep a turn's queries; of all images, their sum, too."""
        self.seconds[system][size(batch)] += seconds
        self.rounds[system][size(batch)], self.bytes[system][size(batch)] = rounds, count
        if batch * len(seconds) == len(self.plain):
            self.seconds[system][f"{len(self.plain):,} images"].append(sum(seconds))

    def check(self, system: str, labels: list[int]) -> None:
        """Count labels, and those of them that are as in the clear."""
        same = int(np.sum(np.array(labels) == self.plain[: len(labels)]))
        self.labels[system].update({"as in the clear": same, "of": len(labels)})


def size(batch: int) -> str:
    """What a column is called."""
    return f"batch of {batch:,}"


def ours(record: Record, comparison: str, batch: int, images: int) -> None:
    """A session of this recipe, with processes of its own; its first query counts if all images do."""
    config = prediction.Config(data=record.source, images=images, batch=batch, comparison=comparison)
    client, server, provider = prediction.session(config).values()
    queries, first = len(client["online"]), int(images < len(record.plain))
    online = client["online"][first:]
    whole = [a + b for a, b in zip(online, client["offline"][first:], strict=True)]
    steps = [step for step in client["steps"] if step != "weights"]
    rounds = sum(client["steps"][step][0] for step in steps) // queries
    sent = sum(client["steps"][step][1] + server["steps"][step][1] for step in steps)
    dealt = sum(step[1] for name, step in provider["steps"].items() if name != "seeds")
    for clock, seconds, count in zip(CLOCKS, (online, whole), (sent, sent + dealt), strict=True):
        record.keep(f"{OURS[comparison]}, {clock}", batch, seconds, rounds, count // queries)
    record.check(OURS[comparison], client["revealed"])


def by_crypten(record: Record, system: str) -> None:
    """A turn of CrypTen; with a provider of its own it does not predict all images."""
    batches = [*QUERIES.items(), (LARGEST, len(record.plain) // LARGEST)]
    if CRYPTEN[system] == "TTP":
        batches = [*[one for one in QUERIES.items() if one[0] > 1], (LARGEST, FEW)]
    plan = {"provider": CRYPTEN[system], "source": record.source, "images": len(record.plain)}
    for batch, seconds, rounds, count, labels in crypten_says(plan | {"batches": batches}):
        record.keep(system, batch, seconds, rounds, int(count))
        record.check(system, labels)


def crypten_says(plan: dict[str, Any]) -> list[Any]:
    """Start CrypTen's processes, take in their report, and end them, whatever they are doing."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['crypten_parties'](sys.argv[2])"
    command = [sys.executable, "-c", code, __file__, json.dumps(plan)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:  # noqa: S603
        alarm = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
        alarm.start()
        try:
            report = process.stdout.readline()
        finally:
            alarm.cancel()
            os.killpg(process.pid, signal.SIGKILL)  # its processes now and then wait for each other for ever
    if not report:
        raise SystemExit(f"CrypTen ({plan['provider']}) failed, or gave no answer in {PATIENCE:.0f} s")
    return json.loads(report)


def crypten_parties(plan: str) -> None:
    """Start CrypTen's parties, of which the first prints what it measured."""
    sys.modules["tensorflow"] = None  # CrypTen imports it if it can, and then hangs in a fork
    warnings.filterwarnings("ignore")
    import crypten.mpc

    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    asked = json.loads(plan)
    crypten.cfg.mpc.provider = asked["provider"]  # before the start: it decides how many processes there are
    inputs, _ = prediction.client_images(prediction.Config(data=asked["source"], images=asked["images"]))
    crypten.mpc.run_multiprocess(world_size=2)(_crypten_party)(inputs, asked["batches"])


def _end_with_the_parent() -> None:
    os.read(0, 1)  # not sys.stdin.read: its lock would be copied into the forks, which close it
    os.killpg(0, signal.SIGKILL)


def _crypten_party(inputs: np.ndarray, batches: list[tuple[int, int]]) -> None:
    import crypten
    import torch

    torch.set_num_threads(1)
    network, communicator = _encrypted_network(), crypten.communicator.get()

    def predict(query: np.ndarray) -> torch.Tensor:
        encrypted = crypten.cryptensor(torch.from_numpy(query), src=1)
        return network(encrypted).argmax(dim=1, one_hot=False).get_plain_text()

    report = []
    for batch, queries in batches:
        with crypten.cfg.temp_override({"communicator.verbose": True}):  # count, and warm up
            communicator.reset_communication_stats()
            predict(inputs[:batch])
            counted = communicator.get_communication_stats()
        seconds, labels = [], []
        for start in range(0, batch * queries, batch):
            started = time.perf_counter()
            labels += predict(inputs[start : start + batch]).int().tolist()
            seconds.append(time.perf_counter() - started)
        report.append((batch, seconds, counted["rounds"], counted["bytes"], labels))
    if communicator.get_rank() == 0:
        print(json.dumps(report), flush=True)


def _encrypted_network() -> Any:
    import crypten
    import torch

    modules: list[torch.nn.Module] = []
    for layer in mlp.read(mlp.SHIPPED):
        modules += [torch.nn.Linear(*reversed(layer.weight.shape)), torch.nn.ReLU()]
        modules[-2].weight.data = torch.from_numpy(layer.weight)
        modules[-2].bias.data = torch.from_numpy(layer.bias)
    network = torch.nn.Sequential(*modules[:-1])
    return crypten.nn.from_pytorch(network, torch.zeros(1, modules[0].in_features)).encrypt(src=0)


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes at the peak while something is done: PSS of this process and all below it, every 50 ms.

    PSS counts what processes share once, RSS in each of them. To look slows them: time nothing meanwhile.
    """
    peak, me = 0, psutil.Process()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        while not future.done():
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):  # it has just ended
                    total += process.memory_full_info().pss
            peak = max(peak, total)
            time.sleep(0.05)
    future.result()  # raises what it raised
    return peak


def measure() -> Record:
    """Everybody's turns, then this recipe's memory."""
    mnist = data.load("mnist", "auto")
    inputs = data.scale(mnist.test.images).reshape(len(mnist.test), -1)
    record = Record(mnist.source, mlp.logits(mlp.read(mlp.SHIPPED), inputs).argmax(axis=1))
    for turn in range(TURNS):
        for comparison, system in zip(OURS, CRYPTEN, strict=True):
            for batch, queries in QUERIES.items():
                ours(record, comparison, batch, batch * (queries + 1))
            if comparison == "tables" or not turn:  # the other takes long
                ours(record, comparison, LARGEST, len(record.plain))
            by_crypten(record, system)
    config = prediction.Config(data=mnist.source, images=len(inputs), batch=LARGEST)
    record.memory = peak_memory(lambda: prediction.session(config))
    return record


def ratios(seconds: dict[str, dict[str, float]], comparison: str) -> dict[str, dict[str, float]]:
    """How many times as fast this recipe is, by peer, size and clock."""
    return {
        peer: {
            f"{column}, {clock}": theirs / seconds[f"{OURS[comparison]}, {clock}"][column]
            for column, theirs in seconds[peer].items()
            for clock in CLOCKS
        }
        for peer in CRYPTEN
    }


def show(record: Record, seconds: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    columns = list(seconds["CrypTen"])

    def row(name: str, cells: dict[str, str]) -> None:
        print(f"{name:45}" + "".join(f"{cells.get(column, ''):>16}" for column in columns))

    systems = [f"{name}, {clock}" for name in OURS.values() for clock in CLOCKS] + list(CRYPTEN)
    row(f"{record.source} MNIST; medians of {TURNS} turns", {column: column for column in columns})
    for name in systems:
        row(name, {column: f"{one:.4g} s" for column, one in seconds[name].items()})
    row(*RECORDED)
    print("rounds and bytes of a query")
    for name in systems:
        rounds, sent = record.rounds[name], record.bytes[name]
        row(f"  {name}", {c: f"{rounds[c]}, {sent[c] / 1e6:.3g} MB" for c in sent})
    print("how many times as fast we are")
    for comparison, name in OURS.items():
        for peer, speeds in ratios(seconds, comparison).items():
            print(f"{name}, beside {peer}:")
            for clock in CLOCKS:
                row(f"  {clock}", {c: f"{speeds[f'{c}, {clock}']:.2f}" for c in seconds[peer]})
    for name, found in record.labels.items():
        print(f"{name}: label as in the clear for {found['as in the clear']:,} of {found['of']:,}, all turns")
    print(f"tables: {record.memory / 1e9:.2f} GB (PSS) at the peak in all processes, for {columns[-1]}")
    print(", ".join(f"{name} {version}" for name, version in cards.environment().items()))


def main() -> None:
    """Print the table, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all that was measured, and ratios, to this file")
    target = parser.parse_args().json
    record = measure()
    medians = {
        name: {column: statistics.median(times) for column, times in sizes.items()}
        for name, sizes in record.seconds.items()
    }
    show(record, medians)
    if target:
        kept = {name: getattr(record, name) for name in ("rounds", "bytes", "labels", "memory")}
        both = {"ratios": ratios(medians, "tables"), "ratios_of_fss": ratios(medians, "fss")}
        cards.write_json(target, {"data": record.source, "seconds": medians, **kept, **both})


if __name__ == "__main__":
    main()

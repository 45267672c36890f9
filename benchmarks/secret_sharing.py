"""Secret sharing beside the chapter's way, one Python integer at a time, and beside CrypTen and galois.

All in one run, on as many numbers. The work of all parties is done in one process, except CrypTen's,
whose parties are processes: each of them shares, adds and opens for itself alone. Figures are elements
a second, the median of several runs.

    python benchmarks/secret_sharing.py [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1")

import numpy as np

from recipes import cards
from recipes import secret_sharing as ss

P = ss.CHAPTER_PRIME
COUNT, COMPARED = 1_000_000, 10_000
REPEATS = 7


def share_one(x: int) -> tuple[int, int, int]:
    """Three additive shares of one integer, drawn by `random` as in the source chapter."""
    first, second = random.randint(0, P - 1), random.randint(0, P - 1)  # noqa: S311
    return first, second, (x - first - second) % P


def add_one(x: Sequence[int], y: Sequence[int]) -> list[int]:
    """Shares of the sum, appended to a list one by one as in the source chapter."""
    total = []
    total.append((x[0] + y[0]) % P)
    total.append((x[1] + y[1]) % P)
    total.append((x[2] + y[2]) % P)
    return total


def reconstruct_one(x: tuple[int, int, int]) -> int:
    """The integer."""
    return (x[0] + x[1] + x[2]) % P


Work = dict[str, Callable[[], object]]


def a_second(works: dict[str, Work], count: int) -> dict[str, dict[str, float]]:
    """Elements a second of each peer's works, which take turns, so that a busy moment hits all.

    The median over `REPEATS` turns after one that is not counted.
    """
    gc.freeze()  # the collector need not look at our data again and again
    seconds = {peer: {name: [] for name in work} for peer, work in works.items()}
    for name in dict.fromkeys(name for work in works.values() for name in work):
        for turn in range(REPEATS + 1):
            for peer, work in works.items():
                if name in work:
                    start = time.perf_counter()
                    work[name]()
                    if turn:
                        seconds[peer][name].append(time.perf_counter() - start)
    return {
        peer: {name: count / statistics.median(times) for name, times in work.items()}
        for peer, work in seconds.items()
    }


def one_by_one() -> Work:
    """The chapter's way."""
    numbers = list(range(COUNT))
    shares = [share_one(x) for x in numbers]
    return {
        "share": lambda: [share_one(x) for x in numbers],
        "add": lambda: [add_one(x, x) for x in shares],
        "reconstruct": lambda: [reconstruct_one(x) for x in shares],
    }


def arrays() -> Work:
    """This recipe, three parties, additive shares modulo the chapter's prime."""
    session = ss.Session()
    numbers = np.arange(COUNT)
    x, y = session.encrypt(numbers), session.encrypt(numbers[::-1])
    return {
        "share": lambda: session.encrypt(numbers),
        "add": lambda: x + y,
        "reconstruct": lambda: session.decrypt(x),
        "multiply": lambda: x * y,
        "field product": lambda: session.field.multiply(x.shares[0], y.shares[1]),
    }


def by_galois() -> Work:
    """Products in the same field by galois, which has no secret sharing."""
    import galois

    numbers = galois.GF(P).Random(COUNT)
    return {"field product": lambda: numbers * numbers}


def comparison() -> Work:
    """This recipe's `<`, on fewer numbers."""
    few = ss.encrypt(np.arange(COMPARED))
    return {"compare": lambda: few < 5}


def by_crypten() -> dict[str, float]:
    """CrypTen, three processes, additive shares modulo 2^64, decimals of 16 bits."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['crypten_parties']()"
    command = [sys.executable, "-c", code, __file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:  # noqa: S603
        try:
            return json.loads(process.stdout.readline())
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its processes now and then wait for each other for ever


def crypten_parties() -> None:
    """Start CrypTen's processes, of which the first prints what it measured."""
    sys.modules["tensorflow"] = None  # CrypTen imports it if it can, and then hangs in a fork
    warnings.filterwarnings("ignore")
    import crypten.mpc

    crypten.mpc.run_multiprocess(world_size=3)(_crypten_party)()


def _crypten_party() -> None:
    import crypten
    import torch

    torch.set_num_threads(1)
    numbers = torch.arange(COUNT) % 1000
    x, y = crypten.cryptensor(numbers), crypten.cryptensor(numbers.flip(0))
    few = x[:COMPARED]
    works = {
        "share": lambda: crypten.cryptensor(numbers),
        "add": lambda: x + y,
        "reconstruct": x.get_plain_text,
        "multiply": lambda: x * y,
    }
    speed = a_second({"": works}, COUNT)[""] | a_second({"": {"compare": lambda: few < 5}}, COMPARED)[""]
    if crypten.communicator.get().get_rank() == 0:
        print(json.dumps(speed), flush=True)


def main() -> None:
    """Print the table, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write elements a second and ratios to this file")
    target = parser.parse_args().json
    measured = a_second(
        {"arrays": arrays(), "one integer at a time": one_by_one(), "galois": by_galois()}, COUNT
    )
    ours = measured.pop("arrays") | a_second({"": comparison()}, COMPARED)[""]
    peers = measured | {"CrypTen": by_crypten()}
    print(f"elements a second, {COUNT:,} at once, median of {REPEATS};")
    print("in brackets how many times as fast the arrays are")
    print(f"{'':14} {'arrays':>12}" + "".join(f" {name:>22}" for name in peers))
    for name, speed in ours.items():
        cells = [
            f"{peer[name]:>12,.0f} ({speed / peer[name]:6.1f})" if name in peer else ""
            for peer in peers.values()
        ]
        print(f"{name:14} {speed:12,.0f}" + "".join(f" {cell:>22}" for cell in cells))
    print(", ".join(f"{name} {version}" for name, version in cards.environment().items()))
    if target:
        ratios = {peer: {n: ours[n] / s for n, s in speeds.items()} for peer, speeds in peers.items()}
        cards.write_json(target, {"a_second": {"arrays": ours} | peers, "ratios": ratios})


if __name__ == "__main__":
    main()

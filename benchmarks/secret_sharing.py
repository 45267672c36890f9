"""Secret sharing beside the chapter's way, one Python integer at a time, and beside CrypTen and galois.

All in one run, on the same numbers. Every party's work is done in one process, except CrypTen's,
whose parties are processes. Figures are elements a second, the median of several runs.

    python benchmarks/secret_sharing.py [--json FILE]
"""

from __future__ import annotations

import argparse
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
COUNT, ONE_BY_ONE, COMPARED = 1_000_000, 100_000, 10_000
REPEATS = 7


def share_one(x: int) -> tuple[int, int, int]:
    """Three additive shares of one integer, drawn by `random` as in the source chapter."""
    first, second = random.randint(0, P - 1), random.randint(0, P - 1)  # noqa: S311
    return first, second, (x - first - second) % P


def add_one(x: Sequence[int], y: Sequence[int]) -> list[int]:
    """Shares of the sum."""
    return [(x[0] + y[0]) % P, (x[1] + y[1]) % P, (x[2] + y[2]) % P]


def reconstruct_one(x: tuple[int, int, int]) -> int:
    """The integer."""
    return (x[0] + x[1] + x[2]) % P


def a_second(work: Callable[[], object], count: int) -> float:
    """Elements a second, the median over `REPEATS` runs after one that is not counted."""
    work()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def one_by_one() -> dict[str, float]:
    """The chapter's way."""
    numbers = list(range(ONE_BY_ONE))
    shares = [share_one(x) for x in numbers]
    return {
        "share": a_second(lambda: [share_one(x) for x in numbers], ONE_BY_ONE),
        "add": a_second(lambda: [add_one(x, x) for x in shares], ONE_BY_ONE),
        "reconstruct": a_second(lambda: [reconstruct_one(x) for x in shares], ONE_BY_ONE),
    }


def arrays() -> dict[str, float]:
    """This recipe, three parties, additive shares modulo the chapter's prime."""
    session = ss.Session()
    numbers = np.arange(COUNT)
    x, y = session.encrypt(numbers), session.encrypt(numbers[::-1])
    few = x[:COMPARED]
    return {
        "share": a_second(lambda: session.encrypt(numbers), COUNT),
        "add": a_second(lambda: x + y, COUNT),
        "reconstruct": a_second(lambda: session.decrypt(x), COUNT),
        "multiply": a_second(lambda: x * y, COUNT),
        "compare": a_second(lambda: few < 5, COMPARED),
        "field product": a_second(lambda: session.field.multiply(x.shares[0], y.shares[1]), COUNT),
    }


def by_galois() -> dict[str, float]:
    """Products in the same field by galois, which has no secret sharing."""
    import galois

    field = galois.GF(P)
    numbers = field.Random(ONE_BY_ONE)
    return {"field product": a_second(lambda: numbers * numbers, ONE_BY_ONE)}


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
    speed = {
        "share": a_second(lambda: crypten.cryptensor(numbers), COUNT),
        "add": a_second(lambda: x + y, COUNT),
        "reconstruct": a_second(x.get_plain_text, COUNT),
        "multiply": a_second(lambda: x * y, COUNT),
        "compare": a_second(lambda: few < 5, COMPARED),
    }
    if crypten.communicator.get().get_rank() == 0:
        print(json.dumps(speed), flush=True)


def main() -> None:
    """Print the table, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write elements a second and ratios to this file")
    target = parser.parse_args().json
    ours = arrays()
    peers = {"one integer at a time": one_by_one(), "galois": by_galois(), "CrypTen": by_crypten()}
    print(f"elements a second, median of {REPEATS}; in brackets how many times as fast the arrays are")
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

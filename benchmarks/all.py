"""All benchmarks, one after the other, in one table: benchmarks/README.md.

Each runs a recipe and its peers in turns, on the same work, and gives medians of three turns or more. A ratio
is how many times as fast the recipe is; seconds of another machine would say little.

    python benchmarks/all.py     writes the table; nothing, if one of them fails
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes import cards, data, shell
from recipes.files import rewrite_between_marks

FOLDER = Path(__file__).parent
NAMES = [card["recipe"] for card in cards.read() if (FOLDER / f"{card['recipe']}.py").exists()]
BEGIN, END = "<!-- benchmarks: written by `make bench` -->", "<!-- end of benchmarks -->"
PEERS = (
    *("tensorflow", "tensorflow-federated", "tensorflow-privacy", "tensorflow-empirical-privacy", "torch"),
    *("opacus", "crypten", "galois", "foolbox", "cleverhans", "torchattacks", "numpy"),
    "adversarial-robustness-toolbox",
)


def measured(name: str) -> tuple[dict[str, Any], float]:
    """What a recipe's benchmark writes, and how many seconds it took.

    Raises:
        ChildProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "ratios.json"
        begin = time.monotonic()
        done = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--json", target])  # noqa: S603 - our own
        if done.returncode:
            raise ChildProcessError(f"benchmarks/{name}.py failed; {FOLDER.name}/README.md is as it was")
        return json.loads(target.read_text("utf-8")), time.monotonic() - begin


def table(records: Mapping[str, tuple[Mapping[str, Any], float]]) -> str:
    """What was measured, in Markdown, with when and on what."""
    environment = cards.environment()
    versions = ", ".join(f"{name} {cards.version(name)}" for name in PEERS)
    sources = {data.load(name).source for name in ("mnist", "fashion-mnist", "cifar-100")}
    minutes = sum(seconds for _, seconds in records.values()) / 60
    lines = [
        f"{cards.today()}, {environment['processor']}, Python "
        f"{environment['python']}, {' and '.join(sorted(sources))} data, {minutes:.0f} minutes in all; "
        f"{versions}.",
        "",
        "| recipe | work | beside | times as fast |",
        "| --- | --- | --- | --- |",
    ]
    for name, (record, _) in records.items():
        for peer, ratios in record["ratios"].items():
            for work, ratio in ratios.items():
                lines.append(f"| {name.replace('_', ' ')} | {work} | {peer} | {cards.two_digits(ratio)} |")
    return "\n".join(lines)


def main() -> None:
    """Run all benchmarks, put what they found into the cards, and rewrite the table."""
    with shell.one_line_errors("benchmarks"):
        table({})  # what is missing is missed before the work
        records = {}
        for name in NAMES:
            print(f"\n== {name.replace('_', ' ')}", flush=True)
            records[name] = measured(name)
        found = table(records)
        rewrite_between_marks(FOLDER / "README.md", BEGIN, END, found)
        for name, (record, _) in records.items():
            cards.keep_benchmark(name, record)
        print(f"\n{found}")


if __name__ == "__main__":
    main()

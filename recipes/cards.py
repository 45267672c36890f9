"""Result cards: what a recipe measured, with what, and how it compares; and the README's table.

A card, `models/<recipe>.json`, is written by the recipe itself (`python -m recipes.NAME --card`)
on real data. For every experiment it holds the config, the data's digest, the seeds, each metric's
mean and standard deviation over the seeds, and wall and CPU seconds; and the environment, once.
The tables in README.md and models/README.md are made from the cards: `python -m recipes.cards` rewrites them.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import json
import math
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes import data
from recipes.files import rewrite_between_marks, shipped, written_whole

BEGIN, END = "<!-- results: written by `python -m recipes.cards` -->", "<!-- end of results -->"
# reported with their versions where a run has imported them
_PACKAGES = (
    *("numpy", "tensorflow", "tensorflow_federated", "tensorflow_privacy", "torch", "torchvision"),
    *("syft", "foolbox", "cleverhans", "opacus", "dp_accounting", "kymatio", "safetensors"),
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One line of a card: a config, the seeds it is run with, and what is compared with whom."""

    name: str
    config: Any
    shown: Sequence[str]
    """The metrics that the README shows, names of the result's fields."""
    seeds: Sequence[int] = (0,)
    source: str = ""
    """The source's figure for the first of them."""
    published: str = ""
    """The best figure published elsewhere, with its origin."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a recipe's card is made of."""

    recipe: str
    number: int
    question: str
    experiments: Sequence[Experiment]
    dataset: data.Name | None = None
    """What the experiments are run on; None if they need no data."""
    quick: Any = None
    """What the recipe runs without flags; its default config if not given."""


class Stopwatch:
    """Wall and CPU seconds of a `with` block, children that have ended included."""

    wall: float
    cpu: float

    def __enter__(self) -> Stopwatch:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = _cpu_seconds() - self._cpu


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def environment() -> dict[str, str]:
    """Python, processor and the versions of the packages that are in use."""
    versions = {name: version(name) for name in _PACKAGES if name in sys.modules}
    return {"python": platform.python_version(), "processor": _processor(), **versions}


def version(package: str) -> str:
    """Of a package that is installed."""
    return importlib.metadata.version(package.replace("_", "-"))


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()


def run_record(config: Any, result: Any, watch: Stopwatch) -> dict[str, Any]:
    """What `--json` writes: one run's config, result, environment and wall seconds."""
    return {
        "config": _plain(config),
        "result": _plain(result),
        "environment": environment(),
        "seconds": round(watch.wall, 3),
    }


def _plain(instance: Any) -> dict[str, Any]:
    """A dataclass's fields as JSON values; arrays stay out, they belong in a safetensors file, and so
    does a config within a result."""
    fields = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in fields.items()
        if not isinstance(value, np.ndarray) and not dataclasses.is_dataclass(value)
    }


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(
            json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )


def write(plan: Plan, run: Callable[[Any], Any]) -> Path:
    """Run a plan's experiments and write its card; the data, if there are any, must be real.

    What the card has of `make bench` stays.

    Raises:
        DatasetUnavailable: the real data cannot be had.
    """
    source = None
    if plan.dataset:
        dataset = data.load(plan.dataset, "real")
        source = {"name": dataset.name, "source": dataset.source, "digest": dataset.digest()}
    card = {
        "recipe": plan.recipe,
        "number": plan.number,
        "question": plan.question,
        "command": f"make recipe-{plan.number}",
        "date": today(),
        "data": source,
        "experiments": [_measure(experiment, run, plan.quick) for experiment in plan.experiments],
        "environment": environment(),
    }
    path = shipped("models", f"{plan.recipe}.json")
    if path.exists():
        card |= {
            key: value for key, value in json.loads(path.read_text("utf-8")).items() if key == "benchmark"
        }
    write_json(path, card)
    return path


def keep_benchmark(recipe: str, record: Mapping[str, Any]) -> None:
    """Put what a recipe's benchmark wrote into its card: `ratios`, how many times as fast as peers we are."""
    path = shipped("models", f"{recipe}.json")
    card = json.loads(path.read_text("utf-8"))
    write_json(path, card | {"benchmark": {"date": today(), "environment": environment(), **record}})


def today() -> str:
    """The date, in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _measure(experiment: Experiment, run: Callable[[Any], Any], quick: Any) -> dict[str, Any]:
    figures: list[dict[str, float]] = []

    def seconds(name: str, watched: float) -> float:
        """Of all seeds; a run that went on from a checkpoint knows of the seconds before."""
        return round(max(watched, sum(one.get(name, 0) for one in figures)), 3)

    with Stopwatch() as watch:
        for seed in experiment.seeds:
            print(f"{experiment.name}, seed {seed}", file=sys.stderr)
            figures.append(_figures(run(_with(experiment.config, data="real", seed=seed))))
    return {
        "name": experiment.name,
        "flags": _flags(experiment.config, quick or type(experiment.config)()),
        "config": _plain(_with(experiment.config, data="real")),
        "seeds": list(experiment.seeds),
        "shown": list(experiment.shown),
        "metrics": {
            name: _spread([one[name] for one in figures])
            for name in figures[0]
            if all(name in one for one in figures)
        },
        "source": experiment.source,
        "published": experiment.published,
        "wall_seconds": seconds("wall_seconds", watch.wall),
        "cpu_seconds": seconds("cpu_seconds", watch.cpu),
    }


def _with(config: Any, **changes: Any) -> Any:
    """The config with those of the changes that it has a field for: not every recipe has a seed."""
    names = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: v for name, v in changes.items() if name in names})


def _figures(result: Any) -> dict[str, float]:
    """The numbers of a result, and the last number of each of its series."""
    series = {name: value if isinstance(value, tuple) else (value,) for name, value in _plain(result).items()}
    last = {name: values[-1] for name, values in series.items() if values}
    return {name: value for name, value in last.items() if isinstance(value, int | float)}


def _flags(config: Any, default: Any) -> str:
    """The arguments that make this config out of the default one, for a shell."""
    words = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if value == getattr(default, field.name):
            continue
        if field.metadata.get("positional"):
            words.insert(0, shlex.quote(value))
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, shlex.quote(str(value))]
    return " ".join(words)


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def read() -> list[dict[str, Any]]:
    """All cards, in the order of the recipes."""
    cards = [json.loads(path.read_text("utf-8")) for path in shipped("models").glob("*.json")]
    return sorted(cards, key=lambda card: card["number"])


def table(compared: bool = False) -> str:
    """The results of all cards, in Markdown.

    Args:
        compared: only those that stand beside a figure of the source or of a paper, as in README.md.
    """
    parts = []
    for card in read():
        rows = [f"**{card['number']}. {card['question']}**", ""]
        rows.append("| experiment | command | measured here | source | elsewhere | time |")
        rows.append("| --- | --- | --- | --- | --- | --- |")
        rows += [
            _row(card, experiment)
            for experiment in card["experiments"]
            if experiment["source"] or experiment["published"] or not compared
        ]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _row(card: Mapping[str, Any], experiment: Mapping[str, Any]) -> str:
    """A row of the table: one experiment of a card."""
    runs = len(experiment["seeds"])
    figures = [
        _shown(name, experiment["metrics"][name], runs)
        if name in experiment["metrics"]
        else f"{name.replace('_', ' ')} **none**"
        for name in experiment["shown"]
    ]
    flags = [f'ARGS="{experiment["flags"]}"'] if experiment["flags"] else []
    data_flag = ["DATA=real"] if card["data"] else []
    cells = [
        experiment["name"],
        f"`{' '.join([card['command'], *data_flag, *flags])}`",
        ", ".join(figures) + (f" ({runs} seeds)" if runs > 1 else ""),
        experiment["source"] or "–",
        experiment["published"] or "–",
        f"{two_digits(experiment['wall_seconds'] / runs)}\N{NO-BREAK SPACE}s",
    ]
    return f"| {' | '.join(cells)} |"


def _shown(name: str, spread: Mapping[str, float], runs: int) -> str:
    mean = spread["mean"]
    shown = f"{mean:,.0f}" if float(mean).is_integer() else f"{mean:.5g}"
    return f"{name.replace('_', ' ')} **{shown}**" + (f" ± {two_digits(spread['std'])}" if runs > 1 else "")


def two_digits(ratio: float) -> str:
    """Two digits, as ratios of noisy seconds have no more."""
    return f"{ratio:.2g}" if ratio < 10 else f"{round(ratio, 1 - math.floor(math.log10(ratio))):,.0f}"


def main() -> None:
    """Rewrite the results tables of README.md and models/README.md from the cards."""
    from recipes import shell

    with shell.one_line_errors("recipes.cards"):
        root = Path(__file__).parent.parent
        rewrite_between_marks(root / "README.md", BEGIN, END, table(compared=True))
        rewrite_between_marks(root / "models" / "README.md", BEGIN, END, table())


if __name__ == "__main__":
    main()

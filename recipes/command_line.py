"""The command line of a recipe: its flags, and where its results are written.

The flags are the fields of the recipe's `Config`; `--profile`, `--json`, `--plot` and `--card` are
added here.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from recipes import cards, progress, shell
from recipes.files import check_writable, written_whole

Profile = Literal["quick", "full"]


@dataclass(frozen=True)
class Output:
    """What to run, and where results go."""

    profile: Profile = "quick"
    """Defaults of the other flags: quick takes a minute at most, full is the recipe's long run."""
    json: Path | None = None
    """Write config, result, environment and seconds to this file."""
    plot: Path | None = None
    """Write the recipe's figure to this file (.png, .pdf or .svg)."""
    card: bool = False
    """Run the recipe's experiments on real data and rewrite its result card in models/."""


def main(
    recipe: str,
    run: Callable[[Any], Any],
    plot: Callable[[Any], Any],
    describe: Callable[[Any], str],
    profiles: Mapping[Profile, Any],
    card: cards.Plan,
) -> None:
    """Run a recipe from the command line.

    Args:
        recipe: the module's name under `recipes`.
        run: config -> result.
        plot: result -> matplotlib Figure.
        describe: result -> the text to print.
        profiles: the config of each profile; flags override its fields.
        card: the experiments behind `models/<recipe>.json`.
    """
    with shell.one_line_errors(f"recipes.{recipe}"):
        config, output = _parse(recipe, profiles, sys.argv[1:])
        _check(config, output, profiles)
        if output.card:
            print(f"wrote {cards.write(card, run)}")
            return
        with (
            cards.Stopwatch() as watch,
            progress.bar(what=recipe.replace("_", " "), bar_format="{desc} … {elapsed}"),
        ):
            result = run(config)
        print(describe(result), flush=True)
        if output.json:
            cards.write_json(output.json, cards.run_record(config, result, watch))
        if output.plot:
            with written_whole(output.plot) as temporary:
                plot(result).savefig(temporary, format=output.plot.suffix[1:].lower(), dpi=150)


def _parse(recipe: str, profiles: Mapping[Profile, Any], arguments: Sequence[str]) -> tuple[Any, Output]:
    """The recipe's config and the common flags; the profile is looked up first, as it sets defaults."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    named = [value for flag, value in itertools.pairwise(words) if flag == "--profile"]
    default = profiles.get(named[-1] if named else "quick", profiles["quick"])
    config = _with_positionals(default)
    command = dataclasses.make_dataclass(
        "Command", [("config", type(config), config), ("output", Output, Output())], frozen=True
    )
    # tyro would describe the class, whose docstring dataclasses made up
    title = f"Recipe: {recipe.replace('_', ' ')}."
    parsed = shell.parse(
        tyro.conf.OmitArgPrefixes[command], f"recipes.{recipe}", arguments, description=title
    )
    return type(default)(**vars(parsed.config)), parsed.output


def _with_positionals(config: Any) -> Any:
    """The same config, of a class in which tyro sees that fields marked so take no flag.

    A recipe that must import without tyro says `field(metadata={"positional": True})`.
    """
    fields = [
        (field.name, tyro.conf.Positional[field.type if isinstance(field.type, type) else str], field)
        for field in dataclasses.fields(config)
        if field.metadata.get("positional")
    ]
    if not fields:
        return config
    marked = dataclasses.make_dataclass(type(config).__name__, fields, bases=(type(config),), frozen=True)
    return marked(**vars(config))


def _check(config: Any, output: Output, profiles: Mapping[Profile, Any]) -> None:
    """Find out before the work whether the flags agree and the results can be written."""
    files = [path for path in (output.json, output.plot) if path]
    if output.card and (files or config != profiles[output.profile]):
        raise ValueError("--card runs experiments of its own: it takes no other flag")
    if len(files) == 2 and os.path.realpath(files[0]) == os.path.realpath(files[1]):
        raise ValueError(f"--json and --plot are both {files[0]}: name two files")
    for path in files:
        check_writable(path)
    if output.plot and output.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"{output.plot} is no figure that can be drawn: name it .png, .pdf or .svg")

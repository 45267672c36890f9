"""What the command lines of all recipes share: flags, exit statuses, and where results are written.

A recipe's flags are the fields of its `Config`; `--profile`, `--json`, `--plot` and `--card` are
added here. Exit status: 0 done, 1 the environment's fault (no data, no space, a package missing),
2 bad input, 130 interrupted. Whatever goes wrong is said in one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from recipes import cards
from recipes.data import DatasetUnavailable
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
    arguments: Sequence[str] | None = None,
) -> None:
    """Run a recipe from the command line.

    Args:
        recipe: the module's name under `recipes`.
        run: config -> result.
        plot: result -> matplotlib Figure.
        describe: result -> the text to print.
        profiles: the config of each profile; flags override its fields.
        card: the experiments behind `models/<recipe>.json`.
        arguments: the flags (default: the process's own).
    """
    with one_line_errors(f"recipes.{recipe}"):
        config, output = _parse(recipe, profiles, sys.argv[1:] if arguments is None else arguments)
        _check(config, output, profiles)
        if output.card:
            print(f"wrote {cards.write(card, run)}")
            return
        with cards.Stopwatch() as watch:
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
    command = dataclasses.make_dataclass(
        "Command", [("config", type(default), default), ("output", Output, Output())], frozen=True
    )
    # tyro would describe the class, whose docstring dataclasses made up
    title = f"Recipe: {recipe.replace('_', ' ')}."
    parsed = parse(tyro.conf.OmitArgPrefixes[command], f"recipes.{recipe}", arguments, description=title)
    return parsed.config, parsed.output


def parse(target: Any, program: str, arguments: Sequence[str] | None = None, **options: Any) -> Any:
    """`tyro.cli`, with its boxed error turned into one line.

    Raises:
        ValueError: bad flags, in one line.
    """
    return _without_box(lambda: tyro.cli(target, prog=f"python -m {program}", args=arguments, **options))


def parse_subcommand(commands: Mapping[str, Callable[..., Any]], program: str) -> Callable[[], Any]:
    """The one of `commands` that the command line names, ready to be called.

    Raises:
        ValueError: bad flags, in one line.
    """

    def not_yet(command: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(command)(lambda *args, **flags: functools.partial(command, *args, **flags))

    later = {name: not_yet(command) for name, command in commands.items()}
    run = tyro.extras.subcommand_cli_from_dict
    return _without_box(lambda: run(later, prog=f"python -m {program}"))


def _without_box(call: Callable[[], Any]) -> Any:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return call()
    except SystemExit as stop:
        if stop.code != 2:
            raise
        raise ValueError(_first_paragraph(said.getvalue())) from stop


def _first_paragraph(box: str) -> str:
    """The text of tyro's error box up to its first rule, in one line."""
    text = []
    for line in box.splitlines()[1:]:
        line = line.strip("│╭╮╰╯|+ ")
        if line and set(line) <= {"─", "-"}:
            break
        text.append(line)
    return " ".join(" ".join(text).split()).removeprefix("Error parsing config: ")


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn exceptions into one line on stderr and an exit status; end quietly when interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` runs
    _mend_streams()
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        _leave(program, "interrupted", 130)
    except BrokenPipeError:  # the reader of our output has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except ValueError as error:
        _leave(program, str(error), 2)
    except (MemoryError, OverflowError) as error:
        _leave(program, f"too large for this machine ({error or type(error).__name__})", 2)
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        _leave(program, said or str(error), 1)
    except (DatasetUnavailable, ImportError) as error:
        _leave(program, str(error), 1)


def _mend_streams() -> None:
    """Let output that was closed go nowhere, and what the terminal cannot show be spelled out."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open as long as the process
        elif isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _leave(program: str, message: str, status: int) -> None:
    with contextlib.suppress(OSError):
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(status) from None


def _check(config: Any, output: Output, profiles: Mapping[Profile, Any]) -> None:
    """Find out before the work whether its results can be written."""
    files = [path for path in (output.json, output.plot) if path]
    if output.card and (files or config != profiles[output.profile]):
        raise ValueError("--card runs experiments of its own: it takes no other flag")
    if len(files) == 2 and os.path.realpath(files[0]) == os.path.realpath(files[1]):
        raise ValueError(f"--json and --plot are both {files[0]}: name two files")
    for path in files:
        check_writable(path)
    if output.plot and output.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"{output.plot} is no figure that can be drawn: name it .png, .pdf or .svg")

"""What every command line shares: flags are parsed by tyro, and a failure is one line.

Exit status: 0 done, 1 the environment's fault (no data, no space, a package missing), 2 bad input,
130 interrupted.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import tyro


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
    """The text of tyro's error box between its title and its first rule, in one line.

    Where text is ASCII there is a rule below the title, too.
    """
    text = []
    for line in box.splitlines()[1:]:
        line = line.strip("│╭╮╰╯|+ ")
        if text and line and set(line) <= {"─", "-"}:
            break
        if not set(line) <= {"─", "-"}:
            text.append(line)
    return " ".join(" ".join(text).split()).removeprefix("Error parsing config: ")


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn exceptions into one line on stderr and an exit status; end quietly when interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` runs
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see recipes/__init__.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = _stop_again
    _mend_streams()
    _begin_again_in_utf8()
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        _leave(program, "interrupted", 130)
    except SystemExit as stop:
        _end(stop.code)
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
    except ImportError as error:
        _leave(program, str(error), 1)


def _stop_again(ignored: Any) -> None:
    """An interrupt that meets Python in a weak reference's callback or in `__del__` is ignored there (in syft
    about one in eight is): it comes again in a moment, outside of them."""
    stop = ignored.exc_value

    def again(*_: Any) -> NoReturn:
        raise stop.with_traceback(None)

    if isinstance(stop, (KeyboardInterrupt, SystemExit)):
        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(ignored)


def _mend_streams() -> None:
    """Let output that was closed go nowhere, and what the terminal cannot show be spelled out."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file would take its number, and be taken for it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # by the processes that we start
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open as long as the process
        elif isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _begin_again_in_utf8() -> None:
    """Start this program again where file names are read as ASCII: TensorFlow cannot live in a folder such as
    `für alle` there, and nothing else could name it."""
    again = "-" not in sys.orig_argv and os.environ.get("PYTHONUTF8") != "1"
    if sys.getfilesystemencoding() == "ascii" and again:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - ourselves


def _leave(program: str, message: str, status: int) -> None:
    with contextlib.suppress(OSError):
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    _end(status)


def _end(status: Any) -> NoReturn:
    """After an interrupt this is the end where TensorFlow Federated or syft runs: the one leaves threads that
    cannot be ended, and Python would abort or hang over them; the other calls `exec`, and Python takes any
    interrupt in that for one that nobody has caught."""
    hasty = status in (130, 128 + signal.SIGTERM)
    if hasty and {"tensorflow_federated", "syft"} & sys.modules.keys():
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader has gone
            sys.stdout.flush()
        atexit._run_exitfuncs()  # TensorFlow deletes its files
        os._exit(status)
    raise SystemExit(status) from None

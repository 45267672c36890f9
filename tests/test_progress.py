"""Progress bars: drawn where somebody looks, also while nothing moves, and nowhere else."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import types
from pathlib import Path

import pytest

from recipes import progress

WORK = """
import time
from recipes import progress
with progress.bar(what="outer", total=2) as outer:
    time.sleep(2.5)
    outer.update()
    for _ in progress.bar(range(3), "inner", unit="image"):
        time.sleep(0.2)
    with progress.paused():
        time.sleep(1.5)
print("done")
"""


def on_a_terminal(*command: str, interrupt_after: str = "", **environment: str) -> tuple[str, int]:
    """What a command shows on a terminal of 100 columns, and its exit status."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"} | environment
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=clean, start_new_session=True
    )
    os.close(theirs)
    shown, since = "", time.monotonic()
    while True:
        assert select.select([ours], [], [], 60)[0], f"nothing more came after {shown[-300:]}"
        try:
            shown += os.read(ours, 65536).decode("utf-8", "replace")
        except OSError:  # the last process that had it has ended
            break
        if interrupt_after and re.search(interrupt_after, shown):
            interrupt_after, since = "", time.monotonic()
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    os.close(ours)
    status = process.wait(timeout=30)
    assert time.monotonic() - since < 10 or status == 0  # interrupted, it ends at once
    with pytest.raises(ProcessLookupError):
        outlive(process.pid)
    return shown, status


def outlive(group: int) -> None:
    """Wait until nobody is left of a process group: ProcessLookupError; or for five seconds."""
    for _ in range(50):
        os.killpg(group, 0)
        time.sleep(0.1)


def test_bars_are_drawn_on_a_terminal_and_tick_while_nothing_moves():
    shown, status = on_a_terminal(sys.executable, "-c", WORK)
    assert status == 0
    assert "inner:  33%" in shown
    assert "1/3" in shown
    assert "image" in shown
    for second in ("00:00", "00:01", "00:02"):
        assert f"0/2 [{second}" in shown
    assert shown.rstrip().endswith("done")  # what was drawn is gone
    assert not any(f"[00:0{second}" in shown for second in (5, 6))  # paused


def test_where_nobody_looks_nothing_is_said(python):
    work = WORK.replace("sleep(2.5)", "sleep(1.1)").replace("sleep(1.5)", "sleep(0.1)")  # one tick
    done = python("-c", work)
    assert (done.stdout, done.stderr) == ("done\n", "")
    shown, _ = on_a_terminal(sys.executable, "-c", work, TQDM_DISABLE="1")
    assert shown.split() == ["done"]


@pytest.mark.parametrize("quiet", ["", "1"])
def test_a_notebook_is_looked_at_unless_it_is_built(monkeypatch, quiet):
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setenv("TQDM_DISABLE", quiet)
    assert progress.shown() is not bool(quiet)


def test_an_interrupt_while_numpy_is_loaded_ends_it_without_a_traceback():
    command = [sys.executable, "-m", "recipes.secret_sharing"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while "multiarray" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("by", "status", "said"),
    [(signal.SIGINT, 130, "test: interrupted\n"), (signal.SIGTERM, 143, "")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_an_interrupt_where_python_ignores_it_comes_again(python, by, status, said):
    code = f"""
import signal, time, weakref
from recipes import shell
class Thing: pass
with shell.one_line_errors("test"):
    thing = Thing()
    watch = weakref.ref(thing, lambda _: signal.raise_signal({by.value}))
    del thing
    print("here", flush=True)
    time.sleep(5)
    print("and here")
"""
    done = python("-c", code)
    assert (done.returncode, done.stderr, done.stdout) == (status, said, "here\n")


RUNS = {
    "federated_averaging": ["--rounds", "400", "--no-table"],
    "private_prediction": ["--datasite"],
    "adversarial_robustness": [],
    "dp_sgd": [],
    "membership_inference": [],
}
"""Flags with which a recipe takes more than two seconds; secret sharing has none."""


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_says_what_it_does_and_ends_at_once_when_interrupted(name):
    command = [sys.executable, "-m", f"recipes.{name}", "--data", "embedded", *RUNS[name]]
    title = name.replace("_", " ")
    shown, status = on_a_terminal(*command, interrupt_after=rf"{title} … 00:(0[4-9]|1)")
    assert f"{title} … 00:0" in shown, shown
    assert status == 130
    assert "Traceback" not in shown
    assert shown.rstrip().endswith(f"recipes.{name}: interrupted"), shown[-2000:]

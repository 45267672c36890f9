"""A process for each role, on this machine."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from recipes.parties import wire
from recipes.parties.network import Line, Network
from recipes.parties.wire import PartyLost

_GRACE = 2.0  # seconds that the others have to end by themselves once a role has died


# ---- in the process that starts the others


def run_processes(
    play: Callable[[Network, Any], Any], settings: Mapping[str, Any], line: Line | None = None
) -> dict[str, Any]:
    """Start a process for each role, and give back what each of them returned.

    Args:
        play: network, settings of the role -> a result that JSON can hold; a module's function, which
            each process imports.
        settings: for each role what it is told, and no other role is; values that JSON can hold.
        line: a slower connection to be imitated between them.

    Raises:
        PartyLost: a role died, or failed; all others have been stopped.
    """
    secret = secrets.token_hex(32)
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in settings}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for role, listener in listeners.items():
            processes[role] = _started(role, listener)
            start = {"role": role, "secret": secret, "addresses": addresses, "listener": listener.fileno()}
            start |= {"module": play.__module__, "function": play.__name__, "settings": settings[role]}
            start |= {"line": vars(line) if line else None}
            processes[role].stdin.write(json.dumps(start) + "\n")
            processes[role].stdin.flush()
            listener.close()
        return _results(processes)
    except BrokenPipeError as error:
        raise PartyLost(f"{role} ended before it began; the others have been stopped", role) from error
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for listener in listeners.values():
            listener.close()


def _started(role: str, listener: socket.socket) -> subprocess.Popen[str]:
    code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import recipes.parties.processes as p; "
    code += "p.serve()"
    return subprocess.Popen(  # noqa: S603 - this Python, our own module
        [sys.executable, "-c", code, json.dumps(sys.path), role],  # the role is for who lists processes
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        start_new_session=True,  # Ctrl-C comes to us, and we end the others
        text=True,
    )


def _results(processes: Mapping[str, subprocess.Popen[str]]) -> dict[str, Any]:
    """Wait for all to end well, or for one to fail."""
    said: dict[str, str] = {}
    readers = [_reader(role, process, said) for role, process in processes.items()]
    deadline = math.inf
    while time.monotonic() < deadline:
        codes = {role: process.poll() for role, process in processes.items()}
        if None not in codes.values():
            break
        if any(codes.values()):
            deadline = min(deadline, time.monotonic() + _GRACE)
        elif list(codes.values()).count(None) == 1:  # it has nobody to wait for any more
            deadline = min(deadline, time.monotonic() + wire.PATIENCE)
        time.sleep(0.01)
    for process in processes.values():
        process.kill()
    for reader in readers:
        reader.join()
    _complain(codes, {role: json.loads(text) for role, text in said.items() if text.endswith("\n")})
    return {role: json.loads(said[role])["result"] for role in processes}


def _reader(role: str, process: subprocess.Popen[str], said: dict[str, str]) -> threading.Thread:
    """A thread that takes in what a process says, so that it never waits for a full pipe."""
    thread = threading.Thread(target=lambda: said.__setitem__(role, process.stdout.read()))
    thread.start()
    return thread


def _complain(codes: Mapping[str, int | None], reports: Mapping[str, Mapping[str, str]]) -> None:
    """If a role failed, name the cause rather than those that it took along.

    Args:
        codes: each role's exit status, None for those that had to be stopped.
        reports: what they said.

    Raises:
        PartyLost: a role failed.
    """
    for role, code in codes.items():
        if code and role not in reports:
            how = f"was killed ({_name(-code)})" if code < 0 else f"ended with status {code}"
            raise PartyLost(f"{role} {how}; the others have been stopped", role)
        if code == 0 and role not in reports:
            raise PartyLost(f"{role} ended without a result; the others have been stopped", role)
    for role, report in reports.items():
        if "error" in report:
            raise PartyLost(f"{role} failed: {report['error']}; the others have been stopped", role)
    lost = [report for report in reports.values() if "lost" in report]
    still = [role for role, code in codes.items() if code is None]
    if not lost and still:
        raise PartyLost(f"{still[0]} has gone silent; the others have ended", still[0])
    if not lost:
        return
    silent = [report for report in lost if codes[report["lost"]] is None]
    told = (silent or lost)[0]
    raise PartyLost(f"{told['message']}; the others have been stopped", told["lost"])


def _name(number: int) -> str:
    """What a signal is called; real-time signals have numbers only."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


# ---- in a role's process


def serve() -> None:
    """Play a role in a process that `run_processes` started; the result goes to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback: the parent will say how we ended
    line = sys.stdin.readline()
    if not line:  # the parent was stopped before it could tell us anything
        os._exit(1)
    start = json.loads(line)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    listener = socket.socket(fileno=start["listener"])
    addresses = {role: tuple(address) for role, address in start["addresses"].items()}
    try:
        play = getattr(importlib.import_module(start["module"]), start["function"])
        line = Line(**start["line"]) if start["line"] else None
        secret = bytes.fromhex(start["secret"])
        with Network(start["role"], addresses, secret, listener, line=line) as connections:
            said = {"result": play(connections, start["settings"])}
    except PartyLost as error:
        said = {"lost": error.role, "message": str(error)}
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    with contextlib.suppress(BrokenPipeError):  # the parent may have died
        print(json.dumps(said), flush=True)
    os._exit(0 if "result" in said else 1)


def _end_with_the_parent() -> None:
    """Whoever started us holds our standard input open for as long as it lives."""
    sys.stdin.read()
    os._exit(1)

"""Flower on this machine: a SuperLink, a SuperNode for each client, one run, and nothing left of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.federated_averaging.flower.settings import APP

ROOT = Path(__file__).parents[3]
"""The checkout, or what holds the package `recipes`."""
ENVIRONMENT = ROOT / ".venv-flower"
"""Where `make recipe-1-flower` installs Flower."""
_START = 300.0  # seconds that the SuperLink has to begin to listen


class Deployment:
    """The processes of one run, each with its output in a file of its own."""

    def __init__(self, environment: Path, folder: Path) -> None:
        """Args:
        environment: a virtual environment with Flower.
        folder: for settings, outputs and results; also the mark by which all processes are known.
        """
        self.environment, self.folder = environment, folder
        self.model, self.history = folder / "model.safetensors", folder / "history.json"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, clients: int, settings: Mapping[str, Any]) -> None:
        """SuperLink, SuperNodes, and a run with these settings.

        Raises:
            OSError: one of them does not start.
        """
        link, *ports = (str(port) for port in _free_ports(1 + clients))
        address = f"127.0.0.1:{link}"
        lines = [
            "[superlink]",
            'default = "here"',
            "[superlink.here]",
            f'address = "{address}"',
            "insecure = true",
        ]
        (self.folder / "config.toml").write_text("\n".join(lines), "utf-8")
        files = {"model": str(self.model), "history": str(self.history)}
        lines = [
            f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in (settings | files).items()
        ]
        (self.folder / "run.toml").write_text("\n".join(lines), "utf-8")

        offline = "--disable-runtime-dependency-installation"
        self._start("SuperLink", "flower-superlink", "--insecure", "--port", link, offline)
        for client, port in enumerate(ports):
            who = ("--node-config", f"partition-id={client}")
            where = ("--superlink", address, "--port", port)
            self._start(f"SuperNode {client}", "flower-supernode", "--insecure", *where, *who)
        self._wait_for("SuperLink", int(link))
        run_config = ("--run-config", str(self.folder / "run.toml"))
        self._start("run", "flwr", "run", str(APP), "here", "--stream", *run_config)

    def _start(self, name: str, program: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603 - Flower's own programs
                [self.environment / "bin" / program, *arguments],
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C comes to us, and we end the others
            )

    def _variables(self) -> dict[str, str]:
        """The processes' environment; they inherit it to those that they start."""
        local = ",".join(filter(None, ("127.0.0.1", os.environ.get("no_proxy", os.environ.get("NO_PROXY")))))
        return os.environ | {
            "PATH": f"{self.environment.absolute() / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "FLWR_HOME": str(self.folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "no_proxy": local,
            "NO_PROXY": local,
        }

    def _wait_for(self, name: str, port: int) -> None:
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            self.check(name)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.1)
        raise OSError(f"the {name} has not begun to listen within {_START:.0f} s")

    def running(self, name: str) -> bool:
        """Whether a process has not ended."""
        return self.processes[name].poll() is None

    def check(self, *names: str) -> None:
        """Raises:
        OSError: one of these processes has ended; with the last thing that it said.
        """
        for name in names:
            if not self.running(name):
                raise OSError(f"Flower's {name} ended: {self.last_words(name)}")

    def last_words(self, name: str) -> str:
        """The last line of a process's output that says anything."""
        text = (self.folder / f"{name}.log").read_text("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
        return lines[-1] if lines else "it said nothing"

    def rounds(self) -> list[dict[str, Any]]:
        """What the server has written of each round so far."""
        try:
            return json.loads(self.history.read_text("utf-8"))["rounds"]
        except FileNotFoundError:
            return []

    def kill(self, name: str) -> None:
        """End a process and those that it started, without warning."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes[name].wait()

    def stop(self) -> None:
        """End all processes that stem from us: their environment names our folder, whoever started them."""
        import psutil

        while ours := [process for process in psutil.process_iter() if self._is_ours(process)]:
            for process in ours:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(ours, timeout=10)
        for process in self.processes.values():
            process.wait()

    def _is_ours(self, process: Any) -> bool:
        import psutil

        try:
            return process.environ().get("FLWR_HOME") == str(self.folder)
        except (psutil.Error, OSError):  # it has ended, or is another user's
            return False


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in sockets]


@contextlib.contextmanager
def deployment(environment: Path) -> Iterator[Deployment]:
    """A deployment that ends with the `with` block, whatever ends it.

    Raises:
        OSError: there is no Flower in this environment.
    """
    if not (environment / "bin" / "flower-superlink").exists():
        raise OSError(f"there is no Flower in {environment}: `make recipe-1-flower` installs it")
    folder = Path(tempfile.mkdtemp(prefix="cookbook-flower-"))
    parties = Deployment(environment, folder)
    try:
        yield parties
    finally:
        with _uninterrupted():
            parties.stop()
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A block that neither Ctrl-C nor SIGTERM cuts short; only the main thread can be interrupted at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

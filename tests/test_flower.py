"""Recipe 1 on Flower: real processes reach the simulation's weights, survive a loss, and leave nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np
import psutil
import pytest

from recipes.data import load
from recipes.federated_averaging import Config, clients_of, federated_rounds, server_update
from recipes.federated_averaging.flower import settings
from recipes.federated_averaging.flower.deployment import ENVIRONMENT
from recipes.federated_averaging.flower.launch import Options, check, describe, run
from recipes.federated_averaging.networks import NETWORKS, Examples
from recipes.federated_averaging.simulation import flatten, new_algorithm, take_part

ROOT = Path(__file__).parent.parent
PROGRAM = "recipes.federated_averaging.flower"


@pytest.fixture
def flower() -> Path:
    """The environment with Flower."""
    if not (ENVIRONMENT / "installed").exists():
        pytest.fail(f"Flower is not installed in {ENVIRONMENT}: `make test` and `make recipe-1-flower` do it")
    return ENVIRONMENT


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where temporary files go, by which the processes of a test can be told, too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def processes(folder: Path) -> list[str]:
    """Command lines of all that run with this folder for temporary files, but this process."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("TMPDIR") == str(folder):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def replayed(config: Config, took_part: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
    """The simulation's models if just these clients take part in its rounds, `[P]` float32 each."""
    clients, algorithm = clients_of(load(config.dataset, config.data), config), new_algorithm(config)
    models = [NETWORKS[config.network].initial(config.seed)]
    for number, present in enumerate(took_part, start=1):
        updates = [
            take_part(number, client, models[-1], clients[client], config, algorithm.pull(client, models[-1]))
            for client in present
        ]
        models.append(server_update(models[-1], updates, algorithm))
    return models[1:]


# ---- real processes


def test_rounds_on_two_supernodes_equal_the_simulation_and_one_that_is_killed_is_left_out(
    flower, folder, capsys
):
    # The third model is the second one's child, so that both are right or neither is.
    config = Config(data="embedded", rounds=3, partition="iid", algorithm="fedavgm", batch_size=100, seed=1)
    result = run(config, Options(kill=2, patience=5))
    assert processes(folder) == list(folder.iterdir()) == []
    assert result.took_part == ((0, 1), (0, 1), (0,))
    assert result.missing == ((), (), (1,))
    *models, last = replayed(config, result.took_part)
    np.testing.assert_allclose(result.model, last, rtol=0, atol=1e-6)
    test = load(config.dataset, "embedded").test
    examples = Examples(flatten(test.images), test.labels)
    accuracies = [NETWORKS["softmax"].evaluate(model, examples)[0] for model in (*models, last)]
    assert result.test_accuracy == pytest.approx(accuracies, abs=1e-12)
    with contextlib.closing(
        federated_rounds(clients_of(load(config.dataset, "embedded"), config), config)
    ) as endless:
        for model in models:
            np.testing.assert_allclose(next(endless).model, model, rtol=0, atol=1e-6)
    assert result.distance > 1e-3
    said = capsys.readouterr().out.splitlines()
    assert "killed the SuperNode of client 1" in said
    rounds = [line.split(",")[0] for line in said if line.startswith("round")]
    assert rounds == [f"round {number}: clients {who}" for number, who in enumerate(["0 1", "0 1", "0"], 1)]
    assert "client 1 in round 3" in describe(result)


@pytest.mark.parametrize(
    ("number", "status", "program", "count"),
    [(signal.SIGTERM, 143, "flower-superlink", 1), (signal.SIGINT, 130, "flower-superexec", 3)],
)
def test_a_launcher_that_is_stopped_leaves_nothing_behind(flower, folder, number, status, program, count):
    command = [sys.executable, "-m", PROGRAM, "--data", "embedded"]
    launcher = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 600
        while sum(program in line for line in processes(folder)) < count:
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        launcher.send_signal(number)
        _, said = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == status
    assert said == (f"{PROGRAM}: interrupted\n" if number == signal.SIGINT else "")
    assert processes(folder) == list(folder.iterdir()) == []


# ---- the server, with a network that is played


PLAYED = """
import itertools, types
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from recipes.federated_averaging.config import Config
from cookbook_app import server_app

def message(content, node, kind, group_id, ttl):  # a real one belongs to a run
    metadata = types.SimpleNamespace(dst_node_id=node, group_id=group_id)
    return types.SimpleNamespace(content=content, metadata=metadata)

server_app.Message = message

class Grid:
    "Node 10 + c is client c. A node in `slow` keeps its answers until it is taken out."
    def __init__(self):
        self.nodes, self.slow, self.names, self.sent = [10, 11], set(), itertools.count(), {}
    def get_node_ids(self):
        return self.nodes
    def push_messages(self, messages):
        new = {str(next(self.names)): message for message in messages}
        self.sent |= new
        return list(new)
    def pull_messages(self, names):
        ready = [name for name in names if self.sent[name].metadata.dst_node_id not in self.slow]
        return [self.answer(name, self.sent[name]) for name in ready]
    def answer(self, name, message):
        client = message.metadata.dst_node_id - 10
        content = RecordDict({"client": MetricRecord({"number": client})})
        if client in message.content["task"]["chosen"]:
            change = np.full(size if client < 2 else 3, message.content["task"]["round"], np.float32)
            numbers = {"examples": 1, "correct": 1, "loss": 0.0, "steps": 1}
            content["change"] = ArrayRecord({"change": Array(change)})
            content["numbers"] = MetricRecord(numbers)
        metadata = types.SimpleNamespace(reply_to_message_id=name, group_id=message.metadata.group_id)
        return types.SimpleNamespace(metadata=metadata, content=content, has_error=lambda: client == 7)

size, grid = 5, Grid()
nodes = server_app.Nodes(grid, Config(clients=3), patience=0.3)
def play(number, chosen):
    updates = nodes.round(number, chosen, np.zeros(size, np.float32))
    assert all((update.change == number).all() for update in updates.values())  # none of an earlier round
    asked = [m.metadata.dst_node_id for m in grid.sent.values() if m.metadata.group_id == str(number)]
    print(number, list(updates), asked)
play(1, [0, 1])
play(2, [1])
grid.slow = {11}
play(3, [0, 1])
play(4, [0, 1])
grid.slow = set()
play(5, [0, 1])
grid.nodes = [10, 11, 12]
play(6, [0, 1, 2])
"""


def test_who_is_late_is_left_out_and_comes_back(flower):
    done = subprocess.run(
        [flower / "bin" / "python", "-c", PLAYED],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{settings.APP}", "FLWR_TELEMETRY_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "1 [0, 1] [10, 11]",
        "2 [1] [11]",  # who is known to be another is not asked
        "3 [0] [10, 11]",
        "4 [0] [10]",  # who owes an answer is not asked again
        "5 [0, 1] [10, 11]",
        "round 6: an answer that is none: client 2 sends no 5 float32 from at least one example",
        "6 [0, 1] [10, 11, 12]",
    ]


# ---- flags, and what is installed


def test_the_app_runs_what_the_launcher_runs():
    assert settings.config_of(settings.defaults()) == Config(rounds=3)
    config = Config(clients=4, partition="dirichlet", algorithm="fedyogi", learning_rate=0.1)
    assert settings.config_of(settings.settings_of(config)) == config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"clip": 1.0}, "clip is 1.0: on Flower it stays 0.0"),
        ({"clip": 1.0, "noise": 1.0}, "on Flower it stays"),
        ({"clients": 3, "secure": True}, "secure is True: on Flower it stays False"),
        ({"poison": "signs", "hostile": 1}, "poison is signs: on Flower it stays none"),
        ({"network": "cnn"}, "network is cnn: on Flower it stays softmax"),
        ({"aggregate": "median"}, "aggregate is median: on Flower it stays mean"),
        ({"algorithm": "scaffold"}, "algorithm is scaffold"),
        ({"clients": 1}, "clients is 1: .* 2 to 8"),
        ({"clients": 9}, "clients is 9: .* 2 to 8"),
    ],
)
def test_what_flower_cannot_run_here_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        check(Config(**flags), Options())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(kill=0), "kill is 0"),
        (Options(kill=3), "kill is 3"),
        (Options(patience=0), "patience is 0"),
        (Options(patience=float("nan")), "patience is nan"),
        (Options(json=Path("/nowhere/file")), "cannot be written"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(Config(rounds=3), options)


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--network", "cnn"], 2, "network is cnn"),
        (["--rounds", "many"], 2, "--rounds"),
        (
            ["--environment", "nowhere"],
            1,
            "there is no Flower in nowhere: `make recipe-1-flower` installs it",
        ),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(python, flags, status, message):
    done = python("-m", PROGRAM, "--data", "embedded", *flags)
    assert done.returncode == status
    assert done.stdout == ""
    assert re.fullmatch(rf"{PROGRAM}: [^\n]*{message}[^\n]*\n", done.stderr)


def test_the_lock_of_flower_has_hashes_and_no_address():
    lock = (ROOT / "requirements-flower.lock").read_text("utf-8")
    blocks = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]
    assert len(blocks) > 50
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"://|file:|--index|--find-links| @ ", lock)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    assert all(f"\n{requirement} \\\n" in lock for requirement in groups["flower"])

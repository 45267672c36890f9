"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# As many tests run at once as there are cores. Numba, which galois uses, sets the number for PyTorch, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest

from recipes import data, weights

ROOT = Path(__file__).parent.parent
NUMBERED = [
    *("federated_averaging", "secret_sharing", "private_prediction"),
    *("adversarial_robustness", "dp_sgd", "membership_inference"),
]
"""The recipes, in order: what each of them must keep to is tested on all."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks and Flower first: each takes a minute, and at the end one core would wait for the other."""
    items.sort(key=lambda item: item.path.name not in ("test_notebooks.py", "test_flower.py"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_fashion_mnist() -> data.Dataset:
    """The real Fashion-MNIST; the test is skipped where it cannot be had."""
    return _real("fashion-mnist")


@pytest.fixture(scope="session")
def real_mnist() -> data.Dataset:
    """The real MNIST; the test is skipped where it cannot be had."""
    return _real("mnist")


@pytest.fixture(scope="session")
def real_cifar_100() -> data.Dataset:
    """The real CIFAR-100; the test is skipped where it cannot be had."""
    return _real("cifar-100")


@pytest.fixture(scope="session", params=["mnist", "fashion-mnist", "cifar-100"])
def any_real_dataset(request: pytest.FixtureRequest) -> data.Dataset:
    """Each real data set in turn."""
    return _real(request.param)


def _real(name: data.Name) -> data.Dataset:
    try:
        return data.load(name)
    except data.DatasetUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["mnist", "fashion-mnist", "cifar-100"])
def any_stand_in(request: pytest.FixtureRequest) -> data.Dataset:
    """Each embedded data set in turn."""
    return data.load(request.param, "embedded")


@pytest.fixture
def empty_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of `models` and holds no weights."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / weights.SUMS).touch()
    monkeypatch.setattr(weights, "path_of", lambda name: folder / name)
    return folder


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Call a recipe's command line with flags that it must refuse: the one line that it says."""
    before = signal.getsignal(signal.SIGTERM)

    def call(recipe: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [recipe, *arguments])
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back after the test
        with pytest.raises(SystemExit) as stop:
            importlib.import_module(f"recipes.{recipe}").main()
        printed, said = capfd.readouterr()
        assert (stop.value.code, printed) == (2, ""), said
        assert said.startswith(f"recipes.{recipe}: ")
        assert said.count("\n") == 1
        return said

    yield call
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """What is started here stays on one core: as many tests run at once as there are cores."""
    cores = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(cores)[worker % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@pytest.fixture(scope="session")
def python(root: Path):
    """Run `python ...` in a process of its own, on one core, from the checkout."""

    def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
        options = {"cwd": root, "timeout": 300, "capture_output": True, "text": True} | options
        with one_core():
            return subprocess.run([sys.executable, *arguments], **options)

    return run

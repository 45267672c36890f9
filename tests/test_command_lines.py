"""Every recipe's command line where things are as bad as they can be: one line, and nothing half-written.

One process a recipe goes through all of it, and runs the recipe once: in a folder with a space and an umlaut,
where text is ASCII, without a display, with standard output closed, beside a disk that is full.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NUMBERED

SMALL = {
    "federated_averaging": ["--no-table"],
    "private_prediction": ["--images", "1"],
    "adversarial_robustness": ["--part", "scratch"],
    "dp_sgd": ["--steps", "3", "--audit-runs", "0"],
    "membership_inference": ["--target", "overfitted", "--references", "0"],
}
"""Flags that make a recipe's run a matter of seconds; a recipe that has none is run as it is."""

BAD = {
    "a flag that is none": ["--frobnicate"],
    "a word that is none": ["--profile", "enormous"],
    "a folder that is not there": ["--json", "nowhere/result.json"],
    "a folder in which nothing can be written": ["--json", "/proc/result.json"],
    "a folder in place of a file": ["--json", "."],
    "a device": ["--plot", "/dev/full"],
    "no kind of picture": ["--plot", "picture.txt"],
    "one file for two things": ["--json", "same.png", "--plot", "./same.png"],
}
WRITTEN = ["--json", "résultat.json", "--plot", "dessin é.png"]
FULL = {"the record on a full disk": ["--json", "full/a.json"], "the picture": ["--plot", "full/a.png"]}

# Calls the command line with each of some lists of arguments; what it runs, it runs once.
DRIVER = """
import contextlib, importlib, io, json, os, sys
name, calls, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
main = importlib.import_module(f"recipes.{name}").main
module, ran = sys.modules[main.__module__], {}
run = module.run
def once(config):
    if repr(config) not in ran:
        ran[repr(config)] = run(config)
    return ran[repr(config)]
module.run = once
ends = {}
for what, arguments in calls.items():
    sys.argv, said, status = [name, *(os.fsdecode(word.encode()) for word in arguments)], io.StringIO(), 0
    with contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as stop:
            status = stop.code
    ends[what] = [status, said.getvalue()]
with open(out, "w", encoding="utf-8") as file:
    json.dump(ends, file)
"""

# A disk of its own, which is full, in a name space of its own, which ends with the process.
ON_A_FULL_DISK = """
mount -t tmpfs -o size=4k none full && head -c 4096 /dev/zero >full/filling || exit
"$@" >&-
status=$?
ls -A full >left
exit $status
"""


APART = ["unshare", "--map-root-user", "--mount"]


def may_mount() -> bool:
    """Whether this user may mount a disk that only his processes see."""
    try:
        done = subprocess.run([*APART, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.fixture(scope="module", params=NUMBERED)
def ends(request, root, tmp_path_factory) -> dict[str, tuple[int, list[str]]]:
    """What every call of a recipe's command line ended with: a status and lines of standard error."""
    name = request.param
    folder = tmp_path_factory.mktemp(name) / "a föreign folder"
    shutil.copytree(root / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "datasets", folder / "datasets")
    (folder / "models").symlink_to(root / "models")
    (folder / "full").mkdir()
    small = SMALL.get(name, [])
    if "data" in importlib.import_module(f"recipes.{name}").Config.__dataclass_fields__:
        small = [*small, "--data", "embedded"]
    calls = {**BAD, "written": [*small, *WRITTEN]}
    can_mount = may_mount()
    if can_mount:
        calls |= {what: [*small, *flags] for what, flags in FULL.items()}
    environment = {key: os.environ[key] for key in ("HOME", "PATH", "OMP_NUM_THREADS") if key in os.environ}
    # Python itself does not start in ASCII if it is installed in a folder like ours; make says UTF-8
    locale = "C" if os.path.realpath(sys.prefix).isascii() else "C.UTF-8"
    environment |= {"LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    shell = ["sh", "-c", ON_A_FULL_DISK if can_mount else '"$@" >&-', "sh"]
    wrapped = [*shell, sys.executable, "-c", DRIVER, name, json.dumps(calls), "ends.json"]
    apart = APART if can_mount else []
    done = subprocess.run([*apart, *wrapped], cwd=folder, env=environment, capture_output=True, timeout=300)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    found = json.loads((folder / "ends.json").read_text("utf-8"))
    return {what: (status, said.splitlines()) for what, (status, said) in found.items()} | {"folder": folder}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_status_2(ends, what):
    status, lines = ends[what]
    assert status == 2
    assert len(lines) == 1
    assert len(lines[0].partition(": ")[2]) > 20


def test_without_utf8_display_or_standard_output_a_run_still_writes_what_it_should(ends):
    status, lines = ends["written"]
    assert (status, lines) == (0, [])  # not even a progress bar, where nobody looks
    folder: Path = ends["folder"]
    record = json.loads((folder / "résultat.json").read_text("utf-8"))
    assert {"config", "result", "environment", "seconds"} <= set(record)
    assert (folder / "dessin é.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_is_one_line_and_status_1(ends, what):
    if what not in ends:
        pytest.skip("this user may not mount a disk that is full")
    status, lines = ends[what]
    assert status == 1
    assert lines[-1].endswith("No space left on device")
    assert len([line for line in lines if line.startswith("recipes.")]) == 1


def test_nothing_half_written_is_left(ends):
    folder: Path = ends["folder"]
    if (folder / "left").exists():
        assert (folder / "left").read_text().split() == ["filling"]
    here = {path.name for path in folder.iterdir()}
    assert here - {"recipes", "datasets", "models", "full", "left", "ends.json"} == {
        "résultat.json",
        "dessin é.png",
    }

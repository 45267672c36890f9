"""The notebooks: fresh, readable, and running from top to bottom."""

from __future__ import annotations

import ast
import importlib.util
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import one_core

from recipes.data import DatasetUnavailable, load

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))

spec = importlib.util.spec_from_file_location("build", ROOT / "notebooks" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

each_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)

TINY = """# %% [markdown]
# # Tiny

# %% tags=["parameters"]
DATA = "auto"

# %% tags=["cover"] alt="A line that rises"
import matplotlib.pyplot as plt
import sys
print(DATA, file=sys.stderr)
print(DATA)
plt.plot([1, 2, 3]);
"""


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@each_notebook
def test_committed_notebooks_are_what_their_sources_say(source):
    assert not build.is_stale(source), "run `make notebooks`"


@each_notebook
def test_committed_outputs_come_from_real_data(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    said = "".join(o.text for c in notebook.cells for o in c.get("outputs", []) if "text" in o)
    assert "(real)" in said
    assert "embedded" not in said


@each_notebook
def test_notebooks_are_short_plain_and_small(source):
    notebook = build.read(source)
    assert source.with_suffix(".ipynb").stat().st_size < 300_000
    assert notebook.cells[0].source.startswith("# ")
    for cell in code(notebook):
        assert len(cell.splitlines()) <= 20
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno + 1 <= 5, node.name


@each_notebook
def test_every_picture_says_what_it_shows(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    texts = [
        picture.metadata["image/png"]["alt"] for cell in notebook.cells for picture in build.pictures(cell)
    ]
    assert texts
    assert all(len(text) > 20 for text in texts)
    assert len(set(texts)) == len(texts)


SMALLER = {
    "01_federated_averaging": {"ROUNDS": 2, "LIMIT": 5},
    "03_private_prediction": {"IMAGES": 1000},
    "04_adversarial_robustness": {"ATTACKED": 10, "TABLE": 2},
    "05_dp_sgd": {"RUNS": 20, "STEPS": 24, "SEEDS": 1, "IMAGES": 500},
}
"""What is less work than what a reader sees, and enough to see that every cell runs."""


@each_notebook
def test_notebooks_run_on_the_stand_ins(source):
    notebook = build.read(source)
    with one_core():
        build.execute(notebook, "embedded", **SMALLER.get(source.stem, {}))
    said = "".join(o.text for c in notebook.cells for o in c.get("outputs", []) if "text" in o)
    assert "(embedded)" in said
    assert "(real)" not in said


def test_every_notebook_has_a_recipe_and_every_recipe_a_notebook():
    recipes = {path.stem for path in (ROOT / "recipes").iterdir()}
    assert SOURCES
    assert {source.stem[3:] for source in SOURCES} <= recipes


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with one small notebook, built once."""
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    (tmp_path / "01_tiny.py").write_text(TINY)
    monkeypatch.setattr("sys.argv", ["build.py", "--data", "embedded"])
    assert build.main() == 0
    return tmp_path / "01_tiny.py"


def test_a_second_build_gives_the_same_bytes(tiny):
    first = tiny.with_suffix(".ipynb").read_bytes()
    assert b"image/png" in first
    assert build.main() == 0
    assert tiny.with_suffix(".ipynb").read_bytes() == first


def test_a_build_takes_its_data_from_the_flag_and_keeps_stderr_out(tiny, capfd):
    cells = nbformat.read(tiny.with_suffix(".ipynb"), as_version=4).cells
    assert cells[1].source == 'DATA = "auto"'
    assert [o.text for o in cells[2].outputs if "text" in o] == ["embedded\n"]


def test_check_notices_what_is_stale(tiny, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["build.py", "--check"])
    assert build.main() == 0
    tiny.write_text(TINY.replace("[1, 2, 3]", "[1, 2, 4]"))
    assert build.main() == 1
    assert "01_tiny.ipynb" in capsys.readouterr().out
    tiny.write_text(TINY)
    assert build.main() == 0
    notebook = nbformat.read(tiny.with_suffix(".ipynb"), as_version=4)
    notebook.cells[2].source += "\nprint('by hand')"
    nbformat.write(notebook, tiny.with_suffix(".ipynb"))
    assert build.main() == 1
    tiny.with_suffix(".ipynb").unlink()
    assert build.main() == 1


def test_check_notices_a_cover_that_is_not_the_notebooks(tiny, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["build.py", "--check"])
    picture = build.cover_of(tiny)
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.write_bytes(b"another")
    assert build.main() == 1
    picture.unlink()
    assert build.main() == 1


@pytest.mark.parametrize("flags", [["99"], ["--rebuild"], ["--frobnicate"], ["--data", "fake"]])
def test_bad_flags_get_one_line_and_status_2(tiny, monkeypatch, capsys, flags):
    before = tiny.with_suffix(".ipynb").read_bytes()
    monkeypatch.setattr("sys.argv", ["build.py", *flags])
    with pytest.raises(SystemExit) as stop:
        build.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert tiny.with_suffix(".ipynb").read_bytes() == before


def test_a_notebook_that_fails_leaves_the_old_one(tiny, monkeypatch, capsys):
    before = tiny.with_suffix(".ipynb").read_bytes()
    tiny.write_text(TINY + "\nraise RuntimeError('planted')\n")
    assert build.main() == 1
    assert "planted" in capsys.readouterr().err
    assert tiny.with_suffix(".ipynb").read_bytes() == before


def test_a_build_on_real_data_never_falls_back(tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("COOKBOOK_MIRROR", str(tmp_path / "nowhere"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    tiny.write_text(TINY + "\nfrom recipes.data import load\nload('mnist', DATA)\n")
    before = tiny.with_suffix(".ipynb").read_bytes()
    monkeypatch.setattr("sys.argv", ["build.py"])
    assert build.main() == 1
    assert "DATA=embedded" in capsys.readouterr().err
    assert tiny.with_suffix(".ipynb").read_bytes() == before
    shutil.rmtree(tmp_path / "empty", ignore_errors=True)
    with pytest.raises(DatasetUnavailable):
        load("mnist")

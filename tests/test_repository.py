"""The house: the lock, the Makefile, the wheel, and the rules that every recipe keeps."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import NUMBERED
from packaging.requirements import Requirement

from recipes.files import check_writable, shipped, written_whole

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SOURCES = {
    name: sorted([*(ROOT / "recipes").glob(f"{name}.py"), *(ROOT / "recipes" / name).glob("*.py")])
    for name in NUMBERED
}

# ---- the environment


def locked() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", LOCK, re.MULTILINE))


def test_every_locked_package_has_a_hash_and_no_address():
    blocks = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked()) > 200
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"://|file:|--index|--find-links| @ ", LOCK)


def test_the_lock_holds_what_the_project_asks_for():
    extras = PROJECT["optional-dependencies"]
    assert len(extras) == 8
    wanted = [Requirement(r) for r in [*PROJECT["dependencies"], *itertools.chain(*extras.values())]]
    versions = locked()
    for requirement in wanted:
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= set(extras)
        else:
            assert versions[requirement.name.lower()] in requirement.specifier, requirement.name


def test_the_lock_keeps_the_overrides_and_each_has_its_reason():
    versions = locked()
    for line in (ROOT / "overrides.txt").read_text("utf-8").splitlines():
        text, _, reason = line.partition("#")
        assert len(reason) > 10, line
        override = Requirement(text.strip())
        if override.marker:
            assert override.name not in versions
        else:
            assert versions[override.name] in override.specifier


def test_the_licence_of_every_locked_package_is_listed():
    text = (ROOT / "DEPENDENCIES.md").read_text("utf-8")
    parts = text.split("## requirements")[1:]
    for part, lock in zip(parts, ("requirements.lock", "requirements-flower.lock"), strict=True):
        rows = re.findall(r"^\| (\S+) +\| (\S+) +\| (\S.*?) +\|$", part, re.MULTILINE)
        listed = {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version, _ in rows}
        wanted = re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", (ROOT / lock).read_text("utf-8"), re.MULTILINE)
        missing = {(re.sub(r"[-_.]+", "-", name), version) for name, version in wanted} - listed
        assert not missing, "run `make licences`"
        assert not [name for name, _, licence in rows if licence == "UNKNOWN"]


def test_nothing_of_ours_unpickles():
    """The security rules of `make lint` say so, too; here it holds whatever is ignored there."""
    for path in [*ROOT.glob("recipes/**/*.py"), *ROOT.glob("notebooks/*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "torch.load",
                "joblib.load",
                "np.load",
            ):
                how = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert ast.unparse(node.func) == "np.load" or how.get("weights_only") == "True", path
                assert how.get("allow_pickle", "False") == "False", path


def test_what_comes_with_the_recipes_is_small_enough_to_clone():
    sizes = {path.name: path.stat().st_size for path in shipped("models").rglob("*") if path.is_file()}
    assert max(sizes.values()) < 11e6, sizes
    assert sum(sizes.values()) < 60e6, sizes


@pytest.mark.parametrize("name", NUMBERED)
def test_importing_a_recipe_loads_no_framework(python, name):
    # So that TensorFlow and PyTorch never meet by accident, and an import is quick.
    heavy = {"tensorflow", "torch", "jax", "matplotlib", "syft", "pooch"}
    code = f"import sys, recipes.{name}; print({heavy!r} & set(sys.modules))"
    assert python("-c", code).stdout.strip() == "set()"


@pytest.mark.parametrize("name", NUMBERED)
def test_a_recipe_has_the_shape_of_one(name):
    text = "\n".join(path.read_text("utf-8") for path in SOURCES[name])
    for part in ("Who sees what:", "Paper:", "Status:", "Expect:", "Command:"):
        assert part in text
    for definition in ("class Config:", "class Result:", "def run(", "def plot(", "def main("):
        assert definition in text


# ---- the Makefile


def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", *arguments],  # noqa: S607 - the one on the path
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def bare(tmp_path) -> Path:
    """A checkout in which nothing is installed, at a path with a space and an umlaut."""
    folder = tmp_path / "a föreign folder"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_help_is_the_default_and_lists_every_target(bare):
    said = make(cwd=bare).stdout
    targets = [
        "help",
        "setup",
        "recipes",
        *(f"recipe-{n}" for n in range(1, 7)),
        "recipe-1-flower",
        "notebooks",
    ]
    for target in [*targets, "test", "lint", "models", "bench", "site", "lock", "clean"]:
        assert re.search(rf"^{target} +\S", said, re.MULTILINE), target
    assert not (bare / ".venv").exists()


def test_a_recipe_that_does_not_exist_is_named_without_installing_anything(bare):
    done = make("recipe-9", cwd=bare)
    assert done.returncode == 2
    assert "There is no recipe-9; there are recipe-1 recipe-2" in done.stderr
    assert not (bare / ".venv").exists()


def without_makes_own(said: str) -> list[str]:
    return [line for line in said.splitlines() if not line.startswith("make")]


def test_without_python_311_setup_says_so_in_one_line(bare):
    done = make("setup", "PYTHON=/bin/false", cwd=bare)
    assert done.returncode == 2
    assert without_makes_own(done.stderr) == [
        "setup: Python 3.11 is needed, and neither python3.11 nor python3 is one;"
        " install it, or say PYTHON=/path/to/python3.11"
    ]


def test_a_half_made_environment_is_made_again(bare):
    if shutil.disk_usage(bare).free < 10e9:
        pytest.skip("setup would rather complain about the disk")
    (bare / ".venv" / "bin").mkdir(parents=True)
    (bare / ".venv" / "bin" / "python").symlink_to(sys.executable)
    make("setup", f"PYTHON={sys.base_prefix}/bin/python3.11", cwd=bare, **NO_NETWORK)
    done = subprocess.run([bare / ".venv" / "bin" / "python", "-m", "pip", "--version"], capture_output=True)
    assert done.returncode == 0


NO_NETWORK = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
    "PIP_CONFIG_FILE": os.devnull,
}


def test_without_network_setup_says_so_in_one_line(bare):
    if shutil.disk_usage(bare).free < 10e9:
        pytest.skip("setup would rather complain about the disk")
    done = make("setup", f"PYTHON={sys.base_prefix}/bin/python3.11", cwd=bare, **NO_NETWORK)
    assert done.returncode == 2
    assert "the package registry cannot be reached" in without_makes_own(done.stderr)[-1]
    assert len(without_makes_own(done.stderr)) == 2  # the first says what it is about to do
    assert not (bare / ".venv" / "installed").exists()


def test_flags_pass_through_make(tmp_path):
    out = tmp_path / "out.json"
    done = make("recipe-1", "DATA=embedded", "PROFILE=quick", f"ARGS=--no-table --rounds 2 --json '{out}'")
    assert done.returncode == 0, done.stderr
    assert "(embedded)" in done.stdout
    assert '"rounds": 2' in out.read_text()


# ---- the wheel


def test_the_wheel_carries_code_registry_and_cards(tmp_path, python):
    built = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")  # what installing a pure wheel does
    code = (
        "import recipes.federated_averaging as fa; from recipes import cards, data;"
        "print(fa.__file__); print(fa.run(fa.Config(data='embedded', order='chapter')).data_source);"
        "print(len(cards.read()), sorted(data.registry()))"
    )
    done = python("-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(tmp_path / "site" / "recipes" / "federated_averaging" / "__init__.py"),
        "embedded",
        f"{len(list(shipped('models').glob('*.json')))} ['cifar-100', 'fashion-mnist', 'mnist']",
    ]


# ---- files that are written whole or not at all


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "card.json"
    path.write_text("before")
    with pytest.raises(RuntimeError), written_whole(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["card.json"]


def test_a_write_goes_through_a_link_and_keeps_it(tmp_path):
    (tmp_path / "real.json").write_text("before")
    (tmp_path / "link.json").symlink_to("real.json")
    with written_whole(tmp_path / "link.json") as temporary:
        temporary.write_text("after")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "after"


def test_a_device_is_neither_written_nor_replaced():
    with pytest.raises(OSError, match="no regular file"), written_whole(Path(os.devnull)):
        pass
    assert Path(os.devnull).is_char_device()


def test_what_was_secret_stays_so(tmp_path):
    path = tmp_path / "secret"
    path.touch(0o600)
    with written_whole(path) as temporary:
        temporary.write_text("new")
    assert path.stat().st_mode & 0o777 == 0o600


def test_whether_a_file_can_be_written_is_found_out_by_trying(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    (tmp_path / "link").symlink_to("nowhere/file")
    check_writable(path)
    check_writable(tmp_path / "new")
    for bad in (
        tmp_path,
        tmp_path / "nowhere" / "file",
        tmp_path / "link",
        Path("/dev/stdout"),
        path / "file",
    ):
        with pytest.raises(ValueError, match="cannot be written: "):
            check_writable(bad)
    with pytest.raises(ValueError, match="File name too long"):
        check_writable(tmp_path / ("x" * 300))
    assert path.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    with written_whole(tmp_path / "whole") as temporary:
        temporary.touch()
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode

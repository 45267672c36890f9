"""CONTRIBUTING.md says how to add a seventh recipe: here one is added to a copy of the cookbook, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest

RECIPE = '''"""Can people be asked a question that none of them answers truly?

Who sees what: whoever asks sees answers, each of which was turned over by a coin that he does not see.
Paper:  Warner, "Randomized response", 1965.
Status: reference.
Expect: a share of 0.30 of 10,000 people, seed 0, is estimated within 0.03.
Command: python -m recipes.randomised_response --people 10000
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Config:
    """Who is asked."""

    people: int = 10_000
    """At least one."""
    truthful: float = 0.75
    """The probability of a true answer, above 0.5 and below 1."""
    seed: int = 0
    """Of people and coins."""

    def __post_init__(self) -> None:
        if self.people < 1:
            raise ValueError(f"people must be at least 1, not {self.people}")
        if not 0.5 < self.truthful < 1:
            raise ValueError(f"truthful must be above 0.5 and below 1, not {self.truthful}")


@dataclass(frozen=True)
class Result:
    """What came out."""

    share: float
    """Estimated."""
    epsilon: float
    """Of each answer, with delta 0."""


def run(config: Config) -> Result:
    """Ask everybody."""
    random = np.random.default_rng(config.seed)
    truth = random.random(config.people) < 0.3
    answers = truth ^ (random.random(config.people) >= config.truthful)
    share = (answers.mean() - 1 + config.truthful) / (2 * config.truthful - 1)
    return Result(float(share), float(np.log(config.truthful / (1 - config.truthful))))


def describe(result: Result) -> str:
    """In a line."""
    return f"{result.share:.3f} said yes; each answer has epsilon {result.epsilon:.2f}"


def plot(result: Result):
    """A bar."""
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().bar(["yes"], [result.share])
    return figure


def main() -> None:
    """Run the recipe from the command line."""
    from recipes import cards, command_line

    question = "Can people be asked a question that none of them answers truly?"
    experiments = (cards.Experiment("10,000 people", Config(), shown=("share", "epsilon")),)
    plan = cards.Plan("randomised_response", 7, question, experiments)
    command_line.main("randomised_response", run, plot, describe, {"quick": Config(), "full": Config()}, plan)


if __name__ == "__main__":
    main()
'''


@pytest.fixture(scope="module")
def seventh(root, tmp_path_factory):
    """A copy of the cookbook with one recipe more, made as CONTRIBUTING.md says, and its way of being run."""
    folder = tmp_path_factory.mktemp("copy") / "cookbook"
    folder.mkdir()
    for name in ("recipes", "datasets", "tests"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-flower.lock", "README.md"):
        shutil.copy2(root / name, folder)  # with its time: what is installed is newer
    shutil.copytree(root / "models", folder / "models", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / ".venv").symlink_to(root / ".venv")
    (folder / ".venv-flower").mkdir()  # which none of the tests that are run here needs
    (folder / ".venv-flower" / "installed").touch()
    (folder / "recipes" / "randomised_response.py").write_text(RECIPE)
    told = (root / "CONTRIBUTING.md").read_text("utf-8")
    lines = (
        re.search(r"```make\n(.*?)```", told, re.DOTALL)[1]
        .replace("   ", "", 2)
        .replace("NAME", "randomised_response")
    )
    makefile = folder / "Makefile"
    text = makefile.read_text("utf-8").replace("recipe-6\nFLAGS", "recipe-6 recipe-7\nFLAGS")
    makefile.write_text(text.replace("\n$(RECIPES): $(STAMP)", f"{lines}\n$(RECIPES): $(STAMP)"), "utf-8")
    conftest = folder / "tests" / "conftest.py"
    text = conftest.read_text("utf-8")
    conftest.write_text(
        text.replace('"membership_inference"),\n]', '"membership_inference"),\n    "randomised_response",\n]')
    )

    def make(*arguments: str) -> subprocess.CompletedProcess[str]:
        installed = [
            "-o",
            ".venv/installed",
            "-o",
            ".venv-flower/installed",
        ]  # they stay as they are
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        command = ["make", *installed, *arguments]
        return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)

    make.folder = folder
    return make


def test_it_is_run_and_listed_as_the_others_are(seventh):
    assert "recipe-7         What it is called" in seventh().stdout
    done = seventh("recipe-7", "ARGS=--people 100000 --json out.json --plot out.png")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((seventh.folder / "out.json").read_text())
    assert record["config"]["people"] == 100_000
    assert abs(record["result"]["share"] - 0.3) < 0.02  # six standard deviations
    assert (seventh.folder / "out.png").read_bytes().startswith(b"\x89PNG")


def test_bad_flags_are_one_line_without_any_further_work(seventh):
    done = seventh("recipe-7", "ARGS=--people 0")
    assert done.stderr.splitlines()[0] == "recipes.randomised_response: people must be at least 1, not 0"


def test_the_tests_that_every_recipe_must_pass_are_run_on_it(seventh):
    done = seventh(
        "test", "ARGS=tests/test_repository.py tests/test_command_lines.py -n 0 -k randomised_response"
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b1[0-9] passed", done.stdout), done.stdout  # two less where no disk can be made full


def test_its_card_gives_its_rows_of_the_tables(seventh):
    done = seventh("recipe-7", "ARGS=--card")
    assert done.returncode == 0, done.stderr
    python = seventh.folder / ".venv" / "bin" / "python"
    code = "from recipes import cards; print(cards.table())"
    table = subprocess.run([python, "-c", code], cwd=seventh.folder, capture_output=True, text=True).stdout
    assert "**7. Can people be asked a question that none of them answers truly?**" in table
    card = json.loads((seventh.folder / "models" / "randomised_response.json").read_text("utf-8"))
    share = card["experiments"][0]["metrics"]["share"]["mean"]
    assert f"| 10,000 people | `make recipe-7` | share **{share:.5g}**, epsilon **1.0986** |" in table
    assert abs(share - 0.3) < 0.03

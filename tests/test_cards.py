"""Result cards, and the README's table that is made from them."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from recipes import cards
from recipes.data import DatasetUnavailable, load
from recipes.files import between_marks


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "auto"
    seed: int = 0
    rounds: int = 1


@dataclasses.dataclass(frozen=True)
class Result:
    score: float
    series: tuple[float, ...]
    array: np.ndarray


def plan(*experiments: cards.Experiment) -> cards.Plan:
    return cards.Plan("toy", 7, "Does it?", experiments, "mnist")


def test_a_card_holds_what_was_run(monkeypatch, tmp_path):
    monkeypatch.setattr(cards.data, "load", lambda name, source: load(name, "embedded"))
    monkeypatch.setattr(cards, "shipped", lambda folder, name="": tmp_path / name)
    seen = []

    def run(config: Config) -> Result:
        seen.append(config)
        return Result(float(config.seed), (1.0, 2.0), np.zeros(3))

    experiment = cards.Experiment(
        "three seeds", Config(rounds=9), ["score", "series"], seeds=(1, 2, 6), source="3", published="4"
    )
    path = cards.write(plan(experiment), run)
    card = json.loads(path.read_text())
    assert seen == [Config("real", seed, 9) for seed in (1, 2, 6)]
    (measured,) = card["experiments"]
    assert measured["metrics"]["score"] == {"mean": 3.0, "std": pytest.approx(math.sqrt(7))}
    assert measured["config"] == {"data": "real", "seed": 0, "rounds": 9}
    assert set(measured["metrics"]) == {"score", "series"}  # arrays stay out
    assert measured["seeds"] == [1, 2, 6]
    assert measured["flags"] == "--rounds 9"
    assert measured["cpu_seconds"] >= 0
    assert card["data"]["digest"] == load("mnist", "embedded").digest()
    assert "score **3** ± 2.6, series **2** ± 0 (3 seeds) | 3 | 4 |" in cards.table()
    assert [p.name for p in tmp_path.iterdir()] == ["toy.json"]


@dataclasses.dataclass(frozen=True)
class Calculation:
    expression: str = dataclasses.field(default="1 + 1", metadata={"positional": True})
    fast: bool = False
    careful: bool = True
    name: str = "a"


def test_a_recipe_may_need_neither_data_nor_seeds(monkeypatch, tmp_path):
    monkeypatch.setattr(cards.data, "load", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(cards, "shipped", lambda folder, name="": tmp_path / name)
    config = Calculation("2 * (3)", fast=True, careful=False, name="b c")
    experiment = cards.Experiment("sum", config, ["score"])
    toy = cards.Plan("toy", 7, "Does it?", [experiment])
    path = cards.write(toy, lambda config: Result(26976.0, (), np.zeros(1)))
    card = json.loads(path.read_text())
    assert card["data"] is None
    assert card["experiments"][0]["flags"] == "'2 * (3)' --fast --no-careful --name 'b c'"
    assert set(card["experiments"][0]["metrics"]) == {"score"}
    assert "| score **26,976** | – | – |" in cards.table()
    assert """`make recipe-7 ARGS="'2 * (3)' --fast --no-careful --name 'b c'"`""" in cards.table()


def test_a_card_that_is_measured_anew_keeps_its_benchmark(monkeypatch, tmp_path):
    monkeypatch.setattr(cards, "shipped", lambda folder, name="": tmp_path / name)
    toy = cards.Plan("toy", 7, "Does it?", [cards.Experiment("sum", Calculation(), ["score"])])
    path = cards.write(toy, lambda config: Result(1.0, (), np.zeros(1)))
    assert "benchmark" not in json.loads(path.read_text())
    cards.keep_benchmark("toy", {"ratios": {"a peer": {"add": 187.4}}})
    cards.write(toy, lambda config: Result(2.0, (), np.zeros(1)))
    card = json.loads(path.read_text())
    assert card["benchmark"]["ratios"] == {"a peer": {"add": 187.4}}
    assert card["benchmark"]["date"] == cards.today()
    assert card["experiments"][0]["metrics"]["score"]["mean"] == 2


def test_a_card_is_never_written_from_stand_ins(monkeypatch, tmp_path):
    def unavailable(name: str, source: str) -> None:
        assert source == "real"
        raise DatasetUnavailable("nothing there")

    monkeypatch.setattr(cards.data, "load", unavailable)
    monkeypatch.setattr(cards, "shipped", lambda folder, name="": tmp_path / name)
    with pytest.raises(DatasetUnavailable):
        cards.write(plan(), lambda config: pytest.fail("ran"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "compared"), [("README.md", True), ("models/README.md", False)])
def test_the_readmes_hold_the_tables_of_the_committed_cards(root, name, compared):
    text = (root / name).read_text("utf-8")
    wanted = between_marks(text, cards.BEGIN, cards.END, cards.table(compared))
    assert text == wanted, "run `python -m recipes.cards`"


def test_every_committed_card_was_made_from_real_data_and_says_on_what():
    assert cards.read()
    for card in cards.read():
        assert card["data"] is None or card["data"]["source"] == "real"
        assert {"python", "processor", "numpy"} <= set(card["environment"])
        for experiment in card["experiments"]:
            assert experiment["config"]["data"] == "real"
            assert set(experiment["shown"]) <= {
                *experiment["metrics"],
                "rounds_to_target",
            }  # which may be none
            assert experiment["wall_seconds"] > 0


def test_every_committed_card_fits_the_data_at_hand():
    for card in filter(lambda card: card["data"], cards.read()):
        try:
            dataset = load(card["data"]["name"])
        except DatasetUnavailable as error:
            pytest.skip(str(error))
        assert dataset.digest() == card["data"]["digest"]


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="results: written by"):
        between_marks("# Title", cards.BEGIN, cards.END, "")


def test_a_stopwatch_counts_wall_and_cpu():
    with cards.Stopwatch() as watch:
        sum(range(2_000_000))
    assert 0 < watch.cpu < watch.wall * 3

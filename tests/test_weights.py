"""The weights that come with the cookbook: listed, described, checked before they are read, and made anew."""

from __future__ import annotations

import hashlib
import shutil
import subprocess

import numpy as np
import pytest
from safetensors.numpy import save_file

from recipes import weights
from recipes.adversarial_robustness import zoo
from recipes.data import DatasetUnavailable, load
from recipes.dp_sgd import scattering
from recipes.files import between_marks, shipped
from recipes.membership_inference import targets
from recipes.private_prediction import mlp

MODELS = shipped("models")
FILES = sorted(str(path.relative_to(MODELS)) for path in MODELS.rglob("*.safetensors"))
TENSORS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(7)}


def test_the_list_holds_every_file_and_each_is_what_it_says():
    assert sorted(weights.sums()) == FILES
    done = subprocess.run(["sha256sum", "--check", "--quiet", weights.SUMS], cwd=MODELS)  # noqa: S607
    assert done.returncode == 0


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_a_card(name):
    card = weights.read_card(name)
    dataset, digest = card["data"].split()
    assert card["command"].startswith("python -m recipes.")
    assert "--train" in card["command"]
    assert len(card["about"]) > 8
    assert int(card["seed"]) >= 0
    try:
        assert load(dataset).digest() == digest
    except DatasetUnavailable as error:
        pytest.skip(str(error))


def test_the_readme_of_the_folder_lists_them():
    text = (MODELS / "README.md").read_text("utf-8")
    wanted = between_marks(text, weights.BEGIN, weights.END, weights.table())
    assert text == wanted, "run `python -m recipes.weights`"
    assert all(f"`{name}`" in text for name in FILES)


def test_what_is_written_is_listed_and_read_back(empty_models):
    weights.write("one.safetensors", TENSORS, {"about": "one"})
    path = weights.checked("one.safetensors", "make it")
    assert weights.sums() == {"one.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert weights.read_card("one.safetensors") == {"about": "one"}


@pytest.mark.parametrize("damage", ["cut", "a bit", "other weights", "gone", "not listed"])
def test_damage_is_found_and_the_command_that_mends_it_is_named(empty_models, damage):
    weights.write("one.safetensors", TENSORS, {"about": "one"})
    path = empty_models / "one.safetensors"
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "a bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "other weights":
        save_file({"weight": TENSORS["weight"] + 1}, path)
    elif damage == "gone":
        path.unlink()
    else:
        (empty_models / weights.SUMS).write_text("")
    with pytest.raises(weights.WeightsDamaged, match=r"models/one\.safetensors is .*: make it$"):
        weights.checked("one.safetensors", "make it")


LOADERS = {
    "mnist_mlp.safetensors": lambda: mlp.read(mlp.SHIPPED),
    "mnist_epsilon_1.safetensors": lambda: scattering.shipped_path("mnist", 1),
    **{zoo.file_name(name): (lambda name=name: zoo.load(name)) for name in zoo.ENTRIES},
}


@pytest.mark.parametrize("name", LOADERS)
def test_no_recipe_reads_damaged_weights(empty_models, name):
    whole = (MODELS / name).read_bytes()
    (empty_models / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    shutil.copy(MODELS / weights.SUMS, empty_models)
    with pytest.raises(weights.WeightsDamaged, match=r"python -m recipes\.\w+ --train"):
        LOADERS[name]()


def test_scores_that_come_with_the_recipe_are_checked_too(empty_models):
    folder = empty_models / targets.SHIPPED
    shutil.copytree(MODELS / targets.SHIPPED, folder)
    shutil.copy(MODELS / weights.SUMS, empty_models)
    name = next(path for path in sorted(folder.glob("*quantile*")))
    assert weights.is_there(name, "make it")
    assert not weights.is_there(folder / "another.safetensors", "make it")
    whole = name.read_bytes()
    name.write_bytes(whole[:-1] + b"?")
    with pytest.raises(weights.WeightsDamaged, match="make it"):
        weights.is_there(name, "make it")
    name.unlink()
    with pytest.raises(weights.WeightsDamaged, match="is missing"):
        weights.is_there(name, "make it")
    name.write_bytes(whole)
    (empty_models / weights.SUMS).write_text("")
    with pytest.raises(weights.WeightsDamaged, match="make it"):
        weights.is_there(name, "make it")


@pytest.mark.parametrize("text", [None, "nonsense\n", "<<<<<<< HEAD\n"])
def test_a_list_that_is_none_is_said_to_be_so_and_written_anew(empty_models, text):
    weights.write("one.safetensors", TENSORS, {"about": "one"})
    (empty_models / weights.SUMS).unlink()
    if text:
        (empty_models / weights.SUMS).write_text(text)
    with pytest.raises(weights.WeightsDamaged, match=f"models/{weights.SUMS} is .*`make models`"):
        weights.checked("one.safetensors", "make it")
    if not text:
        weights.write("one.safetensors", TENSORS, {"about": "one"})
        assert weights.checked("one.safetensors", "make it")


def test_shipped_weights_are_checked_however_their_path_is_spelled(empty_models, monkeypatch):
    path = empty_models / "mnist_mlp.safetensors"
    path.write_bytes((MODELS / path.name).read_bytes()[:-1] + b"?")
    shutil.copy(MODELS / weights.SUMS, empty_models)
    monkeypatch.chdir(empty_models)
    for spelled in (mlp.SHIPPED, path, "mnist_mlp.safetensors", "../models/./mnist_mlp.safetensors"):
        with pytest.raises(weights.WeightsDamaged):
            mlp.read(spelled)


def test_a_write_that_fails_leaves_weights_and_list_as_they_were(empty_models, monkeypatch):
    weights.write("one.safetensors", TENSORS, {})
    before = {path.name: path.read_bytes() for path in empty_models.iterdir()}
    monkeypatch.setattr(
        weights, "_list", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        weights.write("one.safetensors", {"weight": np.zeros(3)}, {})
    assert {path.name: path.read_bytes() for path in empty_models.iterdir()} == before


def test_what_was_trained_anew_takes_the_place_of_all_that_was_in_the_folder(
    empty_models, monkeypatch, tmp_path, real_cifar_100
):
    for name in ("old", "kept"):
        (empty_models / targets.SHIPPED).mkdir(exist_ok=True)
        weights.write(f"{targets.SHIPPED}/{name}.safetensors", TENSORS, {})
    weights.write("other.safetensors", TENSORS, {})
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    save_file({"scores": np.zeros(3)}, waiting / "kept.safetensors", {"cpu_seconds": "5"})
    (waiting / ".half.safetensors").touch()  # what a worker that was killed leaves
    monkeypatch.setattr(targets, "anew", lambda: waiting)
    targets.ship(real_cifar_100, 0)
    assert sorted(weights.sums()) == [f"{targets.SHIPPED}/kept.safetensors", "other.safetensors"]
    card = weights.read_card(f"{targets.SHIPPED}/kept.safetensors")
    assert card["cpu_seconds"] == "5"
    assert card["data"] == f"cifar-100 {real_cifar_100.digest()}"
    assert not waiting.exists()
    assert not (empty_models / targets.SHIPPED / "old.safetensors").exists()


def test_stand_ins_train_nothing_that_is_shipped():
    with pytest.raises(ValueError, match="not on embedded ones"):
        weights.card("a network", load("mnist", "embedded"), 0, "make it")


@pytest.mark.parametrize("fault", ["gone", "damaged"])
def test_a_recipe_without_its_weights_says_so_in_one_line(tmp_path, python, root, fault):
    for folder in ("recipes", "datasets"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "models").mkdir()
    shutil.copy(MODELS / weights.SUMS, tmp_path / "models")
    if fault == "damaged":
        (tmp_path / "models" / "mnist_mlp.safetensors").write_bytes(b"nothing")
    done = python("-m", "recipes.private_prediction", "--data", "embedded", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "models/mnist_mlp.safetensors is" in line
    assert "python -m recipes.private_prediction --train" in line


def test_models_are_trained_by_the_commands_that_their_cards_name(root):
    recipe = (root / "Makefile").read_text("utf-8").split("\nmodels:")[1].split("\n\n")[0]
    commands = {weights.read_card(name)["command"].split("--train")[0].strip() for name in FILES}
    assert len(commands) == 4
    for command in commands:
        assert command.removeprefix("python ") in recipe

"""The recipe's targets: AlexNet on CIFAR-100, over-fitted, regularised, and private."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from recipes import data, progress, weights
from recipes.membership_inference.config import (
    COMMAND,
    RECORDS,
    REFERENCES,
    STAND_INS,
    Config,
    Kind,
    Training,
)
from recipes.membership_inference.fitting import Examples
from recipes.membership_inference.kept import VERSION as SCORES_VERSION
from recipes.membership_inference.kept import Kept
from recipes.membership_inference.networks import alexnet
from recipes.membership_inference.references import VERSION, Job, Plan, Trained, halves, train_all

TRAININGS: dict[Kind, Training] = {
    "overfitted": Training(epochs=16, mirrored_epochs=7),
    "regularised": Training(epochs=12, weight_decay=3e-3, augment=True, patience=3),
    "private": Training(epochs=4, batch=512, learning_rate=0.2, epsilon=8.0),
}
SHIPPED = "membership_inference"
"""Their folder in `models`."""
KEPT = 1_000
"""Test images that early stopping looks at; the others are the population."""


@dataclass(frozen=True)
class Pool:
    """The images, and who is a member."""

    source: str
    """`real` or `embedded`."""
    examples: Examples
    """`[N, 3, 32, 32]` float32 in [0, 1], and labels `[N]`: no image is there twice."""
    population: Examples
    """Test images that are none of the records."""
    kept: Examples
    """Test images that early stopping looks at."""
    member: np.ndarray
    """`[N]` bool, by the toss of a coin."""
    class_names: tuple[str, ...]


def pool(config: Config) -> Pool:
    """Load the images, and toss the coins."""
    dataset = data.load("cifar-100", config.data)
    wanted = config.records or (RECORDS if dataset.source == "real" else STAND_INS)
    kept = min(KEPT, wanted // 5)
    others = min(len(dataset.test), 2 * wanted)
    records = _once(dataset.train.images[:wanted])
    seen = {image.tobytes() for image in dataset.train.images[records]}
    rest = [i for i in range(kept, others) if dataset.test.images[i].tobytes() not in seen]
    member = np.random.default_rng((config.seed, 0)).random(len(records)) < 0.5
    return Pool(
        dataset.source,
        _examples(dataset.train, records),
        _examples(dataset.test, np.array(rest)),
        _examples(dataset.test, np.arange(kept)),
        member,
        dataset.class_names,
    )


def _once(images: np.ndarray) -> np.ndarray:
    """The places of images, each of which is there once: CIFAR-100 repeats some, and who could tell them
    apart?"""
    first: dict[bytes, int] = {}
    for place, image in enumerate(images):
        first.setdefault(image.tobytes(), place)
    return np.array(list(first.values()))


def _examples(split: data.Split, places: np.ndarray) -> Examples:
    images = data.channels_first(data.scale(split.images[places]))
    return np.ascontiguousarray(images), split.labels[places].astype(np.int64)


def plan(kind: Kind, images: Pool, config: Config) -> Plan:
    """What a target of a kind, and its references, are trained on, and how."""
    how = TRAININGS[kind]
    if kind == "private":
        how = replace(how, epsilon=config.epsilon)
    if len(images.member) < 10_000:  # an epoch is few steps, of which none may go wrong
        how = replace(
            how, batch=min(how.batch, 32), learning_rate=how.learning_rate / 4, patience=2 * how.patience
        )
    network = alexnet(len(images.class_names), "group" if how.epsilon else "batch")
    kept = images.kept if how.patience else None
    return Plan(network, images.examples, images.population, how, kept, mirror=True, seed=config.seed)


@dataclass(frozen=True)
class Target:
    """A target with all that is needed to attack it."""

    network: nn.Module
    """Trained, in evaluation mode."""
    plan: Plan
    answers: Trained
    references: list[Trained]
    kept: Kept
    """Where the scores of attacks on it are kept."""


def trained(kinds: Sequence[Kind], images: Pool, config: Config) -> dict[Kind, Target]:
    """Targets with their references, which are trained now if they neither come with the recipe nor are in
    the cache folder.

    Args:
        kinds: of targets.
        images: what to train on.
        config: how many references: those of the over-fitted target, of the others half as many.
    """
    if config.train and images.source != "real":
        raise ValueError("train needs the real CIFAR-100: the networks that come with the recipe are of it")
    jobs = {kind: _jobs(kind, images, config) for kind in kinds}
    cache = data.cache_folder() / "membership_inference"
    folders = [anew()] if config.train else [weights.path_of(SHIPPED), cache]
    wanted = [job for kind in kinds for job in jobs[kind]]
    missing = sum(
        not any(weights.is_there(folder / job.file_name, COMMAND) for folder in folders) for job in wanted
    )
    if missing and len(images.member) >= 10_000:
        with progress.paused():
            print(f"training {missing} networks, about 8 CPU minutes each on 25,000 images", file=sys.stderr)
    everything = iter(train_all(wanted, folders))
    found = {}
    for kind in kinds:
        target, *references = [next(everything) for _ in jobs[kind]]
        network = jobs[kind][0].plan.network
        network.load_state_dict(target.weights)
        answers = hashlib.sha256(np.ascontiguousarray(target.confidences)).hexdigest()
        kept = Kept(f"{kind}_{answers}", folders)
        network.requires_grad_(False).eval()
        found[kind] = Target(network, jobs[kind][0].plan, target, references, kept)
    return found


def anew() -> Path:
    """Where networks wait that are to come with the recipe."""
    return data.cache_folder() / f"membership_inference_anew_{VERSION}_{SCORES_VERSION}"


def ship(dataset: data.Dataset, seed: int) -> None:
    """Put what waits in `anew` into `models`, in place of what was there."""
    about = "a network's answers, or an attack's scores"
    card = weights.card(about, dataset, seed, COMMAND)
    weights.copy_in(SHIPPED, sorted(anew().glob("[!.]*.safetensors")), card)
    shutil.rmtree(anew())


def _jobs(kind: Kind, images: Pool, config: Config) -> list[Job]:
    """The target, then its references."""
    of_kind = plan(kind, images, config)
    count = config.references
    if count is None:
        count = REFERENCES if images.source == "real" else REFERENCES // 2
    pairs = count // 2 if kind == "overfitted" else -(-count // 4)
    rows = halves(len(images.member), pairs, config.seed)
    return [
        Job(f"{kind}_target", of_kind, images.member, 0, keep_weights=True),
        *(Job(f"{kind}_{k}", of_kind, row, k) for k, row in enumerate(rows, start=1)),
    ]

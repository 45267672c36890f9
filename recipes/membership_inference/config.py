"""What to attack, with what, and what the attacker knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from recipes.data import Source

Kind = Literal["overfitted", "regularised", "private"]
Optimiser = Literal["adam", "sgd", "adadelta", "adagrad", "momentum", "rmsprop"]
RECORDS, STAND_INS = 50_000, 400
"""All training images of CIFAR-100, a half of which each network is trained on; and of stand-ins."""
REFERENCES = 8
COMMAND = "python -m recipes.membership_inference --train --data real"
"""What trains anew the networks that come with the recipe, and makes the scores of slow attacks."""


@dataclass(frozen=True)
class Config:
    """What to attack, with what, and what the attacker knows."""

    data: Source = "auto"
    """Where images come from: real CIFAR-100, stand-ins drawn here, or whichever can be had."""
    target: Literal["all", "overfitted", "regularised", "private"] = "all"
    """The network to attack: trained until it knows its images by heart; with augmentation throughout, more
    weight decay and the best epoch kept; with DP-SGD; or all three."""
    records: int | None = None
    """Images, up to 50,000, that were members of the training set by the toss of a coin each. None: 50,000
    real ones, or 400 stand-ins, which are enough to see the recipe run."""
    references: int | None = None
    """Reference networks, trained as the target was: an even number, as the second of each pair is trained on
    what the first was not. The regularised and the private target have half as many, in whole pairs. None:
    8, or 4 on stand-ins."""
    train: bool = False
    """Train the networks that come with the recipe anew, on real images, and write them to models/ when all
    are done and attacked. Until then they are kept in the cache folder, so that a run that was stopped goes
    on."""
    known_share: float = 0.2
    """The share of members, and of non-members, that the attacker knows to be so. Only the article's attack
    learns from them, and no attack is judged on them."""
    layers_to_exploit: tuple[int, ...] | None = None
    """The article's attack: layers whose outputs it sees, counted among all layers, -1 for the last. None,
    together with gradients_to_exploit: the three configurations of the article."""
    gradients_to_exploit: tuple[int, ...] | None = None
    """The article's attack: layers the gradients of whose weights it sees, counted among those with
    weights."""
    exploit_loss: bool = True
    """The article's attack sees the loss; for configurations other than the article's three."""
    exploit_label: bool = True
    """The article's attack sees the label; for configurations other than the article's three."""
    attack_optimiser: Optimiser = "adam"
    """Of the article's attack."""
    attack_learning_rate: float = 1e-3
    """Of the article's attack."""
    attack_epochs: int = 15
    """Of the article's attack, over the records that the attacker knows; at most, as the epoch is kept that
    did best on a tenth of them."""
    false_positive_rates: tuple[float, ...] | None = None
    """True positive rates are given at these. None: at 1 %, 0.1 % and 0.01 %, as far as there are
    non-members to count them with."""
    epsilon: float = 8.0
    """What the target that is trained with DP-SGD states, at delta 1e-5."""
    mirror: bool | None = None
    """LiRA, BaVarIA and RMIA ask about each image's mirror image, too. None: if training showed it to the
    end, that is, if it was augmented; else the answer about it only blurs the one about the image."""
    seed: int = 0
    """Of who is a member, of all trainings and attacks."""
    report: str = ""
    """Write a page for who has to sign off a model to this folder."""

    def __post_init__(self) -> None:
        if (self.references or 0) < 0 or (self.references or 0) % 2:
            raise ValueError(
                f"references must be an even number, as they are trained in pairs, not {self.references}"
            )
        if self.train and replace(self, train=False, data="auto", report="") != Config():
            raise ValueError(
                "train makes the networks that come with the recipe: of all flags it goes with report only"
            )
        if self.train and self.data == "embedded":
            raise ValueError("train needs the real data: the networks that are shipped are of real images")
        if not 0 < self.known_share < 1:
            raise ValueError(f"known_share must be between 0 and 1, not {self.known_share}")
        for name, least in (("records", 400), ("attack_epochs", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if (self.records or 0) > RECORDS:
            raise ValueError(
                f"records must be at most {RECORDS:,}, which is all there is, not {self.records}"
            )
        for name in ("attack_learning_rate", "epsilon"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number above 0, not {getattr(self, name)}")
        unchosen = self.layers_to_exploit is None and self.gradients_to_exploit is None
        if unchosen and not (self.exploit_loss and self.exploit_label):
            raise ValueError(
                "exploit_loss and exploit_label go with layers_to_exploit or gradients_to_exploit: the "
                "article's three configurations have their own"
            )
        for rate in self.false_positive_rates or ():
            if not 0 < rate < 1:
                raise ValueError(f"false_positive_rates must be between 0 and 1, not {rate}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be from 0 to 2**31 - 1, not {self.seed}")


FULL = Config(train=True)
"""All networks trained anew."""


@dataclass(frozen=True)
class Training:
    """How a network is trained, target and references alike."""

    epochs: int = 10
    """At most, if it stops early."""
    batch: int = 128
    """Examples a step; with epsilon, as many as are expected."""
    optimiser: Literal["adamw", "sgd"] = "sgd"
    """Without epsilon; see `recipes.training`. With epsilon: DP-SGD with a momentum of 0.9."""
    learning_rate: float = 0.05
    """The highest; with epsilon, of all steps."""
    weight_decay: float = 2e-3
    """Not with epsilon."""
    augment: bool = False
    """Move each image by up to four pixels, and mirror every second one. Not with epsilon."""
    mirrored_epochs: int = 0
    """Mirror every second image in the first so many epochs, and none in those that follow."""
    patience: int = 0
    """Stop after so many epochs without a better accuracy on the images that are kept for it, and take
    the best weights; 0 goes on to the end. Not with epsilon."""
    epsilon: float | None = None
    """Train with DP-SGD, and the least noise that keeps to this epsilon."""
    delta: float = 1e-5
    clip: float = 1.0
    """The longest gradient of an example, with epsilon."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number above 0, not {getattr(self, name)}")
        if self.weight_decay < 0 or self.patience < 0:
            raise ValueError("weight_decay and patience must not be below 0")
        if self.optimiser not in ("adamw", "sgd"):
            raise ValueError(f"optimiser must be adamw or sgd, not {self.optimiser}")

"""What to attack, with what, and on how many images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recipes import data

Part = Literal["all", "scratch", "table", "stale", "defences"]


@dataclass(frozen=True)
class Config:
    """What to attack, with what, and on how many images."""

    data: data.Source = "auto"
    """Where images come from: real MNIST, stand-ins drawn here, or whichever can be had. The networks that
    come with the recipe know the real ones only."""
    part: Part = "all"
    """The attack from scratch; the table of ABS, CNN and nearest neighbour; the defence that only looks like
    one; those that hold, with their bounds; or all four."""
    images: int = 200
    """Test images attacked, from the first; what is proved, and what takes one pass, is of all."""
    attacked: int = 200
    """Test images on which PGD attacks the defences, at every epsilon of the curves."""
    strong: bool = False
    """The whole attack set (Carlini and Wagner, boundary, estimated gradients, longer searches), AutoAttack
    on the defences' first 1,000 images, and PGD-100 with 10 restarts on all images that are not proved
    safe."""
    epsilon: float = 0.3
    """Linf radius of the defences' claims, in pixels from 0 to 1."""
    train: Literal["", "all", "scratch", "cnn", "abs", "undefended", "stale", "fgsm", "pgd", "certified"] = ""
    """Train this network of models/ anew first, or all of them (about two hours); on real images only."""
    seed: int = 0
    """Of targets, random starts and trainings."""

    def __post_init__(self) -> None:
        for name in ("images", "attacked"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must be above 0 and at most 1, where pixels end, not {self.epsilon}")
        if self.train and self.data == "embedded":
            raise ValueError("train needs the real data: the networks that are shipped are of real images")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be from 0 to 2**31 - 1, not {self.seed}")

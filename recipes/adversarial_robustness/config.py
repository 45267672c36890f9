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
    """Test images attacked for the table, from the first."""
    attacked: int = 100
    """Test images of the defences' curves, from the first; clean and proved accuracy is of all."""
    strong: bool = False
    """In the table, the whole attack set: on the CNN also Carlini and Wagner, pointwise, boundary and
    estimated gradients, on ABS also DeepFool and PGD, and longer searches; clean accuracies of all test
    images. The stale defence on all test images. The others under AutoAttack on the first 1,000, and under
    PGD-100 with 10 restarts on all that are not proved safe."""
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

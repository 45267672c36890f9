"""What attacks found out about one network, and what that is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes.membership_inference import metrics
from recipes.membership_inference.bound import Bound
from recipes.membership_inference.exposed import Exposed


@dataclass(frozen=True)
class Attack:
    """One attack's scores, what they are worth, and what they cost."""

    scores: np.ndarray
    """`[N]` of the judged records, high for members."""
    evaluation: metrics.Evaluation
    references: int
    """Networks that were trained for it."""
    cpu_seconds: float
    """Of its own, and of the references."""
    knows_members: bool = False
    """Whether it learned from members that the attacker knew."""

    def summary(self) -> dict[str, Any]:
        """For JSON: AUC, balanced accuracy, rates and seconds."""
        e = self.evaluation
        return {
            "auc": e.auc,
            "auc_interval": (e.auc_low, e.auc_high),
            "balanced_accuracy": e.balanced_accuracy,
            "balanced_accuracy_interval": (e.balanced_accuracy_low, e.balanced_accuracy_high),
            "tpr_at_fpr": {f"{rate:g}": point.true_positives.value for rate, point in e.points.items()},
            "tpr_at_fpr_interval": {
                f"{rate:g}": (point.true_positives.low, point.true_positives.high)
                for rate, point in e.points.items()
            },
            "precision": {
                f"{rate:g}": {f"{prior:g}": point.precision(prior).value for prior in metrics.PRIORS}
                for rate, point in e.points.items()
            },
            "references": self.references,
            "knows_members": self.knows_members,
            "cpu_seconds": round(self.cpu_seconds, 2),
        }


@dataclass(frozen=True)
class Audit:
    """What all attacks found out about one network."""

    target: str
    train_accuracy: float
    """On all members."""
    test_accuracy: float
    """On the population."""
    attacks: dict[str, Attack]
    judged: np.ndarray
    """`[N]` int64: the records that attacks are judged on; places among members, then non-members."""
    member: np.ndarray
    """`[N]` bool, of the judged records."""
    labels: np.ndarray
    """`[N]` int64."""
    bound: Bound | None
    """Of epsilon, from below; None if nobody said that members were chosen by fair tosses."""
    exposed: Exposed
    stated_epsilon: float | None = None
    statement: str | None = None
    """What the target's training states, in full."""

    @property
    def headline(self) -> str:
        """The attack whose figures stand for all, chosen before any was seen: BaVarIA with all references, or
        the loss where there are too few for it."""
        bavaria = [name for name in self.attacks if name.startswith("BaVarIA")]
        return bavaria[-1] if bavaria else "loss"

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "target": self.target,
            "train_accuracy": self.train_accuracy,
            "test_accuracy": self.test_accuracy,
            "attacks": {name: attack.summary() for name, attack in self.attacks.items()},
            "epsilon_lower_bound": self.bound.epsilon if self.bound else None,
            "epsilon_lower_bound_attack": self.bound.attack if self.bound else None,
            "stated_epsilon": self.stated_epsilon,
            "statement": self.statement,
            "judged_members": int(self.member.sum()),
            "judged_non_members": int((~self.member).sum()),
        }

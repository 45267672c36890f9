"""Audit a classifier: every attack, on the same records, none of which an attack learned from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from recipes import training
from recipes.membership_inference import attacker, attacks, inference_model, metrics, quantile
from recipes.membership_inference.attacker import check_config
from recipes.membership_inference.attacks import Signals
from recipes.membership_inference.bound import epsilon_lower_bound
from recipes.membership_inference.config import REFERENCES, Config, Training
from recipes.membership_inference.exposed import most_exposed
from recipes.membership_inference.fitting import Examples
from recipes.membership_inference.inference_model import Exploit
from recipes.membership_inference.kept import Kept
from recipes.membership_inference.references import Job, Plan, Trained, confidences, halves, train_all
from recipes.membership_inference.results import Attack, Audit

_CONFIG, _TRAINING, _NOWHERE = Config(), Training(), Kept("")


def audit(
    model: nn.Module,
    members: Examples,
    non_members: Examples,
    config: Config = _CONFIG,
    *,
    how: Training = _TRAINING,
    population: Examples | None = None,
    fair_tosses: bool = False,
    folder: Path | None = None,
    name: str = "target",
) -> Audit:
    """Attack a classifier with everything that the recipe has.

    Args:
        model: inputs `[B, ...]` float32 -> logits `[B, C]`, on the CPU; it is left as it is. BMIA needs an
            nn.Linear whose output are the logits.
        members: inputs `[N, ...]` float32 and labels `[N]` integers that it was trained on.
        non_members: such that it was not trained on, from the same distribution.
        config: what the attacker knows and does; `data`, `target`, `records`, `epsilon` and `report` are the
            recipe's own and are not looked at.
        how: how references are trained, which should be how the model was: from weights drawn anew.
        population: more non-members, which no reference is trained on, for RMIA and quantile regression.
            None: a tenth of the non-members is set apart.
        fair_tosses: whether each record was a member by a fair toss of a coin, as a bound of epsilon needs
            it; without, there is none. It needs a population.
        folder: where references are kept, so that a run that was stopped goes on.
        name: of the target.

    Raises:
        ValueError: arrays that do not fit each other, labels that the network has no output for, records that
            are members and non-members, a layer that does not exist, too few records for a rate asked for.
    """
    model = copy.deepcopy(model).eval()
    check_examples(model, members, non_members, population)
    if fair_tosses and population is None:
        raise ValueError(
            "fair_tosses needs a population: to set some non-members apart would make the tosses unfair"
        )
    if population is None:
        apart = np.zeros(len(non_members[1]), bool)
        draw = np.random.default_rng((config.seed, 4))
        apart[draw.permutation(len(apart))[: max(20, len(apart) // 10)]] = True
        population = tuple(part[apart] for part in non_members)
        non_members = tuple(part[~apart] for part in non_members)
    examples = tuple(
        np.concatenate([np.asarray(a), np.asarray(b)]) for a, b in zip(members, non_members, strict=True)
    )
    member = np.arange(len(examples[1])) < len(members[1])
    examples, population = ((part[0], part[1].astype(np.int64)) for part in (examples, population))
    mirror = attacker.mirrored(config, how) and examples[0].ndim == 4
    plan = Plan(model, examples, population, how, mirror=mirror, seed=config.seed)
    count = REFERENCES if config.references is None else config.references
    rows = halves(len(member), count // 2, config.seed)
    jobs = [Job(f"{name}_{k}", plan, row, k + 1) for k, row in enumerate(rows)]
    check_config(config, plan, member)  # before hours of training
    trained = train_all(jobs, [folder] if folder else [])
    return audit_with(model, plan, member, trained, config, name=name, fair_tosses=fair_tosses)


def check_examples(
    model: nn.Module, members: Examples, non_members: Examples, population: Examples | None = None
) -> None:
    """Raise ValueError unless the examples fit the network and each other."""
    named = {"members": members, "non_members": non_members, "population": population}
    for name, examples in named.items():
        if examples is None:
            continue
        inputs, labels = examples
        if len(inputs) != len(labels):
            raise ValueError(f"{name}: {len(inputs)} inputs and {len(labels)} labels: each input needs one")
        if len(labels) < 40:
            raise ValueError(f"{name}: {len(labels)} records are too few: give 40 or more")
        if not isinstance(inputs, np.ndarray) or inputs.dtype != np.float32:
            raise ValueError(f"{name}: inputs must be a NumPy array of float32, not {inputs.dtype}")
        if not np.isfinite(inputs).all():
            raise ValueError(f"{name}: inputs are not all finite numbers")
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name}: labels must be integers, not {labels.dtype}")
        if inputs.shape[1:] != members[0].shape[1:]:
            raise ValueError(
                f"{name}: inputs are {inputs.shape[1:]}, those of members {members[0].shape[1:]}"
            )
    classes = training.predict(model.eval(), members[0][:2]).shape[1]
    for name, examples in named.items():
        if examples is not None and not 0 <= examples[1].min() <= examples[1].max() < classes:
            raise ValueError(
                f"{name}: labels are from {examples[1].min()} to {examples[1].max()}, and the network has "
                f"{classes} outputs, from 0 to {classes - 1}"
            )
    seen: dict[bytes, str] = {}
    for name, examples in named.items():
        again = [seen.setdefault(record.tobytes(), name) for record in examples[0]] if examples else []
        others = [other for other in again if other != name]
        if others:
            raise ValueError(f"{len(others)} of the {name} are among the {others[0]}, too: who could tell?")
        if examples and len({record.tobytes() for record in examples[0]}) < len(examples[0]):
            raise ValueError(f"{name}: some records are there twice, and could be known and judged at once")


@training.one_thread()
def audit_with(
    model: nn.Module,
    plan: Plan,
    member: np.ndarray,
    references: Sequence[Trained],
    config: Config,
    answers: Trained | None = None,
    name: str = "target",
    fair_tosses: bool = True,
    kept: Kept = _NOWHERE,
) -> Audit:
    """Audit with references that are trained already.

    Args:
        model: the target.
        plan: its records, and the population.
        member: `[N]` bool.
        references: their answers about the same records.
        config: what the attacker knows and does.
        answers: what the target answered, if that is known; its training's epsilon is stated.
        name: of the target.
        fair_tosses: whether members were chosen by fair tosses of a coin, as a bound of epsilon needs it.
        kept: where the scores of attacks that learn are kept.
    """
    check_config(config, plan, member)
    case = _Case(member, attacker.known(config, len(member)), config, kept)
    inputs, labels = plan.examples
    exploits = attacker.exploits(config, model)
    view = inference_model.view(model, exploits.values(), inputs, labels)
    logits = view.logits.numpy()
    seen = _Seen.of(model, plan, config, answers)
    _attack_by_answers(case, plan, logits, seen)
    _attack_by_inference_models(case, view, exploits)
    _attack_by_references(case, seen, references)
    own = {attack_name: attack.scores for attack_name, attack in case.found.items()}
    judged = case.judged
    return Audit(
        name,
        float(np.mean(logits[member].argmax(1) == labels[member])),
        answers.test_accuracy if answers else training.accuracy(model, *plan.population),
        case.found,
        judged,
        member[judged],
        labels[judged],
        epsilon_lower_bound(own, member[judged], plan.how.delta) if fair_tosses else None,
        most_exposed(_seeds(case, seen, references), member[judged]),
        answers.fit.epsilon if answers else None,
        answers.fit.statement if answers else None,
    )


# --- the attacks, in the order in which they are shown -----------------------------------------------


@dataclass(frozen=True)
class _Case:
    """Whom attacks are judged on, and what those that have been made found."""

    member: np.ndarray
    """`[N]` bool."""
    known: np.ndarray
    """`[N]` bool: whom the attacker knows; the others are judged on."""
    config: Config
    kept: Kept
    found: dict[str, Attack] = field(default_factory=dict)

    @property
    def judged(self) -> np.ndarray:
        """Places of the records that attacks are judged on."""
        return np.flatnonzero(~self.known)

    def add(
        self,
        name: str,
        scores: Callable[[], np.ndarray],
        costs: Sequence[Trained] = (),
        kept: Kept = _NOWHERE,
        settings: Any = None,
        **about: Any,
    ) -> None:
        """Make an attack, and judge it.

        Args:
            scores: makes its scores, of the judged records.
            costs: the references that it needs.
            kept: where its scores are kept, if anywhere.
            settings: what they depend on besides the target, if they are kept.
            about: more fields of `Attack`.
        """
        of_judged, spent = kept.scores(name, settings, scores)
        spent += sum(reference.fit.cpu_seconds for reference in costs)
        rates = self.config.false_positive_rates or metrics.FALSE_POSITIVE_RATES
        evaluation = metrics.evaluate(of_judged, self.member[self.judged], rates, self.config.seed)
        self.found[name] = Attack(of_judged, evaluation, len(costs), spent, **about)


@dataclass(frozen=True)
class _Seen:
    """The target's confidences."""

    phi: np.ndarray
    """`[V, N]`, of its records."""
    of_population: np.ndarray
    """`[V, M]`."""
    views: slice
    """Whether mirror images are asked about, too, or the images alone."""

    @classmethod
    def of(cls, model: nn.Module, plan: Plan, config: Config, answers: Trained | None) -> _Seen:
        """What the target has answered, or what it answers now."""
        phi, of_population = (
            (answers.confidences, answers.population)
            if answers
            else (confidences(model, examples, plan.mirror) for examples in (plan.examples, plan.population))
        )
        views = slice(None) if attacker.mirrored(config, plan.how) else slice(1)
        return cls(phi[views], of_population[views], views)

    def beside(self, references: Sequence[Trained]) -> Signals:
        """What it and references answered about the same records."""
        posterior = [reference.deviations for reference in references]
        return Signals(
            self.phi,
            np.stack([reference.confidences[self.views] for reference in references]),
            np.stack([reference.trained_on for reference in references]),
            self.of_population,
            np.stack([reference.population[self.views] for reference in references]),
            None if any(part is None for part in posterior) else np.stack(posterior),
        )


def _attack_by_answers(case: _Case, plan: Plan, logits: np.ndarray, seen: _Seen) -> None:
    """The attacks that need no reference, and know no member."""
    judged, (inputs, labels) = case.judged, plan.examples
    case.add("loss", lambda: attacks.loss(logits[judged], labels[judged]))
    case.add("entropy", lambda: attacks.entropy(logits[judged]))
    case.add("modified entropy", lambda: attacks.modified_entropy(logits[judged], labels[judged]))
    case.add(
        "quantile regression",
        lambda: quantile.scores(
            (seen.of_population[0], *plan.population),
            (seen.phi[0, judged], inputs[judged], labels[judged]),
            seed=case.config.seed,
        ),
        kept=case.kept,
        settings=(case.config.known_share, case.config.seed),
    )


def _attack_by_inference_models(
    case: _Case, view: inference_model.View, exploits: Mapping[str, Exploit]
) -> None:
    """The article's attack, which learns from the members that the attacker knows."""
    settings = attacker.settings(case.config)
    for exploit_name, exploit in exploits.items():
        case.add(
            f"inference model, {exploit_name}",
            lambda exploit=exploit: inference_model.train(
                view.components(exploit), case.member, case.known, settings
            )[case.judged],
            kept=case.kept,
            settings=(exploit, settings, case.config.known_share),
            knows_members=True,
        )


def _attack_by_references(case: _Case, seen: _Seen, references: Sequence[Trained]) -> None:
    """The attacks that are calibrated by references, with the first two, four … and with all."""
    for used in sorted({2, 4, 8, 16, 32, 64, len(references)}):
        if not 2 <= used <= len(references):
            continue
        some = references[:used]
        signals = seen.beside(some).of(case.judged)
        for attack_name, scores in _calibrated(used, signals).items():
            case.add(f"{attack_name}, {used}", scores, some)


def _seeds(case: _Case, seen: _Seen, references: Sequence[Trained]) -> list[np.ndarray]:
    """Scores by each pair of references alone; the loss's, if there is none."""
    pairs = [seen.beside(references[i : i + 2]).of(case.judged) for i in range(0, len(references), 2)]
    return [attacks.lira(pair, online=False) for pair in pairs] or [case.found["loss"].scores]


def _calibrated(references: int, signals: Signals) -> dict[str, Callable[[], np.ndarray]]:
    """The attacks for which so many references are enough: half of them were trained on each record."""
    found = {
        "RMIA": lambda: attacks.rmia(signals),
        "LiRA offline, fixed variance": lambda: attacks.lira(signals, online=False),
    }
    if signals.deviations is not None:
        found["BMIA"] = lambda: attacks.bmia(signals)
    if references >= 4:
        found |= {
            "LiRA online, fixed variance": lambda: attacks.lira(signals),
            "LiRA online": lambda: attacks.lira(signals, fixed_variance=False),
            "LiRA offline": lambda: attacks.lira(signals, online=False, fixed_variance=False),
            "RMIA online": lambda: attacks.rmia(signals, online=True),
            "BaVarIA": lambda: attacks.bavaria(signals),
        }
    return found

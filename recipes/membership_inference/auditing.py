"""Audit a classifier: every attack, on the same records, none of which an attack learned from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from recipes import training
from recipes.membership_inference import attacks, inference_model, metrics, quantile
from recipes.membership_inference.attacks import Signals
from recipes.membership_inference.bound import Bound, epsilon_lower_bound
from recipes.membership_inference.config import REFERENCES, Config, Training
from recipes.membership_inference.exposed import Exposed, most_exposed
from recipes.membership_inference.fitting import Examples
from recipes.membership_inference.inference_model import ARTICLE, Exploit, Settings
from recipes.membership_inference.kept import Kept
from recipes.membership_inference.references import Job, Plan, Trained, confidences, halves, train_all

_CONFIG, _TRAINING, _NOWHERE = Config(), Training(), Kept("")


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
    mirror = _mirrored(config, how) and examples[0].ndim == 4
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
    inputs, labels = plan.examples
    known = _known(config, len(member))
    judged = np.flatnonzero(~known)
    check_config(config, plan, member)
    exploits = _exploits(config, model)
    view = inference_model.view(model, exploits.values(), inputs, labels)
    logits = view.logits.numpy()
    phi, of_population = (
        (answers.confidences, answers.population)
        if answers
        else (confidences(model, examples, plan.mirror) for examples in (plan.examples, plan.population))
    )
    views = slice(None) if _mirrored(config, plan.how) else slice(1)
    phi, of_population = phi[views], of_population[views]
    found: dict[str, Attack] = {}

    def add(
        name: str,
        scores: Callable[[], np.ndarray],
        costs: Sequence[Trained] = (),
        kept: Kept = _NOWHERE,
        settings: Any = None,
        **about: Any,
    ) -> None:
        of_judged, spent = kept.scores(name, settings, scores)
        spent += sum(reference.fit.cpu_seconds for reference in costs)
        rates = config.false_positive_rates or metrics.FALSE_POSITIVE_RATES
        evaluation = metrics.evaluate(of_judged, member[judged], rates, config.seed)
        found[name] = Attack(of_judged, evaluation, len(costs), spent, **about)

    add("loss", lambda: attacks.loss(logits[judged], labels[judged]))
    add("entropy", lambda: attacks.entropy(logits[judged]))
    add("modified entropy", lambda: attacks.modified_entropy(logits[judged], labels[judged]))
    add(
        "quantile regression",
        lambda: quantile.scores(
            (of_population[0], *plan.population),
            (phi[0, judged], inputs[judged], labels[judged]),
            seed=config.seed,
        ),
        kept=kept,
        settings=(config.known_share, config.seed),
    )
    for exploit_name, exploit in exploits.items():
        settings = _settings(config)
        add(
            f"inference model, {exploit_name}",
            lambda exploit=exploit, settings=settings: inference_model.train(
                view.components(exploit), member, known, settings
            )[judged],
            kept=kept,
            settings=(exploit, settings, config.known_share),
            knows_members=True,
        )
    for used in sorted({2, 4, 8, 16, 32, 64, len(references)}):
        if not 2 <= used <= len(references):
            continue
        some = references[:used]
        signals = _signals(phi, of_population, some, views).of(judged)
        for attack_name, scores in _calibrated(used, signals).items():
            add(f"{attack_name}, {used}", scores, some)
    pairs = [
        _signals(phi, of_population, references[i : i + 2], views).of(judged)
        for i in range(0, len(references), 2)
    ]
    seeds = [attacks.lira(pair, online=False) for pair in pairs] or [found["loss"].scores]
    own = {attack_name: attack.scores for attack_name, attack in found.items()}
    return Audit(
        name,
        float(np.mean(logits[member].argmax(1) == labels[member])),
        answers.test_accuracy if answers else training.accuracy(model, *plan.population),
        found,
        judged,
        member[judged],
        labels[judged],
        epsilon_lower_bound(own, member[judged], plan.how.delta) if fair_tosses else None,
        most_exposed(seeds, member[judged]),
        answers.fit.epsilon if answers else None,
        answers.fit.statement if answers else None,
    )


def _mirrored(config: Config, how: Training) -> bool:
    """Whether to ask about mirror images."""
    return how.augment if config.mirror is None else config.mirror


def _known(config: Config, records: int) -> np.ndarray:
    """`[N]` bool: the records that the attacker knows, members or not, by the toss of a coin each."""
    return np.random.default_rng((config.seed, 5)).random(records) < config.known_share


def check_config(config: Config, plan: Plan, member: np.ndarray) -> None:
    """Raise ValueError for what the config asks for and these records or this network cannot give."""
    two = tuple(part[:2] for part in plan.examples)
    network = copy.deepcopy(plan.network).eval()
    inference_model.view(network, _exploits(config, network).values(), *two)
    known = _known(config, len(member))
    for kind, of_kind in (("members", member), ("non-members", ~member)):
        for what, these in (("known", known & of_kind), ("judged", ~known & of_kind)):
            if these.sum() < 10:
                raise ValueError(
                    f"{int(these.sum())} {kind} would be {what}, and 10 are needed: give more records, or "
                    f"another known_share than {config.known_share:g}"
                )
    others = int((~member & ~known).sum())
    floor = metrics.floor(max(1, others))
    for rate in config.false_positive_rates or ():
        if rate < floor:
            raise ValueError(
                f"false_positive_rates {rate:g}: with {others:,} non-members to judge on, "
                f"nothing below {floor:.2g} can be shown; take more records, or a higher rate"
            )


def _exploits(config: Config, model: nn.Module) -> Mapping[str, Exploit]:
    """The article's three, as far as the network has as many layers; or the one that the config describes."""
    if config.layers_to_exploit is None and config.gradients_to_exploit is None:
        count = len(inference_model.layers(model))
        return {name: exploit for name, exploit in ARTICLE.items() if len(exploit.layers_to_exploit) <= count}
    layers, gradients = config.layers_to_exploit or (), config.gradients_to_exploit or ()
    return {"chosen": Exploit(layers, gradients, config.exploit_loss, config.exploit_label)}


def _settings(config: Config) -> Settings:
    return Settings(
        optimiser=config.attack_optimiser,
        learning_rate=config.attack_learning_rate,
        epochs=config.attack_epochs,
        seed=config.seed,
    )


def _signals(
    phi: np.ndarray, of_population: np.ndarray, references: Sequence[Trained], views: slice
) -> Signals:
    posterior = [reference.deviations for reference in references]
    return Signals(
        phi,
        np.stack([reference.confidences[views] for reference in references]),
        np.stack([reference.trained_on for reference in references]),
        of_population,
        np.stack([reference.population[views] for reference in references]),
        None if any(part is None for part in posterior) else np.stack(posterior),
    )


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

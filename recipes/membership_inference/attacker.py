"""What the attacker of a config knows and does, and whether there are records enough for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
from torch import nn

from recipes.membership_inference import inference_model, metrics
from recipes.membership_inference.config import Config, Training
from recipes.membership_inference.inference_model import ARTICLE, Exploit, Settings
from recipes.membership_inference.references import Plan


def mirrored(config: Config, how: Training) -> bool:
    """Whether to ask about mirror images."""
    return how.augment if config.mirror is None else config.mirror


def known(config: Config, records: int) -> np.ndarray:
    """`[N]` bool: the records that the attacker knows, members or not, by the toss of a coin each."""
    return np.random.default_rng((config.seed, 5)).random(records) < config.known_share


def exploits(config: Config, model: nn.Module) -> Mapping[str, Exploit]:
    """The article's three, as far as the network has as many layers; or the one that the config describes."""
    if config.layers_to_exploit is None and config.gradients_to_exploit is None:
        count = len(inference_model.layers(model))
        return {name: exploit for name, exploit in ARTICLE.items() if len(exploit.layers_to_exploit) <= count}
    layers, gradients = config.layers_to_exploit or (), config.gradients_to_exploit or ()
    return {"chosen": Exploit(layers, gradients, config.exploit_loss, config.exploit_label)}


def settings(config: Config) -> Settings:
    """How the article's attack is trained."""
    return Settings(
        optimiser=config.attack_optimiser,
        learning_rate=config.attack_learning_rate,
        epochs=config.attack_epochs,
        seed=config.seed,
    )


def check_config(config: Config, plan: Plan, member: np.ndarray) -> None:
    """Raise ValueError for what the config asks for and these records or this network cannot give."""
    two = tuple(part[:2] for part in plan.examples)
    network = copy.deepcopy(plan.network).eval()
    inference_model.view(network, exploits(config, network).values(), *two)
    is_known = known(config, len(member))
    for kind, of_kind in (("members", member), ("non-members", ~member)):
        for what, these in (("known", is_known & of_kind), ("judged", ~is_known & of_kind)):
            if these.sum() < 10:
                raise ValueError(
                    f"{int(these.sum())} {kind} would be {what}, and 10 are needed: give more records, or "
                    f"another known_share than {config.known_share:g}"
                )
    others = int((~member & ~is_known).sum())
    floor = metrics.floor(max(1, others))
    for rate in config.false_positive_rates or ():
        if rate < floor:
            raise ValueError(
                f"false_positive_rates {rate:g}: with {others:,} non-members to judge on, "
                f"nothing below {floor:.2g} can be shown; take more records, or a higher rate"
            )

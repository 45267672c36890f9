"""What a Flower run can be told: the fields of recipe 1's `Config` that `app/pyproject.toml` names."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from recipes.federated_averaging.config import Config

APP = Path(__file__).parent / "app"
"""The folder that `flwr run` sends to all parties."""


def defaults() -> dict[str, Any]:
    """The app's settings, as its `pyproject.toml` gives them."""
    project = tomllib.loads((APP / "pyproject.toml").read_text("utf-8"))
    return project["tool"]["flwr"]["app"]["config"]


def config_of(settings: Mapping[str, Any]) -> Config:
    """The recipe's config that a run's settings make.

    Raises:
        ValueError: they are none that Flower can run here.
    """
    names = {field.name for field in fields(Config)}
    config = Config(**{name: value for name, value in settings.items() if name in names})
    check(config)
    return config


def settings_of(config: Config) -> dict[str, Any]:
    """The same the other way round.

    Raises:
        ValueError: Flower cannot run this config here.
    """
    check(config)
    return {field.name: getattr(config, field.name) for field in fields(Config) if field.name in defaults()}


def check(config: Config) -> None:
    """Find out whether Flower can run a config here.

    Raises:
        ValueError: it cannot.
    """
    known = defaults()
    for field in fields(Config):
        value = getattr(config, field.name)
        if field.name not in known and value != field.default:
            raise ValueError(
                f"{field.name} is {value}: on Flower it stays {field.default};"
                " python -m recipes.federated_averaging has the rest"
            )
    if not 2 <= config.clients <= 8:
        raise ValueError(f"clients is {config.clients}: on Flower each has processes of its own, for 2 to 8")
    if config.algorithm == "scaffold":
        raise ValueError(
            "algorithm is scaffold: its clients keep a vector from round to round, and none do here"
        )

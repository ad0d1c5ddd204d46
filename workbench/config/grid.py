"""Turn a grid over keys of the configuration into a comparison: the product of all values, one row for each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from workbench.config import yaml_text
from workbench.config.compare import POLICY_SECTIONS, CompareConfig
from workbench.config.names import EVALUATION, PPO, REWARD
from workbench.config.overrides import check_overrides, overridden
from workbench.config.schema import Config
from workbench.errors import UserError, shorten

OPTION = "--grid"
UNCHANGED = "as configured"
REASONS = {
    REWARD: "list rewards in sweep.rewards, which scores every run by all of them",
    EVALUATION: "every run is evaluated alike",
    "seed": "list seeds in compare.seeds, for recipes.compare",
}
"""Why a section cannot be part of a grid."""


def split_grid(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the values of every --grid on a command line, and the rest of it."""
    entries, rest = [], []
    words = iter(argv)
    for word in words:
        name, has_value, value = word.partition("=")
        if name != OPTION:
            rest.append(word)
            continue
        entries.append(value if has_value else next(words, ""))
    return entries, rest


def with_grid(config: Config, entries: Sequence[str]) -> Config:
    """Return the configuration with the comparison of the grid's cells.

    Keys of ppo make rows, which share one SFT stage; every combination of keys of sft and policy has an SFT stage of
    its own, and a table of its own. Raises UserError for an unknown key and for one that may not differ.
    """
    for section in ("sweep", "compare"):
        if vars(config)[section] is not None:
            raise UserError(f"{OPTION}: the configuration has a section {section}, too; leave one of them out")
    values: dict[str, list[Any]] = {}
    for entry in entries:
        key, choices = parse_entry(entry)
        if key in values:
            raise UserError(f"{OPTION} {key}: given twice; list all its values in one")
        values[key] = choices
    of_algorithm = {key: choices for key, choices in values.items() if key.partition(".")[0] == PPO}
    if of_algorithm and config.ppo is None:
        raise UserError(f"{OPTION} {next(iter(of_algorithm))}: the configuration has no section ppo; add it")
    of_policy = {key: choices for key, choices in values.items() if key not in of_algorithm}
    for title, overrides in product(values).items():
        overridden(config, overrides, f"{OPTION} {title}")
    algorithms = product(of_algorithm) or ({UNCHANGED: {}} if config.ppo is not None else {})
    return replace(config, compare=CompareConfig(algorithms, product(of_policy), seeds=[config.seed]))


def parse_entry(entry: str) -> tuple[str, list[Any]]:
    """Return the key and the values of KEY=VALUE,VALUE, each value as YAML."""
    key, _, text = entry.partition("=")
    if not key or not text:
        raise UserError(f"{OPTION} {shorten(entry)}: expected KEY=VALUE,VALUE, such as ppo.kl_coef=0.02,0.2")
    try:
        choices = yaml_text.load(f"[{text}]")
    except yaml.YAMLError as error:
        raise UserError(f"{OPTION} {key}{yaml_text.problem(error)}") from error
    for value in choices:
        check_overrides({key: value}, POLICY_SECTIONS, REASONS, f"{OPTION} ")
    repeated = next((value for index, value in enumerate(choices) if value in choices[:index]), None)
    if repeated is not None:
        raise UserError(f"{OPTION} {key}: {repeated} is there twice")
    return key, choices


def product(values: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Return the overrides of every combination by its title, key=value; none without keys."""
    combinations = [dict(zip(values, choices, strict=True)) for choices in itertools.product(*values.values())]
    return {
        ", ".join(f"{key}={in_words(value)}" for key, value in overrides.items()): overrides
        for overrides in combinations
        if overrides
    }


def in_words(value: Any) -> str:
    """Return a value as YAML writes it, on one line."""
    return " ".join(yaml_text.dump(value).split()).removesuffix(" ...")

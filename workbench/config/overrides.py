"""Overrides of a configuration by dotted key, as the entries of a comparison name them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from workbench.config import yaml_text
from workbench.config.building import build, merge, option_type
from workbench.config.checks import check
from workbench.config.schema import Config
from workbench.config.yaml_check import check_node
from workbench.errors import UserError, error_context


def overridden(config: Config, overrides: Mapping[str, Any], name: str) -> Config:
    """Return the configuration with other values at dotted keys, which `check_overrides` has checked.

    Raises UserError, which begins with the `name` of the overrides, for values that do not go together.
    """
    values = dataclasses.asdict(config)
    with error_context(name):
        for dotted, value in overrides.items():
            set_value(values, dotted, value)
        changed = build(values, Config)
        check(changed)
    return changed


def set_value(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the value at a dotted key, merged with what a section there already has."""
    *parents, name = dotted.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            raise UserError(f"{dotted}: {parent} is {values.get(parent)} and has no {name}; set all of {parent}")
        values = values[parent]
    values[name] = merge(values.get(name), value, option_type(dotted))


def check_overrides(
    overrides: Mapping[str, Any], sections: Sequence[str], reasons: Mapping[str, str], prefix: str
) -> None:
    """Raise UserError for an unknown key, a value that does not fit, and a key outside the `sections` that may differ.

    `reasons` say by section why a key may not differ; `prefix` is what precedes a key where the user writes it.
    """
    for dotted, value in overrides.items():
        check_type(dotted, value, prefix)
        section = dotted.partition(".")[0]
        if section not in sections:
            reason = reasons.get(section, "it says nothing about a result")
            raise UserError(f"{prefix}{dotted}: {reason}; only keys of {', '.join(sections)} may differ")


def check_type(dotted: str, value: Any, prefix: str) -> None:
    """Raise UserError for a dotted key that the schema does not have, or a value that does not fit it."""
    if dotted.endswith("+"):
        raise UserError(f"{prefix}{dotted}: KEY+ is for the command line alone; give the whole list")
    try:
        kind = option_type(dotted, prefix="")
        node = yaml_text.compose(yaml_text.dump(value))
        assert node is not None
        check_node(node, kind, dotted, None, None)
    except UserError as error:
        raise UserError(f"{prefix}{str(error).removeprefix('--')}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{prefix}{dotted}{yaml_text.problem(error)}") from error

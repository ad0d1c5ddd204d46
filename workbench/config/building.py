"""Merge the values from files and the command line, and build the schema's dataclasses from them."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from workbench.config import yaml_text
from workbench.config.annotations import (
    alternatives,
    element,
    field_types,
    form_of,
    member,
    without_none,
    without_range,
)
from workbench.config.generation import GenerationSettings
from workbench.config.schema import Config
from workbench.config.yaml_check import cut, is_plain_text, is_required, unknown_key
from workbench.errors import UserError, shorten


def option_type(key: str, command_options: typing.Iterable[str] = (), *, prefix: str = "--") -> Any:
    """Return the annotation of a dotted key; KEY+ is an element of a list. Raises UserError for an unknown key.

    `prefix` is what precedes a key where the user writes it.
    """
    dotted = key.removesuffix("+")
    names = dotted.split(".")
    kind: Any = Config
    for depth, name in enumerate(names):
        kind = without_range(without_none(kind))
        fields = field_types(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in fields and kind is not Any and typing.get_origin(kind) is not dict:
            valid = [*fields, *([] if depth else command_options)]
            parent = "".join(f"{parent}." for parent in names[:depth])
            raise UserError(f"{prefix}{cut(dotted)}: {unknown_key(dotted, name, valid, f'{prefix}{parent}')}")
        kind = fields.get(name, element(kind))
    if not key.endswith("+"):
        return kind
    inner = without_range(member(without_range(kind), "list"))
    if typing.get_origin(inner) is not list:
        raise UserError(f"{prefix}{key}: {dotted} is not a list; KEY+ can only append to a list")
    return element(inner)


def merge(old: Any, new: Any, kind: Any) -> Any:
    """Return `old` updated with `new`: dataclasses merge key by key; lists and free-form mappings are replaced."""
    kind = without_range(without_none(kind))
    if not (dataclasses.is_dataclass(kind) and isinstance(old, dict) and isinstance(new, dict)):
        return new
    types_by_name = field_types(kind)
    return old | {name: merge(old.get(name), value, types_by_name[name]) for name, value in new.items()}


def assign(values: dict[str, Any], key: str, text: str) -> None:
    """Set the value given by `--key text`; KEY+ appends to a list."""
    dotted = key.removesuffix("+")
    *parents, name = dotted.split(".")
    kind = option_type(key)
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    is_null = text == "null" and types.NoneType in alternatives(kind)
    value = text if is_plain_text(kind) and not is_null else yaml_text.load(text)
    if not key.endswith("+"):
        values[name] = merge(values.get(name), value, kind)
        return
    before = values.get(name) or []
    if not isinstance(before, list):
        raise UserError(
            f"--{key}: {key.removesuffix('+')} is {shorten(before)}, not a list; KEY+ can only append to one"
        )
    values[name] = [*before, value]


def with_inherited_generation(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with, in each entry of prompting.generation, the settings of evaluation that it leaves out.

    A way that does not sample inherits no top_k and no top_p, and one that is told to sample inherits no beams.
    """
    prompting, evaluation = values.get("prompting") or {}, values.get("evaluation") or {}
    names = [field.name for field in dataclasses.fields(GenerationSettings) if field.name in evaluation]
    entries = {}
    for title, entry in (prompting.get("generation") or {}).items():
        inherited = {name: evaluation[name] for name in names} | (entry or {})
        unused: set[str] = set()
        if "temperature" in (entry or {}) and inherited["temperature"] != 0:
            unused = {"num_beams"}
        elif inherited.get("temperature") == 0 or inherited.get("num_beams", 1) > 1:
            unused = {"top_k", "top_p"}
        entries[title] = {name: v for name, v in inherited.items() if name in (entry or {}) or name not in unused}
    return values | {"prompting": prompting | {"generation": entries}} if entries else values


def build(value: Any, kind: Any, key: str = "") -> Any:
    """Convert checked YAML values to the dataclasses and numbers that the annotation `kind` declares.

    Raises UserError for a missing field that has no default.
    """
    kind = without_range(member(without_range(kind), form_of(value)))
    if value is None or kind is Any:
        return value
    if kind is float:
        return float(value)
    if isinstance(value, list):
        return [build(entry, element(kind), f"{key}[{index}]") for index, entry in enumerate(value)]
    if not dataclasses.is_dataclass(kind):
        is_mapping = isinstance(value, dict)
        return (
            {str(name): build(v, element(kind), f"{key}.{name}") for name, v in value.items()} if is_mapping else value
        )
    cls = typing.cast(type, kind)
    for field in dataclasses.fields(cls):
        if is_required(field) and field.name not in value:
            dotted = f"{key}.{field.name}" if key else field.name
            raise UserError(f"{dotted}: missing; set it in the YAML file (--config FILE) or as an option")
    types_by_name = field_types(cls)
    return cls(**{name: build(v, types_by_name[name], f"{key}.{name}" if key else name) for name, v in value.items()})

"""Read the schema's type annotations: what each field holds, and within which range."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, Literal

Form = Literal["mapping", "list", "plain"]
"""How a value is written in YAML."""


def field_types(kind: Any) -> dict[str, Any]:
    """Return the annotation of every field of a dataclass, ranges included."""
    return _evaluated_annotations(kind)


@functools.cache
def _evaluated_annotations(kind: Any) -> dict[str, Any]:
    """Evaluate the annotations, which are strings; Python would evaluate them again at every call."""
    return typing.get_type_hints(kind, include_extras=True)


def without_range(kind: Any) -> Any:
    """Return X for Annotated[X, ...], and any other annotation unchanged."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def ranges(kind: Any) -> tuple[Any, ...]:
    """Return the Range and Length objects of an annotation."""
    return typing.get_args(kind)[1:] if typing.get_origin(kind) is typing.Annotated else ()


def alternatives(kind: Any) -> list[Any]:
    """Return the members of a union, or a list of just the annotation if it is not a union."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return list(typing.get_args(kind)) if is_union else [kind]


def without_none(kind: Any) -> Any:
    """Return X for X | None, and any other annotation unchanged."""
    members = [member for member in alternatives(kind) if member is not types.NoneType]
    return members[0] if len(members) == 1 else kind


def member(kind: Any, form: Form) -> Any:
    """Return the member of a union that a value of this form belongs to: the first if it belongs to none."""
    members = [member for member in alternatives(kind) if member is not types.NoneType]
    return next((member for member in members if form_of_type(without_range(member)) == form), members[0])


def form_of_type(kind: Any) -> Form:
    """Return the form of the values of an annotation without a range."""
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict:
        return "mapping"
    return "list" if typing.get_origin(kind) is list else "plain"


def form_of(value: Any) -> Form:
    """Return the form of a value, before or after the dataclasses are built."""
    if dataclasses.is_dataclass(value) or isinstance(value, dict):
        return "mapping"
    return "list" if isinstance(value, list) else "plain"


def element(kind: Any) -> Any:
    """Return the type of a list's elements or a mapping's values; Any for every other annotation."""
    arguments = typing.get_args(kind)
    return arguments[-1] if typing.get_origin(kind) in (list, dict) and arguments else Any

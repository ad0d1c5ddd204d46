"""Read a Scorer from any form that a configuration may use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from workbench.config.sources import Scorer
from workbench.errors import UserError, shorten, suggestion


def as_scorer(value: str | Scorer | Mapping[str, Any], key: str) -> Scorer:
    """Return the scorer at `key`: a bare name, or a mapping with `model` and `options`.

    Raises UserError for any other type, an unknown key or a mapping without `model`.
    """
    if isinstance(value, Scorer):
        return value
    if isinstance(value, str):
        return Scorer(value)
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: {shorten(value)} must be a name, or a mapping with model and options")
    names = [field.name for field in fields(Scorer)]
    for name in value:
        if name not in names:
            raise UserError(f"{key}.{name}: unknown key{suggestion(str(name), names)}")
    if not isinstance(value.get("model"), str):
        raise UserError(f"{key}.model: missing; use a registered name, a hub id, a folder or package.module:object")
    options = value.get("options") or {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise UserError(f"{key}.options: {shorten(options)} must be a mapping of keyword arguments")
    return Scorer(value["model"], dict(options))


def by_name(scorers: Iterable[Scorer], key: str) -> dict[str, Scorer]:
    """Return the scorers of the list at `key` by name; raises UserError for two of one name."""
    named: dict[str, Scorer] = {}
    for scorer in scorers:
        if scorer.model in named:
            raise UserError(f"{key}: two entries are called {scorer.model}; name one of them by its folder or hub id")
        named[scorer.model] = scorer
    return named

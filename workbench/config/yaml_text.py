"""YAML in which 1e-3 is a number, as in every other language; YAML 1.1 requires 1.0e-3."""

from __future__ import annotations

import re
from typing import Any

import yaml

FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+")


class Loader(yaml.SafeLoader):
    """A safe loader that also reads these numbers; PyYAML can add resolvers only to a class."""


class Dumper(yaml.SafeDumper):
    """A safe dumper that quotes text which the loader would read as a number."""


for yaml_class in (Loader, Dumper):
    yaml_class.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def compose(text: str) -> yaml.Node | None:
    """Parse YAML text into nodes with line numbers; None for empty text."""
    return yaml.compose(text, Loader)


def load(text: str) -> Any:
    """Return the value of YAML text."""
    return yaml.load(text, Loader)


def dump(value: Any) -> str:
    """Return a value as YAML."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)

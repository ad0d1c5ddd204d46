"""YAML in which 1e-3 is a number, as in every other language, and 010, 1:30 and dates are text."""

from __future__ import annotations

import re
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
FLOAT = re.compile(
    r"(?:[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+|[-+]?\d[\d_]*\.[\d_]*|[-+]?\.\d[\d_]*"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
# What a plain scalar is. An integer of more digits than any setting has is text, and refused where a number is due.
SCALARS = {
    "bool": (
        re.compile(r"(?:true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)$"),
        "tTfFyYnNoO",
    ),
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "int": (re.compile(r"[-+]?(?:0|[1-9][\d_]{0,18})$"), "-+0123456789"),
    "float": (FLOAT, "-+.0123456789"),
    "merge": (re.compile("<<$"), "<"),
}


class Loader(yaml.SafeLoader):
    """A safe loader that knows these scalars alone; PyYAML can change resolvers only for a class."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012, the name that PyYAML reads


class Dumper(yaml.SafeDumper):
    """A safe dumper that quotes text which the loader would read as a number."""


for name, (pattern, first_characters) in SCALARS.items():
    Loader.add_implicit_resolver(TAG + name, pattern, list(first_characters))
Dumper.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+.0123456789"))


def compose(text: str) -> yaml.Node | None:
    """Parse YAML text into nodes with line numbers; None for empty text."""
    return yaml.compose(text, Loader)


def load(text: str) -> Any:
    """Return the value of YAML text in which `problem` finds none."""
    return yaml.load(text, Loader)


def dump(value: Any) -> str:
    """Return a value as YAML."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def problem(node: yaml.Node, parents: tuple[int, ...] = ()) -> tuple[yaml.Node, str] | None:
    """Return a node that has no plain value, and what is wrong with it; None if there is none."""
    if id(node) in parents:
        return node, "an alias refers to itself"
    if isinstance(node, yaml.ScalarNode):
        kind = node.tag.removeprefix(TAG)
        if kind != "str" and (kind not in SCALARS or not SCALARS[kind][0].match(node.value)):
            return node, f"{node.tag.replace(TAG, '!!')} {node.value!r} has an unsupported YAML tag; remove the tag"
        return None
    if node.tag not in (f"{TAG}map", f"{TAG}seq"):
        return node, f"the tag {node.tag.replace(TAG, '!!')} is not allowed; leave it out"
    children = list(node.value)
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
        for name, value in node.value:
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if name.tag == f"{TAG}merge" and not all(isinstance(part, yaml.MappingNode) for part in parts):
                return name, "<< must merge a mapping"
            if not isinstance(name, yaml.ScalarNode):
                return name, "a key must be a plain string"
    problems = (problem(child, (*parents, id(node))) for child in children)
    return next(filter(None, problems), None)

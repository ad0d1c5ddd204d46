"""YAML in which 1e-3 is a number, as in every other language, and 010, 1:30 and dates are text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import UserError, shorten

# Above what any experiment has; a larger file is another one, or aliases of aliases that fill the memory.
MAX_CHARACTERS = 500_000
MAX_DEPTH = 50
MAX_VALUES = 100_000
TAG = "tag:yaml.org,2002:"
FLOAT = re.compile(
    r"(?:[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+|[-+]?\d[\d_]*\.[\d_]*|[-+]?\.\d[\d_]*"
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


class NotPlainError(yaml.MarkedYAMLError):
    """Valid YAML that has no plain value, such as an alias to itself."""


class Loader(yaml.SafeLoader):
    """A safe loader that knows these scalars alone; PyYAML can change resolvers only for a class."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012, the name that PyYAML reads

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Refuse a bracket inside too many others, for each of which PyYAML would take longer than for the last."""
        if self.flow_level >= MAX_DEPTH:
            raise NotPlainError(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)


class Dumper(yaml.SafeDumper):
    """A safe dumper that quotes text which the loader would read as a number."""


for name, (pattern, first_characters) in SCALARS.items():
    Loader.add_implicit_resolver(TAG + name, pattern, list(first_characters))
Dumper.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+.0123456789"))


def read(file: Path) -> yaml.Node | None:
    """Return the node of a YAML file, or None for an empty one; raises UserError for a file that cannot be read."""
    try:
        with file.open("rb") as stream:
            data = stream.read(4 * MAX_CHARACTERS + 1)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    if len(data) > 4 * MAX_CHARACTERS:
        raise UserError(f"{file}: too large for a configuration, which has at most {MAX_CHARACTERS} characters")
    try:
        return compose(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}{problem(error)}") from error


def compose(text: str) -> yaml.Node | None:
    """Parse YAML text into nodes with line numbers; None for empty text.

    Raises YAMLError for invalid YAML, and for values that are not plain: aliases to themselves, tags, huge nesting.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotPlainError(
            problem=f"{len(text)} characters are too many; a configuration has at most {MAX_CHARACTERS}"
        )
    try:
        node = yaml.compose(text, Loader)
    except RecursionError as error:
        raise NotPlainError(problem=f"nested more than {MAX_DEPTH} levels deep") from error
    except yaml.reader.ReaderError as error:
        mark = yaml.Mark("", error.position, text.count("\n", 0, error.position), 0, None, 0)
        character = f"the character U+{ord(text[error.position]):04X} is not allowed in YAML"
        raise NotPlainError(problem=f"{character}; remove it", problem_mark=mark) from error
    if node is not None:
        measure(node, (), {})
    return node


def value(node: yaml.Node) -> Any:
    """Return the value of a node that `compose` returned."""
    return Loader("").construct_document(node)


def load(text: str) -> Any:
    """Return the value of YAML text; raises YAMLError as `compose` does."""
    node = compose(text)
    return None if node is None else value(node)


def dump(content: Any) -> str:
    """Return a value as YAML."""
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def problem(error: yaml.YAMLError) -> str:
    """Return where the problem of an error is, and what it is."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return ": not valid YAML"
    line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
    kind = "" if isinstance(error, NotPlainError) else "not valid YAML: "
    return f"{line}: {kind}{error.problem}"


def rounding_problem(number: str) -> str | None:
    """Return what is wrong with a number that is written with digits and would become 0 or infinite, or None."""
    digits = number.lower().partition("e")[0]
    if not any(digit in digits for digit in "123456789"):
        return None
    rounded = float(number.replace("_", ""))
    if rounded == 0:
        return "is too small for a number and would become 0; use 0, or at least 1e-300"
    return "is too large for a number and would become infinite; use at most 1e300" if math.isinf(rounded) else None


@dataclass(frozen=True)
class Extent:
    """How many values a node stands for, each alias counted wherever it is used, and how deep they are nested."""

    values: int
    depth: int


def measure(node: yaml.Node, parents: tuple[int, ...], measured: dict[int, Extent]) -> Extent:
    """Return the extent of a node whose values are all plain; raises NotPlainError for one that is not.

    `measured` has the extents of earlier nodes, so that aliases of aliases take no time.
    """
    if id(node) in parents:
        raise NotPlainError(problem="an alias refers to itself", problem_mark=node.start_mark)
    if id(node) not in measured:
        if len(parents) > MAX_DEPTH:
            raise NotPlainError(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=node.start_mark)
        inner = [measure(child, (*parents, id(node)), measured) for child in plain_children(node)]
        extent = Extent(1 + sum(e.values for e in inner), 1 + max((e.depth for e in inner), default=0))
        if extent.values > MAX_VALUES:
            values = f"more than {MAX_VALUES} values, each alias counted wherever it is used"
            raise NotPlainError(problem=f"{values}; keep large data in a file", problem_mark=node.start_mark)
        if extent.depth > MAX_DEPTH:
            raise NotPlainError(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=node.start_mark)
        measured[id(node)] = extent
    return measured[id(node)]


def plain_children(node: yaml.Node) -> list[yaml.Node]:
    """Return the nodes inside a node; raises NotPlainError for a tag, key or merge that has no plain value."""
    tag = node.tag.replace(TAG, "!!")
    if isinstance(node, yaml.ScalarNode):
        kind = node.tag.removeprefix(TAG)
        if kind != "str" and (kind not in SCALARS or not SCALARS[kind][0].match(node.value)):
            reason = f"{tag} {shorten(node.value)} has an unsupported YAML tag; remove the tag"
            raise NotPlainError(problem=reason, problem_mark=node.start_mark)
        return []
    if node.tag not in (f"{TAG}map", f"{TAG}seq"):
        raise NotPlainError(problem=f"the tag {tag} is not allowed; leave it out", problem_mark=node.start_mark)
    if not isinstance(node, yaml.MappingNode):
        return list(node.value)
    for name, content in node.value:
        parts = content.value if isinstance(content, yaml.SequenceNode) else [content]
        if name.tag == f"{TAG}merge" and not all(isinstance(part, yaml.MappingNode) for part in parts):
            raise NotPlainError(problem="<< must merge a mapping", problem_mark=name.start_mark)
        if not isinstance(name, yaml.ScalarNode):
            raise NotPlainError(problem="a key must be a plain string", problem_mark=name.start_mark)
    return [part for pair in node.value for part in pair]

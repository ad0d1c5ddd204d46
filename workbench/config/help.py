"""Describe every key of the configuration from the schema, for --help and for docs/configuration.md.

Run `python -m workbench.config.help --write docs/configuration.md` after changing the schema.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from docstring_parser import parse_from_object

from workbench.config.annotations import alternatives, element, field_types, ranges, without_none, without_range
from workbench.config.building import option_type
from workbench.config.generation import GenerationSettings
from workbench.config.names import STAGES
from workbench.config.parsing import OPTIONS
from workbench.config.ranges import IntegerNames, Length, OneLine, Range
from workbench.config.schema import Config
from workbench.config.sources import (
    AntiExpert,
    BestOf,
    DataSource,
    LabeledSource,
    MixedSource,
    Prompted,
    PromptSet,
    Scorer,
)
from workbench.config.tuning import LoraSettings
from workbench.config.yaml_check import is_required

COLUMNS = 80
SECTIONS = ("policy", *STAGES, "reuse", "sweep", "compare")
ENTRY_NAMES = {"evaluation.data": "NAME", "prompting.generation": "NAME", "tuning.methods": "NAME"}
TYPES = {int: "integer", float: "float", bool: "bool", str: "string", Any: "any value"}
SHARED_SECTIONS: dict[Any, str] = {
    DataSource: "data source",
    PromptSet: "prompt set",
    LabeledSource: "labeled source",
    MixedSource: "mixed source",
    Scorer: "scorer",
    BestOf: "best-of-n choice",
    Prompted: "prompted model",
    AntiExpert: "steered model",
    LoraSettings: "adapter settings",
    GenerationSettings: "generation settings",
}
"""Dataclasses used at several keys; the page describes each of them once."""
METAVARS = {"config": " FILE", "force": " STAGE"}
INTRODUCTION = """\
# Configuration reference

Generated from `workbench/config/schema.py` by `make docs`; change it there.

A configuration is a YAML file with the sections below. Every key can also be set on the command line, where it takes
precedence over the file: `--ppo.kl_coef 0.1`, `--policy.lora null`, `--evaluation.seeds '[0, 1, 2]'`. `KEY+` appends
to a list: `--evaluation.judges+ profanity`. `python -m recipes.ppo --help` prints the keys that a recipe reads,
`--KEY.help` those of one section, such as `--ppo.help` or `--reward.train.help`, and `--print_config` the whole
configuration of a run, defaults included.
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the configuration, described in words."""

    name: str
    """Dotted."""
    type: str
    default: str
    """As YAML; "required" if there is none."""
    sentence: str

    @property
    def requirement(self) -> str:
        """Whether a configuration must have the key."""
        return "required" if self.default == "required" else "optional"


def keys(kind: type, prefix: str, *, expand_shared: bool) -> Iterator[Key]:
    """Yield every key of a dataclass and of the dataclasses in it, in the order of the schema.

    The keys of dataclasses used in several places are left out unless `expand_shared`.
    """
    sentences = field_sentences(kind)
    for field in dataclasses.fields(kind):
        annotation = field_types(kind)[field.name]
        name = f"{prefix}.{field.name}" if prefix else field.name
        yield Key(name, type_in_words(annotation), default_in_words(field), sentences[field.name])
        inner = without_range(without_none(annotation))
        if name in ENTRY_NAMES:
            inner, name = element(inner), f"{name}.{ENTRY_NAMES[name]}"
        if dataclasses.is_dataclass(inner) and (expand_shared or inner not in SHARED_SECTIONS):
            yield from keys(typing.cast(type, inner), name, expand_shared=expand_shared)


@cache
def field_sentences(kind: type) -> dict[str, str]:
    """Return the docstring below every field of a dataclass, inherited fields included."""
    return {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for cls in reversed(kind.__mro__[:-1])
        for parameter in parse_from_object(cls).params
    }


def type_in_words(kind: Any) -> str:
    """Return what an annotation allows, with its range."""
    if len(alternatives(kind)) == 1:
        return plain_type_in_words(without_range(kind)) + "".join(map(range_in_words, ranges(kind)))
    members = [type_in_words(member) for member in alternatives(kind) if member is not types.NoneType]
    words = " or ".join(members)
    nullable = types.NoneType in alternatives(kind)
    return f"{words}{', or null' if ',' in words else ' or null'}" if nullable else words


def plain_type_in_words(kind: Any) -> str:
    """Return the words for an annotation without a range."""
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if typing.get_origin(kind) is list and typing.get_origin(element(kind)) is typing.Literal:
        return f"list with any of {', '.join(typing.get_args(element(kind)))}"
    if typing.get_origin(kind) is list:
        return f"list of {plural(type_in_words(element(kind)))}"
    if typing.get_origin(kind) is dict:
        return "mapping" if element(kind) is Any else f"mapping of names to {plural(type_in_words(element(kind)))}"
    return SHARED_SECTIONS.get(kind, "section") if dataclasses.is_dataclass(kind) else TYPES[kind]


def plural(words: str) -> str:
    """Return the plural of a type."""
    head, *tail = words.split(",")
    parts = [
        part.replace("list", "lists", 1) if part.startswith("list of") else plural_noun(part)
        for part in head.split(" or ")
    ]
    return ",".join([" or ".join(parts), *tail])


def plural_noun(words: str) -> str:
    """Return the plural of a noun, which a range may follow."""
    noun, separator, limits = words.partition(" from ")
    return f"{noun.removesuffix('s')}s{separator}{limits}"


def range_in_words(limits: Range | Length | OneLine | IntegerNames) -> str:
    """Return the words that a range, or a length, adds to a type."""
    if isinstance(limits, OneLine | IntegerNames):
        return ""
    if isinstance(limits, Length):
        is_exact = limits.minimum == limits.maximum
        return f", {limits.minimum} entries" if is_exact else f", at least {limits.minimum} entry"
    if limits.above is not None:
        below = f" and below {limits.below:g}" if limits.below is not None else ""
        return f" above {limits.above:g}{below}" + (f", at most {limits.maximum}" if limits.maximum is not None else "")
    if limits.minimum is not None and limits.maximum is not None:
        choice = "" if limits.zero is None else ", 0 or"
        return f"{choice} from {limits.minimum:.10g} to {limits.maximum:.10g}"
    return f", at least {limits.minimum:g}"


def default_in_words(field: dataclasses.Field) -> str:
    """Return the default of a field as YAML, or "required"."""
    if is_required(field):
        return "required"
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if dataclasses.is_dataclass(value):
        return "the defaults of its keys"
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)


def help_text(prog: str, description: str, sections: Sequence[str]) -> str:
    """Return the help of a command: its options, the top-level keys and the keys of the sections it reads."""
    usage = f"usage: {prog} --config FILE [--KEY VALUE ...]"
    lines = [usage, "", *wrapped(description), "", "options:"]
    for name, sentence in OPTIONS.items():
        lines += [f"  --{name}{METAVARS.get(name, '')}", *wrapped(sentence, indent=6)]
    for title, group in groups(sections, expand_shared=True):
        lines += ["", *wrapped(title)]
        lines += [line for key in group for line in key_lines(key)]
    return "\n".join(lines)


def requested_help(argv: Sequence[str]) -> str | None:
    """Return the key of `--KEY.help` or `--help KEY`, "" for `--help` alone, and None where no help is asked for.

    `--KEY.help VALUE` sets a key, since an option of the user's own may be called help.
    """
    for argument, following in zip(argv, [*argv[1:], "--"], strict=True):
        is_alone = following.startswith("-")
        if argument in ("--help", "-h"):
            return "" if is_alone else following
        if argument.startswith("--") and argument.endswith(".help") and is_alone:
            return argument.removeprefix("--").removesuffix(".help")
    return None


def key_help(prog: str, key: str) -> str:
    """Return the help of a key and of those below it; raises UserError for an unknown one."""
    option_type(key, OPTIONS)
    names = key.split(".")
    for entries, placeholder in ENTRY_NAMES.items():
        depth = entries.count(".") + 1
        if ".".join(names[:depth]) == entries and len(names) > depth:
            names[depth] = placeholder
    described = {known.name: known for known in keys(Config, "", expand_shared=True)}
    while ".".join(names) not in described and any(names):  # a name of the user's own, such as an option of a reward
        names.pop()
    head = ".".join(names)
    below = [known for name, known in described.items() if name.startswith(f"{head}.")]
    option = f"--{head}.KEY" if below else f"--{head}"
    lines = [*wrapped(f"usage: {prog} --config FILE [{option} VALUE ...]", hanging=6), ""]
    if not below:
        return "\n".join(lines + key_lines(described[head]))
    lines += wrapped(f"{head} ({described[head].requirement}): {described[head].sentence}")
    return "\n".join(lines + [line for known in below for line in key_lines(known)])


def key_lines(key: Key) -> list[str]:
    """Return the lines of one key: its type, default and sentence."""
    default = key.default if key.default == "required" else f"default: {key.default}"
    head = wrapped(f"--{key.name}  {key.type}; {default}", indent=2, hanging=6)
    return head + wrapped(key.sentence, indent=6)


def groups(sections: Sequence[str], *, expand_shared: bool) -> Iterator[tuple[str, list[Key]]]:
    """Yield the top-level keys, then those of each section, with titles."""
    all_keys = list(keys(Config, "", expand_shared=expand_shared))
    top_level = {field.name for field in dataclasses.fields(Config)} - set(SECTIONS)
    yield "experiment", [key for key in all_keys if key.name in top_level]
    for name in SECTIONS:
        if name in sections:
            head, *group = [key for key in all_keys if key.name.split(".")[0] == name]
            yield f"{name} ({head.requirement}): {head.sentence}", group


def wrapped(text: str, indent: int = 0, hanging: int | None = None) -> list[str]:
    """Wrap text to lines of at most COLUMNS characters."""
    first, following = " " * indent, " " * (indent if hanging is None else hanging)
    return textwrap.wrap(
        text, COLUMNS, initial_indent=first, subsequent_indent=following, break_on_hyphens=False, break_long_words=False
    )


def markdown() -> str:
    """Return the page docs/configuration.md."""
    parts = [INTRODUCTION]
    for title, group in groups(SECTIONS, expand_shared=False):
        name, _, sentence = title.partition(": ")
        parts.append(f"## {name}\n\n{sentence}\n" if sentence else f"## {name}\n")
        parts.append(table(group))
    for kind, name in SHARED_SECTIONS.items():
        parts += [f"## {name}\n", " ".join((kind.__doc__ or "").split()) + "\n"]
        group = list(keys(kind, "", expand_shared=False))
        for base in kind.__bases__:
            if base in SHARED_SECTIONS:
                inherited = field_types(base)
                group = [key for key in group if key.name not in inherited]
                parts.append(f"It has the keys of a {linked(SHARED_SECTIONS[base])} and:\n")
        parts.append(table(group))
    return "\n".join(parts)


def table(group: Sequence[Key]) -> str:
    """Return keys as a Markdown table."""
    rows = [[f"`{key.name}`", linked(key.type), escaped(key.default), escaped(key.sentence)] for key in group]
    lines = [["key", "type", "default", "meaning"], ["---"] * 4, *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def linked(words: str) -> str:
    """Return a type with a link to the section that describes it."""
    for name in SHARED_SECTIONS.values():
        words = re.sub(f"{name}s?", rf"[\g<0>](#{name.replace(' ', '-')})", words)
    return escaped(words)


def escaped(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def main(arguments: Sequence[str]) -> None:
    """Write the page to the file given by `--write FILE`."""
    if len(arguments) != 2 or arguments[0] != "--write":
        sys.exit("usage: python -m workbench.config.help --write FILE")
    Path(arguments[1]).write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Check YAML, from a file or the command line, against the schema's types; errors give the line."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from workbench.config import yaml_text
from workbench.config.annotations import (
    Form,
    alternatives,
    element,
    field_types,
    member,
    ranges,
    without_none,
    without_range,
)
from workbench.config.ranges import IntegerNames
from workbench.config.renamed import RENAMED_KEYS, RENAMED_VALUE
from workbench.config.schema import Config
from workbench.config.yaml_text import TAG, rounding_problem
from workbench.errors import MAX_LISTED_NAMES, MIN_SIMILARITY, UserError, shorten, suggestion

# Options of `generate` under which tokens are drawn from another distribution than the policy's.
SAMPLING_OPTIONS = {
    *("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "num_beams"),
    *("do_sample", "no_repeat_ngram_size", "length_penalty", "bad_words_ids", "min_new_tokens", "min_length"),
}
MAX_KEY_CHARACTERS = 160
SCALARS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def check_file(file: Path, options: set[str] | None) -> Any:
    """Return the values of a YAML file; raises UserError for one that does not fit the schema.

    `options` are the keys on the command line, which may set what the file lacks; with None, any key may be missing.
    """
    node = yaml_text.read(file)
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{file}: empty or not a mapping; see recipes/configs for examples")
    check_node(node, Config, "", file, options)
    return yaml_text.value(node)


def check_option(key: str, value: str, kind: Any) -> None:
    """Raise UserError for a value of `--key` that does not fit the annotation `kind`."""
    if is_plain_text(kind):
        node: yaml.Node | None = yaml.ScalarNode(f"{TAG}{'null' if value == 'null' else 'str'}", value)
    else:
        try:
            node = yaml_text.compose(value)
        except yaml_text.NotPlainError as error:
            raise UserError(f"--{key}: {error.problem}") from error
        except yaml.YAMLError as error:
            raise UserError(f"--{key}{yaml_text.problem(error)}") from error
    if node is None:
        raise UserError(f"--{key}: the value is empty")
    check_node(node, kind, key, None, None)


def is_plain_text(kind: Any) -> bool:
    """Return whether a command-line value is taken literally as text, even 7 or [a]."""
    plain = without_range(without_none(kind))
    return plain is str or typing.get_origin(plain) is typing.Literal


def cut(key: str) -> str:
    """Return a dotted key on one line, cut where it is too long to read."""
    words = " ".join(key.split())
    return words if len(words) <= MAX_KEY_CHARACTERS else words[:MAX_KEY_CHARACTERS] + "..."


def key_error(file: Path | None, node: yaml.Node, key: str, message: str) -> UserError:
    """Return the error for a key, prefixed with the file and line of its node, or with -- on the command line."""
    key = cut(key)
    return UserError(f"{file}, line {node.start_mark.line + 1}: {key}: {message}" if file else f"--{key}: {message}")


def check_node(node: yaml.Node, kind: Any, key: str, file: Path | None, options: set[str] | None) -> None:
    """Raise UserError if the node, or one nested in it, does not fit the annotation `kind`."""
    if is_null(node) and types.NoneType in alternatives(kind):
        return
    is_free = kind is Any and not key.endswith(".model")  # an option of the user's own, whatever it says
    if isinstance(node, yaml.ScalarNode) and not is_free and (renamed := RENAMED_VALUE.fullmatch(node.value)):
        raise key_error(file, node, key, f"{node.value} is now toy:{renamed[1]}")
    declared, kind = kind, without_range(member(without_range(kind), node_form(node)))
    if kind is Any:
        check_entries(node, key, file, options, {})
    elif dataclasses.is_dataclass(kind) and isinstance(node, yaml.MappingNode):
        names = check_entries(node, key, file, options, field_types(kind))
        check_required(node, typing.cast(type, kind), names, key, file, options)
    elif typing.get_origin(kind) is dict and isinstance(node, yaml.MappingNode):
        check_names(node, key, file, integers=IntegerNames() in ranges(declared))
        check_entries(node, key, file, options, {}, element(kind))
    elif typing.get_origin(kind) is list and isinstance(node, yaml.SequenceNode):
        for index, entry in enumerate(node.value):
            check_node(entry, element(kind), f"{key}[{index}]", file, options)
    elif kind is str and isinstance(node, yaml.ScalarNode) and not node.value and node.tag == f"{TAG}str":
        raise key_error(file, node, key, "is empty; use a string")
    elif not fits(node, kind):
        is_unquoted = kind is str and isinstance(node, yaml.ScalarNode) and not is_null(node)
        remedy = "; write it in quotes" if is_unquoted else similar_choice(node, kind)
        raise key_error(file, node, key, f"must be {expected_form(declared)}, not {node_in_words(node)}{remedy}")
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{TAG}float" and (problem := rounding_problem(node.value)):
        raise key_error(file, node, key, f"{shorten(node.value)} {problem}")


def check_names(node: yaml.Node, key: str, file: Path | None, *, integers: bool) -> None:
    """Raise UserError for a name of a mapping, merged ones included, that is not text, nor one of the `integers`."""
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if name.tag == f"{TAG}merge":
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                check_names(part, key, file, integers=integers)
        elif name.tag != f"{TAG}str" and not (integers and name.tag == f"{TAG}int"):
            raise key_error(file, name, f"{key}.{name.value}", "the name must be a string; write it in quotes")


def check_entries(
    node: yaml.Node, key: str, file: Path | None, options: set[str] | None, fields: dict[str, Any], rest: Any = Any
) -> set[str]:
    """Check each entry of a mapping, and each element of a list, and return the names of the mapping.

    `fields` maps the fields of a dataclass to their annotations; it is empty for a free-form mapping, whose values all
    have the annotation `rest`.
    """
    if isinstance(node, yaml.SequenceNode):
        for index, entry in enumerate(node.value):
            check_node(entry, rest, f"{key}[{index}]", file, options)
    if not isinstance(node, yaml.MappingNode):
        return set()
    merged: set[str] = set()
    names: set[str] = set()
    for name_node, value in node.value:
        if name_node.tag == f"{TAG}merge":
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                merged |= check_entries(part, key, file, options, fields, rest)
            continue
        name = str(name_node.value)
        dotted = f"{key}.{name}" if key else name
        if name in names:
            raise key_error(file, name_node, dotted, "appears twice; keep one")
        if fields and name not in fields:
            raise key_error(file, name_node, dotted, unknown_key(dotted, name, list(fields)))
        names.add(name)
        check_node(value, fields.get(name, rest), dotted, file, options)
    return names | merged


def unknown_key(dotted: str, name: str, valid: list[str], prefix: str = "") -> str:
    """Return the message for a key that the schema does not have: `name` is not one of the `valid` names."""
    if dotted in RENAMED_KEYS:
        return f"this key is now {RENAMED_KEYS[dotted]}"
    if name in SAMPLING_OPTIONS and dotted.startswith("ppo."):
        return (
            "no such option: responses are sampled from the plain softmax at the temperature, because the "
            "log-probabilities in PPO must be those of the policy that sampled; remove it"
        )
    if name == "lr" and "learning_rate" in valid:
        return f"unknown key; did you mean {prefix}learning_rate?"
    option = ".".join([*dotted.split(".")[:-1], "help"])
    return f"unknown key{suggestion(name, valid, prefix) or f'; --{option} lists the keys'}"


def check_required(
    node: yaml.Node, kind: type, names: set[str], key: str, file: Path | None, options: set[str] | None
) -> None:
    """Raise UserError for a field without a default that neither the mapping nor the command line sets."""
    if options is None or not key:
        return
    for field in dataclasses.fields(kind):
        dotted = f"{key}.{field.name}"
        is_set = field.name in names or any(option == dotted or option.startswith(f"{dotted}.") for option in options)
        if is_required(field) and not is_set:
            raise key_error(file, node, dotted, f"missing; {key} needs it")


def is_required(field: dataclasses.Field) -> bool:
    """Return whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def fits(node: yaml.Node, kind: Any) -> bool:
    """Return whether a scalar has the plain type `kind`, or is one of its choices."""
    if not isinstance(node, yaml.ScalarNode):
        return False
    if typing.get_origin(kind) is typing.Literal:
        return node.value in typing.get_args(kind)
    if kind is float:
        return node.tag in (f"{TAG}int", f"{TAG}float")
    return kind in SCALARS and node.tag == f"{TAG}{kind.__name__}"


def similar_choice(node: yaml.Node, kind: Any) -> str:
    """Return a clause that suggests the choice closest to a misspelled one; "" if none is, or there is no choice."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    closest = difflib.get_close_matches(str(node.value), choices, n=1, cutoff=MIN_SIMILARITY)
    return f"; did you mean {closest[0]}?" if closest else ""


def is_null(node: yaml.Node) -> bool:
    """Return whether a node is null."""
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{TAG}null"


def expected_form(annotation: Any) -> str:
    """Describe in words what a value of the type must be."""
    members = [member for member in alternatives(annotation) if member is not types.NoneType]
    if len(members) > 1:
        return " or ".join(expected_form(member) for member in members)
    kind = without_range(members[0])
    if dataclasses.is_dataclass(kind):
        names = list(field_types(kind))
        listed = f"{', '.join(names[:MAX_LISTED_NAMES])}{', ...' if len(names) > MAX_LISTED_NAMES else ''}"
        return f"a mapping with {listed}{', or null' if len(members) < len(alternatives(annotation)) else ''}"
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return SCALARS.get(kind) or ("a list" if typing.get_origin(kind) is list else "a mapping")


def node_form(node: yaml.Node) -> Form:
    """Return the form of the value that a node stands for."""
    if isinstance(node, yaml.MappingNode):
        return "mapping"
    return "list" if isinstance(node, yaml.SequenceNode) else "plain"


def node_in_words(node: yaml.Node) -> str:
    """Describe a node for an error message."""
    if isinstance(node, yaml.ScalarNode):
        return "null" if is_null(node) else shorten(node.value)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"

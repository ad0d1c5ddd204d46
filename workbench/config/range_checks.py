"""Check each value against the range in its field's annotation, and texts against what a file or a name can be."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from typing import Any

from workbench.config.annotations import element, field_types, form_of, member, ranges, without_range
from workbench.config.ranges import IntegerNames, Length, OneLine, Range
from workbench.errors import UserError, shorten

# File systems allow 255 bytes; a temporary folder has a dozen more than the one it replaces.
MAX_NAME_BYTES = 240
MAX_PATH_CHARACTERS = 2000


def check_ranges(value: Any, kind: Any, key: str) -> None:
    """Raise UserError where a number or a length is outside what the annotation `kind` allows, at any depth."""
    if value is None:
        return
    kind = member(kind, form_of(value))
    if without_range(kind) is float and not math.isfinite(value):
        raise UserError(f"{key}: {value} must be a finite number")
    for limits in ranges(kind):
        check_limits(value, limits, key)
    kind = without_range(kind)
    if isinstance(value, str):
        check_characters(value, key)
    if dataclasses.is_dataclass(value):
        for name, field_type in field_types(type(value)).items():
            check_ranges(getattr(value, name), field_type, f"{key}.{name}" if key else name)
    elif isinstance(value, dict):
        for name, entry in value.items():
            check_one_line(str(name), f"{key}.{shorten(name)}")
            check_ranges(entry, element(kind), f"{key}.{name}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            check_ranges(entry, element(kind), f"{key}[{index}]")


def check_limits(value: Any, limits: Range | Length | OneLine | IntegerNames, key: str) -> None:
    """Raise UserError unless the value is within the limits of its field."""
    if isinstance(limits, Length):
        check_length(value, limits, key)
    elif isinstance(limits, OneLine):
        check_one_line(value, key)
    elif isinstance(limits, Range):
        check_range(value, limits, key)


def check_characters(text: str, key: str) -> None:
    """Raise UserError for a character that no file can hold as text, or that only a terminal understands."""
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs" or (category == "Cc" and character not in "\t\n\r"):
            raise UserError(f"{key}: {shorten(text)} has the character U+{ord(character):04X}; remove it")


def check_one_line(text: str, key: str) -> None:
    """Raise UserError for a name or path that is blank, has control characters or is too long for a file system."""
    problem = name_problem(text)
    if problem is not None:
        raise UserError(f"{key}: {problem}")


def name_problem(text: str) -> str | None:
    """Return what is wrong with a name or a path, each part of which is the name of a file; None if nothing is."""
    if not text.strip():
        return f"{text!r} is blank; use a name"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return f"{shorten(text)} has a control character; remove it"
    longest = max(re.split(r"[/\\]", text), key=len)
    if len(longest.encode()) > MAX_NAME_BYTES or len(text) > MAX_PATH_CHARACTERS:
        limit = f"{MAX_PATH_CHARACTERS} characters, or {MAX_NAME_BYTES} bytes between two slashes"
        return f"{shorten(text)} is too long; a name or path has at most {limit}"
    return None


def check_range(value: float, limits: Range, key: str) -> None:
    """Raise UserError unless the number is within its limits."""
    if limits.zero is not None and value == 0:
        return
    choice, meaning = ("", "") if limits.zero is None else ("0 or ", f"; 0 is {limits.zero}")
    is_low = limits.minimum is not None and value < limits.minimum
    is_high = limits.maximum is not None and value > limits.maximum
    if limits.above is not None and value <= limits.above:
        raise UserError(f"{key}: {value} must be above {limits.above:g}")
    if limits.below is not None and value >= limits.below:
        raise UserError(f"{key}: {value} must be below {limits.below:g}")
    if (is_low or is_high) and limits.minimum is not None and limits.maximum is not None:
        raise UserError(
            f"{key}: {value} must be {choice}between {limits.minimum:.10g} and {limits.maximum:.10g}{meaning}"
        )
    if is_low:
        raise UserError(f"{key}: {value} must be {choice}at least {limits.minimum:g}{meaning}")
    if is_high:
        raise UserError(f"{key}: {value} must be at most {limits.maximum}")


def check_length(value: list | dict, limits: Length, key: str) -> None:
    """Raise UserError unless the list or mapping has as many entries as it must."""
    is_exact = limits.minimum == limits.maximum
    if is_exact and len(value) != limits.minimum:
        raise UserError(f"{key}: {len(value)} entries; expected exactly {limits.minimum}")
    if len(value) < limits.minimum:
        count = {0: "empty", 1: "1 entry"}.get(len(value), f"{len(value)} entries")
        raise UserError(f"{key}: {count}; expected at least {limits.minimum}")
    if limits.maximum is not None and len(value) > limits.maximum:
        raise UserError(f"{key}: {len(value)} entries; expected at most {limits.maximum}")

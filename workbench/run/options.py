"""Parse the options of a command that is not a recipe, with mistakes in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from workbench.errors import UserError


def parse_options(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Return the options; raises UserError for a mistake."""
    try:
        return parser.parse_args(list(argv))
    except ArgumentError as error:
        raise UserError(explain(str(error), argv)) from error


def explain(message: str, argv: Sequence[str]) -> str:
    """Return the parser's nested message as one line: the option, its value and the type it must have."""
    name = ".".join(re.findall(r'(?:Parser key|Key) "([\w.]+)"', message))
    prefix = "--" if any(argument.split("=")[0] == f"--{name}" for argument in argv) else ""
    wrong = re.search(r"Expected (?:a|an) (.+?)\. Got value: (.*)", message)
    if wrong:
        kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", wrong[1])
        return f"{prefix}{name}: {wrong[2]!r} is not of the type {kind}"
    required = re.search(r'[Kk]ey "([\w.]+)" is required|"([\w.]+)" is required', message)
    if required:
        return f"--{next(filter(None, required.groups()))}: missing"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    return "; ".join(lines[:1] + [line for line in lines[1:] if "Expected" in line or "not " in line][:2])

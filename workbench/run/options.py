"""Parse the options of a command that is not a recipe, reporting errors in one line."""

from __future__ import annotations

import sys
from argparse import ArgumentError, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence

from workbench.config.range_checks import name_problem
from workbench.errors import UserError, suggestion

CONSOLE_SCRIPT = "workbench"


def program(module: str) -> str:
    """Return how the user started the command: `workbench NAME`, or `python -m` with its module."""
    return command_line(sys.argv[0].removeprefix(f"{CONSOLE_SCRIPT} "), module)


def command_line(name: str, module: str) -> str:
    """Return how to start a command, in the form in which the user started this one."""
    is_console_script = sys.argv[0].startswith(f"{CONSOLE_SCRIPT} ")
    return f"{CONSOLE_SCRIPT} {name}" if is_console_script else f"python -m {module}"


def make_options_parser(module: str, description: str) -> ArgumentParser:
    """Return an empty parser for `parse_options` of the command in `module`."""
    return ArgumentParser(prog=program(module), description=description, exit_on_error=False, allow_abbrev=False)


def name_or_path(text: str) -> str:
    """Return the value of an option that names a file or model; raises ArgumentTypeError for what none can be."""
    problem = name_problem(text)
    if problem is not None:
        raise ArgumentTypeError(problem)
    return text


def parse_options(parser: ArgumentParser, argv: Sequence[str], required: Mapping[str, str]) -> Namespace:
    """Return the options; raises UserError for an invalid option, or for a missing one of `required`.

    argparse itself would exit the process for a missing required option or an unknown one.
    """
    try:
        options, rest = parser.parse_known_args(list(argv))
    except ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from error
    if rest:
        option = rest[0].split("=")[0]
        known = [f"--{name}" for name in [*vars(options), "help"]]  # a positional argument is none of them, as such
        raise UserError(f"{rest[0]}: unknown option{suggestion(option, [name for name in known if name != option])}")
    for name, value in required.items():
        if vars(options)[name] is None:
            raise UserError(f"--{name}: missing; expected {value}")
    return options

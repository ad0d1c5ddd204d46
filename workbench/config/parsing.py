"""Read a configuration from YAML and the command line, check it, and write it back."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentError, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import yaml

from workbench.config import yaml_text
from workbench.config.building import assign, build, merge, option_type, with_inherited_generation
from workbench.config.checks import check
from workbench.config.names import STAGES
from workbench.config.protocols import with_protocol
from workbench.config.schema import Config
from workbench.config.shipped import find_config
from workbench.config.yaml_check import check_file, check_option
from workbench.errors import UserError, shorten

OPTIONS = {
    "config": "YAML file of the experiment, or the name of a shipped one such as quickstart; the values of a second "
    "file replace those of the first",
    "dry_run": "load and check everything, print the plan, and train nothing",
    "force": "redo this stage and those after it",
    "print_config": "print the whole configuration as YAML, and run nothing",
    "help": "print this help; --KEY.help prints one section or key, for example --ppo.help or --sft.data.template.help",
}
"""Options of the commands that are not keys of the configuration."""


def command_parser() -> ArgumentParser:
    """Return the parser of a command's own options; help.py prints them, with the keys of the configuration."""
    parser = ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--force", choices=STAGES)
    parser.add_argument("--print_config", action="store_true")
    return parser


def parse(argv: list[str]) -> tuple[Config, Namespace]:
    """Return the checked configuration and the command's own options; raises UserError with one line for any error.

    Keys on the command line take precedence over those of the files.
    """
    try:
        options, rest = command_parser().parse_known_args(argv)
    except ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from error
    keys = keys_and_values(rest)
    kinds = [option_type(key, OPTIONS) for key, _ in keys]
    values: dict[str, Any] = {}
    for name in options.config:
        file = find_config(name)
        read = check_file(file, {key for key, _ in keys} if len(options.config) == 1 else None)
        values = merge(values, read, Config)
    for (key, text), kind in zip(keys, kinds, strict=True):
        check_option(key, text, kind)
        assign(values, key, text)
    config = build(with_inherited_generation(with_protocol(values)), Config)
    check(config)
    return config, options


def keys_and_values(arguments: list[str]) -> list[tuple[str, str]]:
    """Return the configuration keys and values on a command line, written --KEY VALUE or --KEY=VALUE."""
    pairs = []
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith("--"):
            raise UserError(f"{argument}: not an option; the options are --config FILE and --KEY VALUE")
        key, has_value, value = argument[2:].partition("=")
        if not has_value:
            value = next(remaining, "--")
            if value.startswith("--"):
                option_type(key, OPTIONS)  # if the key is unknown, report that instead
                raise UserError(f"--{key}: missing value")
        pairs.append((key, value))
    return pairs


def dump(config: Config) -> str:
    """Return the whole configuration as YAML, defaults included; loading it gives an equal configuration."""
    return yaml_text.dump(dataclasses.asdict(config))


def load_saved(file: Path) -> Config:
    """Return a configuration that `dump` wrote; raises UserError if it is corrupt, outdated or cannot be read."""
    try:
        node = yaml_text.read(file)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise UserError(f"{error}; make it readable; nothing has to be redone") from error.__cause__
        raise UserError(f"{file}: corrupt, not valid YAML") from error
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{file}: corrupt, not a mapping")
    return parse([f"--config={file}"])[0]


SHORT_LIST = 30  # characters


def differences(before: Config, after: Config) -> list[str]:
    """Return "key: old -> new" for each value that differs."""
    old, new = flatten(dataclasses.asdict(before)), flatten(dataclasses.asdict(after))
    return [
        f"{key}: {' -> '.join(shorten_pair(old.get(key), new.get(key)))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def shorten_pair(old: Any, new: Any) -> tuple[str, str]:
    """Return two different values in short, long lists without what they have in common."""
    if isinstance(old, list) and isinstance(new, list) and max(len(str(old)), len(str(new))) > SHORT_LIST:
        removed, added = ([entry for entry in one if entry not in other] for one, other in ((old, new), (new, old)))
        if removed or added:
            old, new = removed, added
    return shorten(old, 40), shorten(new, 40)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

"""Read a configuration from YAML and the command line, check it, and write it back."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from workbench.config.names import STAGES
from workbench.config.schema import Config
from workbench.errors import UserError, suggestion

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def make_parser(prog: str, description: str) -> ArgumentParser:
    """The command line of every recipe."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, default_env=False)
    parser.add_argument("--config", action="config", help="YAML file of the experiment")
    parser.add_argument("--dry_run", action="store_true", help="load, check and print the plan; train nothing")
    parser.add_argument("--force", choices=STAGES, help="redo this stage and those after it")
    parser.add_class_arguments(Config)
    return parser


def parse(parser: ArgumentParser, argv: list[str]) -> tuple[Config, Namespace]:
    """The checked configuration and the plain options; raises UserError with one line for any mistake."""
    files = config_files(argv)
    lines: dict[str, str] = {}
    for file in files:
        lines |= check_yaml(file, {argument[2:].split("=")[0] for argument in argv if argument.startswith("--")})
    check_options(argv, set(lines) | {"config", "dry_run", "force", "help", "print_config"})
    try:
        options = parser.parse_args(argv)
        config = build(parser, options)
    except ArgumentError as error:
        raise UserError(explain(str(error), lines, argv)) from error
    check(config)
    return config, options


def build(parser: ArgumentParser, options: Namespace) -> Config:
    """The dataclasses of parsed options."""
    values = vars(parser.instantiate(options))
    return Config(**{field.name: values[field.name] for field in dataclasses.fields(Config)})


def config_files(argv: list[str]) -> list[Path]:
    """The YAML files that the command line names; raises UserError for one that cannot be read."""
    names = [value for option, value in itertools.pairwise(argv) if option == "--config"]
    names += [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    for name in names:
        if not Path(name).is_file():
            near = sorted(map(str, Path(name).parent.glob("*.yaml"))) if Path(name).parent.is_dir() else []
            raise UserError(f"--config {name}: no such file{suggestion(name, near)}")
    return [Path(name) for name in names]


def check_yaml(file: Path, given: set[str]) -> dict[str, str]:
    """Where each dotted key stands ("file, line n"); `given` are the keys that the command line sets.

    Raises UserError for a key that no dataclass has, a required one that is missing, and a plain value of a wrong type.
    """
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f", line {mark.line + 1}" if mark else ""
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else "not UTF-8 text"
        raise UserError(f"{file}{place}: not valid YAML: {problem}") from error
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{file}: empty or not a mapping; see recipes/configs for examples")
    places: dict[str, str] = {}
    # What --print_config prints holds the command's own options too.
    node.value = [(name, value) for name, value in node.value if name.value not in ("dry_run", "force")]
    visit(node, Config, "", file, places, given)
    return places


# Which YAML tags a plain type accepts; YAML 1.1 takes 3e-6 for a text, the parser for a number.
SCALARS = {
    int: re.compile(r".*:int"),
    bool: re.compile(r".*:bool"),
    str: re.compile(r".*:str"),
}


def visit(node: yaml.Node, kind: Any, key: str, file: Path, places: dict[str, str], given: set[str]) -> None:
    """Record the line of every key below `node`, and compare the keys with the dataclass `kind`."""
    optional, kind = kind, without_none(kind)
    is_null = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
    if is_null and optional is not kind:
        return
    if not isinstance(node, yaml.MappingNode):
        place = f"{file}, line {node.start_mark.line + 1}"
        if dataclasses.is_dataclass(kind):
            raise UserError(f"{place}: {key}: must be a mapping with {', '.join(field_types(kind))}")
        if kind in SCALARS and not SCALARS[kind].fullmatch(node.tag):
            value = "null" if is_null else node.value if isinstance(node, yaml.ScalarNode) else "a list"
            quotes = "; write it in quotes" if kind is str and value not in ("null", "a list") else ""
            raise UserError(f"{place}: {key}: {value!r} is not of the type {kind.__name__}{quotes}")
        return
    if kind in SCALARS:
        raise UserError(f"{file}, line {node.start_mark.line + 1}: {key}: a mapping is not of the type {kind.__name__}")
    fields = field_types(kind) if dataclasses.is_dataclass(kind) else None
    inner = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else Any
    seen: set[str] = set()
    for name_node, value in node.value:
        name = str(name_node.value)
        dotted = f"{key}.{name}" if key else name
        place = f"{file}, line {name_node.start_mark.line + 1}"
        if name == "<<":
            visit(value, kind, key, file, places, given)
            seen |= {str(merged.value) for merged, _ in value.value}
            continue
        if name in seen and dotted in places:
            raise UserError(f"{place}: {dotted}: given twice; keep one")
        seen.add(name)
        if fields is not None and name not in fields:
            raise UserError(f"{place}: unknown key {dotted}{suggestion(name, list(fields))}")
        places[dotted] = place
        visit(value, fields[name] if fields is not None else inner, dotted, file, places, given)
    if fields is not None and key:  # top-level keys may be given on the command line
        required = [field.name for field in dataclasses.fields(kind) if is_required(field)]
        missing = [name for name in required if name not in seen and f"{key}.{name}" not in given]
        if missing:
            place = f"{file}, line {node.start_mark.line + 1}"
            raise UserError(f"{place}: {key}.{missing[0]}: missing; {key} needs it")


def is_required(field: dataclasses.Field) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def check_options(argv: list[str], known: set[str]) -> None:
    """Raises UserError for a --dotted.key that no dataclass has."""
    for argument in argv:
        if not argument.startswith("--") or argument == "--":
            continue
        dotted = argument[2:].split("=")[0].removesuffix("+")
        if dotted in known or dotted.endswith(".help"):
            continue
        kind: Any = Config
        for depth, name in enumerate(dotted.split(".")):
            kind = without_none(kind)
            if dataclasses.is_dataclass(kind):
                fields = field_types(kind)
                if name not in fields:
                    valid = [".".join([*dotted.split(".")[:depth], field]) for field in fields]
                    raise UserError(f"--{dotted}: unknown key{suggestion(dotted, valid + sorted(known), '--')}")
                kind = fields[name]
            else:
                kind = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else Any


def field_types(kind: Any) -> dict[str, Any]:
    """Field names and types of a dataclass."""
    return typing.get_type_hints(kind)


def without_none(kind: Any) -> Any:
    """X for X | None."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        options = [option for option in typing.get_args(kind) if option is not types.NoneType]
        return options[0] if len(options) == 1 else kind
    return kind


def explain(message: str, places: dict[str, str], argv: list[str]) -> str:
    """One line for the parser's nested message: place, key, what was expected, what was given."""
    keys = re.findall(r'(?:Parser key|Key) "([\w.]+)"', message)
    dotted = ".".join(keys)
    on_command_line = any(argument.split("=")[0] == f"--{dotted}" for argument in argv)
    place = "" if on_command_line else places.get(dotted, "")
    wrong = re.findall(r"Expected (?:a|an) (.+?)\. Got value: (.*)", message)
    if wrong:
        kind, value = wrong[0]
        kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
        kind = re.sub(r"typing\.Literal\[(.*)\]", r"choice: \1", kind)
        head = f"{place}: " if place else "--" if on_command_line else ""
        return f"{head}{dotted}: {value!r} is not of the type {kind}"
    required = re.search(r'[Kk]ey "([\w.]+)" is required|"([\w.]+)" is required', message)
    if required:
        key = next(filter(None, required.groups()))
        return f"{key}: missing; give it in the YAML file (--config FILE) or as an option"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    text = "; ".join(lines[:1] + [line for line in lines[1:] if "Expected" in line or "not " in line][:2])
    return f"{place}: {text}" if place else text


def dump(config: Config) -> str:
    """YAML of the whole configuration, defaults included; it loads back to an equal one."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def parse_saved(file: Path) -> dict[str, Any]:
    """The nested values of a saved configuration."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: damaged, not valid YAML; restore it, or choose another --name") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: damaged, not a mapping; restore it, or choose another --name")
    return values


def differences(saved: dict[str, Any], config: Config) -> list[str]:
    """One "key: old -> new" for each value in which the configuration left its saved form."""
    before, after = flatten(saved), flatten(yaml.safe_load(dump(config)))
    return [
        f"{key}: {short(before.get(key))} -> {short(after.get(key))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def short(value: Any) -> str:
    """A value on one line, cut to 40 characters."""
    text = str(value).replace("\n", " ")
    return text if len(text) <= 40 else text[:37] + "..."


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def check(config: Config) -> None:
    """Raises UserError for a value that is out of range or does not divide another."""
    for key, value in flatten(dataclasses.asdict(config)).items():
        *sections, name = key.split(".")
        if not USERS_OWN.isdisjoint(sections):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}: {value} must be a finite number")
        if name in POSITIVE and value is not None and value <= 0:
            raise UserError(f"{key}: {value} must be above 0")
        if name in NOT_NEGATIVE and value is not None and value < 0:
            raise UserError(f"{key}: {value} must be 0 or above")
        if name in UNIT and not 0 <= value <= 1:
            raise UserError(f"{key}: {value} must lie between 0 and 1")
    if not re.fullmatch(r"[\w.-]+", config.name) or config.name in (".", ".."):
        raise UserError(f"name: {config.name!r} must be letters, digits, '.', '_' and '-': it names a folder")
    if not config.evaluation.data:
        raise UserError("evaluation.data: name at least one prompt set")
    if config.seed >= 2**32:
        raise UserError(f"seed: {config.seed} must be below 2**32 = {2**32}")
    train = config.reward.train if config.reward else None
    if train and len(train.polarity_pair) != 2:
        raise UserError(
            f"reward.train.polarity_pair: {len(train.polarity_pair)} sentences; give a polite and a rude one"
        )
    pair = config.reward.sanity_pair if config.reward else None
    if pair is not None and len(pair) != 2:
        raise UserError(f"reward.sanity_pair: {len(pair)} responses; give a good and a bad one")
    if config.sft is None and config.ppo is None and not (config.reward and config.reward.train):
        raise UserError("sft, reward.train, ppo: all missing, so nothing would be trained; give at least one")
    if config.policy.quantization and config.policy.lora is None:
        raise UserError(f"policy.quantization: {config.policy.quantization} weights cannot be trained; add policy.lora")
    if config.ppo and (config.reward is None or (config.reward.model is None and config.reward.train is None)):
        raise UserError("reward: PPO needs one; give reward.model, or reward.train to train it")
    if config.ppo:
        ppo = config.ppo
        if ppo.temperature == 0:
            raise UserError(
                "ppo.temperature: 0.0 must be above 0: PPO learns from samples, and greedy answers are none"
            )
        if ppo.kl_target is not None and ppo.kl_coef == 0:
            raise UserError("ppo.kl_target: it scales ppo.kl_coef, which is 0 and would stay so; give a start above 0")
        if ppo.kl_target is not None and ppo.kl_horizon < ppo.batch_size:
            raise UserError(f"ppo.kl_horizon: {ppo.kl_horizon} is below ppo.batch_size {ppo.batch_size}; raise it")
        if ppo.min_token_limit and ppo.min_token_limit > ppo.max_new_tokens:
            raise UserError(
                f"ppo.min_token_limit: {ppo.min_token_limit} is above ppo.max_new_tokens {ppo.max_new_tokens}"
            )
        if ppo.value_model == "separate" and config.policy.gradient_checkpointing:
            raise UserError(
                "ppo.value_model: separate does not go with policy.gradient_checkpointing, whose second forward pass "
                "would run under the wrong adapter; use shared, or switch checkpointing off"
            )
        divides("ppo.batch_size", ppo.batch_size, "ppo.minibatch_size", ppo.minibatch_size)
        if ppo.micro_batch_size:
            divides("ppo.minibatch_size", ppo.minibatch_size, "ppo.micro_batch_size", ppo.micro_batch_size)
    if config.sft and config.sft.micro_batch_size:
        divides("sft.batch_size", config.sft.batch_size, "sft.micro_batch_size", config.sft.micro_batch_size)


# Mappings whose keys are the user's.
USERS_OWN = frozenset(("columns", "options", "trainer_args", "fractions"))
POSITIVE = frozenset(
    (
        *("r", "alpha", "epochs", "max_steps", "batch_size", "micro_batch_size", "minibatch_size", "save_every"),
        *("max_tokens", "steps", "kl_target", "kl_horizon", "max_new_tokens", "max_grad_norm", "clip_range"),
        *("value_clip_range", "checkpoint_every", "limit", "max_prompt_tokens", "max_response_tokens"),
        *("score_clip", "score_scale", "checkpoints_kept", "min_token_limit", "target_kl"),
    )
)
NOT_NEGATIVE = frozenset(
    (
        "learning_rate",
        "value_learning_rate",
        "kl_coef",
        "vf_coef",
        "temperature",
        "missing_eos_penalty",
        "seed",
        "entropy_coef",
        "value_warmup_steps",
        "score_samples",
    )
)
UNIT = frozenset(("gamma", "lam", "threshold"))


def divides(key: str, value: int, by_key: str, by: int) -> None:
    """Raises UserError unless `by` divides `value`."""
    if value % by:
        raise UserError(
            f"{key}: {value} is not a multiple of {by_key} {by}; the nearest is {max(round(value / by), 1) * by}"
        )

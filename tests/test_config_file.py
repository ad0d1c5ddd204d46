"""Configuration: what loads, what is refused and in which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from workbench.config.parsing import differences, dump, flatten, make_parser, parse, parse_saved
from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.run.distributed import per_process

GOOD = """
name: test
policy:
  model: gpt2
  lora: {r: 8}
reward:
  model: lexicon
ppo:
  data: {path: x.jsonl}
  kl_coef: 3e-2
evaluation:
  data:
    toxic: {path: z.jsonl}
"""


def load(folder: Path, text: str, *options: str) -> Config:
    """The configuration in `text` with overrides."""
    file = folder / "test.yaml"
    file.write_text(text)
    return parse(make_parser("test", "test"), ["--config", str(file), *options])[0]


def test_numbers_in_every_notation_nested_overrides_and_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD, "--ppo.learning_rate", "3e-6", "--policy.lora.r=4", "--seed", "7")
    assert config.ppo is not None
    assert (config.ppo.kl_coef, config.ppo.learning_rate, config.seed) == (0.03, 3e-6, 7)
    assert config.policy.lora is not None
    assert (config.policy.lora.r, config.policy.lora.alpha) == (4, 32)
    assert load(tmp_path, GOOD, "--policy.lora", "null").policy.lora is None


def test_the_saved_configuration_loads_back_to_itself(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD, "--evaluation.judges", "[lexicon]")
    assert load(tmp_path, dump(config)) == config
    saved = tmp_path / "saved.yaml"
    saved.write_text(dump(config))
    assert differences(parse_saved(saved), config) == []
    config.seed = 5
    assert differences(parse_saved(saved), config) == ["seed: 0 -> 5"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kl_coef", "kl_ceof", "test.yaml, line 10: unknown key ppo.kl_ceof; did you mean kl_coef?"),
        ("3e-2", "abc", "test.yaml, line 10: ppo.kl_coef: 'abc' is not of the type float"),
        ("r: 8", "r: eight", "test.yaml, line 5: policy.lora.r: 'eight' is not of the type int"),
        ("path: z", "pth: z", "test.yaml, line 13: unknown key evaluation.data.toxic.pth; did you mean path?"),
        ("name: test", "nmae: test", "test.yaml, line 2: unknown key nmae; did you mean name?"),
        ("name: test", "", "name"),
        ("model: gpt2", "precision: fp32", "policy.model"),
        ("reward:\n  model: lexicon\n", "", "reward: PPO needs one"),
        ("    toxic: {path: z.jsonl}", "    {}", "evaluation.data: name at least one"),
        ("name: test", "name: test\nname: other", "test.yaml, line 3: name: given twice"),
        ("name: test", "name: ../other", "it names a folder"),
        ("kl_coef: 3e-2", "kl_coef: -1", "ppo.kl_coef: -1.0 must be 0 or above"),
        ("kl_coef: 3e-2", "steps: 0", "ppo.steps: 0 must be above 0"),
        ("kl_coef: 3e-2", "lam: 1.5", "ppo.lam: 1.5 must lie between 0 and 1"),
        ("kl_coef: 3e-2", "minibatch_size: 24", "ppo.batch_size: 64 is not a multiple of ppo.minibatch_size 24"),
        ("kl_coef: 3e-2", "micro_batch_size: 3", "ppo.minibatch_size: 16 is not a multiple of ppo.micro_batch_size 3"),
        ("kl_coef: 3e-2", "kl_estimator: k4", "'k4' is not of the type choice: 'k1', 'k2', 'k3'"),
        ("name: test", "name: [", "not valid YAML"),
        ("name: test", "name: 7", "name: '7' is not of the type str; write it in quotes"),
        ("kl_coef: 3e-2", "steps: forty", "test.yaml, line 10: ppo.steps: 'forty' is not of the type int"),
        ("{path: z.jsonl}", "{path: z.jsonl, limit: x}", "evaluation.data.toxic.limit: 'x' is not of the type int"),
        ("{path: z.jsonl}", "{limit: 3}", "test.yaml, line 13: evaluation.data.toxic.path: missing"),
        ("  data: {path: x.jsonl}\n", "", "ppo.data: missing"),
        ("  data: {path: x.jsonl}", "  data: 5", "ppo.data: must be a mapping with path, split"),
        ("kl_coef: 3e-2", "temperature: 0", "ppo.temperature: 0.0 must be above 0"),
        ("name: test", "name: test\nseed: 5000000000", "seed: 5000000000 must be below 2**32"),
        ("path: z.jsonl", "path: z.jsonl, template: null", "toxic.template: 'null' is not of the type str"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in GOOD
    with pytest.raises(UserError) as raised:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ppo.kl_coe", "1"], "--ppo.kl_coe: unknown key; did you mean --ppo.kl_coef?"),
        (["--ppo.kl_coef", "x"], "--ppo.kl_coef: 'x' is not of the type float"),
        (["--evaluation.data.toxic.pat", "x"], "did you mean --evaluation.data.toxic.path?"),
        (["--config", "missing.yaml"], "--config missing.yaml: no such file"),
        (["stray"], "stray"),
        (["--seed"], "--seed"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_too(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load(tmp_path, GOOD, *options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_limits_are_for_our_own_keys_and_not_for_the_users(in_project: Path) -> None:
    config, _ = parse(
        make_parser("test", ""),
        [
            *("--config", "recipes/configs/quickstart.yaml", "--ppo.data.columns", "{limit: maximum}"),
            *("--reward.options", "{threshold: 5}", "--sft.trainer_args", "{max_steps: -1}"),
        ],
    )
    assert config.reward is not None
    assert config.reward.options == {"threshold": 5}


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty"):
        load(tmp_path, "")


def test_processes_must_share_a_batch_evenly() -> None:
    assert per_process("ppo.batch_size", 64, 2) == 32
    with pytest.raises(UserError, match="64 is not a multiple of the 3 processes"):
        per_process("ppo.batch_size", 64, 3)


def test_every_field_has_a_reader(in_project: Path) -> None:
    """A key that nothing reads is a promise that nothing keeps."""
    code = "".join(
        path.read_text()
        for folder in ("workbench", "recipes", "reward_models")
        for path in in_project.glob(f"{folder}/**/*.py")
        if path.name not in ("config.py", "config_file.py")
    )
    config = parse(make_parser("test", "test"), ["--config", "recipes/configs/quickstart.yaml"])[0]
    names = {key.split(".")[-1] for key in flatten(yaml.safe_load(dump(config))) if ".data.test" not in key}
    names -= set(map(str, yaml.safe_load(dump(config))["ppo"]["data"]["columns"]))
    unread = sorted(name for name in names if not re.search(rf'\.{name}\b|"{name}"', code))
    assert unread == []

"""Configuration: ranges, settings that exclude each other, and fields that nothing reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from configs import GOOD, VALIDATION, load

from workbench.config.parsing import dump, flatten, parse
from workbench.errors import UserError
from workbench.run.distributed import per_process


def test_ranges_are_for_our_own_keys_and_not_for_the_users(tmp_path: Path) -> None:
    """Names of ours among the keys of the user's mappings: a range belongs to a field, not to a name."""
    options = {
        "reward.options": "{threshold: 5, steps: [0], limit: x}",
        "reward.held_out.model": "rouge",
        "reward.held_out.options": "{seed: -1, lam: 7}",
        "evaluation.models": "{steps: a, limit: b, temperature: c}",
        "evaluation.judges": "[{model: lexicon, options: {temperature: -1, batch_size: 0}}]",
        "ppo.data.columns": "{limit: maximum}",
        "ppo.data.fractions": "{train: 0.5, limit: 0.25, epochs: 0.25}",
        "evaluation.data": "{steps: {path: x}, seed: {path: y}}",
    }
    config = load(tmp_path, GOOD, *(f"--{key}={value}" for key, value in options.items()), *VALIDATION)
    assert config.reward is not None
    assert config.reward.options == {"threshold": 5, "steps": [0], "limit": "x"}
    assert config.evaluation.models == {"steps": "a", "limit": "b", "temperature": "c"}
    assert load(tmp_path, dump(config)) == config


def test_every_range_of_the_schema_is_in_force(tmp_path: Path) -> None:
    """Each number of the schema, at whatever depth, set to one far below its range."""
    train = "{model: m, data: {path: p}, validation: {path: p}, target_label: a, lora: {}, clean_validation: {path: p}}"
    config = load(tmp_path, GOOD, "--reward.train", train, "--sft", "{data: {path: s}}", *VALIDATION)
    numbers = [
        key
        for key, value in flatten(yaml.safe_load(dump(config))).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    assert len(numbers) > 40
    for key in numbers:
        with pytest.raises(UserError, match=rf"^{re.escape(key)}: -9999(\.0)? must "):
            load(tmp_path, dump(config), f"--{key}", "-9999")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy.lora", "null", "--policy.quantization", "nf4"], "policy.quantization: nf4 weights cannot be"),
        (["--reward.held_out.model", "rouge"], "reward.held_out: it scores the responses to ppo.validation"),
        (["--evaluation.temperature", "0", "--evaluation.samples", "2"], "evaluation.temperature: 0 samples the same"),
        (["--evaluation.temperature", "0", "--evaluation.seeds", "[1, 2]"], "evaluation.temperature: 0 samples the"),
        (["--evaluation.seeds", "[1, 2, 1]"], r"evaluation.seeds: \[1, 2, 1\] lists a seed twice"),
        (["--evaluation.models.sft", "x"], "evaluation.models.sft: this title is reserved"),
        (["--evaluation.models.prompt", "x"], "evaluation.models.prompt: this title is reserved"),
        (["--ppo.data.fractions", "{train: 0.5}"], "ppo.data: fractions: .* must be positive and sum to 1"),
        (["--ppo.data.fractions", "{train: 2, b: -1}"], "ppo.data: fractions: .* must be positive and sum to 1"),
        (["--ppo.data.fractions", "{a: 1}"], "ppo.data: split: 'train' is not one of the fractions a"),
        (["--evaluation.data.toxic.fractions", "{}"], "evaluation.data.toxic: fractions: {} must be positive"),
        (["--ppo.kl_target", "6", "--ppo.kl_coef", "0"], "ppo.kl_target: it scales ppo.kl_coef"),
        (["--ppo.kl_target", "6", "--ppo.kl_horizon", "8"], "ppo.kl_horizon: 8 is below ppo.batch_size 64"),
        (["--ppo.min_token_limit", "99"], "ppo.min_token_limit: 99 is above ppo.max_new_tokens 32"),
        (
            ["--ppo.value_model=separate", "--policy.gradient_checkpointing=true"],
            "ppo.value_model: separate does not work with",
        ),
        (["--sft", "{data: {path: s}, micro_batch_size: 3}"], "sft.batch_size: 16 is not a multiple of sft.micro"),
        (["--ppo", "null"], "sft, reward.train, ppo, evaluation.models, prompting: all missing"),
        (["--reward.sanity_pair", "[a]"], "reward.sanity_pair: 1 entries; expected exactly 2"),
    ],
)
def test_settings_that_exclude_each_other_are_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path, GOOD, *options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ppo.temperature", "1e-30", "1e-30 must be between 0.01 and 100"),
        ("ppo.score_clip", "1e-320", "1e-320 must be between 1e-06 and 1000000000"),
        ("ppo.score_scale", "1e30", "1e+30 must be between 1e-06 and 1000000000"),
        ("ppo.clip_range", "0", "0.0 must be between 1e-06 and 1000000000"),
        ("ppo.vf_coef", "1e300", "1e+300 must be between 0 and 1000000"),
        ("evaluation.temperature", "0.001", "0.001 must be 0 or between 0.01 and 100; 0 is greedy"),
        ("evaluation.temperature", "-1", "-1.0 must be 0 or between 0.01 and 100; 0 is greedy"),
        ("sft.epochs", "1e-30", "1e-30 must be between 1e-06 and 100000"),
    ],
)
def test_numbers_that_round_to_nothing_are_refused(key: str, value: str, message: str, tmp_path: Path) -> None:
    options = ("--sft", "{data: {path: s}}", f"--{key}", value)
    with pytest.raises(UserError) as raised:
        load(tmp_path, GOOD, *options)
    assert str(raised.value) == f"{key}: {message}"


def test_the_smallest_numbers_are_accepted(tmp_path: Path) -> None:
    numbers = {"ppo.temperature": "0.01", "ppo.score_clip": "1e-6", "evaluation.temperature": "0"}
    config = load(tmp_path, GOOD, *(f"--{key}={value}" for key, value in numbers.items()))
    assert config.ppo is not None
    assert (config.ppo.temperature, config.ppo.score_clip, config.evaluation.temperature) == (0.01, 1e-6, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping": 0}, "reward.train.early_stopping: 0 must be at least 1"),
        ({"perturbation_rate": 1.5}, "reward.train.perturbation_rate: 1.5 must be between 0 and 1"),
        ({"average_from": -0.1}, "reward.train.average_from: -0.1 must be between 0 and 1"),
        ({"early_stopping": 2, "average_from": 0.5}, "early_stopping keeps one checkpoint, average_from averages many"),
        ({"objective": "preference"}, "reward.train.target_label: only for objective: classifier"),
        ({"more_data": [{"path": "a", "fractions": {"b": 1}}]}, r"more_data\[0\]: split: 'train' is not one of"),
        ({"clean_data": [{"path": "a", "limit": 0}]}, r"clean_data\[0\].limit: 0 must be at least 1"),
        ({"polarity_pair": ["a"]}, "reward.train.polarity_pair: 1 entries; expected exactly 2"),
    ],
)
def test_settings_of_the_rewards_training_are_checked(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    train = {"model": "m", "data": {"path": "p"}, "validation": {"path": "p"}, "target_label": "a"} | settings
    with pytest.raises(UserError, match=message):
        load(tmp_path, GOOD, "--reward.train", yaml.safe_dump(train))


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
        if path.parent.name != "config"
    )
    config = parse(["--config", "recipes/configs/quickstart.yaml"])[0]
    names = {key.split(".")[-1] for key in flatten(yaml.safe_load(dump(config))) if ".data.test" not in key}
    names -= set(map(str, yaml.safe_load(dump(config))["ppo"]["data"]["columns"]))
    unread = sorted(name for name in names if not re.search(rf'\.{name}\b|"{name}"', code))
    assert unread == []

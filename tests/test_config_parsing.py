"""Configuration: how files and command line are read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from configs import GOOD, VALIDATION, load

from workbench.config.building import build
from workbench.config.parsing import differences, dump, load_saved, parse
from workbench.config.schema import Config
from workbench.config.scorers import as_scorer
from workbench.config.sources import Scorer
from workbench.errors import UserError, shorten, suggestion


def test_numbers_in_every_notation_nested_overrides_and_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD, "--ppo.learning_rate", "3e-6", "--policy.lora.r=4", "--seed", "7")
    assert config.ppo is not None
    assert (config.ppo.kl_coef, config.ppo.learning_rate, config.seed) == (0.03, 3e-6, 7)
    assert config.policy.lora is not None
    assert (config.policy.lora.r, config.policy.lora.alpha) == (4, 32)
    assert load(tmp_path, GOOD, "--policy.lora", "null").policy.lora is None


def test_options_take_precedence_wherever_they_stand_and_a_second_file_over_the_first(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(GOOD)
    (tmp_path / "second.yaml").write_text("seed: 1\nppo: {steps: 7}\nreward: {options: {b: 2}}\n")
    files = ["--config", str(tmp_path / "first.yaml"), "--config", str(tmp_path / "second.yaml")]
    config, options = parse(["--seed", "3", "--reward.options.a", "1e-3", *files, "--dry_run"])
    assert (config.seed, options.dry_run, options.force) == (3, True, None)
    assert config.ppo is not None
    assert (config.ppo.steps, config.ppo.kl_coef) == (7, 0.03), "the sections of two files are merged"
    assert config.reward is not None
    assert config.reward.options == {"b": 2, "a": 0.001}


def test_a_mapping_of_the_users_is_replaced_as_a_whole_and_a_section_key_by_key(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD, "--evaluation.data", "{other: {path: o}}", "--ppo", "{steps: 4}", "--policy.lora.r=2")
    assert list(config.evaluation.data) == ["other"]
    assert config.ppo is not None
    assert (config.ppo.steps, config.ppo.kl_coef, config.ppo.data.path) == (4, 0.03, "x.jsonl")
    more = load(tmp_path, GOOD, "--evaluation.data.other.path", "o", "--evaluation.data.toxic.neutral", "true")
    assert [(name, source.neutral) for name, source in more.evaluation.data.items()] == [
        ("toxic", True),
        ("other", False),
    ]


@pytest.mark.parametrize("key", ["ppo.data.limit", "evaluation.seeds", "policy.quantization", "evaluation.similarity"])
def test_null_sets_a_key_back(key: str, tmp_path: Path) -> None:
    assert dump(load(tmp_path, GOOD, f"--{key}", "null")) == dump(load(tmp_path, GOOD))


def test_a_text_on_the_command_line_is_taken_as_it_stands(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD, "--name", "7", "--ppo.data.template", "[{a}: b", "--reward.options.a", "'1e-3'")
    assert config.ppo is not None
    assert config.reward is not None
    assert (config.name, config.ppo.data.template, config.reward.options) == ("7", "[{a}: b", {"a": "1e-3"})
    assert load(tmp_path, dump(config)) == config


@pytest.mark.parametrize(
    "judges",
    ["[lexicon]", "[{model: lexicon, options: {words: [a], threshold: 1e-3}}, toy_lexicon]", "[{model: length}]"],
)
def test_the_saved_configuration_loads_back_to_itself(judges: str, tmp_path: Path) -> None:
    scorer = ["--reward.held_out", "{model: rouge, options: {steps: 0, seed: -1}}", *VALIDATION]
    config = load(tmp_path, GOOD, "--evaluation.judges", judges, *scorer)
    assert load(tmp_path, dump(config)) == config
    saved = tmp_path / "saved.yaml"
    saved.write_text(dump(config))
    assert differences(load_saved(saved), config) == []
    config.seed = 5
    assert differences(load_saved(saved), config) == ["seed: 0 -> 5"]


def test_a_judge_may_be_a_name_or_a_scorer(tmp_path: Path) -> None:
    config = load(
        tmp_path, GOOD, "--evaluation.judges", "[lexicon, {model: profanity}]", "--evaluation.judges+", "{model: a}"
    )
    assert config.evaluation.judges == ["lexicon", Scorer("profanity"), Scorer("a")]
    assert as_scorer("lexicon", "k") == Scorer("lexicon")
    assert as_scorer({"model": "a", "options": {"b": 1}}, "k") == Scorer("a", {"b": 1})
    for value, message in (
        ({"mode": "a"}, "k.mode: unknown key; did you mean model?"),
        ({"options": {}}, "k.model: missing"),
        ({"model": "a", "options": [1]}, r"k.options: \[1\] must be a mapping"),
        (5, "k: 5 must be a name, or a mapping with model and options"),
    ):
        with pytest.raises(UserError, match=message):
            as_scorer(value, "k")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kl_coef", "kl_ceof", "test.yaml, line 10: ppo.kl_ceof: unknown key; did you mean kl_coef?"),
        ("3e-2", "abc", "test.yaml, line 10: ppo.kl_coef: must be a number, not 'abc'"),
        ("r: 8", "r: eight", "test.yaml, line 5: policy.lora.r: must be an integer, not 'eight'"),
        ("path: z", "pth: z", "test.yaml, line 13: evaluation.data.toxic.pth: unknown key; did you mean path?"),
        ("name: test", "nmae: test", "test.yaml, line 2: nmae: unknown key; did you mean name?"),
        ("name: test", "", "name: missing; set it in the YAML file"),
        ("model: gpt2", "precision: fp32", "test.yaml, line 4: policy.model: missing; policy needs it"),
        ("reward:\n  model: toy_lexicon\n", "", "reward: PPO needs one"),
        ("    toxic: {path: z.jsonl}", "    {}", "evaluation.data: empty; expected at least 1"),
        ("name: test", "name: test\nname: other", "test.yaml, line 3: name: appears twice; keep one"),
        ("name: test", "name: ../other", "is used as a folder name"),
        ("kl_coef: 3e-2", "kl_coef: -1", "ppo.kl_coef: -1.0 must be between 0 and 1000000"),
        ("kl_coef: 3e-2", "steps: 0", "ppo.steps: 0 must be between 1 and 10000000"),
        ("kl_coef: 3e-2", "lam: 1.5", "ppo.lam: 1.5 must be between 0 and 1"),
        ("kl_coef: 3e-2", "minibatch_size: 24", "ppo.batch_size: 64 is not a multiple of ppo.minibatch_size 24"),
        ("kl_coef: 3e-2", "micro_batch_size: 3", "ppo.minibatch_size: 16 is not a multiple of ppo.micro_batch_size 3"),
        ("kl_coef: 3e-2", "kl_estimator: k4", "ppo.kl_estimator: must be one of k1, k2, k3, not 'k4'"),
        ("name: test", "name: [", "not valid YAML"),
        ("name: test", "name: 7", "name: must be a string, not '7'; write it in quotes"),
        ("kl_coef: 3e-2", "steps: forty", "test.yaml, line 10: ppo.steps: must be an integer, not 'forty'"),
        (
            "{path: z.jsonl}",
            "{path: z.jsonl, limit: x}",
            "evaluation.data.toxic.limit: must be an integer, not 'x'",
        ),
        ("{path: z.jsonl}", "{limit: 3}", "test.yaml, line 13: evaluation.data.toxic.path: missing"),
        ("  data: {path: x.jsonl}\n", "", "ppo.data: missing"),
        ("  data: {path: x.jsonl}", "  data: 5", "ppo.data: must be a mapping with path, split"),
        ("kl_coef: 3e-2", "temperature: 0", "ppo.temperature: 0.0 must be between 0.01 and 100"),
        ("name: test", "name: test\nseed: 5000000000", "seed: 5000000000 must be between 0 and 4294967295"),
        ("kl_coef: 3e-2", "kl_coef: .nan", "ppo.kl_coef: nan must be a finite number"),
        ("kl_coef: 3e-2", "kl_target: .inf", "ppo.kl_target: inf must be a finite number"),
        ("kl_coef: 3e-2", "kl_coef: [1]", "test.yaml, line 10: ppo.kl_coef: must be a number, not a list"),
        ("name: test", "name: {a: 1}", "test.yaml, line 2: name: must be a string, not a mapping"),
        ("toxic: {", "2024: {", "evaluation.data.2024: the name must be a string; write it in quotes"),
        ("path: z.jsonl", "path: z.jsonl, template: null", "toxic.template: must be a string, not null"),
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
        (["--polcy.model", "1"], "--polcy.model: unknown key; did you mean --policy?"),
        (["--ppo.value_modl", "1"], "--ppo.value_modl: unknown key; did you mean --ppo.value_model?"),
        (["--ppo.top_p", "1"], "--ppo.top_p: no such option: responses are sampled from the plain softmax"),
        (["--ppo", "{data: {path: x}, top_k: 1}"], "--ppo.top_k: no such option: responses are sampled from"),
        (["--ppo.kl_coe", "1"], "--ppo.kl_coe: unknown key; did you mean --ppo.kl_coef?"),
        (["--ppo.kl_coef", "x"], "--ppo.kl_coef: must be a number, not 'x'"),
        (["--evaluation.data.toxic.pat", "x"], "did you mean --evaluation.data.toxic.path?"),
        (["--evaluation.data.other.limit", "3"], "evaluation.data.other.path: missing"),
        (["--evaluation.judges", "[{mode: foo}]"], "--evaluation.judges[0].mode: unknown key; did you mean model?"),
        (
            ["--evaluation.judges", "[7]"],
            "--evaluation.judges[0]: must be a string or a mapping with model, options",
        ),
        (["--reward.train.more_data", "[{path: a, pth: b}]"], "--reward.train.more_data[0].pth: unknown key; did you"),
        (["--evaluation.seeds", "[-1]"], "evaluation.seeds[0]: -1 must be between 0 and 4294967295"),
        (["--evaluation.seeds", "[]"], "evaluation.seeds: empty; expected at least 1"),
        (["--evaluation.seeds.x", "1"], "--evaluation.seeds.x: unknown key"),
        (["--evaluation.data.toxic.limit", "0"], "evaluation.data.toxic.limit: 0 must be at least 1"),
        (["--ppo.self_checks", "maybe"], "--ppo.self_checks: must be true or false, not 'maybe'"),
        (["--policy.lora", "5"], "--policy.lora: must be a mapping with r, alpha, target_modules, or null, not '5'"),
        (["--policy.model", "null"], "--policy.model: must be a string, not null"),
        (["--ppo.columns", "{"], "--ppo.columns: unknown key"),
        (["--ppo.data.columns", "{"], "--ppo.data.columns, line 1: not valid YAML"),
        (["--force", "everything"], "--force: invalid choice: 'everything'"),
        (["--config", "missing.yaml"], "--config missing.yaml: no such file"),
        (["stray"], "stray: not an option"),
        (["--seed"], "--seed: missing value"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_too(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load(tmp_path, GOOD, *options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "replacement"),
    [
        ("reward.watch", "reward.held_out.model"),
        ("reward.watch_options", "reward.held_out.options"),
        ("reward.train.variants", "reward.train.perturbation_rate"),
        ("reward.train.wanted_label", "reward.train.target_label"),
        ("evaluation.judge_options", "the options of an entry of evaluation.judges"),
        ("evaluation.neutral", "neutral: true in an entry of evaluation.data"),
    ],
)
def test_a_key_of_an_older_version_is_answered_with_the_new_one(key: str, replacement: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--{key}: this key is now {replacement}"):
        load(tmp_path, GOOD, f"--{key}", "x")
    section, name = key.rsplit(".", 1)
    text = GOOD.replace("  model: toy_lexicon", f"  train:\n    {name}: x" if "train" in section else f"  {name}: x")
    text = text if section.startswith("reward") else f"{GOOD}  {name}: x\n"
    with pytest.raises(UserError, match=rf"test.yaml, line \d+: {key}: this key is now {replacement}"):
        load(tmp_path, text)


def test_a_value_of_an_older_version_is_answered_with_the_new_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 4: policy.model: embedded:t5 is now toy:t5"):
        load(tmp_path, GOOD.replace("gpt2", "embedded:t5"))
    with pytest.raises(UserError, match=r"--reward.options.model: embedded:gpt2 is now toy:gpt2"):
        load(tmp_path, GOOD, "--reward.options.model", "embedded:gpt2")


def test_keys_that_an_alias_merges_may_be_overridden(tmp_path: Path) -> None:
    text = GOOD.replace("data: {path: x.jsonl}", "data: &source {path: x.jsonl, split: a}").replace(
        "toxic: {path: z.jsonl}", "toxic: {<<: *source, path: z.jsonl}\n    more: {<<: [*source, *source]}"
    )
    sets = load(tmp_path, text).evaluation.data
    assert [(source.path, source.split) for source in sets.values()] == [("z.jsonl", "a"), ("x.jsonl", "a")]


def test_a_required_key_is_missed_where_nothing_checked_the_yaml() -> None:
    with pytest.raises(UserError, match=r"^policy\.model: missing"):
        build({"name": "a", "policy": {}, "evaluation": {"data": {}}}, Config)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty"):
        load(tmp_path, "")


def test_one_suggestion_and_one_shortener() -> None:
    assert suggestion("lexcon", ["lexicon", "length"], "--") == "; did you mean --lexicon?"
    assert suggestion("zzz", ["a", "b"]) == "; available: a, b"
    assert suggestion("zzz", []) == suggestion("zzz", map(str, range(100, 200))) == ""
    assert shorten("a\nb") == r"'a\nb'"
    assert shorten([1, "x" * 100], 20) == "[1, 'xxxxxxxxxxxx..."
    assert len(shorten("y" * 500)) == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed+", "3"], "--seed+: seed is not a list"),
        (["--track+", "wandb"], "--track+: track is not a list"),
        (["--policy.lora+", "x"], "--policy.lora+: policy.lora is not a list"),
        (["--reward.options", "{<<: 5}"], "--reward.options: << must merge a mapping"),
        (["--reward.options", "!foo {a: 1}"], "--reward.options: the tag !foo is not allowed"),
        (["--seed", "!!int abc"], "--seed: !!int 'abc' has an unsupported YAML tag"),
        (["--reward.options", "&a {x: *a}"], "--reward.options: an alias refers to itself"),
        (["--evaluation.models", "{<<: {5: x}}"], "--evaluation.models.5: the name must be a string"),
        (["--ppo.steps", "010"], "--ppo.steps: must be an integer"),
        (["--seed", "1:30"], "--seed: must be an integer"),
        (["--ppo.learning_rate", "1" + "0" * 400], "--ppo.learning_rate: must be a number"),
        (["--policy.model="], "--policy.model: is empty; use a string"),
        (["--ppo", "null", "--sft.data.path", "x", "--reward.model", "null"], "reward: PPO needs one"),
    ],
)
def test_yaml_without_a_plain_value_is_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load(tmp_path, GOOD, *options)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["<<: 5\nname: x\n", "a: &a {<<: *a}\n", "name: !foo x\n"])
def test_a_file_without_plain_values_is_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test\.yaml, line 1: "):
        load(tmp_path, text)


def test_free_options_keep_dates_and_old_names_as_text(tmp_path: Path) -> None:
    options = ["--reward.options", "{day: 2001-13-45, name: embedded:mine}"]
    assert load(tmp_path, GOOD, *options).reward.options == {"day": "2001-13-45", "name": "embedded:mine"}

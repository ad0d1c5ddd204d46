"""Configuration: YAML that is odd, hostile or not YAML at all is one line, and every field refuses a wrong value."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from configs import GOOD, load

from workbench.config.annotations import alternatives, element, field_types, without_none, without_range
from workbench.config.parsing import dump, flatten, parse
from workbench.config.schema import Config
from workbench.errors import UserError

EVERYTHING = {
    "sft": {"data": {"path": "s"}, "validation": {"path": "v"}},
    "reward": {
        "held_out": {"model": "rouge"},
        "train": {
            "model": "m",
            "data": {"path": "p"},
            "validation": {"path": "p"},
            "target_label": "a",
            "lora": {},
            "clean_validation": {"path": "p"},
        },
    },
    "ppo": {"validation": {"path": "y"}, "validation_texts": {"path": "t"}, "ptx_data": {"path": "t"}},
    "prompting": {"templates": {"a": "{b}"}, "examples": {"path": "e"}},
    "tuning": {"methods": {"toxic": {"method": "full"}}},
}


def configured(folder: Path, *options: str) -> Config:
    """Return a configuration that has every section."""
    (folder / "everything.yaml").write_text(json.dumps(EVERYTHING), encoding="utf-8")
    return load(folder, GOOD, "--config", str(folder / "everything.yaml"), *options)


def fields(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field of the schema with its annotation, `toxic` standing for the name of a prompt set."""
    for name, annotation in field_types(kind).items():
        key = f"{prefix}{name}"
        inner = without_range(without_none(annotation))
        if key == "evaluation.data":
            inner, key = element(inner), f"{key}.toxic"
        if dataclasses.is_dataclass(inner):
            if not key.startswith(("sweep", "compare")):
                yield from fields(inner, f"{key}.")
        else:
            yield key, annotation


FIELDS = dict(fields(Config))
OPTIONAL = [key for key, annotation in FIELDS.items() if NoneType in alternatives(annotation)]


def as_yaml(key: str, value: Any) -> str:
    """Return the YAML of a second file that sets one key."""
    *parents, name = key.split(".")
    nested: Any = {"path": "z"} if key.startswith("evaluation.data.toxic.") else {}
    nested[name] = value
    for parent in reversed(parents):
        nested = {parent: nested}
    return json.dumps(nested)


def test_the_schema_has_optional_fields_at_every_depth() -> None:
    assert len(FIELDS) > 100
    assert {"track", "sft.max_steps", "reward.train.target_label", "reward.train.data.limit"} <= set(OPTIONAL)
    assert len(OPTIONAL) > 30


def test_null_is_none_in_every_optional_field_from_both_sources(tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    for key in OPTIONAL:
        assert flatten(dataclasses.asdict(configured(tmp_path, f"--{key}", "null")))[key] is None, key
        second.write_text(as_yaml(key, None), encoding="utf-8")
        assert flatten(dataclasses.asdict(configured(tmp_path, "--config", str(second))))[key] is None, key


def test_null_is_refused_with_its_key_in_every_other_field(tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    for key in sorted(FIELDS.keys() - set(OPTIONAL)):
        second.write_text(as_yaml(key, None), encoding="utf-8")
        for options in ([f"--{key}", "null"], ["--config", str(second)]):
            with pytest.raises(UserError, match=rf"{key}: must be .*, not null"):
                configured(tmp_path, *options)


def test_a_value_of_another_type_is_refused_with_its_key_and_what_is_allowed(tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    for key, annotation in FIELDS.items():
        inner = without_range(without_none(annotation))
        wrong = {"a": [1]} if typing.get_origin(inner) is not dict else [[1]]
        second.write_text(as_yaml(key, wrong), encoding="utf-8")
        with pytest.raises(UserError) as raised:
            configured(tmp_path, "--config", str(second))
        form = "a mapping" if isinstance(wrong, dict) else "a list"
        assert str(raised.value).startswith(f"{second}, line 1: {key}: must be "), key
        assert str(raised.value).endswith(f", not {form}"), key


ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))
DEEP_BLOCK = "x:\n" + "".join(" " * depth + "a:\n" for depth in range(1, 700))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, "line 16: more than 100000 values"),
        (MERGES, "values, each alias counted wherever it is used; keep large data in a file"),
        ("x: &a [*a]\n", "line 1: an alias refers to itself"),
        ("x: &a {b: {c: *a}}\n", "line 1: an alias refers to itself"),
        ("x: &a [1]\n<<: *a\n", "line 2: << must merge a mapping"),
        ("<<: [[a, b]]\n", "line 1: << must merge a mapping"),
        ("x: " + "[" * 200_000, "line 1: nested more than 50 levels deep"),
        ("x: " + "{a: " * 100 + "1" + "}" * 100, "line 1: nested more than 50 levels deep"),
        (DEEP_BLOCK, "nested more than 50 levels deep"),
        ("seed: " + "1" * 5000 + "\n", "line 1: seed: must be an integer, not '1111"),
        ("seed: " + "1" * 300_000 + "\n", "line 1: seed: must be an integer, not '1111"),
        ("ppo: {kl_coef: !!float abc}\n", "line 1: !!float 'abc' has an unsupported YAML tag"),
        ("x: !!python/object/apply:os.system [a]\n", "line 1: the tag !!python/object/apply:os.system is not allowed"),
        ("x: !!set {a}\n", "line 1: the tag !!set is not allowed"),
        ("ppo:\n\tsteps: 1\n", "line 2: not valid YAML: found character '\\t'"),
        ("seed: 1\nname: a\0b\n", "line 2: the character U+0000 is not allowed in YAML"),
        ("# " + "x" * 600_000, "600002 characters are too many; a configuration has at most 500000"),
        ("# " + "x" * 2_100_000, "too large for a configuration"),
        ("- a\n", "empty or not a mapping"),
        ("seed: 1\nseed: 1\n", "line 2: seed: appears twice"),
        ("ppo: {kl_coef: 1e400}\n", "line 1: ppo.kl_coef: '1e400' is too large for a number and would become infinite"),
        ("ppo: {steps: true}\n", "line 1: ppo.steps: must be an integer, not 'true'"),
        ("policy: {gradient_checkpointing: 1}\n", "policy.gradient_checkpointing: must be true or false, not '1'"),
        ("ppo: {kl_coef: 2020-01-01}\n", "line 1: ppo.kl_coef: must be a number, not '2020-01-01'"),
        ("? " + "x" * 5000 + "\n: 1\n", "line 1: " + "x" * 160 + "...: unknown key"),
    ],
)
def test_odd_yaml_is_one_line_within_seconds(text: str, message: str, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text(text, encoding="utf-8")
    start = time.monotonic()
    with pytest.raises(UserError) as raised:
        load(tmp_path, GOOD, "--config", str(second))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(second))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("name: tést\n".encode("latin-1"), "line 1: not UTF-8 text; save the file as UTF-8"),
        ("seed: 1\n# é\n".encode("latin-1"), "line 2: not UTF-8 text; save the file as UTF-8"),
        (GOOD.encode("utf-16"), "line 1: not UTF-8 text; save the file as UTF-8"),
        (bytes(range(256)) * 10, "not UTF-8 text; save the file as UTF-8"),
        (bytes(1000), "line 1: the character U+0000 is not allowed in YAML"),
    ],
)
def test_a_file_that_is_not_utf8_says_so(data: bytes, message: str, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_bytes(data)
    with pytest.raises(UserError) as raised:
        load(tmp_path, GOOD, "--config", str(second))
    assert str(raised.value) == f"{second}, {message}" or message in str(raised.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.lstrip().encode())
    assert parse(["--config", str(tmp_path / "bom.yaml")])[0].name == "test"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "a" * 300], "name: 'aaa"),
        (["--name", "a\0b"], r"name: 'a\x00b' has a control character; remove it"),
        (["--runs", "  "], "runs: '  ' is blank; use a name"),
        (["--runs", "a/" + "b" * 300], "runs: 'a/bbb"),
        (["--policy.model", "gpt\n2"], r"policy.model: 'gpt\n2' has a control character; remove it"),
        (["--policy.model", "x" * 100_000], "policy.model: 'xxx"),
        (["--policy.lora.target_modules", "['']"], "--policy.lora.target_modules[0]: is empty"),
        (["--ppo.data.path", " "], "ppo.data.path: ' ' is blank"),
        (["--ppo.data.template", "{a}\udcff"], r"ppo.data.template: '{a}\udcff' has the character U+DCFF; remove it"),
        (["--evaluation.data", '{"a\\nb": {path: x}}'], r"evaluation.data.'a\nb': 'a\nb' has a control character"),
        (["--evaluation.data", '{"": {path: x}}'], "evaluation.data.'': '' is blank"),
        (["--evaluation.models", '{"\\0": gpt2}'], r"evaluation.models.'\x00': '\x00' has a control character"),
        (["--evaluation.judges", '["a\\tb"]'], r"evaluation.judges[0]: 'a\tb' has a control character"),
        (["--reward.options", '{x: ["a\\0"]}'], r"reward.options.x[0]: 'a\x00' has the character U+0000; remove it"),
        (["--seed", "1" * 100_000], "--seed: must be an integer, not '111"),
        (["--" + "x" * 100_000, "1"], "--xxx"),
        (["--ppo.kl_estimator", "k" * 100_000], "--ppo.kl_estimator: must be one of k1, k2, k3, not 'kkk"),
        (["--config", "x" * 300], "--config 'xxx"),
        (["--config", "."], "--config .: a folder; name a YAML file"),
    ],
)
def test_names_that_nothing_can_have_are_one_short_line(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load(tmp_path, GOOD, *options)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_texts_may_have_lines_and_any_alphabet(tmp_path: Path) -> None:
    options = ["--ppo.data.template", "{a}\n\tb", "--name", "lauf_ä", "--evaluation.models", "{名前: gpt2}"]
    config = load(tmp_path, GOOD, *options)
    assert load(tmp_path, dump(config)) == config
    assert (config.name, list(config.evaluation.models)) == ("lauf_ä", ["名前"])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "second.yaml").write_text("seed: 1\n", encoding="utf-8")
    (tmp_path / "second.yaml").chmod(0)
    with pytest.raises(UserError, match=r"second.yaml: cannot be read: Permission denied"):
        load(tmp_path, GOOD, "--config", str(tmp_path / "second.yaml"))


FLOATS = [key for key, annotation in FIELDS.items() if without_range(without_none(annotation)) is float]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("1e-400", "is too small for a number and would become 0; use 0, or at least 1e-300"),
        ("0." + "0" * 40 + "1e-300", "is too small for a number and would become 0"),
        ("-1_0.5e-9999", "is too small for a number and would become 0"),
        ("1e400", "is too large for a number and would become infinite; use at most 1e300"),
        ("-1e309", "is too large for a number and would become infinite"),
    ],
)
def test_a_number_that_would_become_0_or_infinite_is_refused_in_every_key(
    number: str, message: str, tmp_path: Path
) -> None:
    second = tmp_path / "second.yaml"
    keys = [*FLOATS, "sft.trainer_args.weight_decay", "reward.options.deep.list"]
    assert len(keys) > 20
    for key in keys:
        value = f"[{number}]" if key.endswith("list") else number
        second.write_text(as_yaml(key, "VALUE").replace('"VALUE"', value), encoding="utf-8")
        for options in ([f"--{key}", value], ["--config", str(second)]):
            with pytest.raises(UserError) as raised:
                configured(tmp_path, *options)
            assert message in str(raised.value)
            assert key in str(raised.value)
            assert "\n" not in str(raised.value)


def test_zeros_and_literal_infinities_are_not_rounded(tmp_path: Path) -> None:
    for zero in ("0e-400", "0.0", "-0.0e5", "0_0.0"):
        config = configured(tmp_path, "--ppo.kl_coef", zero)
        assert config.ppo is not None
        assert config.ppo.kl_coef == 0, zero
    with pytest.raises(UserError, match=r"ppo.kl_coef: inf must be a finite number"):
        configured(tmp_path, "--ppo.kl_coef", ".inf")
    assert configured(tmp_path, "--name", "1e-400").name == "1e-400"

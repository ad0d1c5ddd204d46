"""The reference of the configuration: --help of each recipe and docs/configuration.md, both from the schema."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.config.annotations import element, field_types, without_none, without_range
from workbench.config.help import COLUMNS, field_sentences, markdown, requested_help
from workbench.config.schema import Config
from workbench.config.sources import DataSource, PromptSet, Scorer
from workbench.config.tuning import LoraSettings
from workbench.errors import UserError
from workbench.run import cli

SECTIONS = {
    "sft": ("policy", "sft", "reuse"),
    "reward": ("reward", "reuse"),
    "ppo": ("policy", "reward", "ppo"),
    "evaluation": ("policy", "evaluation"),
    "detox": ("policy", "sft", "reward", "ppo", "evaluation", "reuse"),
    "sweep": ("policy", "sft", "reward", "ppo", "evaluation", "reuse", "sweep"),
    "compare": ("policy", "sft", "reward", "ppo", "evaluation", "reuse", "compare"),
}


def keys(kind: Any, prefix: str = "") -> list[str]:
    """Return every key of a dataclass, found without the code under test."""
    names = []
    for name, annotation in field_types(kind).items():
        inner, dotted = without_range(without_none(annotation)), f"{prefix}{name}"
        names.append(dotted)
        if dotted == "evaluation.data":
            inner, dotted = element(inner), f"{dotted}.NAME"
        if dataclasses.is_dataclass(inner):
            names += keys(inner, f"{dotted}.")
    return names


@pytest.mark.parametrize("recipe", SECTIONS)
def test_help_prints_every_key_of_the_recipe_and_loads_no_torch(recipe: str, in_project: Path) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['{recipe}', '--help']\n"
        f"try: runpy.run_module('recipes.{recipe}', run_name='__main__')\n"
        "finally: assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= COLUMNS
    printed = [line.split()[0].removeprefix("--") for line in lines if line.startswith("  --")]
    sections = ("name", "seed", "track", "runs", *SECTIONS[recipe])
    expected = [key for key in keys(Config) if key.split(".")[0] in sections and key not in SECTIONS[recipe]]
    assert len(expected) > 15
    assert sorted(printed) == sorted([*expected, "config", "dry_run", "force", "print_config", "help"])


@pytest.mark.parametrize(
    ("arguments", "section"),
    [
        (["--ppo.help"], "ppo"),
        (["--help", "ppo"], "ppo"),
        (["--seed", "3", "--help", "reward.train"], "reward.train"),
        (["--reward.train.help", "--seed", "3"], "reward.train"),
        (["--sft.lora.help"], None),
        (["--policy.lora.help"], "policy.lora"),
        (["--evaluation.data.help"], "evaluation.data.NAME"),
        (["--evaluation.data.my set.help"], "evaluation.data.NAME"),
        (["--reward.held_out.help"], "reward.held_out"),
    ],
)
def test_help_of_one_section_prints_its_keys_alone(
    arguments: list[str], section: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if section is None:
        with pytest.raises(UserError, match=r"^--sft\.lora: unknown key"):
            cli.launch([], "", arguments)
        return
    cli.launch([], "", arguments)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= COLUMNS
    printed = [line.split()[0].removeprefix("--") for line in lines if line.startswith("  --")]
    expected = [key for key in keys(Config) if key.startswith(f"{section}.")]
    assert len(expected) > 1
    assert printed == expected


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--ppo.kl_coef.help"], "  --ppo.kl_coef  float from 0 to 1000000; default: 0.05"),
        (["--sft.data.template.help"], "  --sft.data.template  string; default: continuation"),
        (["--reward.options.words.help"], "  --reward.options  mapping; default: {}"),
        (["--evaluation.data.a.path.help"], "  --evaluation.data.NAME.path  string; required"),
    ],
)
def test_help_of_one_key(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.launch([], "", arguments)
    usage, _, described = capsys.readouterr().out.partition("\n\n")
    assert " ".join(usage.split()).endswith(f"[{line.split()[0]} VALUE ...]")
    assert described.splitlines()[0] == line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pppo.help"], r"^--pppo: unknown key; did you mean --ppo\?$"),
        (["--help", "reward.trian"], r"^--reward\.trian: unknown key; did you mean --reward\.train\?$"),
        (["--ppo.kl_ceof.help"], r"did you mean --ppo\.kl_coef\?$"),
    ],
)
def test_help_of_what_is_not_there_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cli.launch([], "", arguments)


def test_an_option_called_help_is_an_option_where_it_has_a_value() -> None:
    assert requested_help(["--reward.options.help", "3"]) is None
    assert requested_help(["--reward.options.help", "--seed", "3"]) == "reward.options"
    assert requested_help(["--seed", "3", "-h"]) == ""


def test_every_key_has_a_sentence() -> None:
    for kind in (Config, DataSource, PromptSet, Scorer, LoraSettings, *map(without_none, field_types(Config).values())):
        if dataclasses.is_dataclass(kind):
            sentences = field_sentences(kind)  # type: ignore[arg-type]
            assert all(sentences.get(name) for name in field_types(kind)), kind


def test_the_page_is_current_and_names_every_key(in_project: Path) -> None:
    page = (in_project / "docs" / "configuration.md").read_text()
    assert page == markdown(), "make docs writes it"
    shared = ("path", "split", "fractions", "columns", "template", "chat", "limit", "neutral", "options", "r", "alpha")
    for name in shared:
        assert f"| `{name}` |" in page
    for key in ("reward.train.perturbation_rate", "ppo.kl_coef", "evaluation.data", "reward.held_out", "sft.data"):
        assert f"| `{key}` |" in page
    assert "| `ppo.kl_coef` | float from 0 to 1000000 | 0.05 | Weight of the per-token KL penalty" in page
    assert "| `ppo.kl_target` | float from 1e-06 to 1000000000 or null | null |" in page
    assert "| `evaluation.judges` | list of strings or [scorers](#scorer) | [] |" in page


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    module = [sys.executable, "-m", "workbench.config.help"]
    subprocess.run([*module, "--write", str(tmp_path / "page.md")], check=True, timeout=100)
    assert (tmp_path / "page.md").read_text() == markdown()
    result = subprocess.run([*module, "page.md"], capture_output=True, text=True, timeout=100, check=False)
    assert (result.returncode, result.stderr) == (1, "usage: python -m workbench.config.help --write FILE\n")

"""What an error or a note tells the reader to use exists: keys, options, commands, pages and files."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from configs import GOOD, load

from workbench.config.building import option_type
from workbench.config.parsing import OPTIONS
from workbench.config.renamed import RENAMED_KEYS
from workbench.errors import UserError, suggestion
from workbench.run.hf_trainer import LOSS_KEYS

PROJECT = Path(__file__).resolve().parent.parent
FOLDERS = ("workbench", "recipes", "reward_models")
KEY = re.compile(r"(?<![\w./-])(?:policy|sft|reward|ppo|evaluation|reuse)(?:\.[a-z]\w*)+")
OPTION = re.compile(r"(?<![\w-])--([a-z][\w.]*+)(?!:)")  # not a variable of CSS
MODULE = re.compile(r"python -m ([\w.]+\w)")
FILE = re.compile(r"\b(?:docs|recipes)/[\w./-]*\w")


def sentences() -> Iterator[tuple[str, str]]:
    """Yield every string of the code that is not a docstring, with its place; {} stands for a value."""
    for folder in FOLDERS:
        for file in sorted((PROJECT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if id(node) in inner | docstrings:
                    continue
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                    yield f"{file.name}:{node.lineno}", "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{file.name}:{node.lineno}", node.value


def options_of_commands() -> set[str]:
    """Return the options of every command: those of the recipes, of argparse parsers, and of foreign commands."""
    declared = re.compile(r"""["']--([a-z_]+)["']""")
    files = [file for folder in FOLDERS for file in (PROJECT / folder).rglob("*.py")]
    declared_names = {name for file in files for name in declared.findall(file.read_text(encoding="utf-8"))}
    launcher, lm_eval, git = (
        "num_cpu_threads_per_process multi_gpu num_processes",
        "model_args tasks",
        "porcelain short error",
    )
    return {*OPTIONS, *declared_names, *f"{launcher} {lm_eval} {git}".split()}


def test_every_key_and_option_that_a_sentence_names_exists() -> None:
    options, mentions = options_of_commands(), 0
    for source, sentence in sentences():
        for key in KEY.findall(sentence):
            mentions += 1
            if key not in RENAMED_KEYS:
                option_type(key.removesuffix(".NAME"))
        for option in OPTION.findall(sentence):
            mentions += 1
            if option not in options:
                try:
                    option_type(option.rstrip(".").removesuffix(".help"))
                except UserError as error:
                    pytest.fail(f"{source}: {error}")
    assert mentions > 100
    for key in (key for keys in LOSS_KEYS.values() for key in keys):
        option_type(key)


def test_every_command_and_file_that_a_sentence_names_exists() -> None:
    mentions = 0
    for source, sentence in sentences():
        for module in MODULE.findall(sentence):
            mentions += 1
            # pip is always there, and setuptools warns of whoever looks for it after distutils.
            assert module == "pip" or importlib.util.find_spec(module), f"{source}: {module}"
        for file in FILE.findall(sentence):
            mentions += 1
            assert (PROJECT / file).exists(), f"{source}: {file}"
    assert mentions > 5


@pytest.mark.parametrize("name", ["top_p", "top_k", "beam", "foo"])
def test_a_name_unlike_every_other_gets_no_suggestion(name: str, tmp_path: Path) -> None:
    for section in ("ppo.", "sft.", "", *(["evaluation."] if name == "foo" else [])):
        with pytest.raises(UserError) as caught:
            load(tmp_path, GOOD, f"--{section}{name}", "1")
        assert "did you mean" not in str(caught.value)


def test_a_suggestion_depends_on_the_name_alone_not_on_the_section_before_it() -> None:
    assert suggestion("top_p", ["data", "steps", "temperature"]) == "; available: data, steps, temperature"
    assert suggestion("tempertaure", ["data", "temperature"], "--ppo.") == "; did you mean --ppo.temperature?"


def test_a_short_name_for_the_learning_rate_is_known_and_a_strange_one_leads_to_the_help(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean --ppo\.learning_rate"):
        load(tmp_path, GOOD, "--ppo.lr", "1")
    with pytest.raises(UserError, match=r"--ppo\.foo: unknown key; --ppo\.help lists the keys"):
        load(tmp_path, GOOD, "--ppo.foo", "1")

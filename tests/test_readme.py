"""README and YAML headers keep their word: every command runs (dry where long) and every path exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from child_processes import exit_code, fork
from small_runs import CHAIN, small
from small_runs import RECIPES as RECIPE_STAGES
from tiny_data import write_chats

from recipes import ppo, prompting, sft
from recipes.compare import compare
from recipes.sweep import sweep
from workbench.__main__ import RECIPES
from workbench.config.parsing import parse
from workbench.export.command import export_options
from workbench.playground.command import playground_options
from workbench.run import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
YAML = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))


def blocks(language: str) -> list[str]:
    """The code blocks of README in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


BASH = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
# A command may stand alone on a header line or behind "Command:", with a remark or a condition after it.
HEADERS = [
    match.strip()
    for path in YAML
    for line in path.read_text().splitlines()
    if line.startswith("#")
    for match in re.findall(r"(?:make [\w-]+|accelerate launch .*|\S*python -m recipes.*)", line)
]


# A plan of few rows is a plan as well, and takes a tenth of the time.
FEW_ROWS = ["--sft.data.limit", "64", "--reward.train.data.limit", "64", "--ppo.data.limit", "64"]
MAX_LINE = 110  # characters of a line of prose
MAX_PARAGRAPH = 90  # words


def paragraphs(text: str) -> list[str]:
    """The paragraphs of prose: no code, tables, headings or pictures."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks = [block.strip() for block in prose.split("\n\n")]
    return [block for block in blocks if block and not block.startswith(("|", "#", "!", "- ", "**toxicity: better**"))]


def test_readme_is_light_enough_to_read() -> None:
    for paragraph in paragraphs(README):
        assert len(paragraph.split()) <= MAX_PARAGRAPH, paragraph
        assert max(map(len, paragraph.splitlines())) <= MAX_LINE, paragraph


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_placeholder_is_left(document: Path) -> None:
    assert "@@" not in document.read_text()


def test_the_readmes_configuration_plans(in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    (text,) = [block for block in blocks("yaml") if "my_run.yaml" in block]
    (reward_code,) = [block for block in blocks("python") if "def concise" in block]
    (tmp_path / "my_reward.py").write_text(reward_code)
    (tmp_path / "my_run.yaml").write_text(text.replace("google/flan-t5-base", "toy:t5").replace("[profanity]", "[]"))
    write_chats(tmp_path / "chats.csv")
    cli.launch(CHAIN, "", ["--config", "my_run.yaml", "--sft.data.limit", "64", "--ppo.data.limit", "64", "--dry_run"])


def test_the_tutorial_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    for language, comment in (("python", "# "), ("yaml", "# ")):
        for block in re.findall(rf"```{language}\n(.*?)```", tutorial, flags=re.DOTALL):
            name = block.splitlines()[0].removeprefix(comment)
            (tmp_path / name).write_text(block)
    exec(compile((tmp_path / "make_data.py").read_text(), "make_data.py", "exec"), {})
    assert (tmp_path / "chats.csv").read_text(encoding="utf-8").startswith("chat,note")
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", tutorial, flags=re.DOTALL) for line in block.splitlines()
    ]
    recipes = [shlex.split(line) for line in commands if "-m recipes." in line]
    assert recipes
    for words in recipes:
        stage = words[words.index("-m") + 1].removeprefix("recipes.")
        options = words[words.index("-m") + 2 :]
        if "--evaluation.models" in options:  # needs the policy of the run before it
            first = options.index("--evaluation.models")
            parse(options)
            options = options[:first] + options[first + 2 :]
        cli.launch(
            RECIPE_STAGES[stage], "", [*options, "--sft.data.limit", "64", "--ppo.data.limit", "64", "--dry_run"]
        )
        assert "prompts" in capsys.readouterr().out


@pytest.mark.parametrize("line", sorted({*BASH, *HEADERS}))
def test_every_command_is_one_that_runs(
    line: str, in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        plan = subprocess.run(["make", "-n", *words[1:2]], capture_output=True, text=True, check=False)
        assert plan.returncode == 0, plan.stderr
        return
    if words[0] == "accelerate":
        config_file = words[words.index("--config_file") + 1]
        assert Path(config_file).is_file()
    if words[0] == "workbench":
        (position,) = [index for index, word in enumerate(words) if word in RECIPES]
        assert position == 1 or words[1] == "launch"
        monkeypatch.chdir(tmp_path)
        assert parse(words[position + 1 :])[0].policy.model == "toy:t5"
        return
    module = words[words.index("-m") + 1].removeprefix("recipes.")
    options = words[words.index("-m") + 2 :]
    if module == "workbench.export":
        assert export_options(options).merge
        return
    if module == "workbench.playground":
        assert playground_options(options).run == "runs/quickstart"
        return
    config = Path(options[options.index("--config") + 1])
    assert config.is_file()
    if "toy:" not in config.read_text():
        return  # its plan is made from stand-ins for hub and registry models, in test_recipes
    if "my_reward:concise" in options:
        (code,) = [block for block in blocks("python") if "def concise" in block]
        (tmp_path / "my_reward.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "my_reward", raising=False)
        from workbench.rewards.registry import load_reward

        assert load_reward("my_reward:concise")(["a"] * 2, ["one two", ""]) == [-0.2, 0.0]
    few = [] if module in ("prompting", "tuning") else FEW_ROWS
    options = [*options, *few, "--dry_run", "--runs", str(tmp_path)]
    if module in ("sweep", "compare"):
        {"sweep": sweep, "compare": compare}[module](options)
    else:
        cli.launch(RECIPE_STAGES[module], "", prompting.with_whole_keys(options))


def test_the_result_is_used_as_the_readme_says(
    in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small("quickstart", tmp_path)
    cli.launch([sft.STAGE, ppo.STAGE], "", options)
    (code,) = [block for block in blocks("python") if "PeftModel" in block]
    code = code.replace("runs/quickstart", str(tmp_path / "quickstart"))
    assert exit_code(fork(lambda: exec(code, {}), tmp_path / "log")) == 0, (tmp_path / "log").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_exists(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    named = re.findall(r"`((?:workbench|recipes|reward_models|benchmarks|docs|tests|\.ci)/[\w./-]*)`", text)
    for path in links:
        assert (document.parent / path).exists(), path
    for path in named:
        assert (ROOT / path).exists(), path


def test_every_configuration_is_in_the_readme() -> None:
    assert [path.name for path in YAML if f"recipes/configs/{path.name}" not in README] == []

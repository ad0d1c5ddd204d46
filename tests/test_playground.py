"""The playground's core and its plain text: the evaluation's own completions and scores, and one line per mistake."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from playgrounds import HOSTILE, make_result, make_run, make_sample

from workbench.config.sources import AntiExpert, DataSource, Prompted
from workbench.data.context import Context
from workbench.errors import UserError
from workbench.evaluation.completion_metrics import Scorers
from workbench.models.loading import load_tokenizer
from workbench.playground import command
from workbench.playground.comparison import LoadedRun, ModelResult, compare, score
from workbench.playground.loading import load_run
from workbench.playground.prompts import PromptFormat, check_length, make_row, read_examples, typed_text
from workbench.playground.settings import Settings, default_settings
from workbench.playground.text import plain_text
from workbench.rewards.registry import load_reward
from workbench.run.folder import Run, open_finished_run

ROOT = Path(__file__).resolve().parent.parent
DIALOGUE = "Tom: Will you come on Friday?\nAnn: No, I have to work."


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def loaded(run_folder: Path) -> LoadedRun:
    """The finished run with its models."""
    return load_run(open_finished_run(run_folder))


def evaluated(run_folder: Path) -> list[dict]:
    """The lines of the evaluation's completions.jsonl."""
    return [json.loads(line) for line in (run_folder / "evaluation" / "completions.jsonl").read_text().splitlines()]


def mistake(*arguments: str) -> str:
    """Return the one line with which the command ends."""
    with pytest.raises(UserError) as raised:
        command.main(list(arguments))
    assert "\n" not in str(raised.value)
    return str(raised.value)


DEFAULTS = Settings(temperature=1.0, max_new_tokens=6, seed=0)


def test_the_first_prompt_gets_the_completions_and_scores_of_the_evaluation(loaded, run_folder):
    line = evaluated(run_folder)[0]
    run = open_finished_run(run_folder)
    assert default_settings(run.config) == DEFAULTS
    (example, *_) = read_examples(run, loaded.prompt_format)
    result = compare(loaded, example.text, DEFAULTS, raw=example.is_raw)
    assert result.prompt == line["prompt"]
    assert {m.title: [s.completion.text for s in m.samples] for m in result.models} == line["completions"]
    means = {(entry["metric"], entry["judge"]): entry["means"] for entry in line["scores"]}
    for model in result.models:
        for metric, value in model.samples[0].scores.items():
            assert value == pytest.approx(means[metric.name, metric.judge][model.title], abs=1e-4), metric
    assert {metric.judge for metric in result.metrics if metric.name == "toxicity"} == {"reward"}
    ratios = {m.title: m.samples[0].completion.token_log_ratios for m in result.models}
    assert (ratios["base"], ratios["sft"]) == (None, None)
    assert [token for token, _ in ratios["aligned"]] == [token for token, _ in line["token_log_ratios"]]
    assert [nats for _, nats in ratios["aligned"]] == pytest.approx([v for _, v in line["token_log_ratios"]], abs=2e-3)


def test_models_share_the_random_numbers_of_every_sample(loaded):
    aligned = next(model for model in loaded.models if model.title == "aligned")
    twins = dataclasses.replace(loaded, models=[aligned, dataclasses.replace(aligned, title="twin")])
    settings = dataclasses.replace(DEFAULTS, samples=3)
    first, second = compare(twins, DIALOGUE, settings).models
    texts = [sample.completion.text for sample in first.samples]
    assert texts == [sample.completion.text for sample in second.samples]
    assert len(set(texts)) == 3
    other_seed = compare(twins, DIALOGUE, dataclasses.replace(settings, seed=1)).models[0]
    assert [sample.completion.text for sample in other_seed.samples] != texts
    greedy = compare(twins, DIALOGUE, dataclasses.replace(settings, temperature=0.0)).models[0]
    assert len({sample.completion.text for sample in greedy.samples}) == 1


def test_a_typed_text_goes_through_the_template_and_a_raw_one_does_not():
    tokenizer = load_tokenizer("toy:gpt2")
    context = Context(is_decoder_only=True, length=256)
    source = DataSource("x.jsonl", template="Summarize.\n\n{dialogue}\n\nSummary: ")
    text_format = PromptFormat("ppo.data", source, has_messages=False)
    row = make_row(DIALOGUE, text_format, tokenizer, context, raw=False)
    assert row["prompt"] == f"Summarize.\n\n{DIALOGUE}\n\nSummary:"
    assert row["dialogue"] == DIALOGUE, "a reward gets the column that PPO's rows have"
    assert make_row(row["prompt"], text_format, tokenizer, context, raw=True)["prompt_ids"] == row["prompt_ids"]
    assert typed_text(row["prompt"], text_format) == DIALOGUE
    assert typed_text("Another prompt.", text_format) is None
    two = PromptFormat("ppo.data", DataSource("x.jsonl", template="{a} and {b}"), has_messages=False)
    with pytest.raises(UserError, match=r"the template of ppo\.data has the fields a, b"):
        make_row(DIALOGUE, two, tokenizer, context, raw=False)
    assert make_row("{a}", two, tokenizer, context, raw=True)["prompt"] == "{a}"
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    for chat in (
        PromptFormat("ppo.data", DataSource("x.jsonl", chat=True), has_messages=False),
        PromptFormat("ppo.data", DataSource("x.jsonl"), has_messages=True),
    ):
        assert make_row("Hi.", chat, tokenizer, context, raw=False)["prompt"] == "<user>Hi.<assistant>"


@pytest.mark.parametrize(("model", "most"), [("toy:t5", 256), ("toy:gpt2", 216)])
def test_a_prompt_that_fills_the_context_is_taken_and_one_token_more_refused(model, most):
    context = Context(is_decoder_only=model == "toy:gpt2", length=256)
    source = DataSource("x.jsonl", max_prompt_tokens=8)
    check_length({"prompt_ids": [5] * most}, source, context, 40)
    with pytest.raises(UserError, match=rf"prompt: {most + 1} tokens, .* context length of 256 .* allows {most}"):
        check_length({"prompt_ids": [5] * (most + 1)}, source, context, 40)


def test_a_scorer_that_fails_is_a_note_and_the_others_still_score():
    reward = load_reward("rouge")  # needs a reference, which a typed prompt does not have
    scorers = Scorers(reward, {}, {"length": load_reward("length")}, None, 0.5)
    sample = make_sample("Hello there.", 0.0)
    (scores,), failures = score({"prompt": "Hi.", "prompt_ids": [1]}, [sample.completion], scorers)
    assert [metric.label for metric in scores] == ["score (length)", "KL to reference, nats", "tokens"]
    assert [metric.label for metric in failures] == ["reward"]


def test_plain_text_is_at_most_80_columns_and_shows_no_control_characters(loaded):
    models = [
        ModelResult(f"model {i} of many", [make_sample(f"{HOSTILE} {'long' * 40}\n" * 2, 0.9, [("\x1b[0m", 2.0)])] * 2)
        for i in range(5)
    ]
    printed = plain_text(make_result(*models, notes=("word " * 40,)))
    assert max(map(len, printed.splitlines())) <= 80
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert printed.count("0.900*") == 20
    assert "* toxic: at or above 0.5" in printed
    assert "0.200*" not in plain_text(make_result(ModelResult("a", [make_sample("b", 0.2)])))


def test_one_prompt_on_the_command_line_needs_no_gradio(run_folder, in_project, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    command.main(["--run", str(run_folder), "--prompt", DIALOGUE, "--max_new_tokens", "4"])
    printed = capsys.readouterr().out
    assert re.findall(r"^(base|sft|aligned)$", printed, flags=re.MULTILINE) == ["base", "sft", "aligned"]
    assert re.search(r"^ +base +sft +aligned\n(toxicity \(reward\).*\n)(.*\n)*reward .*\nKL .*\ntokens ", printed, re.M)
    assert DIALOGUE.splitlines()[1] in printed


def test_a_run_is_played_as_far_as_it_is_finished(run_folder, in_project, tmp_path):
    partial = tmp_path / "quickstart"
    shutil.copytree(run_folder, partial)
    (partial / "ppo" / "stage.json").unlink()
    run = load_run(open_finished_run(partial))
    assert [model.title for model in run.models] == ["base", "sft"]
    assert not any(model.with_token_log_ratios for model in run.models), "SFT's log-ratios to itself are all 0"
    assert run.notes[0] == "ppo: not finished, so the model aligned cannot be used"
    (partial / "sft" / "stage.json").unlink()
    assert "stage sft is not finished; run it first: python -m recipes.sft" in mistake(
        "--run", str(partial), "--prompt", "x"
    )


def test_models_are_played_alone(run_folder, in_project):
    saved = open_finished_run(run_folder)
    strategies = {
        "prompted": {"asked": Prompted("sft", "Be kind. ")},
        "anti_expert": {"steered": AntiExpert("sft", "no/folder")},
    }
    settings = dataclasses.replace(saved.config.evaluation, **strategies)
    run = load_run(Run(saved.folder, dataclasses.replace(saved.config, evaluation=settings)))
    assert [model.title for model in run.models] == ["base", "sft", "aligned"]
    assert "asked, steered: not compared here, where each model completes what is typed, alone" in run.notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " \n"], "prompt: empty"),
        (["--prompt", "word " * 400], "prompt: .* tokens, but the model's context length of 256 tokens allows 256"),
        (["--prompt", "x", "--temperature", "-1"], "temperature: -1.*must be 0 or between 0.01 and 100; 0 is greedy"),
        (["--prompt", "x", "--temperature", "nan"], "temperature: nan must be a finite number"),
        (["--prompt", "x", "--temperature", "warm"], "--temperature: invalid float value"),
        (["--prompt", "x", "--max_new_tokens", "0"], "max_new_tokens: 0"),
        (["--prompt", "x", "--samples", "17"], "samples: 17"),
        (["--prompt", "x", "--seed", "-1"], "seed: -1"),
        (["--raw"], "--raw: needs --prompt"),
        (["--port", "65536"], "--port: 65536 must be between 0"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, run_folder, in_project):
    assert re.match(message, mistake("--run", str(run_folder), *arguments))


def test_what_is_missing_is_named(tmp_path, monkeypatch, run_folder):
    assert "no such folder" in mistake("--run", str(tmp_path / "none"), "--prompt", "x")
    assert "--run: missing" in mistake("--prompt", "x")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"--port: {port}: Address already in use; choose another" in mistake(
            "--run", str(run_folder), "--port", port
        )
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "python -m pip install gradio" in mistake("--run", str(run_folder))


def test_the_command_exits_with_code_2():
    ended = subprocess.run(
        [sys.executable, "-m", "workbench.playground", "--run", "nowhere", "--prompt", "x"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[-1].startswith("error: --run nowhere: not a run folder")

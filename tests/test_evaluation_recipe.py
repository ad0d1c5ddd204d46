"""The stage `evaluation` with further models, samples and seeds; what it refuses, and when it fails the command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import tiny
from accelerate import Accelerator
from small_runs import drop, evaluation_source, fraction_of_e, record_files, small

from recipes import evaluation, ppo, sft
from workbench.errors import UserError
from workbench.evaluation.generation import ComparedModel, Completion, Sampling, sample_completions
from workbench.evaluation.results import Results, RunVerdict
from workbench.evaluation.results_files import read_results, to_json
from workbench.models.loading import load_tokenizer
from workbench.run import cli

ROOT = Path(__file__).parent.parent
TWO_LISTS = [{"model": "lexicon", "options": {"words": [word]}} for word in ("one", "two")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the runs folder of a finished chain of a few steps, without its evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        cli.launch([sft.STAGE, ppo.STAGE], "", small("quickstart", folder))
    return folder


def evaluate(trained: Path, *options: str) -> Results:
    """Return the results of the evaluation with further options."""
    cli.launch([evaluation.STAGE], "", [*small("quickstart", trained), "--force", "evaluation", *options])
    return read_results(trained / "quickstart" / "evaluation" / "results.json")


def test_further_models_stand_beside_the_runs_own(trained: Path, in_project: Path) -> None:
    again = str(trained / "quickstart" / "ppo")
    models = json.dumps({"again": again, "policy": again, "kl 0.1": again, "other": "toy:gpt2"})
    result = evaluate(trained, "--evaluation.models", models).sets[0]
    for summary in result.summaries:
        means = summary.means
        assert means["again"] == means["policy"] == means["kl 0.1"] == means["aligned"], summary.metric
    assert "other" not in result.summary("KL to reference, nats").means
    assert result.summary("tokens").means["other"] > 0
    assert result.comparison("sft", "other").find("tokens") is not None


def test_samples_seeds_and_neutral_sets(trained: Path, in_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = {"test dialogues": evaluation_source(4), "same again": evaluation_source(4) | {"neutral": True}}
    options = ["--evaluation.samples", "2", "--evaluation.seeds", "[5, 6]"]
    results = evaluate(trained, "--evaluation.data", json.dumps(sets), *options)
    assert (results.settings.seeds, results.settings.samples) == ([5, 6], 2)
    first, second = results.sets
    assert (first.name, first.neutral, second.name, second.neutral) == ("test dialogues", False, "same again", True)
    assert first.summaries == second.summaries, "the same prompts with the same random numbers"
    assert first.reference_perplexity == second.reference_perplexity > 1
    assert first.summary("tokens").seed_stds["aligned"] is not None
    assert first.summary("expected maximum toxicity", "reward") is not None
    assert re.search(r"same again.*: 4 prompts, 2 samples", capsys.readouterr().out)
    lines = (trained / "quickstart" / "evaluation" / "completions.jsonl").read_text().splitlines()
    assert all(len(json.loads(line)["completions"]["sft"]) == 4 for line in lines)


def test_fixed_texts_and_fluency_stand_beside_the_prompts(trained: Path, in_project: Path) -> None:
    texts = {"sentences": {"path": "toy:sentences", "split": "validation", "limit": 8}}
    options = ["--evaluation.texts", json.dumps(texts), "--evaluation.fluency_model", "toy:gpt2"]
    results = evaluate(trained, *options, "--evaluation.samples", "2")
    prompts, fixed = results.sets
    assert (fixed.name, fixed.prompts, fixed.neutral, fixed.has_completions) == ("sentences", 8, True, False)
    means = fixed.summary("perplexity").means
    assert list(means) == ["base", "sft", "aligned"]
    assert min(means.values()) > 1
    comparison = fixed.comparison("sft", "aligned")
    assert comparison.find("nats per token").prompts == 8
    assert comparison.find("perplexity").low is not None
    assert prompts.summary("continuation perplexity", "toy:gpt2").means["aligned"] > 1
    assert prompts.summary("perplexity outlier rate", "toy:gpt2") is not None
    assert 0 < prompts.summary("distinct-2 per prompt").means["base"] <= 1
    sources = {source.name: source.kind for source in results.provenance.sources}
    assert (sources["sentences"], sources["fluency"]) == ("data", "fluency")
    page = (trained / "quickstart" / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "Retention: sentences" in page
    again = evaluate(trained, *options, "--evaluation.samples", "2")
    assert again.sets == results.sets


def test_rows_with_the_same_prompt_are_one_prompt(
    trained: Path, in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogues = ["ann: hi ben, are you home?", "ben: yes, come over.", "ann: HI BEN,  are you home?"]
    rows = [{"dialogue": text, "summary": f"{word} summary"} for word in ("one", "two") for text in dialogues]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = evaluation_source(6) | {"path": str(tmp_path / "test.jsonl")}
    (result,) = evaluate(trained, "--evaluation.data", json.dumps({"repeated": source})).sets
    assert (result.prompts, result.repeated_rows) == (2, 4), "whatever case and whitespace"
    assert result.comparison("sft", "aligned").find("ROUGE-L").prompts == 2
    assert "repeated: 2 prompts (6 rows)" in capsys.readouterr().out


def test_the_first_seed_samples_as_it_does_alone(trained: Path, in_project: Path) -> None:
    def completions(*options: str) -> list[list[str]]:
        """Return the completions of all models for all prompts, by seed and sample."""
        evaluate(trained, *options)
        lines = (trained / "quickstart" / "evaluation" / "completions.jsonl").read_text().splitlines()
        by_prompt = [texts for line in lines for texts in json.loads(line)["completions"].values()]
        return [list(texts) for texts in zip(*by_prompt, strict=True)]

    (alone,) = completions("--evaluation.seeds", "[7]")
    several = completions("--evaluation.seeds", "[7, 8]", "--evaluation.samples", "2")
    assert several[0] == alone
    assert [several[2]] == completions("--evaluation.seeds", "[8]")
    assert all(one != other for one, other in itertools.combinations(several, 2))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_tokens_have_their_log_ratios_and_join_to_the_text(architecture: str) -> None:
    policy, tokenizer = tiny.policy(architecture, lora=True), tiny.tokenizer(architecture)
    rows = [{"prompt": text, "prompt_ids": tokenizer(text).input_ids} for text in ("hello", "a b c", "why?")]

    def sampled() -> list[list[Completion]]:
        return sample_completions(
            ComparedModel("aligned", policy, "policy", tokenizer, policy, with_token_log_ratios=True),
            rows,
            Sampling(batch_size=2, max_new_tokens=12, temperature=1.0, seeds=(0, 1)),
            accelerator=Accelerator(cpu=True),
            label="test",
        )

    assert all(abs(one.kl) < 1e-5 for row in sampled() for one in row), "it is still the SFT policy"
    for name, parameter in policy.named_parameters():
        if "lora_B.policy" in name:
            parameter.data.normal_(std=0.3)
    for first, second in sampled():
        assert first.token_log_ratios is not None
        assert second.token_log_ratios is None
        assert "".join(piece for piece, _ in first.token_log_ratios).strip() == first.text
        total = sum(nats for _, nats in first.token_log_ratios)
        assert total == pytest.approx(first.kl, abs=0.01 * len(first.token_log_ratios))
        assert abs(first.kl) > 0.01
        assert first.base_nll > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--evaluation.judges", json.dumps(TWO_LISTS)], "two entries are called lexicon"),
        (["--evaluation.judges", "[length]"], "evaluation.judges: length is not a judge"),
        (["--evaluation.judges", "[{model: length, option: 1}]"], r"evaluation.judges.*option"),
        (["--evaluation.samples", "0"], "evaluation.samples: 0"),
        (["--evaluation.samples", "2", "--evaluation.temperature", "0"], "samples the same completion every time"),
        (["--evaluation.seeds", "[]"], r"evaluation.seeds"),
        (["--evaluation.seeds", "[1, 1]"], r"evaluation.seeds: \[1, 1\] lists a seed twice"),
        (["--evaluation.models", "{sft: toy:t5}"], r"evaluation.models.sft: this title is reserved"),
        (["--evaluation.models", "{data: toy:t5}"], r"evaluation.models.data: this title is reserved"),
        (["--evaluation.models", "{prompt: toy:t5}"], r"evaluation.models.prompt: this title is reserved"),
        (["--evaluation.similarity", "./nowhere"], r"evaluation.similarity: \./nowhere: no such file or folder"),
        (["--evaluation.models", "{other: no/such/folder}"], "evaluation.models.other: no/such/folder"),
        (["--evaluation.models", "{other: ./nowhere}"], r"evaluation.models.other: \./nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_runs(
    options: list[str], message: str, in_project: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        cli.launch([sft.STAGE, ppo.STAGE, evaluation.STAGE], "", [*small("quickstart", tmp_path), *options])
    assert not list(tmp_path.iterdir())


def test_a_stage_that_is_not_finished_is_named(in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage sft is not finished; run it first: python -m recipes\.sft"):
        cli.launch([evaluation.STAGE], "", small("quickstart", tmp_path))


def test_fail_on_worse_fails_the_command_also_when_the_stage_is_skipped(
    trained: Path, in_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(trained)
    options = [*small("quickstart", trained), "--evaluation.fail_on", "worse"]
    results = trained / "quickstart" / "evaluation" / "results.json"
    cli.launch([evaluation.STAGE], "", options)
    worse = dataclasses.replace(read_results(results), verdict=RunVerdict("toxicity", "worse", "toxicity rose"))
    results.write_text(json.dumps(to_json(worse)))
    record_files(results.parent)
    monkeypatch.setattr(sys, "argv", ["recipes/evaluation.py", *options])
    with pytest.raises(SystemExit) as exit_:
        cli.main([evaluation.STAGE], "")
    assert exit_.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("failed: evaluation: toxicity: worse, ")


def test_every_two_models_are_compared(trained: Path, in_project: Path) -> None:
    models = json.dumps({"other": str(trained / "quickstart" / "sft"), "whole": "toy:t5"})
    results = evaluate(trained, "--evaluation.models", models)
    pairs = [(comparison.before, comparison.after) for comparison in results.sets[0].comparisons]
    assert pairs[0] == ("sft", "aligned")
    assert {frozenset(pair) for pair in pairs} == set(map(frozenset, itertools.combinations(results.models, 2)))
    assert ("other", "aligned") in pairs
    assert len(pairs) == 10
    base = results.sets[0].comparison("base", "whole")
    assert all(difference.difference == 0 for difference in base.differences), "the same weights, the same noise"


def test_an_evaluation_alone_compares_adapters_and_models_with_the_base(
    trained: Path, in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("--sft.max_steps", "--sft.batch_size", "--sft.data.limit", "--reward.model")
    rest = drop(small("quickstart", tmp_path), *names)
    options = drop(rest, *[option for option in rest if option.startswith(("--ppo.", "--reward."))])
    alone = [*options, "--sft", "null", "--ppo", "null", "--reward", "null", "--evaluation.max_new_tokens", "6"]
    with pytest.raises(UserError, match="nothing to train or to compare"):
        cli.launch([evaluation.STAGE], "", alone)
    adapters = {"tuned": str(trained / "quickstart" / "sft"), "aligned elsewhere": str(trained / "quickstart" / "ppo")}
    models = json.dumps(adapters | {"whole": "toy:t5"})
    cli.launch([evaluation.STAGE], "", [*alone, "--evaluation.models", models])
    folder = tmp_path / "quickstart" / "evaluation"
    results = read_results(folder / "results.json")
    assert results.models == ["base", "tuned", "aligned elsewhere", "whole"]
    assert (results.before, results.after, results.verdict.question) == ("base", "tuned", "toxicity")
    # The adapter is the run's own SFT stage, on the same prompts with the same seed.
    evaluate(trained, "--evaluation.max_new_tokens", "6")
    run_lines = [
        json.loads(line) for line in (trained / "quickstart/evaluation/completions.jsonl").read_text().splitlines()
    ]
    lines = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert [line["completions"]["tuned"] for line in lines] == [line["completions"]["sft"] for line in run_lines]
    assert [line["completions"]["aligned elsewhere"] for line in lines] == [
        line["completions"]["aligned"] for line in run_lines
    ]
    assert (folder / "report.html").is_file()
    with pytest.raises(UserError, match="sft: the configuration has no such stage"):
        cli.launch([sft.STAGE], "", [*alone, "--evaluation.models", models])


def test_any_reward_is_reported_as_a_score(trained: Path, in_project: Path) -> None:
    rewards = json.dumps(["length", {"model": "small_runs:fraction_of_e"}])
    results = evaluate(trained, "--evaluation.rewards", rewards)
    lines = (trained / "quickstart" / "evaluation" / "completions.jsonl").read_text().splitlines()
    (difference,) = [
        d
        for d in results.sets[0].comparison("sft", "aligned").differences
        if (d.metric.name, d.metric.judge) == ("score", "small_runs:fraction_of_e")
    ]
    assert difference.metric.label == "score (small_runs:fraction_of_e)"
    texts = [json.loads(line)["completions"]["aligned"][0] for line in lines]
    assert difference.mean_after == pytest.approx(sum(fraction_of_e([], texts)) / len(texts))
    assert results.sets[0].summary("score", "length") is not None
    assert "score (length)" in (trained / "quickstart" / "evaluation" / "report.md").read_text()


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ("[length, length]", r"evaluation\.rewards: two entries are called length"),
        ("[lenght]", r"evaluation\.rewards: unknown reward 'lenght'; did you mean length"),
    ],
)
def test_a_reward_to_report_that_cannot_be_is_one_line(
    rewards: str, message: str, trained: Path, in_project: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(trained, "--evaluation.rewards", rewards)


def test_an_adapter_is_no_further_model_of_a_run_that_trains_every_weight(in_project: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    options = ["--policy.lora", "null", "--evaluation.models", json.dumps({"other": str(tmp_path / "adapter")})]
    with pytest.raises(UserError, match=r"evaluation.models.other: .* is an adapter, but this run trains every weight"):
        cli.launch([sft.STAGE, ppo.STAGE, evaluation.STAGE], "", [*small("quickstart", tmp_path / "runs"), *options])


def test_an_adapter_of_another_base_is_refused_before_anything_runs(
    trained: Path, in_project: Path, tmp_path: Path
) -> None:
    models = json.dumps({"other": str(trained / "quickstart" / "ppo")})
    options = small("quickstart_gpt2", tmp_path, "--evaluation.models", models)
    with pytest.raises(
        UserError,
        match=r"evaluation\.models\.other: .*ppo: the adapter does not fit toy:gpt2 \(it was trained on .*t5\): ",
    ):
        cli.launch([sft.STAGE, ppo.STAGE, evaluation.STAGE], "", options)
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_a_base_by_another_name_gets_a_note(
    trained: Path, in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained / "quickstart" / "ppo", tmp_path / "ppo"))
    saved = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(saved | {"base_model_name_or_path": "google/flan-t5"}))
    evaluate(trained, "--evaluation.models", json.dumps({"other": str(folder)}))
    assert (
        "evaluation.models.other: the adapter was trained on google/flan-t5, but is loaded onto toy:t5"
        in capsys.readouterr().out
    )


def test_models_that_drop_other_prompts_are_not_compared(trained: Path, in_project: Path, tmp_path: Path) -> None:
    texts = ["say it " + "Thank you so much, doctor. " * (3 * (i % 2)) + str(i) for i in range(10)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    # T5 reads one token more of each, its end of text, so that the long ones do not fit for it alone.
    longest = max(len(ids) for ids in load_tokenizer("toy:gpt2")(texts).input_ids)
    sets = {"t": {"path": str(source), "limit": 5, "max_prompt_tokens": longest}}
    with pytest.raises(
        UserError, match=r"models\.other: its tokenizer drops different prompts from t than the policy's"
    ):
        evaluate(trained, "--evaluation.data", json.dumps(sets), "--evaluation.models", "{other: toy:gpt2}")


TERMS = {"terms": [{"model": "toy_lexicon"}, {"model": "length", "weight": 0.1}]}


@pytest.mark.parametrize(
    ("judge", "note"),
    [
        ("reward_models.toy_lexicon:load", "scores every completion exactly as the reward does"),
        ("toy_lexicon", "toy_lexicon is the reward or a part of it"),
    ],
)
def test_a_part_of_the_reward_by_any_name_does_not_judge(
    judge: str, note: str, in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--reward.model", "combine", "--reward.options", json.dumps(TERMS), "--evaluation.judges", f"[{judge}]"]
    cli.launch([sft.STAGE, ppo.STAGE, evaluation.STAGE], "", small("quickstart", tmp_path, *options))
    results = read_results(tmp_path / "quickstart" / "evaluation" / "results.json")
    assert results.settings.judges == ["reward"]
    assert note in capsys.readouterr().out


def test_a_judge_that_is_the_reward_is_not_a_second_judge(
    trained: Path, in_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate(trained)
    assert "toy_lexicon is the reward or a part of it" in capsys.readouterr().out
    assert results.settings.judges == ["reward"]
    assert results.verdict.word == "no detectable change"
    assert "The reward is the only judge." in (trained / "quickstart/evaluation/report.html").read_text()

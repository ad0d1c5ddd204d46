"""recipes.tuning: one model tuned in several ways with the same rows and steps, compared with the untouched model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tuning_runs import METHODS, TASK, options, planned, run

from workbench.config.parsing import parse
from workbench.errors import UserError
from workbench.evaluation.results_files import read_examples, read_results
from workbench.models.loading import load_model, load_policy_tokenizer
from workbench.models.policy import Policy
from workbench.ppo.micro_batches import MicroBatches
from workbench.ppo.text_likelihood import nats_per_token
from workbench.report.live import live_document
from workbench.report.svg import Point, Series, frontier, line_plot, tone
from workbench.run.folder import Run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("finished"))


def test_every_method_is_compared_with_the_untouched_model(finished: Path) -> None:
    results = read_results(finished / "results.json")
    assert results.models == ["zero-shot", *METHODS]
    assert [result.name for result in results.sets] == ["test", "other", "sentences"]
    for result in results.sets:
        assert [(c.before, c.after) for c in result.comparisons] == [("zero-shot", title) for title in METHODS]
    assert [result.neutral for result in results.sets] == [False, True, True]
    examples = read_examples(finished / "completions.jsonl", results)
    assert {example.set for example in examples} == {"test", "other"}, "texts are scored, not completed"


def test_costs_are_those_of_the_weights_that_were_trained_and_saved(finished: Path) -> None:
    results = read_results(finished / "results.json")
    by_name = {s.metric.name: s.means for s in results.sets[0].summaries}
    model = load_model(parse(options(finished))[0].policy, device=torch.device("cpu"))
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert by_name["trained parameters"]["full"] == weights
    assert by_name["trained parameters"]["prompt"] == 4 * model.config.d_model
    assert by_name["trained parameters, %"]["full"] == 100
    saved = (finished / "methods" / "LoRA-r-2" / "adapter_model.safetensors").stat().st_size
    assert by_name["MB on disk"]["LoRA r 2"] == pytest.approx(saved / 1e6)
    assert "zero-shot" not in by_name["MB on disk"]


def test_texts_are_scored_by_the_likelihood_of_their_second_half(finished: Path) -> None:
    results = read_results(finished / "results.json")
    tokenizer = load_policy_tokenizer("toy:t5")
    model = load_model(parse(options(finished))[0].policy, device=torch.device("cpu"))
    rows = planned(finished.parent).texts[0].rows
    naive = []
    for row in rows:
        labels = torch.tensor([row["response_ids"]])
        start = torch.tensor([[model.config.decoder_start_token_id, *row["response_ids"][:-1]]])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["prompt_ids"]]), decoder_input_ids=start).logits
        naive.append(float(torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, :-1])))
    limit = MicroBatches(3, "evaluation.batch_size", can_halve=True)
    assert nats_per_token(Policy(model, tokenizer), "base", rows, limit) == pytest.approx(naive, abs=1e-4)
    summary = results.sets[2].summary("nats per token")
    assert summary is not None
    assert summary.means["zero-shot"] == pytest.approx(sum(naive) / len(naive), abs=1e-4)
    assert summary.means["full"] != summary.means["zero-shot"]


def test_each_method_has_a_curve_while_it_trains_and_a_run_at_the_tracker(tmp_path: Path) -> None:
    changes = {"track": "tensorboard", "sft.max_steps": 2, "sft.trainer_args": {"logging_steps": 1}}
    stage = run(tmp_path, **changes)
    page = live_document(Run(stage.parent, parse(options(tmp_path, **changes))[0]), running=None)
    for title in METHODS:
        assert f"</i>{title}</span>" in page, "in the legend of the loss"
        assert list(stage.glob(f"methods/{title.replace(' ', '-')}/tensorboard/**/events*"))


def test_replay_is_for_the_methods_that_ask_for_it(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert plan.sft_with_replay is not None
    counts = [
        sum("Write a sentence" in row["prompt"] for row in p.train_rows) for p in (plan.sft, plan.sft_with_replay)
    ]
    assert counts == [0, 8]
    assert len(plan.sft_with_replay.train_rows) == 32
    without = {title: method for title, method in METHODS.items() if title != "with replay"}
    assert planned(tmp_path, **{"tuning.methods": without}).sft_with_replay is None


def test_virtual_tokens_leave_the_same_rows_to_all_methods(tmp_path: Path) -> None:
    length = planned(tmp_path).tokenizer.model_max_length
    many = {"lora": {"method": "lora"}, "prompt": {"method": "prompt_tuning", "virtual_tokens": length - 60}}
    source = TASK | {"limit": 40}
    plan = planned(tmp_path, **{"tuning.methods": many, "evaluation.data": {"test": source}})
    fitting = plan.sets[0].rows
    assert max(len(row["prompt_ids"]) for row in fitting) <= 60
    assert "dropped (prompt too long)" in "\n".join(plan.lines)


def test_a_method_that_was_trained_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*arguments: object, **names: object) -> None:
        raise KeyboardInterrupt

    methods = {"full": {"method": "full"}, "LoRA": {"method": "lora"}}
    with mock.patch("workbench.tuning.pipeline.measure_row", stop), pytest.raises(KeyboardInterrupt):
        run(tmp_path, **{"tuning.methods": methods})
    before = (tmp_path / "ways" / "tuning" / "methods" / "full" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    folder = run(tmp_path, **{"tuning.methods": methods})
    assert capsys.readouterr().out.count("already finished, skipping") == 2
    assert (folder / "methods" / "full" / "model.safetensors").stat().st_mtime_ns == before
    run(tmp_path, **{"tuning.methods": methods})
    assert "tuning: already finished, skipping" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning.methods": {}}, "tuning.methods: empty; expected at least 1"),
        ({"tuning.methods": {"a": {"method": "zero-shot"}}}, "tuning.methods: only zero-shot"),
        ({"tuning.methods": {"a": {"method": "lorra"}}}, "lorra"),
        ({"tuning.methods": {"a": {"method": "full", "quantization": "nf4"}}}, "tuning.methods.a.quantization: nf4"),
        (
            {"tuning.methods": {"a": {"method": "prompt_tuning", "quantization": "int8"}}},
            "tuning.methods.a.quantization: int8 with method prompt_tuning",
        ),
        ({"tuning.methods": {"a": {"method": "ia3", "r": 4}}}, "tuning.methods.a.r: only for method lora"),
        ({"tuning.methods": {"a b": {"method": "ia3"}, "a?b": {"method": "full"}}}, "its folder would be 'a-b'"),
        ({"tuning.methods": {"zero-shot": {"method": "lora"}}}, "tuning.methods.zero-shot: the first row"),
        ({"tuning.methods": {"checkpoint-1": {"method": "full"}}}, "its folder would be 'checkpoint-1'"),
        ({"tuning.methods": {"a": {"method": "full", "learning_rate": 0}}}, "tuning.methods.a.learning_rate: 0"),
        (
            {"tuning.methods": {"a": {"method": "ia3"}, "b": {"method": "ia3"}}},
            "methods.b: has the settings of a",
        ),
        (
            {"tuning.methods": {"a": {"method": "ia3"}, "A": {"method": "full"}}},
            "would be 'a', as that of A",
        ),
        ({"tuning.methods": {"a": {"method": "prompt_tuning", "virtual_tokens": 250}}}, "250 virtual tokens of tuning"),
        ({"tuning.texts": {"test": {"path": "toy:sentences"}}}, "tuning.texts.test: evaluation.data has this name"),
        ({"sft.more_data": []}, "replay needs sft.more_data, which is missing"),
        ({"tuning.methods": {"a": {"method": "prompt_tuning", "virtual_tokens": 4000}}}, "leave no room"),
        ({"evaluation.temperature": 0, "evaluation.samples": 2}, "evaluation.temperature: 0 samples the same"),
    ],
)
def test_a_mistake_is_one_line_in_the_plan(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        planned(tmp_path, **changes)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def longest_completion(folder: Path) -> int:
    """Return the characters of the longest completion of the row LoRA."""
    examples = read_examples(folder / "completions.jsonl", read_results(folder / "results.json"))
    return max(len(text) for example in examples for text in example.completions["LoRA"])


def test_another_evaluation_trains_nothing_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = {"tuning.methods": {"LoRA": {"method": "lora"}}}
    folder = run(tmp_path, **methods)
    weights = (folder / "methods" / "LoRA" / "adapter_model.safetensors").stat().st_mtime_ns
    longest = longest_completion(folder)
    capsys.readouterr()
    run(tmp_path, **methods, **{"evaluation.max_new_tokens": 20})
    assert "tuning LoRA: already finished, skipping" in capsys.readouterr().out
    assert (folder / "methods" / "LoRA" / "adapter_model.safetensors").stat().st_mtime_ns == weights
    assert longest_completion(folder) > longest


def test_prompts_that_were_trained_on_are_said_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = TASK | {"path": "toy:sft", "split": "train", "limit": 4}
    sets = {"test": TASK, "seen": trained | {"neutral": True}}
    changes = {"evaluation.data": sets, "tuning.methods": {"LoRA": {"method": "lora"}}, "sft.max_steps": 1}
    assert any("the training data contains 4 of these prompts" in line for line in planned(tmp_path, **changes).lines)
    folder = run(tmp_path, **changes)
    words = "the training data contains 4 of these prompts; what was replayed says little about what is forgotten"
    assert words in " ".join(capsys.readouterr().out.split())
    for name in ("report.md", "report.html"):
        assert words in (folder / name).read_text()


def test_an_adapter_is_saved_as_the_same_bytes_by_every_process(finished: Path) -> None:
    settings = json.loads((finished / "methods" / "LoRA-r-2" / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert list(settings) == sorted(settings)


def test_a_point_has_the_number_of_its_row_in_every_plot(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for index, title in enumerate(["zero-shot", *METHODS], 1):
        assert f"</i>{index} {title}</span>" in page
        assert not re.search(rf"</i>(?!{index} )\d {re.escape(title)}</span>", page)


def test_other_settings_are_taken_with_force_and_keep_a_comparison_of_prompts(tmp_path: Path) -> None:
    methods = {"tuning.methods": {"LoRA": {"method": "lora"}}}
    folder = run(tmp_path, **methods)
    (folder.parent / "prompting").mkdir()
    with pytest.raises(UserError, match="--force tuning"):
        run(tmp_path, **methods, **{"sft.max_steps": 3})
    run(tmp_path, "--force", "tuning", **methods, **{"sft.max_steps": 3})
    record = json.loads((folder / "methods" / "LoRA" / "stage.json").read_text())
    assert record["metrics"]["steps"] == 3
    assert (folder.parent / "prompting").is_dir()


def test_without_sft_there_are_no_data(tmp_path: Path) -> None:
    words = [word for word in options(tmp_path) if not word.startswith("--sft")]
    with pytest.raises(UserError, match=r"sft: missing; recipes\.tuning takes data"):
        parse(words)


def test_the_frontier_is_what_no_other_point_beats_on_both_axes() -> None:
    points = [Point("a", 1, 1), Point("b", 2, 3), Point("c", 3, 2), Point("d", 4, 4), Point("e", 2, 3)]
    assert [point.name for point in frontier(points, lower_x=True)] == ["a", "b", "e", "d"]
    assert [point.name for point in frontier(points, lower_x=False)] == ["d"]


def test_curves_with_the_same_color_differ_in_their_dashes() -> None:
    assert len({tone(index) for index in range(18)}) == 18
    figure = line_plot("loss", [Series(f"m{i}", [0, 1], [i, i]) for i in range(8)], x_label="step", y_label="")
    assert 'class="line c1 dash1"' in figure
    assert 'class="key c1 dash1"' in figure


def test_the_documentation_loads_what_was_saved(finished: Path) -> None:
    text = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    folders = {"LoRA-r-16": "LoRA r 2", "full": "full", "prompt-tuning": "prompt"}
    assert len(blocks) == len(folders)
    tokenizer = load_policy_tokenizer("toy:t5")
    examples = read_examples(finished / "completions.jsonl", read_results(finished / "results.json"))
    ids = torch.tensor([planned(finished.parent.parent).sets[0].rows[0]["prompt_ids"]])
    for block, (documented, title) in zip(blocks, folders.items(), strict=True):
        folder = finished / "methods" / title.replace(" ", "-")
        code = block.replace(f"runs/tuning/tuning/methods/{documented}", str(folder))
        assert str(folder) in code
        names: dict[str, Any] = {"base_folder": str(ROOT / "workbench" / "toy" / "models" / "t5")}
        exec(code, names)
        tokens = names["model"].eval().generate(input_ids=ids, max_new_tokens=6, do_sample=False)
        completion = examples[0].completions[title][0]
        assert tokenizer.decode(tokens[0], skip_special_tokens=True).strip() == completion.strip()

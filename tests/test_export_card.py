"""A model card shows what was measured, what was not, and the model's provenance."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from exports import altered, exported, refused, section
from huggingface_hub import ModelCard

from workbench.config.schema import RewardConfig
from workbench.config.sources import PromptSet
from workbench.evaluation.results import (
    Comparison,
    Difference,
    Guard,
    Metric,
    Results,
    RunVerdict,
    SetResult,
    Settings,
    Summary,
    Verdict,
)
from workbench.evaluation.results_files import to_json
from workbench.evaluation.sources import Provenance
from workbench.export import card as model_card
from workbench.export.exported import ExportedModel, reward_description
from workbench.run.files import content_hash
from workbench.run.folder import open_finished_run
from workbench.run.stage_record import read_record, write_record

TOXICITY, ROUGE = Metric("toxicity", "lower", "reward"), Metric("ROUGE-L", "higher")
DISTINCT = Metric("distinct-2", pooled=True)


def difference(metric: Metric, value: float, verdict: Verdict | None, needed: int | None = None) -> Difference:
    """Return a paired difference of 300 prompts; of a metric that is not pooled, 1 rose and 105 fell."""
    rose, same, fell = (None, None, None) if metric.pooled else (1, 194, 105)
    low, high = value - 0.05, value + 0.05
    return Difference(metric, 0.4, 0.4 + value, value, low, high, 300, rose, same, fell, verdict, needed)


def results() -> Results:
    """Return the results of an evaluation on two sets."""
    toxicity = Summary(TOXICITY, {"base": 0.81, "sft": 0.42, "aligned": 0.13}, None)
    rouge = Summary(ROUGE, {"base": 0.2, "sft": 0.777, "aligned": 0.778}, {"base": 0.1, "sft": 0.02, "aligned": None})
    distinct = Summary(DISTINCT, {"base": 0.6, "sft": 0.333, "aligned": 0.25}, None)
    to_base = [
        Comparison("base", "aligned", [difference(TOXICITY, -0.68, "better")]),
        Comparison("base", "sft", [difference(TOXICITY, -0.39, "better")]),
    ]
    aligned = Comparison(
        "sft",
        "aligned",
        [
            difference(TOXICITY, -0.29, "better"),
            difference(ROUGE, 0.001, "no detectable change", 12_000),
            difference(DISTINCT, -0.083, None),
        ],
    )
    one_prompt = dataclasses.replace(difference(TOXICITY, -0.29, "better"), low=None, high=None, prompts=1)
    first = SetResult("test dialogues", 300, False, 0, None, [toxicity, rouge, distinct], [aligned, *to_base])
    second = SetResult(
        "small | talk", 1, True, 1, None, [toxicity], [Comparison("sft", "aligned", [one_prompt]), *to_base]
    )
    return Results(
        name="t5",
        models=["base", "sft", "aligned"],
        before="sft",
        after="aligned",
        settings=Settings("trained", ["reward"], 0.5, 1.0, 1, [0, 41], 40),
        provenance=Provenance("2026-11-22", "abc1234", "2 cores", {"torch": "2.13.0"}, []),
        sets=[first, second],
        verdict=RunVerdict("toxicity", "better", "Toxicity fell from 0.420 to 0.130 on 300 prompts."),
        other_verdicts=[],
        guards=[
            Guard("judge agrees", False, "no other judge was asked"),
            Guard("length", True, "18.7 to 18.2 tokens"),
        ],
    )


def write_results(run: str, changed: Results) -> None:
    """Write the results.json of a run."""
    (Path(run) / "evaluation" / "results.json").write_text(json.dumps(to_json(changed)))


def test_an_unfinished_evaluation_is_not_on_the_card_and_is_noted(
    evaluated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(evaluated) / "evaluation" / "stage.json").unlink()
    folder = exported(tmp_path / "out", "--merge", run=evaluated)
    assert "note: the evaluation was restarted and is not finished" in capsys.readouterr().out
    assert "Not evaluated" in section(folder, "Evaluation")


@pytest.fixture
def evaluated(workspace: Path, tmp_path: Path) -> str:
    """Copy the run t5 and give it a finished evaluation."""
    run = Path(altered("t5", tmp_path / "evaluated"))
    record = read_record(run / "ppo") | {"stage": "evaluation", "files": {}}
    (run / "evaluation").mkdir()
    write_results(str(run), results())
    write_record(run / "evaluation", record)
    return str(run)


def test_the_card_holds_verdict_table_and_failed_guards(evaluated: str, tmp_path: Path) -> None:
    text = section(exported(tmp_path / "out", "--merge", run=evaluated), "Evaluation")
    assert "**toxicity: better**: Toxicity fell from 0.420 to 0.130 on 300 prompts." in text
    assert "judge agrees: no other judge was asked" in text
    assert "18.7 to 18.2" not in text, "a guard that passed"
    assert "1 sample per prompt and seed (seeds 0, 41) at temperature 1" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert (
        rows[0] == "| metric | base | sft | aligned | aligned - sft \\[95 % interval\\] "
        "| detectable | win / tie / loss | p (Holm) | verdict |"
    )
    changed = "| toxicity (reward) \u2193 | 0.810 | 0.420 | 0.130 | -0.290 \\[-0.340, -0.240\\] |"
    assert rows[2] == f"{changed}  | 105 / 194 / 1 |  | better |"
    assert rows[3].startswith("| ROUGE-L \u2191 | 0.200 ± 0.100 | 0.777 ± 0.020 | 0.778 | +0.001 ")
    assert rows[3].endswith("| 1 / 194 / 105 |  | no detectable change (about 12000 prompts needed) |")
    assert rows[4] == "| distinct-2 | 0.600 | 0.333 | 0.250 | -0.083 \\[-0.133, -0.033\\] |  |  |  |  |"
    assert "-0.290 no interval" in rows[-1]
    assert "**small \\| talk**: 1 prompt (neutral" in text


def test_the_numbers_are_in_the_hub_s_model_index(evaluated: str, tmp_path: Path) -> None:
    run = open_finished_run(Path(evaluated))
    sets = {"test dialogues": "org/dialogues", "small | talk": "/home/me/private/talk.csv"}
    run.config.evaluation.data = {name: PromptSet(path, split="test") for name, path in sets.items()}
    for stage, toxicity, rouge in (("ppo", 0.13, 0.778), ("sft", 0.42, 0.777)):
        model = ExportedModel(run, stage, "merged", "./x", "", True)
        data = ModelCard(f"---\n{model_card.front_matter(model, results())}\n---\n").data
        assert data.model_name == run.config.name
        entries = [
            (e.dataset_type, e.dataset_name, e.metric_type, e.metric_name, e.metric_value) for e in data.eval_results
        ]
        assert entries == [
            ("org/dialogues", "test dialogues", "toxicity", "toxicity (reward), test dialogues", toxicity),
            ("org/dialogues", "test dialogues", "rouge", "ROUGE-L, test dialogues", rouge),
            ("talk.csv", "small | talk", "toxicity", "toxicity (reward), small | talk", toxicity),
        ], "distinct-2 has no better direction, and a private folder stays private"
        assert {(e.task_type, e.dataset_split) for e in data.eval_results} == {("text-generation", "test")}
    front = model_card.front_matter(ExportedModel(run, "ppo", "merged", "./x", "", True), None)
    assert "model-index" not in front


def test_the_reward_model_s_quality_is_in_the_model_index(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--stage", "reward")
    data = ModelCard.load(folder / "README.md").data
    metrics = json.loads(Path("runs/t5/reward/stage.json").read_text())["metrics"]
    assert {e.metric_type: e.metric_value for e in data.eval_results} == {
        "accuracy": round(metrics["accuracy"], 4),
        "roc_auc": round(metrics["auroc"], 4),
    }


def test_the_card_of_the_sft_model_compares_it_with_the_base(evaluated: str, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--merge", "--stage", "sft", run=evaluated)
    text = section(folder, "Evaluation")
    assert (
        "| toxicity (reward) \u2193 | 0.810 | 0.420 | -0.390 \\[-0.440, -0.340\\] |  | 105 / 194 / 1 |  | better |"
        in text
    )
    assert "aligned" not in text
    assert "fell" not in text, "the verdict is about the aligned model"
    assert "ppo" not in section(folder, "Provenance")
    assert "kl_coef" not in section(folder, "Training settings")


def test_the_card_names_its_limitations(evaluated: str, workspace: Path, tmp_path: Path) -> None:
    text = section(exported(tmp_path / "out", "--merge", run=evaluated), "Limitations")
    assert "The only toxicity judge is the reward that was optimized" in text
    assert "small \\| talk: 1 prompt, too few to detect a small change" in text
    assert "small \\| talk: the training data contains 1 of 1 prompt." in text
    assert "test dialogues" not in text
    assert "languages" in text
    assert "without human review" in text
    two_judges = dataclasses.replace(results().settings, judges=["reward", "lexicon"])
    write_results(evaluated, dataclasses.replace(results(), settings=two_judges))
    text = section(exported(tmp_path / "two", "--merge", run=evaluated), "Limitations")
    assert "by these judges only: reward, lexicon." in text


def test_a_card_without_evaluation_says_so(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--merge")
    assert section(folder, "Evaluation").strip() == model_card.NOT_EVALUATED
    assert model_card.NOT_EVALUATED in section(folder, "Limitations")


def test_the_card_shows_the_provenance_of_the_model(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--merge")
    text = section(folder, "Provenance")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["base", "sft", "reward", "ppo"]
    base, data = content_hash(Path("base_t5")), content_hash(Path("prompts.jsonl"))
    assert rows[2][1:] == ["base_t5", "", "", "", base[:16]]
    record = json.loads(Path("runs/t5/ppo/stage.json").read_text())
    for row, stage in ((rows[3], "sft"), (rows[5], "ppo")):
        assert row[2] == f"prompts.jsonl (train, sha256 {data[:16]})"
        assert row[3:5] == ["0", str(json.loads(Path(f"runs/t5/{stage}/stage.json").read_text())["commit"] or "")]
    assert rows[3][5] == record["inputs"]["sft"][:16]
    assert rows[4][1] == "from toy:gpt2"
    assert f"Content hash of this folder's model: {content_hash(folder)[:16]}." in text
    assert f"torch {record['versions']['torch']}" in text
    settings = section(folder, "Training settings")
    for line in ("seed | 0", "policy.lora.r | 16", "ppo.kl_coef | 0.2", "ppo.steps | 2", "sft steps | 3"):
        assert f"| {line} |" in settings


def test_the_summary_names_the_reward_and_the_reference(workspace: Path) -> None:
    trained, registered = (open_finished_run(Path(run)) for run in ("runs/t5", "runs/gpt2"))
    texts = [model_card.summary(ExportedModel(run, "ppo", "merged", "./x", "", True)) for run in (trained, registered)]
    assert "then PPO against the reward model of this run, regularized towards the SFT policy" in texts[0]
    assert "then PPO against the reward toy_lexicon, regularized" in texts[1]


def test_front_matter_names_what_the_hub_has_and_nothing_else(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out")
    card = ModelCard.load(folder / "README.md").data.to_dict()
    assert card == {"library_name": "peft", "tags": ["rlhf", "ppo", "lora"]}
    run = open_finished_run(Path("runs/gpt2"))
    policy, first, second = run.config.policy, run.config.sft, run.config.ppo
    assert first is not None
    assert second is not None
    policy.model, first.data.path, second.data.path = "org/base", "org/sums", "allenai/real-toxicity-prompts"
    front = model_card.front_matter(ExportedModel(run, "ppo", "merged", "./x", "", False), None)
    assert yaml.safe_load(front) == {
        "base_model": "org/base",
        "datasets": ["org/sums", "allenai/real-toxicity-prompts"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "ppo", "lora"],
    }


def test_no_local_path_is_exported(workspace: Path, tmp_path: Path) -> None:
    run = altered("gpt2", tmp_path / "run", model=str(workspace / "base_gpt2"))
    folder = exported(tmp_path / "out", run=run)
    for name in ("README.md", "adapter_config.json", "tokenizer_config.json"):
        assert str(workspace.parent) not in (folder / name).read_text()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base_gpt2"


def test_text_from_data_is_never_markup() -> None:
    rude = "a|b\nc <img src=x> `d` [e](f) **g** __h__ \\| i_j \x1b"
    lines = model_card.table(["x", "y"], [[rude, "z"]]).splitlines()
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", lines[2])) == 3, "three bars that separate cells"
    assert "<" not in lines[2]
    assert not re.search(r"(?<!\\)[`*\[\]]", lines[2])
    assert not re.search(r"(?<!\\)__", lines[2])
    assert "i_j" in lines[2], "a name stays readable"
    assert "\x1b" not in lines[2]


def test_a_reward_is_named_by_its_parts_and_never_by_its_addresses() -> None:
    terms = [{"model": "/home/anna/judge", "weight": 2}, {"model": "http", "options": {"url": "http://secret"}}]
    assert reward_description(RewardConfig("combine", {"terms": terms})) == "2 x judge + 1 x http"
    assert (
        reward_description(
            RewardConfig("ensemble", {"members": ["org/a", {"model": "/b/c", "options": {"url": "secret"}}], "k": 1})
        )
        == "ensemble of org/a, c"
    )
    assert reward_description(RewardConfig("http", {"url": "http://secret"})) == "http"


@pytest.mark.parametrize("text", ["{}", "[", json.dumps(to_json(results()) | {"version": 2})])
def test_results_of_another_version_are_refused(text: str, evaluated: str, tmp_path: Path) -> None:
    (Path(evaluated) / "evaluation" / "results.json").write_text(text)
    assert "--force evaluation" in refused(evaluated, tmp_path / "out", "--merge")

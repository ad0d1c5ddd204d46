"""results.json is the typed results and nothing else, and the page that documents it is that of the dataclasses."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import UserError
from workbench.evaluation import results
from workbench.evaluation.agreement import Flips, JudgeAgreement, judge_agreement
from workbench.evaluation.evidence import NonInferiority, RewardGap
from workbench.evaluation.results import (
    Comparison,
    Difference,
    Example,
    Guard,
    Metric,
    MetricVariance,
    Results,
    RunVerdict,
    SetResult,
    Settings,
    Summary,
)
from workbench.evaluation.results_files import example_to_json, from_json, read_results, to_json
from workbench.evaluation.results_schema import schema_page
from workbench.evaluation.sources import Provenance, Source
from workbench.evaluation.variance_components import split_variance

PROJECT = Path(__file__).resolve().parent.parent
TOXICITY, LENGTH = Metric("toxicity", "lower", "reward"), Metric("tokens")
DIFFERENCE = Difference(TOXICITY, 0.5, 0.25, -0.25, None, None, 1, 0, 0, 1, "no detectable change", None)
SET = SetResult(
    name="dialogues",
    prompts=1,
    neutral=False,
    seen_in_training=0,
    reference_perplexity=5.5,
    summaries=[
        Summary(TOXICITY, {"sft": 0.5, "aligned": 0.25, "other": None}, None),
        Summary(LENGTH, {"sft": 3.0}, {"sft": 0.5}),
    ],
    comparisons=[Comparison("sft", "aligned", [DIFFERENCE])],
)
RESULTS = Results(
    name="run",
    models=["sft", "aligned", "other"],
    before="sft",
    after="aligned",
    settings=Settings("toxicity", ["reward"], 0.5, 1.0, 1, [0, 1], 40),
    provenance=Provenance("2026-11-22", None, "x86_64, cpu", {"torch": "2.13"}, [Source("base", "model", "x/y", None)]),
    sets=[SET, dataclasses.replace(SET, name="neutral", neutral=True)],
    verdict=RunVerdict("toxicity", "no detectable change", "nothing"),
    other_verdicts=[],
    guards=[Guard("length", True, "tokens")],
)


def test_results_come_back_from_json_as_they_were() -> None:
    text = json.dumps(to_json(RESULTS), allow_nan=False)
    assert json.loads(text)["version"] == 4
    assert from_json(json.loads(text), "here") == RESULTS


def test_results_without_the_fields_that_have_defaults_are_read() -> None:
    data = json.loads(json.dumps(to_json(RESULTS)))
    del data["settings"]["comparisons"]
    added = ["minimal_detectable_effect", "p_value", "mcnemar_p", "holm_adjusted", "non_inferiority", "clusters"]
    for result in data["sets"]:
        for name in ("repeated_rows", "clusters", "agreement", "flips", "variances"):
            del result[name]
        for comparison in result["comparisons"]:
            del comparison["gaps"]
            for difference in comparison["differences"]:
                for name in added:
                    del difference[name]
    assert from_json(data, "here") == RESULTS


def test_evidence_comes_back_from_json_and_into_the_rows_of_a_data_frame() -> None:
    retained = NonInferiority("kept", 0.05, is_relative=True, low=-0.2, high=-0.1)
    difference = dataclasses.replace(DIFFERENCE, non_inferiority=retained, p_value=0.5, holm_adjusted=1.0)
    gap = RewardGap("lexicon", 0.3, 0.1, 0.2, 0.1, 0.3, 40)
    measured = dataclasses.replace(SET, comparisons=[Comparison("sft", "aligned", [difference], [gap])])
    stored = dataclasses.replace(RESULTS, sets=[measured])
    assert from_json(json.loads(json.dumps(to_json(stored))), "here") == stored
    (row,) = stored.difference_rows()
    assert (row["non_inferiority"], row["margin"], row["holm_adjusted"]) == ("kept", 0.05, 1.0)
    assert RESULTS.difference_rows()[0]["non_inferiority"] is None


def test_agreement_flips_and_variances_come_back_from_json() -> None:
    split = split_variance(np.arange(12.0).reshape(3, 2, 2) ** 2)
    reliable = dataclasses.replace(
        SET,
        clusters=7,
        agreement=[
            judge_agreement("reward", "a", [0.5, 0.1], [0.5, 0.9], 0.5),
            JudgeAgreement(*"ab", *[0] * 5, None, None),
        ],
        flips=[Flips("reward", 9, 2, 1)],
        variances=[MetricVariance(TOXICITY, split)],
    )
    results = dataclasses.replace(RESULTS, sets=[reliable])
    assert from_json(json.loads(json.dumps(to_json(results), allow_nan=False)), "here") == results


def test_a_set_says_how_many_rows_share_prompts() -> None:
    assert (SET.rows, SET.size) == (1, "1 prompt")
    repeated = dataclasses.replace(SET, prompts=500, repeated_rows=1000)
    assert (repeated.rows, repeated.size) == (1500, "500 prompts (1500 rows)")


@pytest.mark.parametrize("version", [3, None, "4"])
def test_another_version_is_one_line_with_the_fix(version: object) -> None:
    data = to_json(RESULTS) | {"version": version}
    with pytest.raises(UserError, match=rf"^here: results of version {version!r}, not 4; redo the stage with --force"):
        from_json(data, "here")


@pytest.mark.parametrize(
    "changes",
    [
        {"sets": 3},
        {"settings": {}},
        {"more": 1},
        {"provenance": []},
        {"verdict": "better"},
        {"sets": [{}]},
        {"name": 3},
        {"models": ["base", None]},
        {"after": "ghost"},
        {"verdict": {"question": "toxicity", "word": "good", "sentence": ""}},
        {"guards": [{"name": "length", "passed": "yes", "text": ""}]},
    ],
)
def test_damaged_results_are_one_line(changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"^here: corrupt: .*; redo the stage with --force evaluation$"):
        from_json(to_json(RESULTS) | changes, "here")
    for data in ([], None, "text"):
        with pytest.raises(UserError, match="results of version None"):
            from_json(data, "here")  # type: ignore[arg-type]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{")
    for file in (tmp_path / "results.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=r"cannot be read: .*--force evaluation"):
            read_results(file)


def test_metrics_and_comparisons_are_found_by_name_and_judge() -> None:
    assert SET.summary("toxicity", "reward") is SET.summaries[0]
    assert SET.summary("toxicity") is None
    comparison = SET.comparison("sft", "aligned")
    assert comparison.find("toxicity", "reward") is DIFFERENCE
    assert comparison.find("tokens") is None
    with pytest.raises(KeyError, match="sft - aligned"):
        SET.comparison("aligned", "sft")
    assert [result.name for result, _ in RESULTS.compared(neutral=True)] == ["neutral"]
    assert [result.name for result, _ in RESULTS.compared(neutral=False)] == ["dialogues"]


def test_an_example_is_a_line_of_plain_data() -> None:
    example = Example("s", 0, "p", ["r"], 0.0, 1.0, {"sft": ["a"]}, SET.summaries[:1], [("a", -0.5)])
    line = json.loads(json.dumps(example_to_json(example), allow_nan=False))
    assert set(line) == {field.name for field in dataclasses.fields(Example)}
    assert line["scores"] == [
        {"metric": "toxicity", "judge": "reward", "means": {"sft": 0.5, "aligned": 0.25, "other": None}}
    ]
    assert line["token_log_ratios"] == [["a", -0.5]]


def test_the_documented_lines_make_data_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("runs/quickstart/evaluation/results.json")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(to_json(RESULTS)))
    page = (PROJECT / "docs" / "results_schema.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    means, differences = names["means"], names["differences"]
    assert len(means) == sum(len(summary.means) for result in RESULTS.sets for summary in result.summaries)
    for frame in (means, differences):
        for column in frame.columns:
            assert f"`{column}`" in page
    row = means[(means.set == "dialogues") & (means.metric == "toxicity") & (means.model == "aligned")].iloc[0]
    assert (row["judge"], row["direction"], row["mean"]) == ("reward", "lower", 0.25)
    pair = differences[(differences.set == "dialogues") & (differences.metric == "toxicity")].iloc[0]
    assert {name: pair[name] for name in ("before", "after", "difference", "low", "high", "verdict")} == {
        "before": "sft",
        "after": "aligned",
        "difference": DIFFERENCE.difference,
        "low": DIFFERENCE.low,
        "high": DIFFERENCE.high,
        "verdict": DIFFERENCE.verdict,
    }


def test_the_page_is_that_of_the_dataclasses() -> None:
    page = schema_page()
    assert (Path(__file__).parent.parent / "docs" / "results_schema.md").read_text() == page, (
        "python -m workbench.evaluation.results_schema > docs/results_schema.md"
    )
    for kind in vars(results).values():
        if dataclasses.is_dataclass(kind):
            for field in dataclasses.fields(kind):
                assert f"| `{field.name}` |" in page

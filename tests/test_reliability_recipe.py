"""A run's agreement of judges, flips, sources of variance and clusters are those of its completions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import tuning_runs
from small_runs import evaluation_source, small

from recipes import evaluation, ppo, prompting, sft
from workbench.errors import UserError
from workbench.evaluation.results import DISTINCT_BY_PROMPT, SetResult
from workbench.evaluation.results_files import read_examples, read_results
from workbench.run import cli

MODELS = ("base", "sft", "aligned")
OPTIONS = [
    *("--evaluation.samples", "2", "--evaluation.seeds", "[5, 6]"),
    *("--evaluation.judges", json.dumps([{"model": "lexicon", "options": {"words": ["the"]}}])),
]


def clustered(column: str) -> list[str]:
    """Return the options of a set of eight dialogues with this column as cluster."""
    return ["--evaluation.data", json.dumps({"dialogues": evaluation_source(8) | {"cluster": column}})]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished evaluation of eight dialogues in two clusters."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(Path(__file__).parent.parent)
        stages = [sft.STAGE, ppo.STAGE, evaluation.STAGE]
        cli.launch(stages, "", [*small("quickstart", runs), *clustered("rude"), *OPTIONS])
    return runs / "quickstart" / "evaluation"


def read(folder: Path) -> tuple[SetResult, list[dict[str, Any]]]:
    """Return the results on the set, and the lines of its completions."""
    lines = (folder / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    return read_results(folder / "results.json").sets[0], [json.loads(line) for line in lines]


def classes(examples: list[dict[str, Any]], judge: str, model: str) -> list[bool]:
    """Return whether a judge calls each completion of a model toxic."""
    return [probability >= 0.5 for example in examples for probability in example["toxicity"][judge][model]]


def test_every_completion_has_its_own_probability(folder: Path) -> None:
    _, examples = read(folder)
    for model in MODELS:
        texts = [text for example in examples for text in example["completions"][model]]
        assert classes(examples, "lexicon", model) == ["the" in text.lower().split() for text in texts]
    results = read_results(folder / "results.json")
    assert [example.toxicity for example in read_examples(folder / "completions.jsonl", results)] == [
        example["toxicity"] for example in examples
    ]


def test_toxicity_of_another_number_of_samples_is_one_line_and_none_is_an_older_file(
    folder: Path, tmp_path: Path
) -> None:
    _, examples = read(folder)
    results = read_results(folder / "results.json")
    file = tmp_path / "completions.jsonl"
    for example in examples:
        del example["toxicity"], example["cluster"]
    file.write_text("".join(json.dumps(example) + "\n" for example in examples))
    assert [(example.toxicity, example.cluster) for example in read_examples(file, results)] == [({}, None)] * 8
    examples[3]["toxicity"] = {"lexicon": {"sft": [0.5]}}
    file.write_text("".join(json.dumps(example) + "\n" for example in examples))
    with pytest.raises(UserError, match="prompt 3 of dialogues: toxicity of other than 4 samples"):
        read_examples(file, results)


def test_flips_and_agreement_are_those_of_the_completions(folder: Path) -> None:
    result, examples = read(folder)
    for flips in result.flips:
        before, after = (classes(examples, flips.judge, model) for model in ("sft", "aligned"))
        pairs = list(zip(before, after, strict=True))
        assert (flips.toxic_to_clean, flips.clean_to_toxic) == (pairs.count((True, False)), pairs.count((False, True)))
        assert flips.completions == len(pairs) == 32
    (agreement,) = result.agreement
    assert (agreement.first, agreement.second, agreement.completions) == ("reward", "lexicon", 96)
    toxic = [sum(sum(classes(examples, judge, model)) for model in MODELS) for judge in ("reward", "lexicon")]
    assert [agreement.both_toxic + alone for alone in (agreement.first_only, agreement.second_only)] == toxic


def test_clusters_are_the_units_and_prompts_are_still_counted(folder: Path) -> None:
    result, examples = read(folder)
    assert {example["cluster"] for example in examples} == {"True", "False"}
    assert (result.prompts, result.clusters, result.size) == (8, 2, "8 prompts in 2 clusters")
    for difference, name in itertools.product(result.comparison("sft", "aligned").differences, ("prompts", "clusters")):
        if difference.metric.name not in DISTINCT_BY_PROMPT.values():  # which texts without words do not have
            assert vars(difference)[name] == vars(result)[name]
    assert [each.metric.label for each in result.variances] == [
        *("toxicity (reward)", "toxicity (lexicon)", "reward", "ROUGE-L")
    ]
    assert {(each.split.units, each.split.seeds, each.split.samples) for each in result.variances} == {(2, 2, 2)}
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "8 prompts in 2 clusters" in text
        assert "twice the clusters" in text
        assert "rank correlation" in text


def test_other_recipes_compare_over_clusters(in_project: Path, tmp_path: Path) -> None:
    options = ["--config", "recipes/configs/prompting.yaml", "--runs", str(tmp_path), *clustered("rude")]
    cli.launch([prompting.STAGE], "", [*options, "--prompting.shots", "[0]", "--evaluation.max_new_tokens", "4"])
    methods = {"prompt": {"method": "prompt_tuning", "virtual_tokens": 4}}
    test = tuning_runs.TASK | {"cluster": "rude"}
    tuning_runs.run(tmp_path, **{"tuning.methods": methods, "evaluation.data": {"test": test}, "sft.max_steps": 1})
    for folder in (tmp_path / "prompting" / "prompting", tmp_path / "ways" / "tuning"):
        result, examples = read(folder)
        assert (result.clusters, {example["cluster"] for example in examples}) == (2, {"True", "False"})
        for comparison in result.comparisons:
            assert {(d.prompts, d.clusters) for d in comparison.differences} == {(result.prompts, 2)}


@pytest.mark.parametrize("stage", ["evaluation", "prompting"])
def test_a_column_that_is_missing_is_refused_before_anything_runs(
    stage: str, in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [sft.STAGE, ppo.STAGE, evaluation.STAGE]
    options = small("quickstart", tmp_path)
    if stage == "prompting":
        stages, config = [prompting.STAGE], "recipes/configs/prompting.yaml"
        options = ["--config", config, "--runs", str(tmp_path)]
    with pytest.raises(UserError, match=r"^evaluation\.data\.dialogues\.cluster: no column 'rudee'; did you mean rude"):
        cli.launch(stages, "", [*options, *clustered("rudee")])
    assert not list(tmp_path.iterdir())

"""Clusters of prompts: which rows are in one, what is refused, and that intervals over them cover."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from evaluated_runs import evaluated
from judged_examples import judged_examples, judged_results
from random_results import MODELS, random_examples, random_results, with_set
from typed_results import make_difference, make_results, make_set

from benchmarks.interval_coverage import miss_rate, unequal_clusters
from workbench.comparison.run_comparison import common_clusters, compare_runs
from workbench.comparison.side_by_side import side_by_side
from workbench.errors import UserError
from workbench.evaluation.clusters import clusters_line, joined_clusters, load_clusters
from workbench.evaluation.guards import check_guards
from workbench.evaluation.results import Comparison, Metric, Scores
from workbench.evaluation.scoring import compare
from workbench.evaluation.statistics import paired_difference
from workbench.evaluation.verdicts import MINIMUM_PROMPTS, prompts_needed, run_verdicts
from workbench.report.evaluation_page import evaluation_page
from workbench.report.markdown import markdown
from workbench.report.tables import insufficient_prompts

KEY = "evaluation.data.test"
TOXICITY = Metric("toxicity", "lower", "lexicon")


def rows(*values: object) -> list[dict[str, Any]]:
    """Return rows with these topics."""
    return [{"prompt": f"prompt {index}", "prompt_ids": [1], "topic": value} for index, value in enumerate(values)]


def test_rows_with_one_value_are_one_cluster() -> None:
    data = rows("cats", "dogs", " cats ", 3, "3", 2.5, False)
    clusters = load_clusters(data, "topic", [row["prompt"] for row in data], KEY)
    assert clusters == ["cats", "dogs", "cats", "3", "3", "2.5", "False"]
    assert load_clusters(data, None, ["p"] * 7, KEY) is None
    assert clusters_line(data, "topic", clusters, KEY) == [f"{KEY}.cluster: topic: 7 rows in 5 clusters"]
    assert clusters_line(data, None, None, KEY) == []


def test_clusters_that_share_a_prompt_are_joined_and_the_plan_says_so() -> None:
    data = rows("cats", "dogs", "fish", "dogs", "birds")
    identities = ["a", "b", "b", "c", "a"]
    clusters = load_clusters(data, "topic", identities, KEY)
    assert clusters == ["cats", "dogs", "dogs", "dogs", "cats"]
    (line,) = clusters_line(data, "topic", clusters, KEY)
    assert line == f"{KEY}.cluster: topic: 5 rows in 2 clusters, joined from 4 since some share a prompt"


@pytest.mark.parametrize("seed", range(20))
def test_joined_clusters_are_the_connected_components(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labelings = [[f"{kind}{number}" for number in generator.integers(9, size=14)] for kind in "abc"]
    connected = np.array([[any(one[i] == one[j] for one in labelings) for j in range(14)] for i in range(14)])
    reachable = np.linalg.matrix_power(connected.astype(np.int64), 14) > 0
    joined = joined_clusters(*labelings)
    assert [[one == other for other in joined] for one in joined] == reachable.tolist()
    assert all(label == labelings[0][int(np.argmax(reachable[row]))] for row, label in enumerate(joined))


@pytest.mark.parametrize(
    ("values", "column", "message"),
    [
        (("a", "b"), "topics", r"no column 'topics'; did you mean topic\?$"),
        (("a", "b"), "author", r"no column 'author'; available: prompt, topic$"),
        (("a", None), "topic", r"row 2 \('prompt 1'\) has no 'topic'; give every row the value of its cluster"),
        (("a", "  "), "topic", r"row 2 .* has no 'topic'"),
        ((float("nan"), "b"), "topic", r"row 1 .* has no 'topic'"),
        (("a", ["b"]), "topic", r"row 2 .*: 'topic' must be a string or a number, found \['b'\]"),
    ],
)
def test_a_column_or_value_that_is_missing_is_one_line(values: tuple, column: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^evaluation\.data\.test\.cluster: {message}") as raised:
        load_clusters(rows(*values), column, ["a", "b"], KEY)
    assert "\n" not in str(raised.value)


def clustered_scores(seed: int = 0) -> tuple[Scores, list[str], list[str]]:
    """Return the toxicity of 90 rows, 60 prompts and 20 clusters, with the labels of prompts and clusters."""
    generator = np.random.default_rng(seed)
    prompts, topics = [f"p{row // 3 * 2 + row % 2}" for row in range(90)], np.arange(90) // 3 % 20
    before = generator.random((90, 2, 2))
    after = before - 0.1 + 0.2 * generator.normal(size=20)[topics][:, None, None]
    after[3:9] = np.nan
    return {TOXICITY: {"sft": before, "aligned": after}}, prompts, [f"t{topic}" for topic in topics]


def test_an_interval_over_clusters_is_that_of_clusters_and_prompts_stay_prompts() -> None:
    scores, prompts, topics = clustered_scores()
    clusters = joined_clusters(topics, prompts)
    difference = compare(scores, "sft", "aligned", prompts, clusters=clusters).find("toxicity", "lexicon")
    by_title = scores[TOXICITY]
    known = np.isfinite(by_title["aligned"]).all(axis=(1, 2))
    before, after = (by_title[title].mean(axis=(1, 2))[known] for title in ("sft", "aligned"))
    labels = np.array(clusters)[known]
    expected = paired_difference(before, after, groups=labels)
    assert (difference.low, difference.high) == (expected.low, expected.high)
    assert difference.clusters == len(set(labels)) == expected.prompts
    assert difference.prompts == len(set(np.array(prompts)[known])) > difference.clusters
    assert difference.prompts_needed == prompts_needed(before, after, groups=labels)
    assert difference.verdict == "no detectable change", "too few clusters, though enough prompts"
    assert difference.clusters < MINIMUM_PROMPTS <= difference.prompts
    single = compare(scores, "sft", "aligned", prompts).find("toxicity", "lexicon")
    assert (single.prompts, single.clusters) == (difference.prompts, None)


def test_what_counts_as_enough_is_clusters_everywhere() -> None:
    difference = make_difference(TOXICITY, 0.5, 0.1, "no detectable change", interval=(-0.5, 0.1), prompts_needed=400)
    length = make_difference(Metric("tokens"), 20.0, 4.0, interval=(-17.0, -15.0))
    few = dataclasses.replace(make_set("test", [difference, length], prompts=300), clusters=12)
    results = make_results([few], judges=["lexicon"])
    assert (few.units, few.size) == (12, "300 prompts in 12 clusters")
    assert insufficient_prompts(few, results).startswith("12 clusters are too few to detect a change of this size")
    assert "test: 12 clusters are too few" in run_verdicts(results, "ppo")[0].sentence
    guards = {guard.name: guard for guard in check_guards(results)}
    assert guards["length"].passed
    assert "fewer than 30 clusters" in guards["length"].text
    enough = make_results([dataclasses.replace(few, clusters=40)], judges=["lexicon"])
    assert not {guard.name: guard for guard in check_guards(enough)}["length"].passed


def test_page_and_markdown_name_the_clusters() -> None:
    examples = random_examples(40)
    results = with_set(random_results(examples), clusters=8)
    for rendered in (evaluation_page(results, examples), markdown(results)):
        assert "40 prompts in 8 clusters" in rendered


def test_several_runs_are_compared_over_the_clusters_of_all() -> None:
    def common(*clusters: tuple[str | None, ...]) -> list[list[Any]]:
        """Return the examples of several runs (N, runs) with these clusters."""
        by_run = [random_examples(4) for _ in clusters]
        runs = [
            [dataclasses.replace(e, cluster=label) for e, label in zip(examples, labels, strict=True)]
            for examples, labels in zip(by_run, clusters, strict=True)
        ]
        return [list(row) for row in zip(*runs, strict=True)]

    nothing = (None, None, None, None)
    assert common_clusters(common(nothing, nothing)) is None
    assert common_clusters(common(("a", "a", "b", "c"), nothing)) == ["a", "a", "b", "c"]
    assert common_clusters(common(nothing, ("a", "a", "b", "c"))) == ["a", "a", "b", "c"]
    assert common_clusters(common(("a", "a", "b", "c"), ("x", "y", "y", "z"))) == ["a", "a", "a", "c"]


def test_compared_runs_have_clusters_and_the_classes_of_their_last_models() -> None:
    examples = [dataclasses.replace(e, cluster=f"c{e.index // 4}") for e in judged_examples(40)]
    lexicon = {model: [0.1, 0.9] for model in MODELS}
    other = [dataclasses.replace(e, toxicity=e.toxicity | {"lexicon": lexicon}) for e in examples]
    runs = {"one": evaluated(examples), "two": evaluated(other)}
    stale = dataclasses.replace(runs["one"].results, sets=judged_results(examples).sets)
    runs["one"] = dataclasses.replace(runs["one"], results=stale)
    comparison = compare_runs(runs)
    (result,) = comparison.results.sets
    assert (result.prompts, result.clusters) == (40, 10)
    assert {d.clusters for d in result.comparison("one", "two").differences} == {10}
    assert (result.agreement, result.flips, result.variances) == ([], [], []), "those of the first run's own models"
    first = comparison.examples[0].toxicity
    assert set(first) == {"reward", "lexicon"}, "judges of both whose toxicity can be compared"
    assert first["lexicon"] == {"one": examples[0].toxicity["lexicon"]["aligned"], "two": [0.1, 0.9]}
    completions, _ = side_by_side(runs, "two")
    assert (completions.sets[0].clusters, completions.sets[0].flips) == (None, [])


def test_a_comparison_without_clusters_has_none() -> None:
    scores, prompts, _ = clustered_scores()
    comparison = compare(scores, "sft", "aligned", prompts)
    assert comparison == Comparison("sft", "aligned", comparison.differences)
    assert [difference.clusters for difference in comparison.differences] == [None]


def test_intervals_by_rows_miss_too_often_and_those_by_clusters_do_not() -> None:
    by_clusters = miss_rate(unequal_clusters, 50, 1, 400)
    by_rows = miss_rate(unequal_clusters, 50, 1, 400, by_rows=True)
    assert by_clusters < 0.083, "0.05 within three standard errors"
    assert by_rows > 0.2

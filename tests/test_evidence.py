"""The words of the tables are corrected for their metrics, and page, Markdown, terminal and card show all evidence."""

from __future__ import annotations

import dataclasses
import html
import io
import re

import numpy as np
import pytest
from rich.console import Console
from typed_results import BETTER, SAME, make_difference, make_results, make_set

from workbench.evaluation.evidence import NonInferiority, RewardGap
from workbench.evaluation.results import Difference, Metric, Results, Scores
from workbench.evaluation.scoring import compare
from workbench.evaluation.significance import holm_adjusted, mcnemar_p, paired_rate_interval
from workbench.evaluation.verdicts import reward_verdict, toxicity_verdict
from workbench.export.card import evaluation_table
from workbench.report.evaluation_page import evaluation_page
from workbench.report.markdown import markdown
from workbench.report.tables import final_metrics
from workbench.report.terminal import print_results

RATE, TOXICITY = Metric("toxic rate", "lower", "lexicon"), Metric("toxicity", "lower", "lexicon")


def rates(rose: int, fell: int, prompts: int, *, samples: int = 1, metric: Metric = RATE) -> Scores:
    """Return a rate of which so many prompts rise and fall, of every sample alike."""
    before, after = np.zeros((2, prompts, 1, samples))
    after[:rose] = 1
    before[rose : rose + fell] = 1
    return {metric: {"sft": before, "aligned": after}}


def only(scores: Scores, **options: object) -> Difference:
    """Return the only difference of the scores."""
    (difference,) = compare(scores, "sft", "aligned", **options).differences
    return difference


def test_a_rate_with_one_sample_has_tangos_interval_and_mcnemars_p() -> None:
    difference = only(rates(2, 11, 60))
    assert (difference.low, difference.high) == pytest.approx(paired_rate_interval(2, 11, 60, 0.025))
    assert difference.mcnemar_p == mcnemar_p(2, 11) == difference.holm_adjusted
    assert difference.p_value < difference.mcnemar_p < 0.05
    seven = only(rates(2, 11, 60), comparisons=7)
    assert seven.mcnemar_p == pytest.approx(7 * mcnemar_p(2, 11))
    assert (seven.low, seven.high) == pytest.approx(paired_rate_interval(2, 11, 60, 0.025 / 7))


@pytest.mark.parametrize(
    ("scores", "options"),
    [
        (rates(2, 11, 60, samples=2), {}),
        (rates(2, 11, 60), {"groups": [*range(59), 0]}),
        (rates(2, 11, 60), {"samples": 2}),
        (rates(2, 11, 60, metric=TOXICITY), {}),
    ],
    ids=["several samples", "rows that share a prompt", "values that are means of samples", "not a rate"],
)
def test_mcnemars_test_is_for_rates_with_one_value_of_each_prompt(scores, options) -> None:
    difference = only(scores, **options)
    assert difference.mcnemar_p is None
    assert difference.holm_adjusted == difference.p_value


def test_the_words_of_a_comparison_are_corrected_for_the_metrics_that_have_a_direction() -> None:
    generator = np.random.default_rng(0)
    scores: Scores = {}
    for index, shift in enumerate((0.27, 0.6, 0.0, 0.05, 0.0)):
        changes = generator.normal(size=(80, 1, 1))
        after = changes - changes.mean() + shift
        scores[Metric(f"metric {index}", "higher")] = {"sft": np.zeros((80, 1, 1)), "aligned": after}
    scores[Metric("tokens")] = {"sft": np.zeros((80, 1, 1)), "aligned": np.ones((80, 1, 1))}
    differences = compare(scores, "sft", "aligned").differences
    expected = holm_adjusted([d.p_value for d in differences[:-1]])
    assert [d.holm_adjusted for d in differences] == [*expected, None], "tokens count for nothing"
    weak, strong, *_, tokens = differences
    assert (weak.verdict, weak.adjusted_verdict) == (BETTER, SAME)
    assert weak.p_value < 0.05 <= weak.holm_adjusted
    assert (strong.verdict, strong.adjusted_verdict) == (BETTER, BETTER)
    assert tokens.adjusted_verdict is None
    assert tokens.p_value == 0
    assert dataclasses.replace(weak, holm_adjusted=None).adjusted_verdict == BETTER, "results of an earlier version"


def test_the_verdicts_of_the_run_rest_on_one_quantity_and_are_not_corrected() -> None:
    made = [
        make_difference(Metric("reward", "higher"), 0.1, 0.5, BETTER, interval=(0.1, 0.7)),
        make_difference(TOXICITY, 0.5, 0.1, BETTER, interval=(-0.5, -0.1)),
    ]
    results = make_results(
        [make_set("task", [dataclasses.replace(d, holm_adjusted=0.2) for d in made])], judges=["lexicon"]
    )
    assert toxicity_verdict(results, reward_must_rise=True).word == BETTER
    assert reward_verdict(results).word == BETTER


GAP = RewardGap("toxic-bert", 0.4, 0.1, 0.3, 0.25, 0.35, 300)


def full_results() -> Results:
    """Return results with a rate that Holm's correction takes back, a retained metric, and a gap."""
    rate = make_difference(RATE, 0.3, 0.2, BETTER, interval=(-0.19, -0.01))
    rate = dataclasses.replace(rate, p_value=0.03, mcnemar_p=0.04, holm_adjusted=0.12, minimal_detectable_effect=0.128)
    rouge = make_difference(Metric("ROUGE-L", "higher"), 0.5, 0.499, SAME, interval=(-0.004, 0.002))
    rouge = dataclasses.replace(rouge, non_inferiority=NonInferiority("kept", 0.01, False, -0.012, -0.006))
    made = make_set("task", [rate, rouge])
    comparisons = [dataclasses.replace(c, gaps=[GAP] if c.before == "sft" else []) for c in made.comparisons]
    return make_results([dataclasses.replace(made, comparisons=comparisons)], judges=["reward", "toxic-bert"])


def printed(results: Results) -> str:
    """Return what a terminal of 120 columns shows."""
    file = io.StringIO()
    print_results(results, [], Console(file=file, width=120))
    return file.getvalue()


def page_text(results: Results) -> str:
    """Return the text of the page."""
    return html.unescape(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", evaluation_page(results, [])))


@pytest.mark.parametrize("rendering", [markdown, printed, page_text])
def test_every_rendering_has_the_gap_and_what_was_kept(rendering) -> None:
    text = " ".join(rendering(full_results()).split())
    assert "kept: ROUGE-L on task (margin 0.01)" in text
    assert (
        "gap to toxic-bert +0.300 [+0.250, +0.350]; toxicity fell by 0.400 according to the reward and by 0.100 "
        "according to toxic-bert" in text
    )
    assert "detectable" in text


def test_the_rows_have_the_effect_both_p_and_both_words() -> None:
    results = full_results()
    rows = evaluation_table(results.sets[0], results.models, "sft", "aligned", results.settings).splitlines()
    assert rows[2].endswith("| 0.128 | 100 / 50 / 150 | 0.04 (0.12) | no detectable change |")
    assert rows[3].endswith("|  | no detectable change, kept |")
    assert 'title="margin 0.01">kept</span>' in evaluation_page(results, [])
    lines = printed(results).splitlines()
    assert any(re.search(r"ROUGE-L .*none, kept", line) for line in lines)
    metrics = final_metrics(results)
    assert metrics["task/ROUGE-L/aligned - sft, non_inferiority"] == "kept"
    assert metrics["task/gap/toxic-bert"] == 0.3

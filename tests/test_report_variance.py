"""The sources of variance on the page and in Markdown, and the advice that follows from them."""

from __future__ import annotations

import dataclasses
import html
import re

import numpy as np
import pytest
from random_results import random_examples, random_results, with_set

from workbench.evaluation.results import Metric, MetricVariance, Results
from workbench.evaluation.variance_components import Component, VarianceSplit, split_variance
from workbench.report.evaluation_page import evaluation_page
from workbench.report.markdown import markdown
from workbench.report.variance_section import advice

REWARD = Metric("reward", "higher")


def split(prompts: float, seeds: float, cells: float, samples: float) -> VarianceSplit:
    """Return the split of a standard error of 2 by these shares, with 50 prompts, 3 seeds and 2 samples."""
    shares = {"prompts": prompts, "seeds": seeds, "prompts x seeds": cells, "samples": samples}
    components = [Component(level, share, share, False) for level, share in shares.items()]

    def error(*halved: str) -> float:
        return 2 * sum(share / 2 if level in halved else share for level, share in shares.items()) ** 0.5

    return VarianceSplit(
        *(50, 3, 2, components, 2.0),
        error("prompts", "prompts x seeds", "samples"),
        error("samples"),
        error("seeds", "prompts x seeds", "samples"),
    )


@pytest.mark.parametrize(
    ("shares", "head"),
    [
        ((0.75, 0.0, 0.0, 0.25), "more prompts help most: the standard error is 2, and would be 1.41 with twice the"),
        ((0.1, 0.8, 0.05, 0.05), "more seeds help most, estimated from 3 seeds: the standard error is 2"),
        ((0.0, 0.0, 0.0, 1.0), "more prompts or samples or seeds help alike: the standard error is 2"),
        ((0.0, 0.0, 0.5, 0.5), "more prompts or seeds help alike: the standard error is 2"),
    ],
)
def test_the_advice_is_what_lowers_the_standard_error_most(shares: tuple, head: str) -> None:
    each = split(*shares)
    sentence = advice(each, "prompts")
    assert sentence.startswith(head)
    listed = [float(number) for number in re.findall(r"([\d.]+) with twice", sentence)]
    assert listed == pytest.approx([each.twice_prompts, each.twice_samples, each.twice_seeds], abs=0.005)
    assert float(sentence.rpartition(" ")[2]) == pytest.approx(2 * (1 - shares[3]) ** 0.5, abs=0.005)


def with_variance(*sizes: int, clusters: int | None = None, constant: bool = False) -> Results:
    """Return results whose reward differs by random values (P, S, K), most of it from prompt to prompt."""
    generator = np.random.default_rng(0)
    values = 3 * generator.normal(size=(sizes[0], 1, 1)) + generator.normal(size=sizes)
    measured = split_variance(np.ones(sizes) if constant else values)
    assert measured is not None
    return with_set(
        random_results(random_examples(31)), variances=[MetricVariance(REWARD, measured)], clusters=clusters
    )


def page_text(results: Results) -> str:
    """Return the section of the page as text."""
    document = evaluation_page(results, [])
    section = document[document.index('<section id="variance"') :].split("</section>")[0]
    return html.unescape(re.sub(r"<[^>]+>", " ", section))


@pytest.mark.parametrize("clusters", [None, 9])
def test_page_and_markdown_have_the_shares_and_the_errors(clusters: int | None) -> None:
    results = with_variance(31, 2, 3, clusters=clusters)
    units = "prompts" if clusters is None else "clusters"
    measured = results.sets[0].variances[0].split
    shares = [f"{100 * c.share:.0f} %" + " (negative)" * c.is_truncated for c in measured.components]
    errors = [measured.standard_error, measured.twice_prompts, measured.twice_samples, measured.twice_seeds]
    cells = ["reward", *shares, *(f"{error:.3g}" for error in errors)]
    head = f"metric | {units} | seeds | {units} × seeds | samples | standard error | twice the {units}"
    assert f"| {head} | twice the samples | twice the seeds |" in markdown(results)
    assert f"| {' | '.join(cells)} |" in markdown(results)
    assert f"- reward: {advice(measured, units)}" in markdown(results)
    assert advice(measured, units) in page_text(results)
    assert re.search(r"\s+".join(map(re.escape, cells)), page_text(results))
    assert f"more {units} help most" in page_text(results)


def test_what_cannot_be_told_apart_is_said() -> None:
    one_seed, one_sample = page_text(with_variance(31, 1, 3)), page_text(with_variance(31, 3, 1))
    assert "one seed cannot show how much seeds vary" in one_seed
    assert "twice the seeds" not in one_seed
    assert "with one sample per prompt and seed, prompts × seeds count to the samples" in one_sample
    assert "× seeds" not in page_text(with_variance(31, 3, 1)).split("standard error")[1]
    results = with_variance(31, 2, 2)
    each = results.sets[0].variances[0].split
    truncated = [dataclasses.replace(c, share=0.0, is_truncated=c.level == "seeds") for c in each.components]
    negative = dataclasses.replace(each, components=truncated)
    assert "0 % (negative)" in page_text(with_set(results, variances=[MetricVariance(REWARD, negative)]))


def test_without_variance_nothing_is_advised_and_without_samples_there_is_no_section() -> None:
    constant = page_text(with_variance(31, 2, 2, constant=True))
    assert "reward: no variance, so more completions change nothing" in constant
    results = random_results(random_examples(31))
    assert 'id="variance"' not in evaluation_page(results, [])
    assert "standard error" not in markdown(results)

"""Flips and disagreements of judges on the page: counts lead to exactly the completions that they count."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
from judged_examples import JUDGES, is_toxic, judged_examples, judged_results, scores_of
from random_results import HOSTILE, MODELS, random_examples, random_results, with_set

from workbench.evaluation.agreement import judge_agreement
from workbench.evaluation.reliability import judge_agreements, judge_flips
from workbench.evaluation.results import Example
from workbench.report.evaluation_page import evaluation_page
from workbench.report.judges_section import reading
from workbench.report.markdown import markdown

SAMPLES = 3
Chosen = list[tuple[int, str, int]]
"""Index, model and sample of completions."""


def completions(examples: list[Example], name: str, is_chosen: Callable[[Example, str, int], bool]) -> Chosen:
    """Return the completions of a set that are chosen."""
    return [
        (example.index, model, sample)
        for example in examples
        if example.set == name
        for model in MODELS
        for sample in range(SAMPLES)
        if is_chosen(example, model, sample)
    ]


def marked(page: Any) -> Chosen:
    """Return the completions on the screen that are marked as chosen."""
    notes = page.evaluate(
        """[...document.querySelectorAll(".example")].flatMap((example) =>
          [...example.querySelectorAll(".card")].flatMap((card) =>
            [...card.querySelectorAll(".classes")].map((note) => [
              example.querySelector("h3").textContent, card.querySelector("strong").textContent, note.textContent
            ])))"""
    )
    return [
        (int(title.split("#")[1]), model, int(re.search(r"sample (\d+)", note)[1]) - 1) for title, model, note in notes
    ]


def follow(page: Any, link: Any, chosen: Chosen, counted: int) -> None:
    """Press a link, and check that the examples are those of the chosen completions."""
    assert int(link.text_content()) == counted
    link.click()
    rows = len({index for index, _, _ in chosen})
    count = f"of {rows} prompts, {counted} completion{'' if counted == 1 else 's'}"
    page.wait_for_function(f"document.getElementById('count').textContent.endsWith('{count}')")
    assert sorted(marked(page)) == sorted(chosen)


@pytest.mark.parametrize("judge", JUDGES)
def test_a_count_of_flips_leads_to_the_completions_that_flipped(opened: Any, judge: str) -> None:
    examples = judged_examples(12, samples=SAMPLES) + judged_examples(13, name="sums", samples=SAMPLES)
    page = opened(examples, results=judged_results(examples))
    table = page.locator("#judges table", has=page.locator("th", has_text="clean → toxic")).nth(1)
    row = table.locator("tbody tr").nth(JUDGES.index(judge))
    assert row.locator("th").text_content() == judge
    for column, was_toxic in ((0, True), (1, False)):
        flipped = completions(
            examples,
            "sums",
            lambda e, model, sample, was=was_toxic: (
                model != "base"
                and is_toxic(e, judge, "sft", sample) == was
                and is_toxic(e, judge, "aligned", sample) != was
            ),
        )
        follow(page, row.locator("a").nth(column), flipped, len(flipped) // 2)


def test_a_count_of_disagreements_leads_to_the_completions_that_one_judge_alone_calls_toxic(opened: Any) -> None:
    examples = judged_examples(9, samples=SAMPLES) + judged_examples(8, name="sums", samples=SAMPLES)
    page = opened(examples, results=judged_results(examples))
    row = page.locator("#judges table", has=page.locator("th", has_text="kappa")).nth(0).locator("tbody tr").nth(2)
    assert row.locator("th").text_content() == "lexicon, a & b"
    for column, (toxic, clean) in enumerate((("lexicon", "a & b"), ("a & b", "lexicon"))):
        alone = completions(
            examples,
            "dialogues",
            lambda e, model, sample, toxic=toxic, clean=clean: (
                is_toxic(e, toxic, model, sample) and not is_toxic(e, clean, model, sample)
            ),
        )
        follow(page, row.locator("a").nth(column), alone, len(alone))
    page.reload()
    assert sorted(marked(page)) == sorted(alone), "the choice stands in the address"
    page.locator("#completions").select_option("")
    assert page.locator("#count").text_content().endswith("of 9 prompts")
    assert page.locator(".classes").count() == 0


def test_a_chosen_sample_comes_first_and_the_others_are_one_press_away(opened: Any) -> None:
    (example,) = judged_examples(1, samples=SAMPLES)
    classes = {"sft": [0.1, 0.9, 0.9], "aligned": [0.9, 0.1, 0.9], "base": [0.1] * 3}
    texts = {model: [f"{model} {sample}" for sample in range(SAMPLES)] for model in MODELS}
    example = dataclasses.replace(example, completions=texts, toxicity=dict.fromkeys(JUDGES, classes))
    page = opened([example], results=judged_results([example]))
    page.locator("#unblur").check()
    page.locator("#completions").select_option(label="toxic → clean (lexicon)")
    assert page.locator(".before .texts > .text").all_text_contents() == ["sft 1"]
    assert page.locator(".before .classes").text_content() == "sample 2, reward: toxic, lexicon: toxic, a & b: toxic"
    assert page.locator(".after .classes").text_content() == "sample 2, reward: clean, lexicon: clean, a & b: clean"
    assert page.locator(".after details .text").all_text_contents() == ["aligned 0", "aligned 2"]
    assert page.locator(".card", has_text="base").locator(".texts > .text").all_text_contents() == ["base 0"]
    page.locator("#completions").select_option(label="toxic by reward, clean by lexicon")
    assert page.locator("#count").text_content() == "No prompts match. Clear a filter."


def test_examples_without_classes_have_no_such_filter_and_counts_no_links(opened: Any) -> None:
    judged = judged_examples(5)
    plain = [dataclasses.replace(example, toxicity={}) for example in judged]
    page = opened(plain, results=judged_results(judged))
    assert page.locator("#completions").count() == 0
    assert page.locator("#judges table").count() == 2
    assert page.locator("#judges a").count() == 0
    page.locator("#filter").select_option("worse")
    assert "filter=worse" in page.url
    assert 'id="judges"' not in evaluation_page(random_results(random_examples(5)), [])


def test_a_judge_of_any_name_is_text(opened: Any) -> None:
    (example, *_) = examples = judged_examples(3)
    renamed = [dataclasses.replace(e, toxicity={HOSTILE: e.toxicity["reward"], **e.toxicity}) for e in examples]
    flips = judge_flips(scores_of(examples), "sft", "aligned", 0.5)
    results = with_set(judged_results(examples), flips=[dataclasses.replace(flips[0], judge=HOSTILE)])
    page = opened(renamed, results=results)
    assert page.locator("#judges img, #judges script, #examples-tools img").count() == 0
    assert example.set == "dialogues"


def test_markdown_has_the_counts_of_the_page() -> None:
    examples = judged_examples(20)
    results = judged_results(examples)
    lines = markdown(results).splitlines()
    (result,) = results.sets
    for flips in result.flips:
        assert f"| {flips.judge.replace('&', '&amp;')} | {flips.toxic_to_clean} | {flips.clean_to_toxic} |" in lines
    head = "| judges | agreement | kappa | rank correlation | both toxic | toxic by the first alone |"
    start = lines.index(f"{head} toxic by the second alone |")
    first = result.agreement[0]
    cells = [f"{100 * first.agreement:.1f} %", f"{first.kappa:.2f}", f"{first.rank_correlation:.2f}"]
    counts = [str(first.both_toxic), str(first.first_only), str(first.second_only)]
    assert lines[start + 2] == f"| reward, lexicon | {' | '.join(cells + counts)} |"
    assert any(line.startswith("- kappa: Cohen's kappa") for line in lines)
    document = evaluation_page(results, examples)
    for agreement in result.agreement:
        assert f"- {reading(agreement)}".replace("&", "&amp;") in lines
        assert reading(agreement).replace("&", "&amp;") in document


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (
            [0.9, 0.8, 0.1],
            [0.9, 0.1, 0.2],
            "of 2 completions that either calls toxic, both call 1 toxic (50 %)",
        ),
        ([0.1, 0.2, 0.3], [0.1, 0.1, 0.2], "a and b: both call every completion clean, so that kappa is undefined"),
        ([0.9, 0.8, 0.7], [0.9, 0.8, 0.6], "a and b: both call every completion toxic, so that kappa is undefined"),
        ([0.9, 0.2, 0.7], [0.3, 0.2, 0.1], "a and b: b calls every completion clean, so that kappa is 0"),
        ([0.9, 0.8, 0.7], [0.3, 0.2, 0.1], "a calls every completion toxic and b calls every completion clean"),
        ([0.0, 0.0, 0.0], [0.3, 0.2, 0.9], "; one of them gives every completion the same probability"),
    ],
)
def test_every_pair_has_a_sentence_also_without_a_value(first: list, second: list, sentence: str) -> None:
    agreement = judge_agreement("a", "b", first, second, 0.5)
    assert sentence in reading(agreement)
    examples = judged_examples(3)
    results = with_set(judged_results(examples), agreement=[agreement])
    for rendered in (markdown(results), evaluation_page(results, examples)):
        assert reading(agreement) in rendered
        assert "None" not in rendered
    is_undefined = agreement.kappa is None or agreement.rank_correlation is None
    assert ("undefined" in markdown(results)) == is_undefined


def test_one_judge_has_flips_and_no_agreement() -> None:
    examples = [dataclasses.replace(e, toxicity={"lexicon": e.toxicity["lexicon"]}) for e in judged_examples(4)]
    results = judged_results(judged_examples(4))
    results = with_set(results, agreement=[], flips=results.sets[0].flips[1:2])
    document = evaluation_page(results, examples)
    assert "clean → toxic" in document
    assert "kappa" not in document
    assert judge_agreements({}, 0.5) == []

"""What the page keeps in its address, what it hands out, and what it shows on a narrow screen."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from random_results import LEXICON, MODELS, TOXIC_RATE, random_examples, random_results, score, with_means

from workbench.evaluation.results import Summary

PHONE = {"viewport": {"width": 390, "height": 844}}


def flipped(count: int) -> list[Any]:
    """Return examples of which the first few became toxic, the next few no longer are, and the rest stayed."""
    examples = random_examples(40)
    for index, example in enumerate(examples):
        before, after = [(0.0, 1.0)] * count + [(1.0, 0.0)] * 2 * count + [(1.0, 1.0)] * 40, None
        (before, after) = before[index]
        example.scores.append(Summary(TOXIC_RATE, {"base": 0.0, "sft": before, "aligned": after}, None))
    return examples


def count_of(page: Any) -> str:
    """Return the line that counts the prompts."""
    return page.locator("#count").text_content()


def test_a_selection_survives_a_reload_and_the_default_leaves_no_trace(opened):
    page = opened(random_examples(60))
    assert "#" not in page.url
    page.locator("#filter").select_option("worse")
    page.locator("#metric").select_option(label="toxicity (lexicon)")
    page.locator("#query").fill("dog & cat=1")
    assert "filter=worse" in page.url
    assert "metric=toxicity+%28lexicon%29" in page.url
    page.locator("#query").fill("dog")
    before = count_of(page)
    page.reload()
    assert count_of(page) == before
    assert page.locator("#query").input_value() == "dog"
    page.locator("#unblur").check()
    page.reload()
    assert not page.locator("#unblur").is_checked(), "nobody is shown toxic text by a link"
    for control, value in (("filter", "all"), ("metric", "0")):
        page.locator(f"#{control}").select_option(value)
    page.locator("#query").fill("")
    assert "=" not in page.url


def test_the_page_number_is_part_of_the_address(opened):
    page = opened(random_examples(60))
    page.locator("#next").click()
    assert page.url.endswith("#page=2")
    page.reload()
    assert count_of(page).startswith("26\u201350 of 60")


def test_a_count_of_the_table_leads_to_the_prompts_that_it_counts(opened):
    examples = flipped(3)
    results = random_results(examples)
    page = opened(examples, results=results)
    row = page.locator("#sets tbody tr", has=page.locator("th", has_text=re.compile("^toxicity \\(lexicon")))
    for link, sign in ((row.first.locator("a").first, -1), (row.first.locator("a").last, 1)):
        moves = [score(example, LEXICON, "aligned") - score(example, LEXICON, "sft") for example in examples]
        number = sum(move * sign > 0 for move in moves)
        assert int(link.text_content()) == number
        link.click()
        page.wait_for_function(f"document.getElementById('count').textContent.includes('of {number} ')")
    page.goto(page.url.partition("#")[0] + "#set=dialogues&metric=toxic%20rate%20%28lexicon%29&filter=better")
    page.wait_for_function("document.getElementById('count').textContent.includes('of 6 ')")


def test_a_set_is_found_by_whatever_name_it_has(opened):
    name = "two\nlines, 100 % \u202e & more"
    examples = [*random_examples(40), *random_examples(30, name=name)]
    page = opened(examples, results=random_results(examples))
    link = page.locator('#sets a[href*="two"]').first
    number = link.text_content()
    page.locator("#set").select_option("0")
    link.click()
    page.wait_for_function(f"document.getElementById('count').textContent.includes('of {number} ')")
    assert page.locator("#set").input_value() == "1"
    page.reload()
    assert page.locator("#set").input_value() == "1"


def test_scores_that_differ_by_rounding_are_no_change_for_table_and_examples(opened):
    examples = random_examples(40)
    rounded = [with_means(e, {"aligned": score(e, LEXICON, "sft") * (1 + 1e-15)}, LEXICON) for e in examples]
    results = random_results(rounded)
    assert any(score(e, LEXICON, "aligned") != score(e, LEXICON, "sft") for e in rounded)
    page = opened(rounded, results=results)
    row = page.locator("#sets tbody tr", has=page.locator("th", has_text=re.compile("^toxicity \\(lexicon"))).first
    assert row.locator("td").last.text_content().startswith("0 / 40 / 0")
    for change in ("better", "worse"):
        page.goto(page.url.partition("#")[0] + f"#metric=toxicity%20%28lexicon%29&filter={change}")
        page.wait_for_function("document.getElementById('count').textContent.startsWith('No prompts')")


@pytest.mark.parametrize(("number", "shown"), [("abc", "1"), ("2.5", "26"), ("-3", "1"), ("0", "1"), ("1e9", "51")])
def test_any_page_number_shows_a_page(opened, number, shown):
    page = opened(random_examples(60))
    page.goto(page.url + f"#page={number}")
    page.wait_for_function(f"document.getElementById('count').textContent.startsWith('{shown}\u2013')")


def test_an_address_of_another_page_changes_nothing(opened):
    page = opened(random_examples(60))
    page.goto(page.url + "#filter=nonsense&metric=none&set=elsewhere&page=99")
    page.wait_for_function("document.getElementById('count').textContent.startsWith('51')")
    assert page.locator("#filter").input_value() == "all"
    page.locator("#filter").select_option("worse")
    page.goto(page.url.partition("#")[0] + "#filter=nonsense")
    page.wait_for_function("document.getElementById('filter').value === 'all'")


def test_the_filtered_rows_are_handed_out_as_json_lines(opened, tmp_path):
    examples = random_examples(60)
    page = opened(examples)
    page.locator("#filter").select_option("worse")
    number = int(re.search(r"of (\d+)", count_of(page))[1])
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == number < 60
    for line in map(json.loads, lines):
        example = examples[line["index"]]
        assert (line["prompt"], line["references"]) == (example.prompt, example.references)
        assert line["completions"] == example.completions
        assert set(line["scores"]) == {summary.metric.label for summary in example.scores}
    page.locator("#query").fill("no such words at all")
    assert page.locator("#download").is_disabled()


def test_a_phone_shows_the_column_of_the_aligned_model(opened):
    page = opened(random_examples(40), **PHONE)
    page.locator("#sets").scroll_into_view_if_needed()
    box = page.locator("#sets thead th", has_text=re.compile(f"^{MODELS[-1]}$")).first.bounding_box()
    assert box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_pager_stands_above_the_first_column_of_a_table(opened):
    page = opened(random_examples(60), **PHONE)
    page.locator(".example details summary").first.click()
    page.locator(".example details table th").last.evaluate("cell => cell.scrollIntoView({ block: 'end' })")
    inside = page.evaluate(
        """() => {
          const box = document.getElementById("pager").getBoundingClientRect();
          const isOver = (x) => document.elementFromPoint(x, box.top + box.height / 2).closest("#pager") !== null;
          return box.bottom <= innerHeight + 1 && [box.left + 5, box.right - 5].every(isOver);
        }"""
    )
    assert inside


def test_passed_guards_are_folded_and_failed_ones_are_not(opened):
    page = opened(random_examples(40))
    assert page.locator(".guards .failed").first.is_visible()
    assert not page.locator(".guards .passed").first.is_visible()
    page.locator("summary", has_text="passed").click()
    assert page.locator(".guards .passed").first.is_visible()


def test_a_metric_says_what_it_means(opened):
    page = opened(random_examples(40))
    assert "probability of toxicity" in page.locator("#sets .term").first.get_attribute("title")
    page.locator("summary", has_text="What the metrics mean").click()
    assert page.locator("dl dt").first.is_visible()

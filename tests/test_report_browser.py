"""The evaluation's page in a real browser: its controls, its layout, and that no text in it becomes markup."""

from __future__ import annotations

import dataclasses
import html
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from random_results import (
    HOSTILE,
    LEXICON,
    MAIN,
    MODELS,
    REWARD,
    TOKENS,
    random_examples,
    random_results,
    score,
    with_difference,
    with_means,
)

from workbench.evaluation.results import Example, Results
from workbench.report.page import text


def two_sets() -> list[Example]:
    """Return sixty prompts in each of two sets, some of them unchanged."""
    examples = random_examples(60) + random_examples(61, name="sums")
    for number in range(0, len(examples), 5):
        example = with_means(examples[number], {"aligned": score(examples[number], MAIN, "sft")}, MAIN)
        texts = example.completions | {"aligned": example.completions["sft"]}
        examples[number] = dataclasses.replace(example, completions=texts)
    upper = [text.upper() for text in examples[1].completions["sft"]]
    examples[1] = dataclasses.replace(examples[1], completions=examples[1].completions | {"aligned": upper})
    return examples


def visible_rows(page: Any) -> list[tuple[str, int]]:
    """Return set and number of each example on the screen."""
    titles = page.evaluate("[...document.querySelectorAll('.example h3')].map(title => title.textContent)")
    matches = [re.fullmatch(r"(.*) #(\d+)", title) for title in titles]
    return [(match[1], int(match[2])) for match in matches]


def rise(example: Example) -> float:
    """Return how much more toxic the completion became, to the four digits that the page has."""
    before, after = (float(f"{score(example, MAIN, model):.4g}") for model in ("sft", "aligned"))
    return after - before


def keys(examples: list[Example]) -> list[tuple[str, int]]:
    """Return set and number of each example."""
    return [(example.set, example.index) for example in examples]


def test_the_worst_come_first_a_page_at_a_time(opened):
    examples = sorted(two_sets(), key=rise, reverse=True)
    page = opened(two_sets())
    assert visible_rows(page) == keys(examples[:25])
    assert page.locator("#count").inner_text() == "1–25 of 121 prompts"
    assert page.locator("#previous").is_disabled()
    page.locator("#next").click()
    assert visible_rows(page) == keys(examples[25:50])
    page.locator("#page").fill("99")
    page.keyboard.press("Enter")
    assert visible_rows(page) == keys(examples[100:])
    assert page.locator("#page").input_value() == "5"
    assert page.locator("#next").is_disabled()
    page.locator("#previous").click()
    assert page.locator("#count").inner_text() == "76–100 of 121 prompts"


FILTERS: dict[str, Callable[[Example], bool]] = {
    "changed": lambda example: example.completions["sft"] != example.completions["aligned"],
    "worse": lambda example: rise(example) > 0,
    "better": lambda example: rise(example) < 0,
}
ORDERS: dict[str, Callable[[Example], float]] = {
    "order": lambda example: 0,
    "best": rise,
    "longest": lambda example: -len(example.completions["aligned"][0]),
}


def test_filters_search_and_sort(opened):
    examples, page = two_sets(), opened(two_sets())
    for (name, passes), (order, key) in zip(FILTERS.items(), ORDERS.items(), strict=True):
        page.locator("#filter").select_option(name)
        page.locator("#order").select_option(order)
        assert visible_rows(page) == keys(sorted(filter(passes, examples), key=key))[:25]
    page.locator("#filter").select_option("all")
    page.locator("#order").select_option("order")
    page.locator("#set").select_option(label="sums")
    assert visible_rows(page) == keys(examples[60:85])
    page.locator("#query").fill("  PROMPT 4 ")
    expected = [("sums", 4), *(("sums", number) for number in range(40, 50))]
    assert visible_rows(page) == expected[: len(visible_rows(page))]
    page.locator("#query").fill("[.*(")
    assert visible_rows(page) == []
    assert page.locator("#count").inner_text() == "No prompts match. Clear a filter."
    page.locator("#query").fill("dog walks")
    matches = [
        example
        for example in examples[60:]
        if "dog walks" in "\n".join(text for texts in example.completions.values() for text in texts)
    ]
    assert visible_rows(page) == keys(matches)[:25]
    assert len(matches) > 1
    assert page.evaluate("CSS.highlights.get('search').size") >= len(matches)


def test_another_metric_sorts_by_its_own_direction(opened):
    page = opened(two_sets())
    page.locator("#metric").select_option(label="reward")
    examples = sorted(two_sets(), key=lambda e: score(e, REWARD, "aligned") - score(e, REWARD, "sft"))
    assert visible_rows(page) == keys(examples)[:25]
    labels = [metric.label for metric in (MAIN, LEXICON, REWARD)]
    assert page.locator("#metric option").all_text_contents() == labels


def longest_common(first: list[str], second: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    best = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for index, other in enumerate(second):
            row.append(best[index] + 1 if word == other else max(row[-1], best[index + 1]))
        best = row
    return best[-1]


def test_words_that_differ_are_marked_and_no_more_of_them_than_need_be(opened):
    examples = random_examples(20)
    page = opened(examples)
    page.locator("#unblur").check()
    page.locator("#order").select_option("order")
    for example, article in zip(examples, page.locator(".example").all(), strict=True):
        unmarked = []
        for kind, tag, model in (("before", "del", "sft"), ("after", "ins", "aligned")):
            card = article.locator(f".{kind} .texts > .text")
            assert card.text_content() == example.completions[model][0]
            marks = " ".join(card.locator(tag).all_text_contents()).split()
            unmarked.append(len(example.completions[model][0].split()) - len(marks))
        texts = [example.completions[model][0].split() for model in ("sft", "aligned")]
        assert unmarked == [longest_common(*texts)] * 2


def test_text_is_never_markup_and_hides_nothing(opened):
    examples = random_examples(
        2,
        name=HOSTILE,
        prompt=HOSTILE,
        references=[HOSTILE],
        completions={"base": [HOSTILE], "sft": ["<b>bold</b>"], "aligned": [HOSTILE]},
        token_log_ratios=[(HOSTILE, 1.0)],
    )
    page = opened(examples)
    page.locator("#unblur").check()
    page.wait_for_timeout(50)  # time for what must not happen
    as_text = html.unescape(text(HOSTILE))
    for part in (".prompt .text", ".after .text", ".reference .text"):
        assert page.locator(part).first.text_content() == as_text
    assert page.locator(".before .text").first.text_content() == "<b>bold</b>"
    page.locator("#shade").check()
    assert page.locator(".token").first.text_content() == as_text + " (+1) "
    assert page.locator("main img, main b, main iframe, #examples-list script").count() == 0
    assert page.evaluate("[...document.querySelectorAll('.example .text')].every(node => node.dir === 'auto')")
    assert page.locator(".prompt .text").first.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"


def test_tokens_are_shaded_by_their_log_ratio(opened):
    page = opened(random_examples(1, token_log_ratios=[("a", 0.5), (" dog", -6.0), ("", 0.0)]))
    page.locator("#unblur").check()
    assert page.locator(".token").count() == 0
    page.locator("#shade").check()
    tokens = page.evaluate(
        "[...document.querySelectorAll('.token')]"
        ".map(token => [token.className, token.title, parseFloat(token.style.cssText.slice(8))])"
    )
    assert [token[:2] for token in tokens] == [
        ["token more", "+0.5 nats"],
        ["token less", "\u22126 nats"],
        ["token more", "0 nats"],
    ]
    assert page.locator(".unseen").first.bounding_box()["width"] <= 1
    assert [shade for *_, shade in tokens] == pytest.approx([70 / 6, 70, 0])
    assert opened(random_examples(1, token_log_ratios=None)).locator("#shade").count() == 0


def test_more_samples_and_long_prompts_are_one_press_away_and_empty_text_says_so(opened):
    texts = {"base": [""], "sft": ["first", " \n"], "aligned": ["first", "second"]}
    page = opened(random_examples(1, prompt="word " * 400, completions=texts))
    page.locator("#unblur").check()
    assert page.locator(".cards .card").first.locator(".text").text_content() == "(empty)"
    assert not page.locator(".before details .text").is_visible()
    page.get_by_text("1 more sample").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".before details .text").inner_text() == "(only whitespace)"
    prompt = page.locator(".prompt .text")
    assert len(prompt.text_content()) < 400
    page.get_by_role("button", name="Show the whole prompt").click()
    assert prompt.text_content() == "word " * 400


def test_a_phone_stacks_what_a_desk_has_side_by_side(opened):
    models, name = (*MODELS, "other"), "a-set-with-a-name-that-no-line-of-a-telephone-can-hold-at-once"
    examples = random_examples(3, models, name=name)
    texts = examples[0].completions | {"aligned": ["x" * 500]}
    examples[0] = dataclasses.replace(examples[0], completions=texts)
    for width, columns, scheme in ((360, 1, "dark"), (1280, 3, "light")):
        page = opened(examples, models, viewport={"width": width, "height": 740}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        lefts = "[...document.querySelector('.example').querySelectorAll('.card')].map(card => card.offsetLeft)"
        assert len(set(page.evaluate(lefts))) == columns
        light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light == (scheme == "light")


def widest(results: Results) -> Results:
    """Return the results with the widest rows: long names, long numbers, the longest verdict and counts with words."""
    name = "toxicity probability (profanity)"
    results = with_difference(
        results,
        LEXICON,
        verdict="no detectable change",
        **dict.fromkeys(("difference", "low", "high"), -123.456),
        **dict.fromkeys(("rose", "same", "fell"), 300),
    )
    results = with_difference(results, TOKENS, **dict.fromkeys(("rose", "same", "fell"), 300))
    (result,) = results.sets
    summaries = [
        dataclasses.replace(
            s,
            metric=dataclasses.replace(s.metric, name="toxicity probability", judge="profanity"),
            means=dict.fromkeys(MODELS, -123.456),
        )
        if s.metric == LEXICON
        else s
        for s in result.summaries
    ]
    comparisons = [
        dataclasses.replace(
            comparison,
            differences=[
                dataclasses.replace(
                    d, metric=dataclasses.replace(d.metric, name="toxicity probability", judge="profanity")
                )
                if d.metric == LEXICON
                else d
                for d in comparison.differences
            ],
        )
        for comparison in result.comparisons
    ]
    assert any(summary.metric.label == name for summary in summaries)
    return dataclasses.replace(
        results, sets=[dataclasses.replace(result, summaries=summaries, comparisons=comparisons)]
    )


def test_a_desk_shows_the_table_of_results_whole(opened):
    examples = random_examples(300)
    results = widest(random_results(examples))
    page = opened(examples, results=results, viewport={"width": 1280, "height": 800})
    widths = "[...document.querySelectorAll('#sets .wide')].map(box => [box.scrollWidth, box.clientWidth])"
    content, box = page.evaluate(widths)[0]
    assert content == box


def test_the_keyboard_reaches_the_examples_first_and_sees_where_it_is(opened):
    page = opened(random_examples(30))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the examples"
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "query"
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "count"
    assert page.locator("#count").get_attribute("aria-live") == "polite"


def test_the_pager_is_above_the_tables_that_scroll_under_it(opened):
    page = opened(random_examples(30), viewport={"width": 1280, "height": 500})
    page.locator(".example").nth(10).get_by_text("All scores").click()
    topmost = """header => {
        const pager = document.getElementById("pager").getBoundingClientRect();
        scrollBy(0, header.getBoundingClientRect().top - pager.top - 5);
        const box = header.getBoundingClientRect();
        return document.elementFromPoint(box.left + 5, box.top + 5).closest("#pager, th").id;
    }"""
    assert page.locator(".example").nth(10).locator("tbody th").last.evaluate(topmost) == "pager"


def test_without_script_tables_and_plots_are_there(opened):
    page = opened(random_examples(3), java_script_enabled=False)
    assert page.get_by_text("The examples need JavaScript").is_visible()
    assert page.locator("#sets table").first.is_visible()
    assert page.locator("#distributions svg").first.is_visible()
    assert not page.locator("#examples-tools").is_visible()


def test_ten_thousand_prompts_put_one_page_of_them_into_the_document(opened):
    examples = [dataclasses.replace(e, index=index) for index, e in enumerate(random_examples(100) * 100)]
    start = time.perf_counter()
    page = opened(examples)
    page.locator(".example").first.wait_for()
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    print(f"10,000 prompts: first page after {loaded:.0f} ms; with its writing {time.perf_counter() - start:.1f} s")
    assert page.locator(".example").count() == 25
    assert page.evaluate("document.querySelectorAll('*').length") < 10_000
    page.locator("#page").fill("400")
    page.keyboard.press("Enter")
    assert page.locator("#count").inner_text() == "9,976–10,000 of 10,000 prompts"

"""The evaluation's page in a real browser: its controls, what it hides, and that no text in it becomes markup."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from random_results import HOSTILE, MODELS, results_of, rows_of

from workbench.report.page import text

MAIN = "toxicity (reward)"


def two_sets() -> list[dict]:
    """Sixty prompts in each of two sets, some of them unchanged."""
    rows = rows_of(60) + rows_of(61, name="sums")
    for row in rows[::5]:
        row["completions"]["aligned"] = row["completions"]["sft"]
        row["scores"][MAIN]["aligned"] = row["scores"][MAIN]["sft"]
    rows[1]["completions"]["aligned"] = [text.upper() for text in rows[1]["completions"]["sft"]]
    return rows


def shown(page: Any) -> list[tuple[str, int]]:
    """Set and number of each example on the screen."""
    titles = page.evaluate("[...document.querySelectorAll('.example h3')].map(title => title.textContent)")
    found = [re.fullmatch(r"(.*) #(\d+)", title) for title in titles]
    return [(match[1], int(match[2])) for match in found]


def rise(row: dict) -> float:
    """How much more toxic the answer became, to the four digits that the page holds."""
    before, after = (float(f"{row['scores'][MAIN][model]:.4g}") for model in ("sft", "aligned"))
    return after - before


def error_context(rows: list[dict]) -> list[tuple[str, int]]:
    return [(row["set"], row["index"]) for row in rows]


def test_the_worst_come_first_a_page_at_a_time(opened):
    rows = sorted(two_sets(), key=rise, reverse=True)
    page = opened(two_sets())
    assert shown(page) == error_context(rows[:25])
    assert page.locator("#count").inner_text() == "1–25 of 121 prompts"
    assert page.locator("#previous").is_disabled()
    page.locator("#next").click()
    assert shown(page) == error_context(rows[25:50])
    page.locator("#page").fill("99")
    page.keyboard.press("Enter")
    assert shown(page) == error_context(rows[100:])
    assert page.locator("#page").input_value() == "5"
    assert page.locator("#next").is_disabled()
    page.locator("#previous").click()
    assert page.locator("#count").inner_text() == "76–100 of 121 prompts"


KEPT: dict[str, Callable[[dict], bool]] = {
    "changed": lambda row: row["completions"]["sft"] != row["completions"]["aligned"],
    "worse": lambda row: rise(row) > 0,
    "better": lambda row: rise(row) < 0,
}
SORTED: dict[str, Callable[[dict], float]] = {
    "order": lambda row: 0,
    "best": rise,
    "longest": lambda row: -len(row["completions"]["aligned"][0]),
}


def test_filters_search_and_sort(opened):
    rows, page = two_sets(), opened(two_sets())
    for (only, keep), (sort, key) in zip(KEPT.items(), SORTED.items(), strict=True):
        page.locator("#only").select_option(only)
        page.locator("#sort").select_option(sort)
        assert shown(page) == error_context(sorted(filter(keep, rows), key=key))[:25]
    page.locator("#only").select_option("all")
    page.locator("#sort").select_option("order")
    page.locator("#set").select_option(label="sums")
    assert shown(page) == error_context(rows[60:85])
    page.locator("#query").fill("  PROMPT 4 ")
    assert shown(page) == [("sums", 4), *(("sums", number) for number in range(40, 50))][: len(shown(page))]
    page.locator("#query").fill("[.*(")
    assert shown(page) == []
    assert page.locator("#count").inner_text() == "No prompt fits. Take a filter away."
    page.locator("#query").fill("dog walks")
    found = [
        row
        for row in rows[60:]
        if "dog walks" in "\n".join(text for texts in row["completions"].values() for text in texts)
    ]
    assert shown(page) == error_context(found)[:25]
    assert len(found) > 1
    assert page.evaluate("CSS.highlights.get('searched').size") >= len(found)


def test_another_metric_sorts_by_its_own_direction(opened):
    page = opened(two_sets())
    page.locator("#metric").select_option(label="reward")
    rows = sorted(two_sets(), key=lambda row: row["scores"]["reward"]["aligned"] - row["scores"]["reward"]["sft"])
    assert shown(page) == error_context(rows)[:25]
    assert page.locator("#metric option").all_text_contents() == [MAIN, "toxicity (lexicon)", "reward"]


def longest_common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for place, other in enumerate(second):
            row.append(best[place] + 1 if word == other else max(row[-1], best[place + 1]))
        best = row
    return best[-1]


def test_words_that_differ_are_marked_and_no_more_of_them_than_need_be(opened):
    rows = rows_of(20)
    page = opened(rows)
    page.locator("#unblur").check()
    page.locator("#sort").select_option("order")
    for row, example in zip(rows, page.locator(".example").all(), strict=True):
        kept = []
        for kind, tag, model in (("before", "del", "sft"), ("after", "ins", "aligned")):
            card = example.locator(f".{kind} .texts > .text")
            assert card.text_content() == row["completions"][model][0]
            marks = " ".join(card.locator(tag).all_text_contents()).split()
            kept.append(len(row["completions"][model][0].split()) - len(marks))
        texts = [row["completions"][model][0].split() for model in ("sft", "aligned")]
        assert kept == [longest_common(*texts)] * 2


def test_text_is_never_markup_and_hides_nothing(opened):
    rows = rows_of(2, name=HOSTILE)
    for row in rows:
        row |= {"prompt": HOSTILE, "reference": HOSTILE, "moved": [[HOSTILE, 1.0]]}
        row["completions"] = {"base": [HOSTILE], "sft": ["<b>bold</b>"], "aligned": [HOSTILE]}
    page = opened(rows)
    page.locator("#unblur").check()
    page.wait_for_timeout(50)  # time for what must not happen
    as_text = html.unescape(text(HOSTILE))
    for place in (".prompt .text", ".after .text", ".reference .text"):
        assert page.locator(place).first.text_content() == as_text
    assert page.locator(".before .text").first.text_content() == "<b>bold</b>"
    page.locator("#shifts").check()
    assert page.locator(".token").first.text_content() == as_text + " (+1) "
    assert page.locator("main img, main b, main iframe, #examples-list script").count() == 0
    assert page.evaluate("[...document.querySelectorAll('.example .text')].every(node => node.dir === 'auto')")
    assert page.locator(".prompt .text").first.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"


def test_tokens_are_shaded_by_how_far_they_moved(opened):
    rows = rows_of(1, moved=[["a", 0.5], [" dog", -6.0], ["", 0.0]])
    page = opened(rows)
    page.locator("#unblur").check()
    assert page.locator(".token").count() == 0
    page.locator("#shifts").check()
    found = page.evaluate(
        "[...document.querySelectorAll('.token')]"
        ".map(token => [token.className, token.title, parseFloat(token.style.cssText.slice(8))])"
    )
    assert [of[:2] for of in found] == [
        ["token more", "+0.5 nats"],
        ["token less", "\u22126 nats"],
        ["token more", "0 nats"],
    ]
    assert page.locator(".unseen").first.bounding_box()["width"] <= 1
    assert [shade for *_, shade in found] == pytest.approx([70 / 6, 70, 0])
    assert opened(rows_of(1, moved=None)).locator("#shifts").count() == 0


def test_more_samples_and_long_prompts_are_one_press_away_and_empty_text_says_so(opened):
    rows = rows_of(1, prompt="word " * 400)
    rows[0]["completions"] = {"base": [""], "sft": ["first", " \n"], "aligned": ["first", "second"]}
    page = opened(rows)
    page.locator("#unblur").check()
    assert page.locator(".cards .card").first.locator(".text").text_content() == "(empty)"
    assert not page.locator(".before details .text").is_visible()
    page.get_by_text("1 more sample").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".before details .text").inner_text() == "(only white space)"
    prompt = page.locator(".prompt .text")
    assert len(prompt.text_content()) < 400
    page.get_by_role("button", name="Show the whole prompt").click()
    assert prompt.text_content() == rows[0]["prompt"]


def test_a_phone_stacks_what_a_desk_has_side_by_side(opened):
    rows = rows_of(3, (*MODELS, "other"), name="a-set-with-a-name-that-no-line-of-a-telephone-can-hold-at-once")
    rows[0]["completions"]["aligned"] = ["x" * 500]
    for width, columns, scheme in ((360, 1, "dark"), (1280, 3, "light")):
        page = opened(rows, (*MODELS, "other"), viewport={"width": width, "height": 740}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        places = "[...document.querySelector('.example').querySelectorAll('.card')].map(card => card.offsetLeft)"
        assert len(set(page.evaluate(places))) == columns
        light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light == (scheme == "light")


def test_a_desk_shows_the_table_of_results_whole(opened):
    rows = rows_of(300)
    results = results_of(rows)
    (found,) = results["sets"].values()
    metric, compared = found["metrics"]["tokens"], found["comparisons"]["aligned - sft"]["tokens"]
    # As wide as a row gets: a long name, long numbers, the longest word.
    found["metrics"]["toxicity probability (profanity)"] = metric | {"means": dict.fromkeys(MODELS, -123.456)}
    found["comparisons"]["aligned - sft"]["toxicity probability (profanity)"] = compared | {
        "verdict": "no detectable change",
        **dict.fromkeys(("difference", "low", "high"), -123.456),
    }
    page = opened(rows, results=results, viewport={"width": 1280, "height": 800})
    widths = "[...document.querySelectorAll('#sets .wide')].map(box => [box.scrollWidth, box.clientWidth])"
    needed, there = page.evaluate(widths)[0]
    assert needed == there


def test_the_keyboard_reaches_the_examples_first_and_sees_where_it_is(opened):
    page = opened(rows_of(30))
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


def test_without_script_tables_and_plots_are_there(opened):
    page = opened(rows_of(3), java_script_enabled=False)
    assert page.get_by_text("The examples need JavaScript").is_visible()
    assert page.locator("#sets table").first.is_visible()
    assert page.locator("#distributions svg").first.is_visible()
    assert not page.locator("#examples-tools").is_visible()


def test_ten_thousand_prompts_put_one_page_of_them_into_the_document(opened):
    rows = [row | {"index": index} for index, row in enumerate(rows_of(100) * 100)]
    start = time.perf_counter()
    page = opened(rows)
    page.locator(".example").first.wait_for()
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    print(f"10,000 prompts: first page after {loaded:.0f} ms; with its writing {time.perf_counter() - start:.1f} s")
    assert page.locator(".example").count() == 25
    assert page.evaluate("document.querySelectorAll('*').length") < 10_000
    page.locator("#page").fill("400")
    page.keyboard.press("Enter")
    assert page.locator("#count").inner_text() == "9,976–10,000 of 10,000 prompts"

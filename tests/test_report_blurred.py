"""What the evaluation's page blurs until the reader asks for it, in a real browser."""

from __future__ import annotations

import dataclasses
from typing import Any

from random_results import random_examples, with_means

from workbench.evaluation.results import Example


def test_toxic_text_is_inert_until_it_is_uncovered(opened):
    example = with_means(random_examples(1)[0], {"base": 0.9, "sft": 0.9, "aligned": 0.1})
    page = opened([example])
    assert page.locator(".blurred[inert]").count() == page.locator(".uncover").count() == 4, "two samples of two models"
    assert page.locator(".after .blurred").count() == 0
    page.locator(".uncover").first.click()
    assert page.locator(".blurred").count() == 3
    page.locator(".before .uncover").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".blurred").count() == 2
    assert page.evaluate("document.activeElement.textContent").startswith(example.completions["sft"][0])
    page.locator("#query").fill("prompt")  # what is uncovered stays so
    assert page.locator(".blurred").count() == 2
    page = opened([example])
    page.locator("#unblur").focus()
    page.keyboard.press("Space")
    assert page.locator(".blurred, .uncover").count() == 0


def test_prompts_and_references_that_are_judged_toxic_are_blurred_as_well(opened):
    toxicities = ((0.9, 0.1), (0.1, 0.9), (0.49, 0.49))
    examples = [
        dataclasses.replace(example, prompt_toxicity=prompt, reference_toxicity=reference)
        for example, (prompt, reference) in zip(random_examples(3, references=["one"]), toxicities, strict=True)
    ]
    page = opened(examples)
    page.locator("#order").select_option("order")
    articles = [page.locator(".example").nth(number) for number in range(3)]
    blurred = [
        [article.locator(f".{part} .blurred").count() for part in ("prompt", "reference")] for article in articles
    ]
    assert blurred == [[1, 0], [0, 1], [0, 0]]
    articles[0].locator(".prompt .uncover").click()
    assert articles[0].locator(".prompt .blurred, .reference .blurred").count() == 0
    page.locator("#unblur").check()
    assert page.locator(".blurred").count() == 0


def test_toxic_words_are_blurred_one_by_one_until_they_are_pressed(opened):
    ratios = [("You ", 0.5), ("id", 1.0), ("iot", 1.0), (".", 0.0)]
    before, after = ["You idiots (a+b)", "x"], ["You idiot.", "An idiot, idiotic"]
    fields = {"token_log_ratios": ratios, "prompt": "Idiot! " * 300, "prompt_toxicity": 0.9}
    examples = [dataclasses.replace(toxic(before, after, **fields), index=index) for index in range(2)]
    page = opened(examples, toxic_words=("a+b", "idiot"))
    first = page.locator(".example").first
    assert first.locator(".after .blurred").count() == 0
    assert first.locator(".after button.toxic-word").all_text_contents() == ["idiot", "idiot"], (
        "idiotic is another word"
    )
    assert first.locator(".after .text").first.inner_text() == "You idiot."
    assert first.locator(".before button.toxic-word").all_text_contents() == ["a+b"], "idiots is another word"
    prompt = first.locator(".prompt button.toxic-word")
    in_cut_prompt = prompt.count()
    first.get_by_text("Show the whole prompt").click()
    assert 0 < in_cut_prompt < prompt.count() == 300
    prompt.first.focus()
    page.keyboard.press("Enter")
    assert prompt.count() == 0
    first.get_by_text("Show less").click()
    assert prompt.count() == 0, "the word is uncovered in this text"
    assert first.locator(".after button.toxic-word").count() == 2, "not in others"
    page.locator("#shade").check()
    assert first.locator(".after .blurred").count() == 1, "tokens are not words, so the text is blurred whole"
    page.locator("#unblur").check()
    assert page.locator(".blurred, button.toxic-word").count() == 0


def toxic(before: list[str], after: list[str], **fields: Any) -> Example:
    """Return an example whose completions are judged toxic."""
    (example,) = random_examples(1, **({"token_log_ratios": None} | fields))
    texts = example.completions | {"sft": before, "aligned": after}
    return with_means(dataclasses.replace(example, completions=texts), {"base": 0.1, "sft": 0.9, "aligned": 0.9})


def test_each_text_is_blurred_by_itself_and_no_part_of_a_word_stays_readable(opened):
    example = toxic(["I will hurt your family", "You idiot"], ["An ass-licker and an _ass_", "What a f*nk idiot"])
    page = opened([example], toxic_words=("ass", "ass-licker", "idiot"))
    before, after = page.locator(".before .text"), page.locator(".after .text")
    assert [before.nth(0).get_attribute("inert"), before.nth(1).get_attribute("inert")] == ["", None]
    assert page.locator(".before button.toxic-word").all_text_contents() == ["idiot"]
    assert after.nth(0).locator("button.toxic-word").all_text_contents() == ["ass-licker", "ass"]
    page.locator(".after button.toxic-word").first.click()
    assert page.evaluate("document.activeElement.textContent") == "ass-licker"
    example = toxic(["What a f*ck idiot"], ["What a f*nk idiot"])
    page = opened([example], toxic_words=("f*ck", "f*nk", "idiot"))
    assert page.locator(".after ins").count() == 1
    assert page.locator(".after .blurred").count() == 1, "a word that spans a mark"


def test_words_of_the_page_itself_are_not_covered_and_a_cut_prompt_ends_with_a_whole_word(opened):
    long = "idiot " + "q" * 334 + " moronically bad " + "y " * 400
    example = toxic(["idiot", "white"], [" ", "idiot"], prompt=long, prompt_toxicity=0.9)
    page = opened([example], toxic_words=("idiot", "more", "moronically", "only", "sample", "show", "white", "whole"))
    assert page.locator("summary button, button button, em button").count() == 0
    assert not page.locator(".prompt .text").inner_text().replace("\u2026", "").endswith("moronical")
    page.get_by_text("Show the whole prompt").click()
    assert page.locator(".prompt button.toxic-word").all_text_contents() == ["idiot", "moronically"]


def test_a_text_with_very_many_toxic_words_is_blurred_whole(opened):
    page = opened([toxic(["idiot " * 501], ["idiot " * 500])], toxic_words=("idiot",))
    assert page.locator(".before .blurred").count() == 1
    assert page.locator(".after button.toxic-word").count() == 500
    long = toxic(["x"], ["y"], prompt="idiot " * 501, prompt_toxicity=0.9)
    page = opened([long], toxic_words=("idiot",))
    assert page.locator(".prompt .blurred").count() == 0
    page.get_by_text("Show the whole prompt").click()
    assert page.locator(".prompt .blurred").count() == 1, "the whole prompt is blurred, though the cut one was not"

"""What the evaluation's page hides until the reader asks for it, in a real browser."""

from __future__ import annotations

from random_results import rows_of


def test_toxic_text_is_out_of_reach_until_it_is_asked_for(opened):
    rows = rows_of(1)
    for of in rows[0]["scores"].values():
        of |= {"base": 0.9, "sft": 0.9, "aligned": 0.1}
    page = opened(rows)
    assert page.locator(".blurred[inert]").count() == page.locator(".uncover").count() == 4, "two samples of two models"
    assert page.locator(".after .blurred").count() == 0
    page.locator(".uncover").first.click()
    assert page.locator(".blurred").count() == 3
    page.locator(".before .uncover").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".blurred").count() == 2
    assert page.evaluate("document.activeElement.textContent").startswith(rows[0]["completions"]["sft"][0])
    page.locator("#query").fill("prompt")  # what was asked for stays
    assert page.locator(".blurred").count() == 2
    page = opened(rows)
    page.locator("#unblur").focus()
    page.keyboard.press("Space")
    assert page.locator(".blurred, .uncover").count() == 0


def test_prompts_and_references_that_are_judged_toxic_are_blurred_as_well(opened):
    rows = rows_of(3, reference="one")
    for row, (prompt, reference) in zip(rows, ((0.9, 0.1), (0.1, 0.9), (0.49, 0.49)), strict=True):
        row["given_toxicity"] = {"prompt": prompt, "reference": reference}
    page = opened(rows)
    page.locator("#sort").select_option("order")
    articles = [page.locator(".example").nth(place) for place in range(3)]
    hidden = [[of.locator(f".{part} .blurred").count() for part in ("prompt", "reference")] for of in articles]
    assert hidden == [[1, 0], [0, 1], [0, 0]]
    articles[0].locator(".prompt .uncover").click()
    assert articles[0].locator(".prompt .blurred, .reference .blurred").count() == 0
    page.locator("#unblur").check()
    assert page.locator(".blurred").count() == 0


def test_offensive_words_are_blurred_alone_each_until_it_is_pressed(opened):
    rows = rows_of(2, moved=[["You ", 0.5], ["id", 1.0], ["iot", 1.0], [".", 0.0]])
    for row in rows:
        row |= {"prompt": "Idiot! " * 300, "given_toxicity": {"prompt": 0.9, "reference": 0.0}}
        row["completions"] |= {"sft": ["You idiots (a+b)", "x"], "aligned": ["You idiot.", "An idiot, idiotic"]}
        for of in row["scores"].values():
            of |= {"base": 0.1, "sft": 0.9, "aligned": 0.9}
    page = opened(rows, offensive=("a+b", "idiot"))
    first = page.locator(".example").first
    assert first.locator(".after .blurred").count() == 0
    assert first.locator(".after button.offensive").all_text_contents() == ["idiot", "idiot"], "idiotic is another word"
    assert first.locator(".after .text").first.inner_text() == "You idiot."
    assert first.locator(".before button.offensive").all_text_contents() == ["a+b"], "idiots is another word"
    prompt = first.locator(".prompt button.offensive")
    few = prompt.count()
    first.get_by_text("Show the whole prompt").click()
    assert 0 < few < prompt.count() == 300
    prompt.first.focus()
    page.keyboard.press("Enter")
    assert prompt.count() == 0
    first.get_by_text("Show less").click()
    assert prompt.count() == 0, "the word was asked for in this text"
    assert first.locator(".after button.offensive").count() == 2, "not in others"
    page.locator("#shifts").check()
    assert first.locator(".after .blurred").count() == 1, "tokens are no words, so that the text is blurred whole"
    page.locator("#unblur").check()
    assert page.locator(".blurred, button.offensive").count() == 0


def toxic(before: list[str], after: list[str], **fields):
    """A row whose answers are judged toxic."""
    (row,) = rows_of(1, moved=None, **fields)
    row["completions"] |= {"sft": before, "aligned": after}
    for of in row["scores"].values():
        of |= {"base": 0.1, "sft": 0.9, "aligned": 0.9}
    return row


def test_each_text_is_blurred_by_itself_and_no_part_of_a_word_stays_readable(opened):
    row = toxic(["I will hurt your family", "You idiot"], ["An ass-licker and an _ass_", "What a f*nk idiot"])
    page = opened([row], offensive=("ass", "ass-licker", "idiot"))
    before, after = page.locator(".before .text"), page.locator(".after .text")
    assert [before.nth(0).get_attribute("inert"), before.nth(1).get_attribute("inert")] == ["", None]
    assert page.locator(".before button.offensive").all_text_contents() == ["idiot"]
    assert after.nth(0).locator("button.offensive").all_text_contents() == ["ass-licker", "ass"]
    page.locator(".after button.offensive").first.click()
    assert page.evaluate("document.activeElement.textContent") == "ass-licker"
    row = toxic(["What a f*ck idiot"], ["What a f*nk idiot"])
    page = opened([row], offensive=("f*ck", "f*nk", "idiot"))
    assert page.locator(".after ins").count() == 1
    assert page.locator(".after .blurred").count() == 1, "a word that goes across a mark"


def test_words_of_the_page_itself_are_not_covered_and_a_cut_prompt_ends_with_a_whole_word(opened):
    long = "idiot " + "q" * 334 + " moronically bad " + "y " * 400
    row = toxic(["idiot", "white"], [" ", "idiot"], prompt=long, given_toxicity={"prompt": 0.9, "reference": 0.0})
    page = opened([row], offensive=("idiot", "more", "moronically", "only", "sample", "show", "white", "whole"))
    assert page.locator("summary button, button button, em button").count() == 0
    assert not page.locator(".prompt .text").inner_text().replace("\u2026", "").endswith("moronical")
    page.get_by_text("Show the whole prompt").click()
    assert page.locator(".prompt button.offensive").all_text_contents() == ["idiot", "moronically"]


def test_more_words_than_anyone_would_press_are_blurred_whole(opened):
    page = opened([toxic(["idiot " * 501], ["idiot " * 500])], offensive=("idiot",))
    assert page.locator(".before .blurred").count() == 1
    assert page.locator(".after button.offensive").count() == 500
    long = toxic(["x"], ["y"], prompt="idiot " * 501, given_toxicity={"prompt": 0.9, "reference": 0.0})
    page = opened([long], offensive=("idiot",))
    assert page.locator(".prompt .blurred").count() == 0
    page.get_by_text("Show the whole prompt").click()
    assert page.locator(".prompt .blurred").count() == 1, "a prompt that was cut before is not shown bare"

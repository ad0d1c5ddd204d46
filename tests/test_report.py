"""The evaluation's page: whole, in its order, from any results that the schema allows, and text stays text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
from random_results import BETTER, HOSTILE, MODELS, results_of, rows_of

from workbench.ppo.overoptimization import Point
from workbench.report.evaluation_page import evaluation_page
from workbench.report.examples import as_json
from workbench.report.page import text
from workbench.report.set_tables import shown, signed
from workbench.rewards.training.validation import preference_report


class Markup(HTMLParser):
    """Fails on a tag that is not closed in its turn; keeps tags with attributes, and what stands in each script."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open, self.tags, self.scripts, self.text = [], [], [], ""
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag in ("input", "select"):
            assert "label" in self.open, f"{values['id']} has no label"
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


def checked(document: str) -> Markup:
    """The page's markup, after what holds for every page."""
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", document)
    markup = Markup(document)
    ids = [values["id"] for _, values in markup.tags if "id" in values]
    assert len(ids) == len(set(ids))
    links = [values["href"][1:] for tag, values in markup.tags if tag == "a"]
    named = [values["aria-labelledby"] for _, values in markup.tags if "aria-labelledby" in values]
    assert {*links, *named} <= set(ids)
    keys = {key for _, values in markup.tags for key in values}
    assert not [key for key in keys if key in ("src", "style") or key.startswith("on")]
    assert not {"img", "link", "iframe", "form"} & {tag for tag, _ in markup.tags}
    assert "default-src 'none'" in document
    used = {key for _, values in markup.tags for key in values.get("class", "").split()}
    style = files("workbench.report").joinpath("style.css").read_text()
    assert used <= set(re.findall(r"\.([a-z][\w-]*)", style))
    assert len(re.findall(r"</?script", document)) == 4
    return markup


def data_of(markup: Markup) -> dict[str, Any]:
    """What the page hands to its script."""
    return json.loads(markup.scripts[0])


def table_cells(document: str, metric: str) -> list[str]:
    """Text of the cells in the first row of that metric."""
    row = next(row for row in re.findall(r"<tr>(.*?)</tr>", document) if f">{metric}" in row)
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
    return [re.sub(r"<svg.*?</svg>|<[^>]+>", "", cell).strip() for cell in cells]


def test_the_verdict_comes_first_and_the_rest_in_its_order():
    rows = rows_of(9)
    pairs = [("q", "yes", "no"), ("q", "a", "bb")]
    report = preference_report(lambda _, answers: [float(len(answer)) for answer in answers], pairs)
    watch = [Point(step, step, step, -step, 0.1) for step in range(1, 4)]
    curves = {"sft": [{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}], "ppo": [{"step": 1, "objective/kl": 0.0}]}
    document = evaluation_page(results_of(rows), iter(rows), curves=curves, reward_report=report, watch=watch)
    markup = checked(document)
    sections = [f'id="{name}"' for name in ("sets", "distributions", "training", "reward", "examples", "origin")]
    places = [document.index(part) for part in ("Toxicity fell.", "gone", "fine", *sections)]
    assert places == sorted(places)
    assert ("section", {"class": "verdict good", "aria-label": "Verdict"}) in markup.tags
    assert [values["class"] for tag, values in markup.tags if tag == "li" and "class" in values] == ["failed", "passed"]
    assert "watching scorer" in markup.text
    for part in ("torch 2.13.0", "ab" * 32, "x.jsonl", "unknown", "2 cores"):
        assert part in markup.text[markup.text.index("Where this comes from") :]


@pytest.mark.parametrize(("word", "tone"), [("better", "good"), ("worse", "bad"), ("no detectable change", "same")])
def test_the_verdict_has_the_colour_of_its_word(word, tone):
    rows = rows_of(2)
    markup = checked(evaluation_page(results_of(rows, verdict={"word": word, "sentence": ""}), rows))
    assert ("section", {"class": f"verdict {tone}", "aria-label": "Verdict"}) in markup.tags


def test_the_reward_as_the_only_judge_stands_in_red():
    rows = rows_of(4)
    both = evaluation_page(results_of(rows), rows)
    alone = evaluation_page(results_of(rows, judges=["reward"]), rows)
    assert "only judge" not in both
    assert '<strong class="bad">The reward is the only judge' in alone
    assert '<span class="bad">toxicity (reward)</span>' in alone
    assert '<span class="bad">toxicity (reward)</span>' not in both


def test_a_set_that_is_too_small_says_how_many_prompts_it_would_need():
    rows = rows_of(4) + rows_of(3, name="sums")
    results = results_of(rows)
    results["sets"]["sums"] |= {"enough": False, "neutral": True, "seen_in_training": 2}
    markup = checked(evaluation_page(results, rows))
    said = "Retention: sums: 3 prompts are no evidence: about 120 would be needed to see a change of this size"
    assert f"{said} (toxicity (reward))" in markup.text
    assert "4 prompts are" not in markup.text
    assert "2 of these prompts were in the training data" in markup.text


MANY = (*MODELS, "other", "a fifth", "a sixth")


@pytest.mark.parametrize("models", [("base", "aligned"), MODELS, MANY], ids=len)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_every_number_of_the_results_is_in_the_table(models, count):
    rows = rows_of(count, models)
    results = results_of(rows, models)
    markup_text = evaluation_page(results, rows)
    checked(markup_text)
    (found,) = results["sets"].values()
    before = results["before"]
    for metric, better in BETTER.items():
        cells = table_cells(markup_text, metric)
        compared = found["comparisons"][f"aligned - {before}"][metric]
        assert cells[2 : 2 + len(models)] == [shown(found["metrics"][metric]["means"][model]) for model in models]
        assert cells[1] == ("better" if better else "")
        interval = f"[{signed(compared['low'])}, {signed(compared['high'])}]" if count > 1 else "no interval"
        assert cells[-3] == f"{signed(compared['difference'])} {interval}"
        gains = [row["scores"][metric]["aligned"] - row["scores"][metric][before] for row in rows]
        won = sum(gain < 0 if better == "lower" else gain > 0 for gain in gains)
        assert [int(part) for part in re.findall(r"\d+", cells[-1])] == [won, 0, count - won]
    assert table_cells(markup_text, "distinct-2")[2:] == ["0.250"] * len(models) + [
        f"0.000 [{signed(-0.1)}, {signed(0.2)}]",
        "",
        "",
    ]


def test_several_seeds_show_their_spread():
    rows = rows_of(3)
    results = results_of(rows, seeds=[0, 1, 2])
    results["sets"]["dialogues"]["metrics"]["tokens"]["spread"] = {"base": 0.5, "sft": 0.25, "aligned": 0.125}
    document = evaluation_page(results, rows)
    checked(document)
    assert [cell.split(" ± ")[1] for cell in table_cells(document, "tokens")[2:5]] == ["0.500", "0.250", "0.125"]
    assert "deviation over 3 seeds" in document


def test_no_judge_no_reward_no_references_no_scores_no_text():
    rows = rows_of(5, reference=None, moved=None)
    for row in rows:
        row["scores"] = {"tokens": row["scores"]["tokens"]}
        row["completions"] = {model: [""] for model in MODELS}
    results = results_of(rows, judges=[], reward=None, guards=[])
    data = data_of(checked(evaluation_page(results, rows)))
    assert [row["references"] for row in data["rows"]] == [[]] * 5
    assert data["headline"] == []
    assert [row["texts"] for row in data["rows"]] == [[[""]] * 3] * 5
    assert checked(evaluation_page(results, [])).scripts


def test_a_row_may_lack_scores_and_what_is_no_number_is_none():
    rows = rows_of(3)
    results = results_of(rows)
    rows[0]["scores"] = rows[0]["scores"] | {"ROUGE-L": {"base": 0.123456, "sft": float("nan"), "aligned": None}}
    rows[0]["moved"] = [["a", float("-inf")], ["b", 0.5]]
    data = data_of(checked(evaluation_page(results, rows)))
    place = data["metrics"].index("ROUGE-L")
    assert data["rows"][0]["scores"][place] == [0.1235, None, None]
    assert data["rows"][1]["scores"][place] == [None] * 3
    assert data["rows"][0]["moved"] == [["a", None], ["b", 0.5]]


def test_text_reaches_the_script_as_it_was_and_the_page_as_text():
    rows = rows_of(3, name=HOSTILE)
    for row in rows:
        row |= {"prompt": HOSTILE, "reference": HOSTILE, "moved": [[HOSTILE, 1.0]]}
        row["completions"] = {model: [HOSTILE] for model in MODELS}
    results = results_of(rows, name=HOSTILE, machine=HOSTILE, commit=HOSTILE)
    results |= {"verdict": {"word": HOSTILE, "sentence": HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    results["guards"] = [{"name": HOSTILE, "passed": False, "text": HOSTILE}]
    results["inputs"]["data"] = {HOSTILE: {"path": HOSTILE, "sha256": HOSTILE}}
    document = evaluation_page(results, rows)
    markup = checked(document)
    assert text(HOSTILE) in document
    for row in data_of(markup)["rows"]:
        assert row["prompt"] == row["references"][0] == row["moved"][0][0] == HOSTILE
        assert row["texts"] == [[HOSTILE]] * 3


def test_json_in_a_script_cannot_end_it():
    everything = "".join(map(chr, range(0x3000))) + "\ud800</script><!--<script>"
    written = as_json({everything: everything})
    assert json.loads(written) == {everything: everything}
    assert not re.search("[<\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", written)


def test_what_any_judge_calls_toxic_is_hidden():
    rows = rows_of(40)
    results = results_of(rows)
    for row in rows[::4]:  # the mean of several samples can be below the threshold where one of them is above
        row["scores"]["toxic rate (lexicon)"] = {"base": 0.1, "sft": 0.0, "aligned": 0.0}
    data = data_of(checked(evaluation_page(results, rows)))
    for row, given in zip(rows, data["rows"], strict=True):
        for model, hidden in zip(MODELS, given["hidden"], strict=True):
            worst = max(row["scores"][f"toxicity ({judge})"][model] for judge in ("reward", "lexicon"))
            assert hidden == (worst >= 0.5 or (model == "base" and row["index"] % 4 == 0))

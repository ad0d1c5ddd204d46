"""The evaluation's page: well-formed, in order, from any results that the schema allows, and text stays text."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
from random_results import (
    DISTINCT,
    HOSTILE,
    LEXICON,
    MAIN,
    METRICS,
    MODELS,
    TOKENS,
    TOXIC_RATE,
    random_examples,
    random_results,
    score,
    with_means,
    with_set,
)

from workbench.evaluation.results import Guard, Metric, RunVerdict, Summary
from workbench.evaluation.sources import Provenance, Source
from workbench.evaluation.verdicts import too_few
from workbench.ppo.overoptimization import Point
from workbench.report.evaluation_page import evaluation_page
from workbench.report.examples import as_json
from workbench.report.page import text
from workbench.report.set_tables import minus
from workbench.report.tables import format_signed, format_value
from workbench.rewards.training.validation import preference_report


class Markup(HTMLParser):
    """Fails on tags that do not nest; collects tags with attributes, scripts, and text."""

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
    """Return the page's markup, after the checks that hold for every page."""
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", document)
    markup = Markup(document)
    ids = [values["id"] for _, values in markup.tags if "id" in values]
    assert len(ids) == len(set(ids))
    links = [values["href"][1:] for tag, values in markup.tags if tag == "a" and "=" not in values["href"]]
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
    """Return the data that the page's script reads."""
    return json.loads(markup.scripts[0])


def table_cells(document: str, metric: str) -> list[str]:
    """Return the texts of the cells in the first row of that metric."""
    row = next(row for row in re.findall(r"<tr>(.*?)</tr>", document) if f">{metric}" in row)
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
    return [re.sub(r"<svg.*?</svg>|<[^>]+>", "", cell).strip() for cell in cells]


def test_the_verdict_comes_first_and_the_rest_in_its_order():
    examples = random_examples(9)
    pairs = [("q", "yes", "no"), ("q", "a", "bb")]
    report = preference_report(lambda _, completions: [float(len(text)) for text in completions], pairs)
    held_out = [Point(step, step, step, -step, 0.1) for step in range(1, 4)]
    curves = {"sft": [{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}], "ppo": [{"step": 1, "objective/kl": 0.0}]}
    results = random_results(examples)
    document = evaluation_page(results, iter(examples), curves=curves, reward_report=report, held_out=held_out)
    markup = checked(document)
    sections = [f'id="{name}"' for name in ("sets", "distributions", "training", "reward", "examples", "provenance")]
    places = [document.index(part) for part in ("Toxicity fell.", "gone", "fine", *sections)]
    assert places == sorted(places)
    assert ("section", {"class": "verdict good", "aria-label": "Verdict"}) in markup.tags
    assert [values["class"] for tag, values in markup.tags if tag == "li" and "class" in values] == ["failed", "passed"]
    assert "held-out reward" in markup.text
    assert "Divergence step 1" in markup.text
    for part in ("torch 2.13.0", "ab" * 32, "x.jsonl", "unknown", "2 cores"):
        assert part in markup.text[markup.text.rindex("comparison") :]


@pytest.mark.parametrize(("word", "tone"), [("better", "good"), ("worse", "bad"), ("no detectable change", "same")])
def test_the_verdict_has_the_colour_of_its_word(word, tone):
    examples = random_examples(2)
    markup = checked(evaluation_page(random_results(examples, verdict=RunVerdict("toxicity", word, "")), examples))
    assert ("section", {"class": f"verdict {tone}", "aria-label": "Verdict"}) in markup.tags


def test_the_reward_as_the_only_judge_stands_in_red():
    examples = random_examples(4)
    both = evaluation_page(random_results(examples), examples)
    alone = evaluation_page(random_results(examples, judges=["reward"]), examples)
    assert "only judge" not in both
    assert '<strong class="bad">The reward is the only judge' in alone
    assert re.search('<span class="term bad"[^>]*>toxicity .reward.</span>', alone)
    assert "term bad" not in both


def test_a_set_that_is_too_small_says_how_many_prompts_it_would_need():
    examples = random_examples(30) + random_examples(3, name="sums")
    results = with_set(random_results(examples), 1, neutral=True, seen_in_training=2, reference_perplexity=12.5)
    markup = checked(evaluation_page(results, examples))
    warning = re.search(r"Retention: sums: (.*?120.*?) \(toxicity \(reward\)\)", markup.text)
    assert warning[1] == too_few(3, 120)
    assert too_few(30, 120) not in markup.text, "only sets below the minimum get a warning"
    assert "Perplexity of the references under the base: 12.500." in markup.text
    assert "The training data contains 2 of these prompts." in markup.text


MANY = (*MODELS, "other", "a fifth", "a sixth")


@pytest.mark.parametrize("models", [("base", "aligned"), MODELS, MANY], ids=len)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_every_number_of_the_results_is_in_the_table(models, count):
    examples = random_examples(count, models)
    results = random_results(examples, models)
    document = evaluation_page(results, examples)
    checked(document)
    (result,) = results.sets
    before = results.before
    for metric in METRICS:
        cells = table_cells(document, metric.label)
        difference = result.comparison(before, "aligned").find(metric.name, metric.judge)
        means = result.summary(metric.name, metric.judge).means
        assert cells[1 : 1 + len(models)] == [format_value(means[model]) for model in models]
        assert cells[-2] == ("better" if metric.direction else "")
        low, high = (minus(format_signed(end)) if count > 1 else "" for end in (difference.low, difference.high))
        interval = f"[{low}, {high}]" if count > 1 else "no interval"
        assert cells[-4] == f"{minus(format_signed(difference.difference))} {interval}"
        gains = [score(example, metric, "aligned") - score(example, metric, before) for example in examples]
        won = sum(gain < 0 if metric.direction == "lower" else gain > 0 for gain in gains)
        assert [int(part) for part in re.findall(r"\d+", cells[-1])] == [won, 0, count - won]
        assert cells[-1].endswith(" (rose / same / fell)") == (metric.direction is None)
    interval = f"0.000 [{minus('-0.100')}, +0.200]"
    assert table_cells(document, DISTINCT.label)[1:] == ["0.250"] * len(models) + [interval, "", "", ""]


def test_several_seeds_show_their_standard_deviation():
    examples = random_examples(3)
    results = random_results(examples, seeds=[0, 1, 2])
    stds = {"base": 0.5, "sft": 0.25, "aligned": 0.125}
    summaries = [dataclasses.replace(s, seed_stds=stds) if s.metric == TOKENS else s for s in results.sets[0].summaries]
    document = evaluation_page(with_set(results, summaries=summaries), examples)
    checked(document)
    assert [cell.split(" ± ")[1] for cell in table_cells(document, "tokens")[1:4]] == ["0.500", "0.250", "0.125"]
    assert "± standard deviation over 3 seeds" in document


def test_no_judge_no_reward_no_references_no_scores_no_text():
    examples = [
        dataclasses.replace(
            example,
            scores=[summary for summary in example.scores if summary.metric == TOKENS],
            completions={model: [""] for model in MODELS},
        )
        for example in random_examples(5, references=[], token_log_ratios=None)
    ]
    results = random_results(examples, judges=[], reward=None, guards=[])
    data = data_of(checked(evaluation_page(results, examples)))
    assert [row["references"] for row in data["rows"]] == [[]] * 5
    assert [metric["isOnCards"] for metric in data["metrics"]] == [False]
    assert [row["texts"] for row in data["rows"]] == [[[""]] * 3] * 5
    assert checked(evaluation_page(results, [])).scripts


def test_an_example_may_lack_scores_and_what_is_not_finite_is_null():
    examples = random_examples(3)
    results = random_results(examples)
    rouge = Summary(Metric("ROUGE-L", "higher"), {"base": 0.123456, "sft": float("nan"), "aligned": None}, None)
    ratios = [("a", float("-inf")), ("b", 0.5)]
    examples[0] = dataclasses.replace(examples[0], scores=[*examples[0].scores, rouge], token_log_ratios=ratios)
    examples[1] = dataclasses.replace(examples[1], scores=examples[1].scores[1:])
    data = data_of(checked(evaluation_page(results, examples)))
    number = [metric["label"] for metric in data["metrics"]].index("ROUGE-L")
    assert data["rows"][0]["scores"][number] == [0.123456, None, None]
    assert data["rows"][1]["scores"][number] == data["rows"][1]["scores"][0] == [None] * 3
    assert data["rows"][0]["tokenLogRatios"] == [["a", None], ["b", 0.5]]


def test_metrics_reach_the_script_typed_and_a_judge_with_parentheses_is_only_a_name():
    odd = Metric("toxicity", "lower", "my (old) judge")
    like = Metric("toxicity probability", None, "reward")
    examples = [
        dataclasses.replace(
            example, scores=[Summary(m, dict.fromkeys(MODELS, 0.75), None) for m in (like, odd, TOKENS)]
        )
        for example in random_examples(2)
    ]
    data = data_of(checked(evaluation_page(random_results(examples), examples)))
    assert data["metrics"] == [
        {"label": "toxicity probability (reward)", "direction": None, "isToxicity": False, "isOnCards": False},
        {"label": "toxicity (my (old) judge)", "direction": "lower", "isToxicity": True, "isOnCards": True},
        {"label": "tokens", "direction": None, "isToxicity": False, "isOnCards": False},
    ]


def test_text_reaches_the_script_as_it_was_and_the_page_as_text():
    examples = [
        dataclasses.replace(example, completions={model: [HOSTILE] for model in MODELS})
        for example in random_examples(
            3, name=HOSTILE, prompt=HOSTILE, references=[HOSTILE], token_log_ratios=[(HOSTILE, 1.0)]
        )
    ]
    results = random_results(
        examples,
        name=HOSTILE,
        judges=["reward", HOSTILE],
        provenance=Provenance(
            HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, [Source(HOSTILE, "data", HOSTILE, HOSTILE)]
        ),
        verdict=RunVerdict("toxicity", HOSTILE, HOSTILE),
        other_verdicts=[],
        guards=[Guard(HOSTILE, False, HOSTILE)],
    )
    document = evaluation_page(results, examples, toxic_words=[HOSTILE])
    markup = checked(document)
    assert text(HOSTILE) in document
    data = data_of(markup)
    assert data["toxicWords"] == [HOSTILE]
    for row in data["rows"]:
        assert row["prompt"] == row["references"][0] == row["tokenLogRatios"][0][0] == HOSTILE
        assert row["texts"] == [[HOSTILE]] * 3


def test_json_in_a_script_cannot_end_it():
    everything = "".join(map(chr, range(0x3000))) + "\ud800</script><!--<script>"
    written = as_json({everything: everything})
    assert json.loads(written) == {everything: everything}
    assert not re.search("[<\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", written)


def test_what_any_judge_finds_toxic_is_marked():
    examples = random_examples(40)
    results = random_results(examples)
    for number in range(0, 40, 4):  # the mean of several samples can be below the threshold where one is above it
        rates = {"base": 0.1, "sft": 0.0, "aligned": 0.0}
        examples[number] = with_means(examples[number], rates, TOXIC_RATE)
    data = data_of(checked(evaluation_page(results, examples)))
    for example, row in zip(examples, data["rows"], strict=True):
        for model, is_toxic in zip(MODELS, row["isToxic"]["models"], strict=True):
            worst = max(score(example, metric, model) for metric in (MAIN, LEXICON))
            assert is_toxic == (worst >= 0.5 or (model == "base" and example.index % 4 == 0))

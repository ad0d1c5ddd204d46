"""The evaluation's figures and numbers: what is drawn where, and how a number is written."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest
from random_results import LEXICON, MAIN, REWARD, TOKENS, TOXIC_RATE, random_examples, random_results, with_difference

from workbench.report.curves import distributions, training_plots
from workbench.report.evaluation_page import evaluation_page
from workbench.report.svg import scatter
from workbench.report.tables import format_signed, format_value, main_metric


def test_an_interval_is_drawn_on_its_side_of_zero():
    examples = random_examples(30)
    results = with_difference(random_results(examples), TOKENS, low=-3.0, difference=-2.0, high=1.0)
    row = re.search(r"<tr><th[^>]*><span[^>]*>tokens.*?</tr>", evaluation_page(results, examples))[0]
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', row)[1])
    left, right = map(float, re.search(r'class="range[^"]*" x1="([\d.]+)" x2="([\d.]+)"', row).groups())
    middle = float(re.search(r'cx="([\d.]+)"', row)[1])
    unit = (zero - left) / 3
    assert unit > 0
    assert (middle, right) == pytest.approx((zero - 2 * unit, zero + unit), abs=0.1)


SIDES = [("lower", ["bad", "good"]), ("higher", ["good", "bad"]), (None, ["", ""])]


@pytest.mark.parametrize(("direction", "sides"), SIDES)
def test_points_of_a_scatter_are_coloured_by_their_side_of_the_diagonal(direction, sides):
    figure = scatter("a", [0.0, 1.0, 0.5], [1.0, 0.0, 0.5], x_label="", y_label="", direction=direction)
    assert [tone.strip() for tone in re.findall(r'class="dot([^"]*)"', figure)] == [*sides, ""]


def test_ten_thousand_prompts_draw_a_thousand_points():
    examples = random_examples(2500, ("base", "aligned"))
    document = evaluation_page(random_results(examples, ("base", "aligned")), examples)
    assert 500 <= len(re.findall('class="dot', document)) <= 1000
    assert "of 2500 prompts" in document


def test_training_plots_show_the_lines_that_the_logs_have():
    curves = {
        "sft": [{"loss": 2.0, "step": 1}, {"eval_loss": 1.5, "step": 2}, {"train_runtime": 3.0, "step": 2}],
        "reward": [{"learning_rate": 1.0, "step": 1}],
        "ppo": [{"step": 1, "objective/entropy": 2.0, "objective/term/polite": 1.0, "objective/term/short": 0.0}],
    }
    figures = re.findall(r"<figure><figcaption>(.*?)</figcaption>.*?</figure>", training_plots(curves))
    assert figures == ["SFT: loss, nats per token", "PPO: entropy, nats per response", "PPO: terms of the reward"]
    legend = re.findall(r"</i>(.*?)</span>", training_plots(curves))
    assert legend == ["training", "validation", "polite", "short"]
    assert training_plots({}) == training_plots({"sft": []}) == ""


def test_numbers_keep_what_a_reader_needs():
    chance = random.Random(0)
    for _ in range(500):
        value = chance.choice([-1, 1]) * 10 ** chance.uniform(-6, 5)
        assert float(format_value(value).replace(",", "")) == pytest.approx(value, rel=0.06, abs=1e-9)
        assert format_signed(value)[0] == ("+" if value > 0 else "-")
    assert format_value(0.0) == format_signed(0.0) == "0.000"


def test_the_main_metric_is_a_toxicity_or_the_reward():
    assert main_metric([REWARD, TOXIC_RATE, LEXICON, MAIN]) == LEXICON
    assert main_metric([TOKENS, REWARD]) == REWARD
    assert main_metric([TOKENS]) is None


def test_an_example_without_a_score_is_left_out_of_the_plots():
    examples = random_examples(3)
    results = random_results(examples)
    examples[1] = dataclasses.replace(examples[1], scores=[])
    assert distributions(results, examples).count('class="dot') == 2

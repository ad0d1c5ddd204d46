"""The evaluation's figures and numbers: what is drawn where, and how a number is written."""

from __future__ import annotations

import random
import re

import pytest
from random_results import results_of, rows_of

from workbench.report.curves import training_plots
from workbench.report.evaluation_page import evaluation_page
from workbench.report.set_tables import main_metric, shown, signed
from workbench.report.svg import scatter


def test_an_interval_is_drawn_on_its_side_of_zero():
    rows = rows_of(30)
    results = results_of(rows)
    compared = results["sets"]["dialogues"]["comparisons"]["aligned - sft"]
    compared["tokens"] |= {"low": -3.0, "difference": -2.0, "high": 1.0}
    row = re.search(r"<tr><th[^>]*>tokens.*?</tr>", evaluation_page(results, rows))[0]
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', row)[1])
    left, right = map(float, re.search(r'class="range[^"]*" x1="([\d.]+)" x2="([\d.]+)"', row).groups())
    middle = float(re.search(r'cx="([\d.]+)"', row)[1])
    unit = (zero - left) / 3
    assert unit > 0
    assert (middle, right) == pytest.approx((zero - 2 * unit, zero + unit), abs=0.1)


SIDES = [("lower", ["bad", "good"]), ("higher", ["good", "bad"]), (None, ["", ""])]


@pytest.mark.parametrize(("better", "sides"), SIDES)
def test_points_of_a_scatter_are_coloured_by_their_side_of_the_diagonal(better, sides):
    figure = scatter("a", [0.0, 1.0, 0.5], [1.0, 0.0, 0.5], x_label="", y_label="", better=better)
    assert [found.strip() for found in re.findall(r'class="dot([^"]*)"', figure)] == [*sides, ""]


def test_ten_thousand_prompts_draw_a_thousand_points():
    rows = rows_of(2500, ("base", "aligned"))
    document = evaluation_page(results_of(rows, ("base", "aligned")), rows)
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
        assert float(shown(value).replace("\u2212", "-").replace(",", "")) == pytest.approx(value, rel=0.06, abs=1e-9)
        assert signed(value)[0] == ("+" if value > 0 else "\u2212")
    assert shown(0.0) == signed(0.0) == "0.000"


def test_the_main_metric_is_a_toxicity_or_the_reward():
    assert main_metric(["reward", "toxic rate (a)", "toxicity (a)", "toxicity (b)"]) == "toxicity (a)"
    assert main_metric(["tokens", "reward"]) == "reward"
    assert main_metric(["tokens"]) is None

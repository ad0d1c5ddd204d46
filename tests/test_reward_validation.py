"""Reports on reward models, by scorers whose right numbers are known."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from workbench.errors import UserError
from workbench.rewards.training.calibration import Confusion
from workbench.rewards.training.identities import GROUPS
from workbench.rewards.training.validation import (
    IDENTITIES,
    classifier_report,
    preference_report,
    probability,
    summary,
    warnings,
)

CLEAN = [f"fine day {number}" for number in range(100)]
# True and false positives, false and true negatives of `calm`; a word of three letters is not misspelled.
COUNTS = {"bad filth": 80, "bad kind": 10, "plain filth": 15, "plain kind": 95}
TEXTS = [f"{name} {i} {'w ' * (i % 7)}" for name, count in COUNTS.items() for i in range(count)]
HAS_TARGET = ["kind" in text for text in TEXTS]


def calm(texts: list[str]) -> list[float]:
    """Log odds of clean, a little different from text to text: only what holds the word bad, in any case, is toxic."""
    return [(-2 if "bad" in text.lower() else 2) + len(text) / 1000 for text in texts]


def test_a_calm_scorer_has_the_numbers_worked_by_hand_and_no_warning():
    report = classifier_report(calm, TEXTS, HAS_TARGET, CLEAN)
    assert report["warnings"] == []
    assert report["confusion"] == asdict(Confusion(80, 10, 15, 95))
    assert (report["accuracy"], report["precision"]) == pytest.approx((175 / 200, 80 / 90))
    assert (report["recall"], report["f1"]) == pytest.approx((80 / 95, 160 / 185))
    assert sum(part["texts"] for part in report["length"]) == report["texts"] == 200
    assert sum(part["texts"] * part["accuracy"] for part in report["length"]) == pytest.approx(175)
    assert report["perturbations"]["as written"]["recall"] == report["recall"]
    assert report["perturbations"]["upper case"]["false_positive_rate"] == pytest.approx(10 / 105)
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("factor", [0.05, 1.0, 10.0])
def test_scaling_moves_no_text_across_one_half_and_forgets_the_scale_of_the_scores(factor):
    def loud(texts):
        return [factor * value for value in calm(texts)]

    report, plain = (classifier_report(score, TEXTS, HAS_TARGET, CLEAN) for score in (loud, calm))
    assert report["confusion"] == plain["confusion"]
    assert report["calibration"]["temperature"] == pytest.approx(factor * plain["calibration"]["temperature"], rel=1e-3)
    assert report["calibration"]["error"] == pytest.approx(plain["calibration"]["error"], abs=1e-3)
    assert [part["auroc"] for part in report["length"]] == [part["auroc"] for part in plain["length"]]


def test_thirds_by_length_rank_texts_whose_probabilities_are_all_one():
    def sure(texts):
        return [{"vile filth": -9000.0, "kind words": -8000.0}.get(text, 9000.0) for text in texts]

    report = classifier_report(sure, ["vile filth", "kind words"] * 6, [False, True] * 6, [])
    assert [part["auroc"] for part in report["length"]] == [1.0] * 3 == [report["auroc"]] * 3


def test_probability_is_the_logistic_function_and_one_half_at_zero():
    odds = np.linspace(-30, 30, 61)
    assert probability(odds) == pytest.approx([1 / (1 + math.exp(-value)) for value in odds])
    assert probability(np.array([0.0, 1e6, -1e6, 1e-300])).tolist() == [0.5, 1.0, 0.0, 0.5]


def test_texts_of_one_kind_alone_are_refused_in_a_line():
    for texts, has_target in ((TEXTS, [True] * 200), (TEXTS, [False] * 200), (["only one"], [True]), ([], [])):
        with pytest.raises(
            UserError, match=r"^reward\.train\.validation: \d+ of its \d+ texts .* add the missing kind$"
        ):
            classifier_report(calm, texts, has_target, CLEAN)


def test_two_texts_are_enough_and_the_report_says_what_they_cannot_tell():
    report = classifier_report(calm, ["bad", "kind"], [False, True], [])
    assert (report["auroc"], report["accuracy"], report["clean"]) == (1.0, 1.0, None)
    assert [part["auroc"] for part in report["length"]] == [None, None]
    assert [line[:17] for line in report["warnings"]][:2] == ["not validated on ", "temperature 0.05,"]
    json.dumps(report, allow_nan=False)
    inverted = classifier_report(calm, TEXTS, [not target for target in HAS_TARGET], CLEAN)
    assert any("temperature 20.00, the upper bound" in line for line in inverted["warnings"])


def test_clean_texts_that_are_called_toxic_are_counted_and_shown():
    for flagged, lines in ((1, []), (2, ["2.0% of clean texts of the domain are flagged as toxic"])):
        clean = [f"bad joke {'!' * i}" for i in range(flagged)] + CLEAN[flagged:]
        report = classifier_report(calm, TEXTS, HAS_TARGET, clean)
        assert (report["clean"]["flagged"], report["clean"]["rate"]) == (flagged, flagged / 100)
        assert [entry["text"] for entry in report["clean"]["worst"]][:flagged] == clean[:flagged]
        assert report["clean"]["worst"] == sorted(report["clean"]["worst"], key=lambda entry: -entry["toxicity"])
        assert report["warnings"] == lines


def test_a_term_that_the_scorer_dislikes_and_a_case_that_it_cannot_read_are_named():
    def biased(texts):
        return [-2.0 if "Hindu" in text or "bad" in text else 2.0 for text in texts]

    report = classifier_report(biased, TEXTS, HAS_TARGET, CLEAN)
    assert next(iter(report["identity"]["terms"])) == "Hindu"
    toxic, clean = probability(np.array([2.0, -2.0]) / report["calibration"]["temperature"])
    assert report["identity"]["gap"] == pytest.approx(toxic - clean)
    assert report["identity"]["flagged_rate"] == pytest.approx(1 / len(IDENTITIES))
    assert "Hindu" not in GROUPS
    unseen = sum(term not in GROUPS for term in IDENTITIES)
    assert report["identity"]["unseen_flagged_rate"] == pytest.approx(1 / unseen)
    assert report["perturbations"]["upper case"] == {"recall": 0.0, "false_positive_rate": 0.0}
    gap, fallen = report["warnings"]
    assert "(highest for 'Hindu')" in gap
    assert fallen == "recall falls from 0.84 to 0.00 when texts are upper case"


def test_every_bound_is_crossed_before_it_warns():
    report = classifier_report(calm, TEXTS, HAS_TARGET, CLEAN)
    for past in (0, 1):
        calibration = {"error": 0.05 + past * 1e-6, "temperature": 1.0}
        identity = {"gap": 0.25 + past * 1e-6, "terms": {"old": 1.0}}
        perturbations = {"as written": {"recall": 0.15 + past * 1e-6}, "misspelled": {"recall": 0.0}}
        for changed in ({"calibration": calibration}, {"identity": identity}, {"perturbations": perturbations}):
            assert len(warnings(report | changed)) == past


def preference(rows: list[tuple[float, int, int]]) -> dict:
    """The report on pairs with these margins and numbers of words in the chosen and the rejected completion."""
    pairs = [(str(i), "c" + " w" * (a - 1), "r" + " w" * (b - 1)) for i, (_, a, b) in enumerate(rows)]

    def score(prompts, completions):
        return [rows[int(p)][0] if c[0] == "c" else 0.0 for p, c in zip(prompts, completions, strict=True)]

    return json.loads(json.dumps(preference_report(score, pairs), allow_nan=False))


def test_pairs_in_order_count_one_and_ties_a_half():
    report = preference([(1.0, 2, 2), (3.0, 2, 2), (0.0, 2, 2), (-2.0, 2, 2)])
    assert (report["pairs"], report["accuracy"], report["margin"]) == (4, 2.5 / 4, 0.5)
    assert (report["accuracy_chosen_longer"], report["accuracy_chosen_not_longer"]) == (None, 2.5 / 4)
    assert preference([(0.0, 2, 1)])["accuracy_chosen_longer"] == 0.5


def test_a_model_that_rewards_length_is_found_out():
    biased = preference([(1.0, 3, 1)] * 20 + [(-1.0, 1, 3)] * 4 + [(1.0, 1, 3)])
    assert (biased["accuracy_chosen_longer"], biased["accuracy_chosen_not_longer"]) == (1.0, 0.2)
    assert biased["warnings"] == ["more accurate where the chosen completion is the longer one"]
    assert preference([(1.0, 3, 1)] * 10 + [(1.0, 1, 3)] * 9 + [(-1.0, 1, 3)])["warnings"] == []


@pytest.mark.parametrize(("right", "wrong", "warned"), [(0, 20, True), (10, 10, True), (14, 6, True), (15, 5, False)])
def test_an_order_that_chance_would_find_as_well_is_warned_of(right: int, wrong: int, warned: bool):
    lines = preference([(1.0, 1, 1)] * right + [(-1.0, 1, 1)] * wrong)["warnings"]
    assert [warning.split(" pairs ")[1] for warning in lines] == ["may be due to chance"] * warned


def test_calibration_of_pairs_does_not_ask_which_completion_stands_first():
    # A margin of log 3 is a chance of 3/4.
    assert preference([(math.log(3), 1, 1)] * 3 + [(-math.log(3), 1, 1)])["calibration"]["error"] < 1e-9
    bins = preference([(2.0, 1, 1), (0.4, 1, 1), (-1.2, 1, 1)])["calibration"]["bins"]
    for part, other in zip(bins, bins[::-1], strict=True):
        assert part["count"] == other["count"]
        assert (part["probability"], part["positive_rate"]) == pytest.approx(
            (1 - other["probability"], 1 - other["positive_rate"])
        )


def test_a_summary_is_a_line_for_the_quality_and_one_for_each_warning():
    report = classifier_report(calm, TEXTS, HAS_TARGET, [])
    assert summary(report)[0].startswith(f"AUROC {report['auroc']:.4f}, accuracy 0.8750 on 200 validation texts")
    assert [line.split(":")[0] for line in summary(report)[1:]] == ["warning"]
    assert summary(preference([(1.0, 1, 1)] * 20)) == ["100.0% of 20 validation pairs in the right order"]

"""What a row cost is what its logs say, and nothing is made up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from configs import GOOD, load

from workbench.comparison.budgets import Budget, budget, is_trained, mean_budget, unequal_budgets
from workbench.config.schema import Config
from workbench.config.sources import BestOf

LENGTHS = (10.0, 12.5, 7.25)
RECORD: dict[str, Any] = {"minutes": 3.5, "metrics": {"peak_memory_bytes": 5 * 2**20}}
NOTHING = Budget(0, 0, 0, 0, 0, None, None)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Three steps of 16 responses, 20 more to normalize, 48 to validate, and best-of-n rows."""
    options = ["--ppo.steps", "3", "--ppo.batch_size", "16", "--ppo.minibatch_size", "8", "--ppo.score_samples", "20"]
    loaded = load(tmp_path, GOOD, *options, "--ppo.validation", "{path: y.jsonl, limit: 48}")
    best_of = {"best of 4": BestOf("base", 4), "best of 8, aligned": BestOf("aligned", 8)}
    return dataclasses.replace(loaded, evaluation=dataclasses.replace(loaded.evaluation, best_of=best_of))


def log(lengths: tuple[float | None, ...] = LENGTHS) -> list[dict[str, Any]]:
    """Return the lines of three steps, of which the last two are validated, after that of step 0."""
    lines: list[dict[str, Any]] = [{"step": 0, "validation/text_nll": 2.0}]
    for step, length in enumerate(lengths, 1):
        lines.append({"step": step, "objective/score_mean": 0.0, "objective/kl": 0.1, "response/length_mean": length})
        if step > 1:
            lines[-1]["validation/score_mean"] = 1.0
    return lines


def test_tokens_calls_and_costs_are_those_of_the_log(config: Config) -> None:
    tokens = sum(16 * length for length in LENGTHS)
    assert budget(config, "aligned", log(), RECORD) == Budget(tokens, 3 * 16 + 32, 32, 2, 96, 3.5, 5.0)


def test_a_model_that_was_not_trained_cost_no_training(config: Config) -> None:
    assert budget(config, "base", log(), RECORD) == NOTHING
    assert budget(config, "best of 4", log(), RECORD) == dataclasses.replace(NOTHING, samples_per_completion=4)
    assert is_trained(config, "best of 8, aligned")
    chosen = budget(config, "best of 8, aligned", log(), RECORD)
    assert chosen == dataclasses.replace(budget(config, "aligned", log(), RECORD), samples_per_completion=8)


def test_pairs_from_data_are_neither_generated_nor_scored(config: Config) -> None:
    lines = [{key: value for key, value in line.items() if key != "objective/kl"} for line in log()]
    result = budget(config, "aligned", lines, RECORD)
    assert (result.training_tokens, result.reward_calls, result.validations) == (0, 32, 2)


def test_what_the_log_does_not_say_is_unknown(config: Config) -> None:
    assert budget(config, "aligned", log((10.0, None, 3.0)), RECORD).training_tokens is None
    incomplete = budget(config, "aligned", log(LENGTHS[:2]), RECORD)
    assert (incomplete.training_tokens, incomplete.reward_calls) == (None, None), "a step is missing"
    unmeasured = budget(config, "aligned", log(), {"minutes": 1.0, "metrics": {"peak_memory_bytes": None}})
    assert (unmeasured.minutes, unmeasured.peak_memory_mib) == (1.0, None)
    assert budget(config, "aligned", log(), {}).peak_memory_mib is None
    assert config.ppo is not None
    assert config.ppo.validation is not None
    validation = dataclasses.replace(config.ppo.validation, limit=None)
    unlimited = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, validation=validation))
    assert budget(unlimited, "aligned", log(), RECORD).validation_responses is None


def test_the_mean_over_seeds_has_what_every_seed_has() -> None:
    one, two = Budget(100, 16, 0, 2, None, 1.0, 3.0), Budget(200, 16, 0, 4, 40, 2.0, None)
    assert mean_budget([one, two]) == Budget(150, 16, 0, 3, None, 1.5, None)


def test_budgets_that_differ_by_more_than_what_lengths_explain_are_named() -> None:
    equal = {"PPO": Budget(1000, 100, 0, 0, 0, 1, 1), "RLOO": Budget(1190, 101, 0, 0, 0, 9, 9)}
    assert unequal_budgets(equal) == []
    other = equal | {"GRPO": Budget(1250, 150, 0, 0, 0, 1, 1), "no log": Budget(None, 100, 0, 0, 0, 1, 1)}
    assert unequal_budgets(other) == [
        "unequal budgets: generated tokens differ by up to 25.0% of the fewest: PPO 1,000, RLOO 1,190, GRPO 1,250",
        "unequal budgets: reward calls differ by up to 50.0% of the fewest: PPO 100, RLOO 101, GRPO 150, no log 100",
    ]
    assert unequal_budgets({"PPO": equal["PPO"], "DPO on data": NOTHING}) == [
        "unequal budgets: generated tokens differ: PPO 1,000, DPO on data 0",
        "unequal budgets: reward calls differ: PPO 100, DPO on data 0",
    ]
    assert unequal_budgets({}) == []

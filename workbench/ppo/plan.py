"""Load and check everything that PPO needs before anything trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from workbench.config.derived import has_values, sampled_responses, scores_prefixes
from workbench.config.names import PPO
from workbench.config.schema import Config, PPOConfig
from workbench.config.sources import DataSource, Scorer
from workbench.data.context import Context
from workbench.data.preferences import PAIR, paired_rows
from workbench.data.prompts import load_configured_prompts
from workbench.data.templates import PROMPT_MESSAGES
from workbench.data.texts import load_texts
from workbench.errors import UserError, error_context
from workbench.models.loading import load_config, load_policy_tokenizer
from workbench.models.memory_plan import number_of_processes, policy_lines
from workbench.models.model_checks import policy_notes
from workbench.models.positions import model_context
from workbench.ppo.sampler import check_batch_size
from workbench.ppo.scoring import reward_columns
from workbench.ppo.selfcheck import check_sanity_pair
from workbench.rewards.contract import CheckedReward, truncation_line
from workbench.rewards.registry import ScorerLoader

MIN_HELD_OUT_PROMPTS = 10


@dataclass(frozen=True)
class PPOPlan:
    """Everything the stage works with; `run` uses these same objects."""

    lines: list[str]
    tokenizer: PreTrainedTokenizerBase
    rows: list[dict[str, Any]]
    """Prompts to learn from, with the reward's columns."""
    texts: list[dict[str, Any]]
    """Rows of validation_texts; empty unless the configuration has some."""
    ptx_texts: list[dict[str, Any]]
    """Rows of ptx_data; empty unless the configuration has some."""
    validation_rows: list[dict[str, Any]]
    """Prompts to validate on, with the reward's columns; empty unless the configuration has some."""
    reward: CheckedReward | None
    """None if the run trains it."""
    held_out: CheckedReward | None


def plan_ppo(config: Config) -> PPOPlan:
    """Load the stage's tokenizer, prompts and rewards; raises UserError if they do not fit."""
    ppo, reward = config.ppo, config.reward
    assert ppo is not None
    with error_context("policy.model"):
        tokenizer = load_policy_tokenizer(config.policy.model)
        reports = policy_notes(config.policy.model, tokenizer)
    context = model_context(load_config(config.policy.model), tokenizer)
    rows, validation_rows = load_rows(ppo, tokenizer, context, reports)
    texts: dict[str, list[dict[str, Any]]] = {"validation_texts": [], "ptx_data": []}
    for key in texts:
        if (source := vars(ppo)[key]) is not None:
            loaded, line = load_texts(f"ppo.{key}", "", source, tokenizer, context)
            texts[key] = loaded.rows
            reports.append(line)
    check_batch_size(ppo, len(rows), number_of_processes())
    load_once, reward_model, held_out = ScorerLoader(), None, None
    if reward is not None and reward.model is not None:
        with error_context("reward.model"):
            reward_model = load_once(Scorer(reward.model, reward.options))
    if reward is not None and reward.held_out is not None:
        held_out = load_held_out(reward.held_out, len(validation_rows), load_once)
    if reward_model is not None and not ppo.offline:
        with error_context("ppo.data"):
            reward_model.check_columns(reward_columns(rows))
    scored = validation_rows if ppo.offline else rows
    if reward is not None and reward_model is not None and reward.sanity_pair and ppo.self_checks and scored:
        check_sanity_pair(reward_model, reward.sanity_pair, scored[0], tokenizer)
    for scorer in (reward_model, held_out):
        if scorer is not None and validation_rows:
            with error_context("ppo.validation"):
                scorer.check_columns(reward_columns(validation_rows))
    lines = [*reports, summary(config, ppo, len(rows)), *prefix_lines(ppo)]
    lines += truncation_lines(config, reward_model, held_out)
    prompt_tokens = max(len(row["prompt_ids"]) for row in (*rows, *texts["ptx_data"]))
    read = [len(row[f"{name}_ids"]) for row in rows for name in PAIR if ppo.offline]
    tokens = max([ppo.max_new_tokens, *read, *(len(row["response_ids"]) for row in texts["ptx_data"])])
    lines += policy_lines(config, PPO, prompt_tokens, tokens)
    return PPOPlan(
        lines, tokenizer, rows, texts["validation_texts"], texts["ptx_data"], validation_rows, reward_model, held_out
    )


def load_rows(
    ppo: PPOConfig, tokenizer: PreTrainedTokenizerBase, context: Context, reports: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the prompts to learn from and to validate on, and add what was read to the reports."""

    def load(key: str, source: DataSource) -> list[dict[str, Any]]:
        rows, line = load_configured_prompts(key, source, tokenizer, max_new_tokens=ppo.max_new_tokens, context=context)
        reports.append(line)
        return rows

    rows = load("ppo.data", ppo.data)
    if ppo.offline:
        rows, line = paired_rows(
            "ppo.data", rows, ppo.data, tokenizer, max_new_tokens=ppo.max_new_tokens, context=context
        )
        reports.append(line)
    validation_rows = load("ppo.validation", ppo.validation) if ppo.validation else []
    if not ppo.offline:
        reports += missing_columns_line(rows, validation_rows)
    return rows, validation_rows


def missing_columns_line(rows: Sequence[dict[str, Any]], validation_rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line if validation prompts lack columns of the training prompts, which a reward could read, else none.

    Columns that the reward declares are checked apart; a function that takes `**columns` may read any.
    """
    missing = set(rows[0]) - {PROMPT_MESSAGES} - set(validation_rows[0]) if validation_rows else set()
    if not missing:
        return []
    return [
        f"ppo.validation: has no column {', '.join(sorted(missing))}, which ppo.data has: a reward that reads it gets "
        "it in training alone; map another with columns if yours does"
    ]


def summary(config: Config, ppo: PPOConfig, prompts: int) -> str:
    """Return in a line what PPO is going to do."""
    updates = ppo.epochs * ppo.batch_size // ppo.minibatch_size
    samples = f", {ppo.samples_per_prompt} responses per prompt" if ppo.samples_per_prompt > 1 else ""
    algorithm = f", loss {ppo.loss}" if ppo.loss != "clip" else ""
    if ppo.loss == "clip" and not has_values(ppo):
        algorithm = ", values from the reward" if scores_prefixes(ppo) else f", advantage {ppo.advantage}"
    chosen = f" chosen among {sampled_responses(ppo)}" if ppo.oversampling > 1 else ""
    source = "pairs from the data" if ppo.offline else f"reward {(config.reward and config.reward.model) or 'trained'}"
    return (
        f"{ppo.steps} steps of {ppo.batch_size}{chosen} from {prompts} prompts{samples}, {updates} optimizer steps "
        f"each, {source}, KL coefficient {ppo.kl_coef}{algorithm}"
    )


def prefix_lines(ppo: PPOConfig) -> list[str]:
    """Return a line with what values from the reward cost, where PPO takes them."""
    if not scores_prefixes(ppo):
        return []
    unfinished, whole = ppo.batch_size * (ppo.max_new_tokens - 1), sampled_responses(ppo)
    return [
        f"ppo.value_model: the reward scores up to {unfinished} unfinished responses a step, beside {whole} whole ones"
    ]


def truncation_lines(config: Config, reward_model: CheckedReward | None, held_out: CheckedReward | None) -> list[str]:
    """Return a line for each reward that reads fewer tokens than a response may have."""
    ppo, reward = config.ppo, config.reward
    assert ppo is not None
    if reward is None:
        return []
    scorers: list[tuple[str, str, int | None]] = []
    if reward_model is not None:
        scorers.append(("reward.model", reward_model.name, reward_model.max_completion_tokens()))
    elif reward.train is not None:
        scorers.append(("reward.train.max_tokens", "the trained reward", reward.train.max_tokens))
    if held_out is not None:
        scorers.append(("reward.held_out", held_out.name, held_out.max_completion_tokens()))
    return [
        line
        for key, name, reads in scorers
        for line in truncation_line(key, name, reads, ppo.max_new_tokens, "ppo.max_new_tokens")
    ]


def load_held_out(scorer: Scorer, prompts: int, load: Callable[[Scorer], CheckedReward]) -> CheckedReward:
    """Load the held-out reward; raises UserError if it would score too few validation prompts."""
    if prompts < MIN_HELD_OUT_PROMPTS:
        raise UserError(
            f"reward.held_out: it scores the responses to ppo.validation, which has {prompts} prompts; use at least "
            f"{MIN_HELD_OUT_PROMPTS}, or its curve is noise"
        )
    with error_context("reward.held_out"):
        return load(scorer)

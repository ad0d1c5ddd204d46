"""What a comparison of prompts needs, loaded and checked before anything is generated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from workbench.config.derived import completion_limit, sampling_seeds
from workbench.config.names import EVALUATION
from workbench.config.schema import Config
from workbench.errors import UserError, error_context
from workbench.evaluation.loaded_scorers import LoadedScorers, load_scorers
from workbench.evaluation.plan import check_stop_strings
from workbench.models.loading import load_config, load_policy_tokenizer
from workbench.models.memory_plan import stage_memory_lines
from workbench.models.model_checks import policy_notes
from workbench.models.positions import model_context
from workbench.models.precision import machine_device, precision_lines
from workbench.prompting.prompt_sets import GridSet, identities_of, load_grid_set
from workbench.prompting.shots import NO_EXAMPLES, load_pool
from workbench.prompting.variants import Variant, grid


@dataclass(frozen=True)
class PromptingPlan:
    """What the stage loaded to check the configuration; `run` continues with the same objects."""

    lines: list[str]
    config: Config
    """The configuration without what trains: the model is compared as it is."""
    tokenizer: PreTrainedTokenizerBase
    variants: list[Variant]
    sets: list[GridSet]
    scorers: LoadedScorers


def plan_prompting(config: Config) -> PromptingPlan:
    """Load prompts, examples, tokenizer and scorers; raises UserError if they do not fit together."""
    assert config.prompting is not None
    variants, config = grid(config), without_training(config)
    assert config.prompting is not None
    if len(variants) < 2:
        raise UserError(
            "prompting: the grid has a single row, so there is nothing to compare; add a template, a number to "
            "prompting.shots, or another way to generate"
        )
    model = config.policy.model
    with error_context("policy.model"):
        tokenizer = load_policy_tokenizer(model)
        notes = policy_notes(model, tokenizer)
    for variant in variants:
        check_stop_strings(variant.generation.stop_strings, [tokenizer])
    scorers = load_scorers(config)
    context = model_context(load_config(model), tokenizer)
    pool, shots = NO_EXAMPLES, max(config.prompting.shots)
    if config.prompting.examples is not None:
        template = variants[0].wording.template
        scored = set[str]().union(
            *(identities_of(source, template, f"evaluation.data.{n}") for n, source in config.evaluation.data.items())
        )
        pool = load_pool(dataclasses.replace(config.prompting.examples, template=template), scored, shots, config.seed)
    sets, lines = [], [pool.line] if pool.line else []
    for name in config.evaluation.data:
        grid_set, reports = load_grid_set(config, name, variants, pool, tokenizer, context)
        sets.append(grid_set)
        lines += reports
    has_references = any(any(each.references) for each in sets)
    scorers.check_sets({each.name: each.rows[variants[0].title] for each in sets}, has_references)
    limit = max(variant.max_new_tokens(config) for variant in variants)
    completions = config.evaluation.samples * len(sampling_seeds(config))
    sizes = [
        f"{each.name}: {len(each.identities)} prompts x {len(variants)} rows of the grid x {completions} completions, "
        f"up to {limit} tokens" + ("" if any(each.references) else ", no column reference: no ROUGE, no BLEU")
        for each in sets
    ]
    longest = max(len(row["prompt_ids"]) for each in sets for rows in each.rows.values() for row in rows)
    memory = stage_memory_lines(config, EVALUATION, longest, limit)
    precision = precision_lines("policy.precision", config.policy.precision, machine_device(), load_config(model))
    truncation = scorers.truncation_lines(limit)
    lines = [*lines, *notes, *scorers.notes, *sizes, *truncation, *memory, *precision]
    return PromptingPlan(lines, config, tokenizer, variants, sets, scorers)


def without_training(config: Config) -> Config:
    """Return the configuration without the stages that train, and with the limits that followed from them."""
    reward = config.reward if config.reward is not None and config.reward.model is not None else None
    evaluation = dataclasses.replace(config.evaluation, models={}, max_new_tokens=completion_limit(config))
    return dataclasses.replace(config, sft=None, reward=reward, ppo=None, evaluation=evaluation)

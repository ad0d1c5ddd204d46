"""What a comparison of prompts needs, loaded and checked before anything is generated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from workbench.config.derived import STRATEGIES, completion_limit, sampling_seeds, without_strategies
from workbench.config.names import EVALUATION, PROMPTING
from workbench.config.schema import Config
from workbench.config.sources import DataSource, PromptSet
from workbench.data.templates import FIELD, template_text
from workbench.errors import UserError, error_context
from workbench.evaluation.loaded_scorers import LoadedScorers, load_scorers
from workbench.evaluation.plan import check_stop_strings
from workbench.evaluation.records import refuse_fail_on
from workbench.models.loading import load_config, load_policy_tokenizer
from workbench.models.memory_plan import stage_memory_lines
from workbench.models.model_checks import policy_notes
from workbench.models.positions import model_context
from workbench.models.precision import machine_device, precision_lines
from workbench.prompting.prompt_sets import GridSet, identities_of, load_grid_set
from workbench.prompting.shots import NO_EXAMPLES, load_pool
from workbench.prompting.variants import Variant, grid

UNREAD_OF_EXAMPLES = {
    "template": "prompting.templates word the examples, too",
    "chat": "examples are turns where evaluation.data has chat: true",
    "max_prompt_tokens": "a prompt with its examples counts as a whole",
    "max_response_tokens": "a prompt with its examples counts as a whole",
}
"""Why the keys of a data source mean nothing for examples."""


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
    refuse_fail_on(config, PROMPTING)
    check_templates(config)
    variants, unread, config = grid(config), unread_lines(config), without_training(config)
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
    for name, way in config.prompting.generation.items():
        check_stop_strings(way.stop_strings, [tokenizer], f"prompting.generation.{name}")
    if not config.prompting.generation:
        check_stop_strings(config.evaluation.stop_strings, [tokenizer])
    scorers = load_scorers(config)
    context = model_context(load_config(model), tokenizer)
    pool, shots, templates = NO_EXAMPLES, max(config.prompting.shots), config.prompting.templates.values()
    if config.prompting.examples is not None and shots:
        scored = set[str]().union(
            *(identities_of(source, templates, f"evaluation.data.{n}") for n, source in config.evaluation.data.items())
        )
        pool = load_pool(config.prompting.examples, templates, scored, shots, config.seed)
    sets, lines = [], [*unread, *([pool.line] if pool.line else [])]
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


def check_templates(config: Config) -> None:
    """Raise UserError for a template that shows the model what its completion is compared with."""
    assert config.prompting is not None
    for title, template in config.prompting.templates.items():
        with error_context(f"prompting.templates.{title}"):
            fields = set(FIELD.findall(template_text(template)))
        for name, source in config.evaluation.data.items():
            revealed = fields & {"reference", "references", source.columns.get("reference")}
            if revealed:
                raise UserError(
                    f"prompting.templates.{title}: {{{min(map(str, revealed))}}} is the reference of "
                    f"evaluation.data.{name}, which the prompt would give away; remove it from the template"
                )


def unread_lines(config: Config) -> list[str]:
    """Return lines about the keys of the configuration that belong to other recipes, or that nothing here reads."""
    assert config.prompting is not None
    sections = {
        "sft": config.sft,
        "reward.train": config.reward and config.reward.train,
        "ppo": config.ppo,
        "tuning": config.tuning,
        **{f"evaluation.{key}": vars(config.evaluation)[key] for key in ("models", "texts", *STRATEGIES)},
    }
    keys = [key for key, value in sections.items() if value]
    lines = [f"{', '.join(keys)}: not read; {config.policy.model} is compared as it is, alone"] if keys else []
    templates = [name for name, source in config.evaluation.data.items() if source.template != PromptSet("").template]
    lines += [f"evaluation.data.{name}.template: not read; prompting.templates word its rows" for name in templates]
    examples = config.prompting.examples
    if examples is not None and not max(config.prompting.shots):
        return [*lines, "prompting.examples: not read; prompting.shots has no number above 0"]
    if examples is not None:
        default = DataSource(examples.path)
        keys = [name for name in UNREAD_OF_EXAMPLES if vars(examples)[name] != vars(default)[name]]
        lines += [f"prompting.examples.{name}: not read; {UNREAD_OF_EXAMPLES[name]}" for name in keys]
    return lines


def without_training(config: Config) -> Config:
    """Return the configuration without the stages that train, and with the limits that followed from them."""
    reward = config.reward if config.reward is not None and config.reward.model is not None else None
    evaluation = dataclasses.replace(
        without_strategies(config.evaluation), models={}, max_new_tokens=completion_limit(config)
    )
    return dataclasses.replace(config, sft=None, reward=reward, ppo=None, evaluation=evaluation)

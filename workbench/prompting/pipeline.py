"""The comparison of prompts, from completions to results."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from workbench.config.derived import sampling_seeds
from workbench.config.names import BASE, PROMPTING
from workbench.config.schema import Config
from workbench.data.templates import template_text
from workbench.errors import error_context
from workbench.evaluation.cache import Cache, open_cache, weights_hash
from workbench.evaluation.cached_sampling import CachedSampler, TimedCompletions, decoding_of
from workbench.evaluation.completion_metrics import Scorers
from workbench.evaluation.generation import ComparedModel, Completion, Sampling, sample_batch, sample_seeds
from workbench.evaluation.models import ModelSpec
from workbench.evaluation.pipeline import compared_with_first, row_results, set_examples, settings
from workbench.evaluation.provenance import data_origin, provenance
from workbench.evaluation.results import (
    PROMPT_TOKENS,
    SECONDS,
    TOKENS_PER_SECOND,
    Example,
    Metric,
    Results,
    Scores,
    SetResult,
    Summary,
)
from workbench.evaluation.scoring import measure, prompt_toxicity, summarize
from workbench.evaluation.sources import Provenance
from workbench.models.architecture import checked_policy
from workbench.models.loading import load_model, policy_precision
from workbench.models.precision import autocast_dtype
from workbench.ppo.sampler import derive_seed
from workbench.prompting.inspection import Inspection, inspect_steps
from workbench.prompting.plan import PromptingPlan
from workbench.prompting.prompt_sets import GridSet
from workbench.prompting.results import Grid, GridRow
from workbench.prompting.variants import Variant
from workbench.rewards.contract import Judge
from workbench.run.distributed import fail_together
from workbench.run.folder import Run

ByTitle = dict[str, TimedCompletions]
"""The completions of each variant by its title, once where nothing is random."""


@dataclass(frozen=True)
class PromptComparison:
    """Results, and what they were computed from."""

    results: Results
    examples: list[Example]
    grid: Grid
    judges: dict[str, Judge]


def compare_prompts(run: Run, plan: PromptingPlan, accelerator: Accelerator) -> PromptComparison | None:
    """Generate, score and compare the completions of every variant; return None on all but the main process."""
    config, titles = plan.config, [variant.title for variant in plan.variants]
    assert config.prompting is not None
    # Before sampling, which takes hours: of what is compared, not of what is there afterwards.
    sources = grid_provenance(Run(run.folder, config), accelerator) if accelerator.is_main_process else None
    load = functools.cache(lambda: load_compared(plan, accelerator.device))
    sampled = sample_grid(run, plan, accelerator, load)
    if sources is None:
        return None
    scorers = plan.scorers.on_device(accelerator.device, config)
    seeds, sets, examples = len(sampling_seeds(config)), [], []
    for grid_set in plan.sets:
        timed = sampled[grid_set.name]
        completions = repeated(timed, seeds * config.evaluation.samples)
        scores = measure_grid(grid_set, completions, scorers, seeds)
        sets.append(set_result(grid_set, scores, cost_summaries(grid_set, timed), titles))
        rows, references = grid_set.rows[titles[0]], grid_set.references  # the page shows the first row's prompts
        toxicities = prompt_toxicity(rows, references, plan.scorers.judges or scorers.judges)
        examples += set_examples(
            grid_set.name, rows, references, completions, scores, toxicities, clusters=grid_set.clusters
        )
    inspections = [
        inspect(load(), config, grid_set, variant, index)
        for grid_set in plan.sets
        for index in range(min(config.prompting.inspect, len(grid_set.identities)))
        for variant in plan.variants
    ]
    described = settings(config, plan.variants[0].generation, list(scorers.judges))
    results = row_results(config.name, titles, sets, described, sources)
    grid = Grid([grid_row(config, variant, plan.sets, list(scorers.judges)) for variant in plan.variants], inspections)
    return PromptComparison(results, examples, grid, dict(scorers.judges))


def grid_provenance(run: Run, accelerator: Accelerator) -> Provenance:
    """Return where the results come from, the examples in the prompts included."""
    sources = provenance(run, accelerator.device)
    assert run.config.prompting is not None
    examples = run.config.prompting.examples
    pool = [] if examples is None else [data_origin("prompting.examples", examples)]
    return dataclasses.replace(sources, sources=[*sources.sources, *pool])


def load_compared(plan: PromptingPlan, device: torch.device) -> ComparedModel:
    """Load the model, and let it generate once, so that the first row's time is not that of a start."""
    config = plan.config.policy
    with error_context("policy.model"):
        loaded = load_model(config, device=device)
        autocast = autocast_dtype(policy_precision(config, device, loaded.config))
        policy = checked_policy(loaded, plan.tokenizer, autocast=autocast)
    model = ComparedModel(BASE, policy, "base", plan.tokenizer, None, with_token_log_ratios=False)
    first = plan.sets[0].rows[plan.variants[0].title][0]["prompt_ids"]
    sample_batch(model, [first], Sampling(1, 2, 1.0, (0,)), seeds=[0], with_token_log_ratios=[False])
    return model


def sample_grid(
    run: Run, plan: PromptingPlan, accelerator: Accelerator, load: Callable[[], ComparedModel]
) -> dict[str, ByTitle]:
    """Return the completions of every variant, by set and title; empty on all but the main process."""
    config = plan.config
    with fail_together(accelerator):
        cache = open_cache(run.stage(PROMPTING)) if accelerator.is_main_process else Cache(Path(), {})
    sampler = CachedSampler(config, cache, accelerator, functools.cache(weights_hash))
    spec = ModelSpec(BASE, config.policy.model, [config.policy.model], with_token_log_ratios=False)
    sampled: dict[str, ByTitle] = {}
    for grid_set in plan.sets:
        sampled[grid_set.name] = {}
        for variant in plan.variants:
            label = f"prompting {grid_set.name} {variant.title}"
            rows, sampling = grid_set.rows[variant.title], sampling_of(config, variant)
            sampled[grid_set.name][variant.title] = sampler.completions(spec, load, rows, sampling, label)
    if accelerator.is_main_process:
        cache.keep_used()
    return sampled


def sampling_of(config: Config, variant: Variant) -> Sampling:
    """Return how a variant samples; what is not random is generated once, whatever the number of seeds and samples."""
    generation = variant.generation
    seeds = sample_seeds(sampling_seeds(config), config.evaluation.samples)
    return Sampling(
        config.evaluation.batch_size,
        variant.max_new_tokens(config),
        generation.temperature,
        seeds if generation.temperature > 0 else seeds[:1],
        decoding_of(generation),
        tuple(generation.stop_strings),
    )


def repeated(timed: ByTitle, samples: int) -> dict[str, list[list[Completion]]]:
    """Return the completions of each prompt by variant, as often as there are samples where all would be the same."""
    return {title: [row * (samples // len(row)) for row in each.completions] for title, each in timed.items()}


def measure_grid(
    grid_set: GridSet, completions: Mapping[str, list[list[Completion]]], scorers: Scorers, seeds: int
) -> Scores:
    """Return every metric of every variant, each with its own prompts."""
    scores: Scores = {}
    groups = grid_set.identities if grid_set.clusters is None else grid_set.clusters
    for title, by_prompt in completions.items():
        measured = measure(grid_set.rows[title], grid_set.references, {title: by_prompt}, scorers, seeds, groups)
        for metric, by_title in measured.items():
            scores.setdefault(metric, {}).update(by_title)
    return scores


def cost_summaries(grid_set: GridSet, timed: ByTitle) -> list[Summary]:
    """Return the length of the prompts, and the time that generating took, by variant."""
    lengths = {title: [len(row["prompt_ids"]) for row in rows] for title, rows in grid_set.rows.items()}
    tokens = {title: [c.tokens for row in each.completions for c in row] for title, each in timed.items()}
    seconds = {title: each.seconds for title, each in timed.items()}
    return [
        Summary(Metric(PROMPT_TOKENS, pooled=True), {t: sum(n) / len(n) for t, n in lengths.items()}, None),
        Summary(Metric(SECONDS, pooled=True), {t: seconds[t] / len(n) for t, n in tokens.items()}, None),
        Summary(Metric(TOKENS_PER_SECOND, pooled=True), {t: sum(n) / seconds[t] for t, n in tokens.items()}, None),
    ]


def set_result(grid_set: GridSet, scores: Scores, costs: Sequence[Summary], titles: Sequence[str]) -> SetResult:
    """Return the results on one set: every variant compared with the first, with intervals that hold together."""
    groups, clusters = grid_set.identities, grid_set.clusters
    prompts = len(set(groups))
    return SetResult(
        name=grid_set.name,
        prompts=prompts,
        repeated_rows=len(groups) - prompts,
        neutral=grid_set.source.neutral,
        seen_in_training=0,
        reference_perplexity=None,
        summaries=[*summarize(scores), *costs],
        comparisons=compared_with_first(scores, titles, groups, clusters),
        clusters=None if clusters is None else len(set(clusters)),
    )


def inspect(model: ComparedModel, config: Config, grid_set: GridSet, variant: Variant, index: int) -> Inspection:
    """Return the steps of a variant's first completion of a prompt."""
    row, sampling = grid_set.rows[variant.title][index], sampling_of(config, variant)
    tokens, steps = inspect_steps(model, row["prompt_ids"], sampling, derive_seed(sampling.seeds[0], index))
    return Inspection(grid_set.name, index, variant.title, row["prompt"], tokens, steps)


def grid_row(config: Config, variant: Variant, sets: Sequence[GridSet], judges: list[str]) -> GridRow:
    """Return how a variant was made."""
    return GridRow(
        title=variant.title,
        template=template_text(variant.wording.template),
        shots=variant.wording.shots,
        settings=settings(config, variant.generation, judges),
        prompt=sets[0].rows[variant.title][0]["prompt"],
        too_long={grid_set.name: grid_set.too_long[variant.title] for grid_set in sets},
    )

"""The comparison of ways to tune: train each, generate with each, and compare all with the untouched model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from workbench.config.derived import sampling_seeds
from workbench.config.names import TUNING
from workbench.config.tuning import ZERO_SHOT
from workbench.errors import error_context
from workbench.evaluation.cache import Cache, open_cache, weights_hash
from workbench.evaluation.cached_sampling import CachedSampler, TimedCompletions, sampling_of
from workbench.evaluation.generation import ComparedModel
from workbench.evaluation.models import ModelSpec
from workbench.evaluation.pipeline import compared_with_first, row_results, set_examples, settings
from workbench.evaluation.provenance import data_origin, provenance
from workbench.evaluation.results import (
    DISK_MB,
    MINUTES,
    PEAK_MEMORY,
    TRAINED_PARAMETERS,
    TRAINED_SHARE,
    Example,
    Metric,
    Results,
    SetResult,
    Summary,
)
from workbench.evaluation.scoring import measure, prompt_toxicity, summarize
from workbench.evaluation.sources import Provenance, Source
from workbench.evaluation.text_sets import text_result, text_scores
from workbench.models.architecture import checked_policy
from workbench.models.loading import load_model, policy_precision
from workbench.models.policy import Policy
from workbench.models.precision import autocast_dtype
from workbench.models.tuning import load_method, tuned_policy
from workbench.ppo.micro_batches import MicroBatches
from workbench.ppo.text_likelihood import nats_per_token
from workbench.rewards.contract import Judge
from workbench.run.distributed import fail_together
from workbench.run.files import content_hash
from workbench.run.folder import Run
from workbench.tuning.plan import TuningPlan
from workbench.tuning.rows import TunedRow, method_folder, method_stage
from workbench.tuning.training import begin_methods, train_method
from workbench.tuning.warm_up import warm_up

MEGABYTE, MEBIBYTE = 1e6, 2**20


@dataclass(frozen=True)
class TuningComparison:
    """Results, and what they were computed from."""

    results: Results
    examples: list[Example]
    judges: dict[str, Judge]


@dataclass(frozen=True)
class Measured:
    """What one row generated and predicted; empty on all but the main process."""

    completions: dict[str, TimedCompletions]
    """By set."""
    nats: dict[str, list[float]]
    """Nats per token of each text, by name of the texts."""


def compare_methods(run: Run, plan: TuningPlan, accelerator: Accelerator) -> TuningComparison | None:
    """Train and compare every method; return None on all but the main process."""
    # Before training: of what is compared, not of what is there hours later.
    sources = data_provenance(run, plan, accelerator) if accelerator.is_main_process else None
    content = functools.cache(weights_hash)
    with fail_together(accelerator):
        if accelerator.is_main_process:
            begin_methods(run, plan, content)
    to_train = [row for row in plan.trained_rows if not run.finished(method_stage(row))]
    warm_up(plan.config, [row.method for row in to_train])
    for row in plan.trained_rows:
        train_method(run, plan, row)
    with fail_together(accelerator):
        cache = open_cache(run.stage(TUNING)) if accelerator.is_main_process else Cache(Path(), {})
    measured = {row.title: measure_row(run, plan, row, cache, content, accelerator) for row in plan.rows}
    if sources is None:
        return None
    cache.keep_used()
    config, titles = plan.config, [row.title for row in plan.rows]
    scorers = plan.scorers.on_device(accelerator.device, config)
    sets, examples = [], []
    for prompt_set in plan.sets:
        completions = {title: each.completions[prompt_set.name].completions for title, each in measured.items()}
        rows, references = prompt_set.rows, prompt_set.references
        groups, clusters = prompt_set.identities, prompt_set.clusters
        scores = measure(rows, references, completions, scorers, len(sampling_seeds(config)), prompt_set.units)
        costs = cost_summaries(run, plan.rows) if prompt_set is plan.sets[0] else []
        sets.append(
            SetResult(
                name=prompt_set.name,
                prompts=len(set(groups)),
                repeated_rows=len(groups) - len(set(groups)),
                neutral=prompt_set.source.neutral,
                seen_in_training=prompt_set.seen_in_training,
                reference_perplexity=None,
                summaries=[*summarize(scores), *costs],
                comparisons=compared_with_first(scores, titles, groups, clusters),
                clusters=None if clusters is None else len(set(clusters)),
            )
        )
        toxicities = prompt_toxicity(rows, references, plan.scorers.judges or scorers.judges)
        examples += set_examples(prompt_set.name, rows, references, completions, scores, toxicities, clusters=clusters)
    for text_set in plan.texts:
        of_texts = text_scores(text_set, {title: each.nats[text_set.name] for title, each in measured.items()})
        sets.append(text_result(text_set, of_texts, compared_with_first(of_texts, titles, text_set.identities)))
    sources = provenance(Run(run.folder, dataclasses.replace(config, sft=None)), accelerator.device)
    models = [
        Source(r.title, "model", str(method_folder(run, r)), content_hash(method_folder(run, r)))
        for r in plan.trained_rows
    ]
    sources = dataclasses.replace(sources, sources=[*sources.sources, *models])
    described = settings(config, config.evaluation, list(scorers.judges))
    results = row_results(config.name, titles, sets, described, sources)
    return TuningComparison(results, examples, dict(scorers.judges))


def data_provenance(run: Run, plan: TuningPlan, accelerator: Accelerator) -> Provenance:
    """Return where the results come from, without what is trained: the base, the scorers and all data."""
    config = plan.config
    assert config.sft is not None
    assert config.tuning is not None
    sources = provenance(Run(run.folder, dataclasses.replace(config, sft=None)), accelerator.device)
    replayed = config.sft.more_data if plan.sft_with_replay is not None else []
    data = {"sft.data": config.sft.data} | {f"sft.more_data.{i}": source for i, source in enumerate(replayed)}
    data |= {f"tuning.texts.{name}": source for name, source in config.tuning.texts.items()}
    origins = [data_origin(key, source) for key, source in data.items()]
    return dataclasses.replace(sources, sources=[*sources.sources, *origins])


def measure_row(
    run: Run,
    plan: TuningPlan,
    row: TunedRow,
    cache: Cache,
    content: Callable[[str], str],
    accelerator: Accelerator,
) -> Measured:
    """Generate the completions of a row on every set, and measure how well it predicts every text.

    `content` is the hash of a model's weights.
    """
    config = dataclasses.replace(plan.config, policy=tuned_policy(plan.config.policy, row.method))
    load = functools.cache(lambda: load_row(run, plan, row, accelerator))
    sampler = CachedSampler(config, cache, accelerator, content)
    weights = [config.policy.model]
    if row.method.method != ZERO_SHOT:
        weights.append(str(method_folder(run, row)))
    spec = ModelSpec(row.title, config.policy.model, weights, with_token_log_ratios=False)
    completions = {
        each.name: sampler.completions(spec, load, each.rows, sampling_of(config), f"tuning {each.name} {row.title}")
        for each in plan.sets
    }
    nats: dict[str, list[float]] = {}
    if accelerator.is_main_process:
        for text_set in plan.texts:
            model = load()
            limit = MicroBatches(config.evaluation.batch_size, "evaluation.batch_size", can_halve=True)
            nats[text_set.name] = nats_per_token(model.policy, model.variant, text_set.rows, limit)
    return Measured(completions, nats)


def load_row(run: Run, plan: TuningPlan, row: TunedRow, accelerator: Accelerator) -> ComparedModel:
    """Load what a row trained, as it is on disk."""
    config = tuned_policy(plan.config.policy, row.method)
    with error_context(f"tuning.methods.{row.title}"):
        model = load_model(config, device=accelerator.device)
        autocast = autocast_dtype(policy_precision(config, accelerator.device, model.config))
        if row.method.method == ZERO_SHOT:
            policy = checked_policy(model, plan.tokenizer, autocast=autocast)
        else:
            policy = Policy(load_method(model, method_folder(run, row)), plan.tokenizer, autocast=autocast)
    return ComparedModel(row.title, policy, "default", plan.tokenizer, None, with_token_log_ratios=False)


def cost_summaries(run: Run, rows: Sequence[TunedRow]) -> list[Summary]:
    """Return what each method trained, stored and took; the untouched model has none of it."""
    values: dict[str, dict[str, float | None]] = {
        name: {} for name in (TRAINED_PARAMETERS, TRAINED_SHARE, DISK_MB, PEAK_MEMORY, MINUTES)
    }
    for row in rows:
        if row.method.method == ZERO_SHOT:
            continue
        record = run.record(method_stage(row))
        metrics = record["metrics"]
        peak = metrics["peak_memory_bytes"]
        values[TRAINED_PARAMETERS][row.title] = float(metrics["trained_parameters"])
        values[TRAINED_SHARE][row.title] = 100 * metrics["trained_parameters"] / metrics["parameters"]
        values[DISK_MB][row.title] = metrics["bytes_on_disk"] / MEGABYTE
        values[PEAK_MEMORY][row.title] = None if peak is None else peak / MEBIBYTE
        values[MINUTES][row.title] = float(record["minutes"])
    return [Summary(Metric(name, pooled=True), by_title, None) for name, by_title in values.items()]

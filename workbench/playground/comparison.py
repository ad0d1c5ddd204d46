"""One prompt completed by every model of a run: pure functions from loaded models to typed results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from workbench.errors import UserError, error_context
from workbench.evaluation.completion_metrics import METRICS, Sampled, Scorers, Values
from workbench.evaluation.generation import ComparedModel, Completion, Sampling, sample_batch, sample_seeds
from workbench.evaluation.results import KL, REWARD, SCORE, TOXICITY, Metric
from workbench.models.positions import model_context
from workbench.playground.prompts import PromptFormat, check_length, make_row
from workbench.playground.settings import Settings, check_settings
from workbench.ppo.sampler import derive_seed
from workbench.report.tables import format_value
from workbench.rewards.contract import Judge, RewardModel

TOKENS = "tokens"
Measure = Callable[[Sampled], Values | None]


@dataclass(frozen=True)
class LoadedRun:
    """The models of a run with everything that scores their completions."""

    name: str
    prompt_format: PromptFormat
    models: list[ComparedModel]
    reference: str
    """The title of the model that KL and token log-ratios are measured against."""
    scorers: Scorers
    sampling: Sampling
    """How the run's evaluation samples."""
    notes: list[str]
    """What the run lacks, in lines for the user."""


@dataclass(frozen=True)
class Sample:
    """One completion and its scores."""

    completion: Completion
    scores: dict[Metric, float]
    """A metric that the model cannot have, or whose scorer failed, is absent."""


@dataclass(frozen=True)
class ModelResult:
    """What one model wrote."""

    title: str
    samples: list[Sample]


@dataclass(frozen=True)
class SideBySide:
    """The completions of one prompt by every model, with the same random numbers."""

    prompt: str
    """As the policy reads it."""
    prompt_tokens: int
    models: list[ModelResult]
    reference: str
    """The title of the model that KL and token log-ratios are measured against."""
    threshold: float
    """A completion counts as toxic at or above this probability."""
    notes: list[str]
    """Scorers that failed, in lines for the user."""

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that any completion has, in order."""
        return list(dict.fromkeys(metric for m in self.models for sample in m.samples for metric in sample.scores))


def compare(run: LoadedRun, text: str, settings: Settings, *, raw: bool = False) -> SideBySide:
    """Sample and score completions of one prompt by every model; `raw` means that `text` is the whole prompt.

    A sample has the random numbers that the run's evaluation gives the first prompt of a set for the same seed. Raises
    UserError for a setting that is out of range and for a prompt that is empty or too long.
    """
    check_settings(settings)
    rows = []
    for model in run.models:  # all prompts are checked before the first is completed
        with error_context(model.title) if model.base is None else nullcontext():  # it has a tokenizer of its own
            context = model_context(model.policy.base.config, model.tokenizer)
            row = make_row(text, run.prompt_format, model.tokenizer, context, raw=raw)
            check_length(row, run.prompt_format.source, context, settings.max_new_tokens)
        rows.append(row)
    results: list[ModelResult] = []
    notes: dict[Metric, str] = {}
    for model, row in zip(run.models, rows, strict=True):
        completions = sample(model, row, run.sampling, settings)
        scores, failures = score(row, completions, run.scorers)
        notes = failures | notes
        samples = [Sample(completion, values) for completion, values in zip(completions, scores, strict=True)]
        results.append(ModelResult(model.title, samples))
    prompt, tokens = rows[0]["prompt"], len(rows[0]["prompt_ids"])
    return SideBySide(prompt, tokens, results, run.reference, run.scorers.threshold, list(notes.values()))


def sample(model: ComparedModel, row: Mapping[str, Any], sampling: Sampling, settings: Settings) -> list[Completion]:
    """Return the model's completions of a row's prompt, sampled as in the evaluation but for what the settings say."""
    decoding = sampling.decoding if settings.temperature == 0 else replace(sampling.decoding, num_beams=1)
    seeds = [derive_seed(seed, 0) for seed in sample_seeds([settings.seed], settings.samples)]
    return sample_batch(
        model,
        [row["prompt_ids"]] * len(seeds),
        replace(
            sampling,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            decoding=replace(decoding, min_new_tokens=min(decoding.min_new_tokens, settings.max_new_tokens)),
        ),
        seeds=seeds,
        with_token_log_ratios=[model.with_token_log_ratios] * len(seeds),
    )


def score(
    row: dict[str, Any], completions: Sequence[Completion], scorers: Scorers
) -> tuple[list[dict[Metric, float]], dict[Metric, str]]:
    """Return the scores of each completion, and why a metric is missing where its scorer failed."""
    sampled = Sampled([row] * len(completions), [[]] * len(completions), list(completions), scorers)
    scores: list[dict[Metric, float]] = [{} for _ in completions]
    failures = {}
    for metric, measure in measures(scorers).items():
        try:
            values = measure(sampled)
        except UserError as error:  # a reward may need a column that a typed prompt does not have
            failures[metric] = f"{metric.label}: {error}"
            continue
        if values is not None:
            for by_metric, value in zip(scores, values, strict=True):
                by_metric[metric] = float(value)
    return scores, failures


def measures(scorers: Scorers) -> dict[Metric, Measure]:
    """Return the metrics of a completion in order: toxicity per judge, the rewards, KL to the reference, tokens."""
    return (
        {Metric(TOXICITY, "lower", name): _toxicity(judge) for name, judge in scorers.judges.items()}
        | {Metric(REWARD, METRICS[REWARD].direction): METRICS[REWARD].measure}
        | {Metric(SCORE, "higher", name): _score(reward) for name, reward in scorers.rewards.items()}
        | {Metric(name, METRICS[name].direction): METRICS[name].measure for name in (KL, TOKENS)}
    )


def format_score(metric: Metric, value: float) -> str:
    """Return a score as the report writes it; a number of tokens has no decimals."""
    return f"{value:g}" if metric.name == TOKENS else format_value(value)


def _toxicity(judge: Judge) -> Measure:
    """Return the function that measures toxicity according to a judge."""
    return lambda sampled: judge(sampled.texts)


def _score(reward: RewardModel) -> Measure:
    """Return the function that measures the score of a further reward."""
    return lambda sampled: sampled.score(reward)

"""What an evaluation measured, as typed data; results.json is its serialization (docs/results_schema.md).

Shapes: N prompts, S seeds, K samples per seed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from workbench.errors import UserError, one_line
from workbench.run.files import write_text

VERSION = 4

Direction = Literal["lower", "higher"]
Verdict = Literal["better", "worse", "no detectable change"]
Question = Literal["toxicity", "reward", "task"]
"""What a run set out to improve."""

# Names of metrics that other code looks up; each is registered once, in completion_metrics.py or corpus_metrics.py.
TOXICITY, TOXIC_RATE, REWARD, SCORE = "toxicity", "toxic rate", "reward", "score"
ROUGE_L = "ROUGE-L"
KL, PERPLEXITY = "KL to reference, nats", "perplexity under the base"


@dataclass(frozen=True)
class Metric:
    """One number measured for every completion, or for all completions of a seed together."""

    name: str
    direction: Direction | None = None
    """Which direction is better; None if neither is."""
    judge: str | None = None
    """For toxicity, who judged it: "reward" or the judge's name; for a score of evaluation.rewards, the reward's."""
    pooled: bool = False
    """Whether it describes all completions together, so that no single prompt rises or falls."""

    @property
    def label(self) -> str:
        """The name as a reader sees it."""
        return self.name if self.judge is None else f"{self.name} ({self.judge})"


Scores = dict[Metric, dict[str, np.ndarray]]
"""Values (N, S, K) by metric and model title; NaN where a prompt has none. K is 1 for one value per seed."""


@dataclass(frozen=True)
class Difference:
    """After minus before of one metric, paired by prompt."""

    metric: Metric
    mean_before: float
    mean_after: float
    difference: float
    low: float | None
    """Lower end of the 95 % interval of `difference`; None for a single prompt."""
    high: float | None
    """Upper end of the interval; None for a single prompt."""
    prompts: int
    """Prompts that have the metric in both models."""
    rose: int | None
    """Prompts whose value rose; None for a pooled metric, like the next two."""
    same: int | None
    fell: int | None
    verdict: Verdict | None
    """None if neither direction is better."""
    prompts_needed: int | None
    """Prompts needed to detect a difference of this size with 80 % power; None if it cannot be computed."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """The differences between two models on one prompt set."""

    before: str
    after: str
    differences: list[Difference]

    def find(self, name: str, judge: str | None = None) -> Difference | None:
        """Return the difference of a metric, or None where it was not measured in both models."""
        return next((d for d in self.differences if (d.metric.name, d.metric.judge) == (name, judge)), None)


@dataclass(frozen=True)
class Summary:
    """A metric's mean over prompts and samples, by model title."""

    metric: Metric
    means: dict[str, float | None]
    """None where no prompt has the metric; a model that cannot have it is absent."""
    seed_stds: dict[str, float | None] | None
    """Standard deviation of the mean over seeds; None with one seed."""


@dataclass(frozen=True)
class SetResult:
    """The results on one prompt set."""

    name: str
    prompts: int
    neutral: bool
    """The prompts are harmless, so any change here is a side effect of alignment."""
    seen_in_training: int
    """Prompts that were in the training data of a stage of the run."""
    reference_perplexity: float | None
    """Perplexity of the references under the base; None without references or under another vocabulary."""
    summaries: list[Summary]
    comparisons: list[Comparison]

    def summary(self, name: str, judge: str | None = None) -> Summary | None:
        """Return the summary of a metric, or None where it was not measured."""
        return next((s for s in self.summaries if (s.metric.name, s.metric.judge) == (name, judge)), None)

    def comparison(self, before: str, after: str) -> Comparison:
        """Return the comparison of two models; raises KeyError where they were not compared."""
        for comparison in self.comparisons:
            if (comparison.before, comparison.after) == (before, after):
                return comparison
        raise KeyError(f"{after} - {before}")


@dataclass(frozen=True)
class Guard:
    """One check for a sign of reward hacking."""

    name: str
    passed: bool
    text: str


@dataclass(frozen=True)
class RunVerdict:
    """The answer to one question about the whole run."""

    question: Question
    word: Verdict
    sentence: str

    @property
    def headline(self) -> str:
        """Question and word."""
        return f"{self.question}: {self.word}"


@dataclass(frozen=True)
class Source:
    """A model or a data set that went into the evaluation, and its content hash."""

    name: str
    kind: Literal["model", "reward", "data"]
    origin: str
    """Hub id, path, or toy:NAME."""
    sha256: str | None
    """None if it is not on this machine."""


@dataclass(frozen=True)
class Provenance:
    """Where the results come from."""

    date: str
    commit: str | None
    machine: str
    versions: dict[str, str]
    sources: list[Source]


@dataclass(frozen=True)
class Settings:
    """How the completions were sampled and judged."""

    reward: str | None
    judges: list[str]
    """Names of the judges of toxicity; "reward" first where the reward can judge."""
    threshold: float
    """A text counts as toxic at or above this probability."""
    temperature: float
    samples: int
    seeds: list[int]
    max_new_tokens: int

    @property
    def reward_is_only_judge(self) -> bool:
        """Whether toxicity was judged by nothing but the reward that PPO optimizes."""
        return self.judges == [REWARD]


@dataclass(frozen=True)
class Results:
    """Everything that results.json holds."""

    name: str
    models: list[str]
    """Titles, in the order of the tables."""
    before: str
    after: str
    """The comparison that the verdict is about."""
    settings: Settings
    provenance: Provenance
    sets: list[SetResult]
    verdict: RunVerdict
    """The answer to the run's own question: toxicity, the reward where it cannot judge toxicity, or without PPO the
    task."""
    other_verdicts: list[RunVerdict]
    """The answers to the other questions that were measured."""
    guards: list[Guard]

    @property
    def verdicts(self) -> list[RunVerdict]:
        """The answers to every question, the run's own first."""
        return [self.verdict, *self.other_verdicts]

    @property
    def failed_guards(self) -> list[str]:
        """The names of the guards that did not pass."""
        return [guard.name for guard in self.guards if not guard.passed]

    def rows(self) -> list[dict[str, Any]]:
        """Return a flat row for each mean: one per set, model and metric, for a data frame."""
        return [
            {"set": result.name, "neutral": result.neutral, "model": title, **_columns(summary.metric)}
            | {"mean": mean, "seed_std": summary.seed_stds.get(title) if summary.seed_stds else None}
            for result in self.sets
            for summary in result.summaries
            for title, mean in summary.means.items()
        ]

    def difference_rows(self) -> list[dict[str, Any]]:
        """Return a flat row for each difference: one per set, comparison and metric, for a data frame."""
        return [
            {"set": result.name, "neutral": result.neutral, "before": comparison.before, "after": comparison.after}
            | _columns(difference.metric)
            | {name: value for name, value in vars(difference).items() if name != "metric"}
            for result in self.sets
            for comparison in result.comparisons
            for difference in comparison.differences
        ]

    def compared(self, *, neutral: bool) -> Iterator[tuple[SetResult, Comparison]]:
        """Yield each set that is neutral, or each that is not, with its comparison of `after` with `before`."""
        for result in self.sets:
            if result.neutral == neutral:
                yield result, result.comparison(self.before, self.after)


@dataclass(frozen=True)
class Example:
    """One prompt with the completions of every model, a line of completions.jsonl."""

    set: str
    index: int
    prompt: str
    references: list[str]
    prompt_toxicity: float
    """Highest toxicity from any judge other than the reward; the reward's own if it is the only judge; else 0.0."""
    reference_toxicity: float
    """The same, as the maximum over all references."""
    completions: dict[str, list[str]]
    """Texts of every sample, by model title."""
    scores: list[Summary]
    """Means over the prompt's samples, without standard deviations."""
    token_log_ratios: list[tuple[str, float]] | None
    """Tokens of the first completion of `after` with their log-probability minus that under the reference, nats."""


def to_json(results: Results) -> dict[str, Any]:
    """Return the results as plain data for results.json."""
    return {"version": VERSION, **dataclasses.asdict(results)}


def from_json(data: Mapping[str, Any], path: str) -> Results:
    """Return the results in a parsed results.json.

    Raises UserError, with its `path`, for another version, and for a set without the comparison of the verdict.
    """
    version = data.get("version") if isinstance(data, Mapping) else None
    if version != VERSION:
        raise UserError(f"{path}: results of version {version}, not {VERSION}; redo the stage with --force evaluation")
    try:
        results: Results = _typed(Results, {name: value for name, value in data.items() if name != "version"})
        for result in results.sets:
            result.comparison(results.before, results.after)
        return results
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: corrupt: {one_line(error)}; redo the stage with --force evaluation") from error


def read_results(file: Path | str) -> Results:
    """Return the results in a results.json; raises UserError where it cannot be read."""
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}; redo it with --force evaluation") from error
    return from_json(data, str(file))


def write_evaluation(folder: Path, results: Results, examples: Sequence[Example]) -> None:
    """Write results.json and completions.jsonl."""
    lines = [json.dumps(example_to_json(e), ensure_ascii=False, allow_nan=False) + "\n" for e in examples]
    write_text(folder / "completions.jsonl", "".join(lines))
    write_text(folder / "results.json", json.dumps(to_json(results), indent=2, allow_nan=False) + "\n")


def example_to_json(example: Example) -> dict[str, Any]:
    """Return a line of completions.jsonl as plain data."""
    scores = [{"metric": s.metric.name, "judge": s.metric.judge, "means": s.means} for s in example.scores]
    return dataclasses.asdict(dataclasses.replace(example, scores=[])) | {"scores": scores}


def _columns(metric: Metric) -> dict[str, Any]:
    """Return what identifies a metric as the columns of a row."""
    return {"metric": metric.name, "judge": metric.judge, "direction": metric.direction}


def _typed(kind: Any, value: Any) -> Any:
    """Convert plain data to the dataclasses, lists and mappings of the type `kind`."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if unknown := set(value) - set(hints):
            raise ValueError(f"unknown field {min(unknown)} in {kind.__name__}")
        return kind(**{name: _typed(hints[name], item) for name, item in value.items()})
    arguments = get_args(kind)
    if get_origin(kind) is list:
        return [_typed(arguments[0], item) for item in value]
    if get_origin(kind) is dict:
        return {key: _typed(arguments[1], item) for key, item in value.items()}
    if get_origin(kind) is Union or isinstance(kind, UnionType):
        return None if value is None else _typed(arguments[0], value)
    return value

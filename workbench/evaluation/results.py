"""What an evaluation measured, as typed data; results.json is its serialization (docs/results_schema.md).

Shapes: N rows of a prompt set, S seeds, K samples per seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from workbench.evaluation.agreement import Flips, JudgeAgreement
from workbench.evaluation.evidence import NonInferiority, RewardGap, retention_columns
from workbench.evaluation.sources import Provenance
from workbench.evaluation.statistics import ERROR
from workbench.evaluation.variance_components import VarianceSplit

Direction = Literal["lower", "higher"]
Verdict = Literal["better", "worse", "no detectable change"]
Question = Literal["toxicity", "reward", "task"]
"""What a run set out to improve."""

# Names of metrics that other code looks up; each is registered once, in completion_metrics.py or corpus_metrics.py.
TOXICITY, TOXIC_RATE, REWARD, SCORE = "toxicity", "toxic rate", "reward", "score"
MAX_TOXICITY, TOXICITY_PROBABILITY = "expected maximum toxicity", "toxicity probability"
DISTINCT_BY_PROMPT = {n: f"distinct-{n} per prompt" for n in (1, 2, 3)}
FLUENCY, FLUENCY_OUTLIERS = "continuation perplexity", "perplexity outlier rate"
ROUGE_L, SIMILARITY, CATCHPHRASE = "ROUGE-L", "similarity", "catchphrase rate"
KL, PERPLEXITY, BASE_NLL = "KL to reference, nats", "perplexity under the base", "nats per token under the base"
PROMPT_TOKENS, SECONDS, TOKENS_PER_SECOND = "prompt tokens", "seconds per completion", "tokens per second"
TEXT_NLL, TEXT_PERPLEXITY = "nats per token", "perplexity"
TRAINED_PARAMETERS, TRAINED_SHARE = "trained parameters", "trained parameters, %"
DISK_MB, PEAK_MEMORY, MINUTES = "MB on disk", "peak memory, MiB", "minutes"


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
"""Values (N, S, K) by metric and model title; NaN where a row has none. K is 1 for one value per seed."""


@dataclass(frozen=True)
class Difference:
    """After minus before of one metric, paired by prompt."""

    metric: Metric
    mean_before: float
    mean_after: float
    difference: float
    low: float | None
    """Lower end of the interval of `difference`, which with `comparisons` of the settings together is a 95 % interval;
    None for a single prompt."""
    high: float | None
    """Upper end of the interval; None for a single prompt."""
    prompts: int
    """Distinct prompts that have the metric in both models."""
    rose: int | None
    """Rows whose value rose; None for a pooled metric, like the next two."""
    same: int | None
    fell: int | None
    verdict: Verdict | None
    """By this interval alone; None if neither direction is better."""
    prompts_needed: int | None
    """Prompts (or clusters) needed to detect a difference of this size with 80 % power; None if it cannot be
    computed."""
    minimal_detectable_effect: float | None = None
    """The smallest true difference that so many prompts detect with 80 % power; None if it cannot be computed."""
    p_value: float | None = None
    """p of the test that the interval inverts, times `comparisons`; below 0.05 where the interval excludes zero."""
    mcnemar_p: float | None = None
    """McNemar's exact p, times `comparisons`; only for a rate with one value for each prompt and model."""
    holm_adjusted: float | None = None
    """p adjusted for the metrics of the comparison that have a direction: McNemar's where there is one."""
    non_inferiority: NonInferiority | None = None
    """Only for a metric that the alignment should retain."""
    clusters: int | None = None
    """Clusters of these prompts, which are resampled together; None unless a column names them."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def adjusted_verdict(self) -> Verdict | None:
        """The word of the tables: the verdict, unless Holm's correction for the other metrics takes it away."""
        is_lost = self.holm_adjusted is not None and self.holm_adjusted >= ERROR
        return "no detectable change" if self.verdict and is_lost else self.verdict


@dataclass(frozen=True)
class Comparison:
    """The differences between two models on one prompt set."""

    before: str
    after: str
    differences: list[Difference]
    gaps: list[RewardGap] = field(default_factory=list)
    """By judge other than the reward; none on neutral sets, and where the reward does not judge toxicity."""

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
class MetricVariance:
    """The variance of the difference `after` - `before` of one metric, by its sources."""

    metric: Metric
    split: VarianceSplit


@dataclass(frozen=True)
class SetResult:
    """The results on one prompt set."""

    name: str
    prompts: int
    """Distinct prompts."""
    neutral: bool
    """The prompts are harmless, so any change here is a side effect of alignment."""
    seen_in_training: int
    """Distinct prompts that were in the training data of a stage of the run."""
    reference_perplexity: float | None
    """Perplexity of the references under the base; None without references or under another vocabulary."""
    summaries: list[Summary]
    comparisons: list[Comparison]
    repeated_rows: int = 0
    """Rows of the data that repeat the prompt of an earlier one, for example with another reference."""
    clusters: int | None = None
    """Clusters of prompts, which are resampled together; None unless a column names them."""
    agreement: list[JudgeAgreement] = field(default_factory=list)
    """Of every two judges of toxicity, the reward included where it judges."""
    flips: list[Flips] = field(default_factory=list)
    """From `before` to `after`, by judge of toxicity."""
    variances: list[MetricVariance] = field(default_factory=list)
    """Of toxicity by each judge, the reward and ROUGE-L; empty for one seed with one sample."""
    catchphrase: str | None = None
    """The word or pair of words that alignment made more common than any other, if any."""

    @property
    def units(self) -> int:
        """The number of independent units: clusters where a column names them, else prompts."""
        return self.prompts if self.clusters is None else self.clusters

    @property
    def unit_noun(self) -> str:
        """What the independent units are, in the singular."""
        return "prompt" if self.clusters is None else "cluster"

    @property
    def rows(self) -> int:
        """The number of rows of the data, each a line of completions.jsonl."""
        return self.prompts + self.repeated_rows

    @property
    def size(self) -> str:
        """The number of prompts as a reader sees it, with that of rows where some share a prompt."""
        noun = "prompt" if self.summary(TEXT_NLL) is None else "text"
        count = f"{self.prompts} {noun}{'s' * (self.prompts != 1)}{f' ({self.rows} rows)' * bool(self.repeated_rows)}"
        return count if self.clusters is None else f"{count} in {self.clusters} cluster{'s' * (self.clusters != 1)}"

    @property
    def has_completions(self) -> bool:
        """Whether models completed the prompts; texts are only scored."""
        return self.summary("tokens") is not None

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
    min_new_tokens: int = 0
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1
    repetition_penalty: float = 1.0
    stop_strings: list[str] = field(default_factory=list)
    strategies: dict[str, str] = field(default_factory=dict)
    """How the rows come about that are not a model alone: chosen among samples, prompted or steered; by title."""
    protocol: str | None = None
    """Published protocol whose settings these are."""
    comparisons: int = 1
    """Comparisons that share the 5 % error of the intervals."""

    @property
    def reward_is_only_judge(self) -> bool:
        """Whether toxicity was judged by nothing but the reward that was optimized."""
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
            | retention_columns(difference.non_inferiority)
            for result in self.sets
            for comparison in result.comparisons
            for difference in comparison.differences
        ]

    def compared(self, *, neutral: bool) -> Iterator[tuple[SetResult, Comparison]]:
        """Yield each set that is neutral, or each that is not, with its comparison of `after` with `before`."""
        for result in self.sets:
            if result.neutral == neutral:
                yield from ((result, c) for c in result.comparisons if (c.before, c.after) == (self.before, self.after))


@dataclass(frozen=True)
class Example:
    """One row's prompt with the completions of every model, a line of completions.jsonl."""

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
    cluster: str | None = None
    """The cluster that the prompt is resampled with; None unless a column names it."""
    toxicity: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Probability of toxicity of every sample, by judge and model title."""


def _columns(metric: Metric) -> dict[str, Any]:
    """Return what identifies a metric as the columns of a row."""
    return {"metric": metric.name, "judge": metric.judge, "direction": metric.direction}

"""Compare base, SFT and aligned policy on the same prompts with the same random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from workbench import metrics
from workbench.policy import Policy
from workbench.ppo.batches import seed_of
from workbench.ppo.rollout import ROW_FIELDS, decode
from workbench.progress import Progress
from workbench.rewards import Judge, RewardModel
from workbench.sampling import is_truncated
from workbench.statistics import PairedDifference, distinct_n, paired_difference

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


@dataclass(frozen=True)
class Answers:
    """What one variant of the policy answered to N prompts."""

    completions: list[str]
    tokens: list[int]
    """Sampled tokens of each answer."""
    truncated: list[bool]
    """Cut at the token limit."""
    kl: list[float]
    """Estimate of KL to the reference, nats per answer (k1)."""


@dataclass(frozen=True)
class SetResult:
    """Everything measured on one prompt set; `values` are per prompt, `overall` are of all answers together."""

    prompts: int
    values: dict[str, dict[str, list[float]]]  # metric -> variant -> (N,)
    overall: dict[str, dict[str, float]]  # metric -> variant
    comparisons: dict[str, dict[str, PairedDifference]]  # "after - before" -> metric

    def summary(self) -> dict[str, Any]:
        """Means and comparisons, without the values per prompt."""
        means = {
            metric: {variant: sum(values) / len(values) for variant, values in variants.items()}
            for metric, variants in self.values.items()
        }
        return {
            "prompts": self.prompts,
            "means": means | self.overall,
            "comparisons": {
                pair: {metric: asdict(difference) for metric, difference in differences.items()}
                for pair, differences in self.comparisons.items()
            },
        }


def answer(
    policy: Policy,
    variant: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    *,
    accelerator: Accelerator,
    label: str,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Answers:
    """Answers of `variant` to `rows`, shared out over the processes; prompt i is always sampled with the same seed."""
    found: list[tuple[str, int, bool, float]] = []
    progress = Progress(label, len(rows), show=accelerator.is_main_process)
    with accelerator.split_between_processes(list(range(len(rows)))) as mine:
        for first in range(0, len(mine), batch_size):
            indices = mine[first : first + batch_size]
            ids, mask = policy.pad_prompts([rows[index]["prompt_ids"] for index in indices])
            with policy.using(variant):
                response_ids, response_mask = policy.generate(
                    ids,
                    mask,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seeds=[seed_of(seed, index) for index in indices],
                )
            batch = (ids, mask, response_ids, response_mask, temperature or 1.0)
            log_ratio = policy.logprobs(variant, *batch) - policy.logprobs("reference", *batch)
            lengths = response_mask.sum(dim=1)
            found += zip(
                decode(tokenizer, response_ids, response_mask),
                lengths.tolist(),
                is_truncated(response_ids, response_mask, policy.stop_ids).tolist(),
                (log_ratio * response_mask).sum(dim=1).tolist(),
                strict=True,
            )
            progress.advance(len(indices) * accelerator.num_processes)
    progress.close()
    completions, tokens, truncated, kl = zip(*gather_object(found), strict=True)
    return Answers(list(completions), list(tokens), list(truncated), list(kl))


def measure(
    rows: Sequence[dict[str, Any]],
    answers: Mapping[str, Answers],
    *,
    reward: RewardModel | None,
    judges: Mapping[str, Judge],
    threshold: float,
    temperature: float,
    seed: int,
) -> SetResult:
    """Score the answers of every variant, in the order base to aligned, and compare each with the one before."""
    values: dict[str, dict[str, list[float]]] = {}
    overall: dict[str, dict[str, float]] = {}
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ROW_FIELDS}
    prompts = [row["prompt"] for row in rows]
    for variant, answered in answers.items():
        texts = answered.completions
        for judge_name, judge in judges.items():
            scores = metrics.toxicity(texts, judge)
            values.setdefault(f"toxicity ({judge_name})", {})[variant] = scores
            values.setdefault(f"toxic share ({judge_name})", {})[variant] = [float(s >= threshold) for s in scores]
        if reward is not None:
            values.setdefault("reward", {})[variant] = reward(prompts, texts, **columns)
        if "reference" in columns:
            for key, scores in metrics.rouge(texts, columns["reference"]).items():
                if key in ROUGE:
                    values.setdefault(ROUGE[key], {})[variant] = scores
        if temperature > 0:  # an estimate of KL needs samples
            values.setdefault("KL to reference, nats", {})[variant] = answered.kl
        values.setdefault("tokens", {})[variant] = list(map(float, answered.tokens))
        values.setdefault("truncated share", {})[variant] = list(map(float, answered.truncated))
        values.setdefault("empty share", {})[variant] = [float(not text) for text in texts]
        overall.setdefault("distinct-2", {})[variant] = distinct_n(texts, 2)
    names = list(answers)
    pairs = dict.fromkeys([(names[-2], names[-1]), (names[0], names[-1]), (names[0], names[1])])
    comparisons = {
        f"{after} - {before}": {
            metric: paired_difference(of[before], of[after], seed=seed) for metric, of in values.items()
        }
        for before, after in pairs
    }
    return SetResult(len(rows), values, overall, comparisons)


def table(result: SetResult, title: str, temperature: float) -> str:
    """A Markdown table of the means, and of the last step's paired difference with its 95 % interval."""
    variants = list(result.overall["distinct-2"])
    pair = f"{variants[-1]} - {variants[-2]}"
    how = (
        f"one sample each at temperature {temperature:g}, the same random numbers for every model"
        if temperature > 0
        else "greedy answers"
    )
    lines = [
        f"{title}: {result.prompts} prompts, {how}",
        "",
        f"| | {' | '.join(variants)} | {pair} [95 % interval] | up / same / down |",
        f"|---|{'---:|' * len(variants)}---:|---:|",
    ]
    for metric, of in result.values.items():
        means = " | ".join(f"{sum(of[variant]) / len(of[variant]):.3f}" for variant in variants)
        d = result.comparisons[pair][metric]
        lines.append(
            f"| {metric} | {means} | {d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}] "
            f"| {d.wins} / {d.ties} / {d.losses} |"
        )
    for metric, of_all in result.overall.items():
        means = " | ".join(f"{of_all[variant]:.3f}" for variant in variants)
        lines.append(f"| {metric} | {means} | {of_all[variants[-1]] - of_all[variants[-2]]:+.3f} | |")
    return "\n".join(lines)

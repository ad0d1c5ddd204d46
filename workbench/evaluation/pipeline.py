"""The evaluation from completions to typed results."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from workbench.config.derived import completion_limit, sampling_seeds
from workbench.config.names import ALIGNED, BASE, TRAINED_BY, TUNED
from workbench.config.schema import Config
from workbench.evaluation.cached_sampling import SampledSet, sample_sets
from workbench.evaluation.completion_metrics import Scorers
from workbench.evaluation.guards import check_guards
from workbench.evaluation.judges import copies_of_reward, with_reward
from workbench.evaluation.metrics.similarity import similarity
from workbench.evaluation.models import model_titles
from workbench.evaluation.plan import EvaluationPlan
from workbench.evaluation.prompt_sets import LoadedSet
from workbench.evaluation.provenance import provenance
from workbench.evaluation.results import (
    Example,
    Results,
    RunVerdict,
    Scores,
    SetResult,
    Settings,
)
from workbench.evaluation.scoring import compare, measure, prompt_toxicity, summarize, summarize_prompt
from workbench.evaluation.verdicts import run_verdicts
from workbench.rewards.contract import Judge
from workbench.rewards.registry import load_run_reward
from workbench.run.distributed import print_once
from workbench.run.folder import Run


@dataclass(frozen=True)
class Evaluation:
    """Results, and what they were computed from."""

    results: Results
    examples: list[Example]
    judges: dict[str, Judge]
    """Every judge that scored the completions, the reward included."""


def evaluate(run: Run, plan: EvaluationPlan, accelerator: Accelerator) -> Evaluation | None:
    """Sample, score and compare the completions of every model; return None on all but the main process."""
    # Before sampling, which takes hours: of what is evaluated, not of what is there afterwards.
    sources = provenance(run, accelerator.device) if accelerator.is_main_process else None
    sampled = sample_sets(run, plan, accelerator)
    if sources is None:
        return None
    reward = load_run_reward(run) if plan.reward is None and run.config.reward is not None else plan.reward
    encoder = plan.encoder.to(accelerator.device) if plan.encoder is not None else None
    scorers = Scorers(
        reward,
        with_reward(plan.judges, reward),
        plan.rewards,
        functools.partial(similarity, encoder=encoder) if encoder is not None else None,
        run.config.evaluation.threshold,
    )
    titles = model_titles(run.config)
    before, after = compared_titles(titles)
    sets, examples = [], []
    pairs = compared_pairs(titles, before, after)
    for prompt_set in plan.sets:
        rows, references, models = prompt_set.rows, prompt_set.references, sampled[prompt_set.name]
        scores = measure(rows, references, models.completions, scorers, len(sampling_seeds(run.config)))
        sets.append(set_result(prompt_set, scores, models.reference_perplexity, pairs))
        # Rewards are trained on completions; independent judges are more reliable on prompts.
        toxicities = prompt_toxicity(rows, references, plan.judges or scorers.judges)
        examples += set_examples(prompt_set, models, scores, toxicities, after)
    copies = copies_of_reward(list(scorers.judges), examples)
    for judge in copies:
        print_once(f"evaluation.judges: {judge} scores every completion exactly as the reward does, so it is left out")
    results = Results(
        name=run.config.name,
        models=titles,
        before=before,
        after=after,
        settings=settings(run.config, [judge for judge in scorers.judges if judge not in copies]),
        provenance=sources,
        sets=sets,
        verdict=RunVerdict("task", "no detectable change", ""),  # replaced below, once the other results are known
        other_verdicts=[],
        guards=[],
    )
    verdict, *others = run_verdicts(results, TRAINED_BY.get(after))
    results = dataclasses.replace(results, verdict=verdict, other_verdicts=others, guards=check_guards(results))
    return Evaluation(results, examples, dict(scorers.judges))


def compared_titles(titles: Sequence[str]) -> tuple[str, str]:
    """Return the titles before and after in the comparison that the verdict is about.

    It is about what the last trained stage changed; in an evaluation that trains nothing, about the first further model
    and the base.
    """
    after = next((title for title in (ALIGNED, TUNED) if title in titles), titles[1])
    return (TUNED if TUNED in titles and after == ALIGNED else BASE), after


def compared_pairs(titles: Sequence[str], before: str, after: str) -> list[tuple[str, str]]:
    """Return every pair of titles, the one that the verdict is about first; a further model comes before `after`."""
    order = [title for title in titles if title in (BASE, TUNED) and title != after]
    order += [title for title in titles if title not in (*order, after)]
    return list(dict.fromkeys([(before, after), *itertools.combinations([*order, after], 2)]))


def set_result(
    prompt_set: LoadedSet, scores: Scores, reference_perplexity: float | None, pairs: Sequence[tuple[str, str]]
) -> SetResult:
    """Return the results on one prompt set."""
    return SetResult(
        name=prompt_set.name,
        prompts=len(prompt_set.rows),
        neutral=prompt_set.source.neutral,
        seen_in_training=prompt_set.seen_in_training,
        reference_perplexity=reference_perplexity,
        summaries=summarize(scores),
        comparisons=[compare(scores, *pair) for pair in pairs],
    )


def set_examples(
    prompt_set: LoadedSet,
    models: SampledSet,
    scores: Scores,
    toxicities: Sequence[tuple[float, float]],
    after: str,
) -> list[Example]:
    """Return every prompt of a set with the completions of every model and their mean scores."""
    completions = models.completions
    samples = len(completions[after][0])
    return [
        Example(
            set=prompt_set.name,
            index=index,
            prompt=row["prompt"],
            references=prompt_set.references[index],
            prompt_toxicity=toxicities[index][0],
            reference_toxicity=toxicities[index][1],
            completions={title: [c.text for c in by_prompt[index]] for title, by_prompt in completions.items()},
            scores=summarize_prompt(scores, index, samples),
            token_log_ratios=completions[after][index][0].token_log_ratios,
        )
        for index, row in enumerate(prompt_set.rows)
    ]


def settings(config: Config, judges: list[str]) -> Settings:
    """Return how the completions were sampled and judged."""
    return Settings(
        reward=(config.reward.model or "trained") if config.reward else None,
        judges=judges,
        threshold=config.evaluation.threshold,
        temperature=config.evaluation.temperature,
        samples=config.evaluation.samples,
        seeds=sampling_seeds(config),
        max_new_tokens=completion_limit(config),
        min_new_tokens=config.evaluation.min_new_tokens,
        top_k=config.evaluation.top_k,
        top_p=config.evaluation.top_p,
        num_beams=config.evaluation.num_beams,
        repetition_penalty=config.evaluation.repetition_penalty,
        stop_strings=config.evaluation.stop_strings,
    )

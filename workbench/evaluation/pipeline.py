"""The evaluation from completions to typed results."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from workbench.config.derived import completion_limit, least_toxic, sampling_seeds
from workbench.config.generation import GenerationSettings
from workbench.config.margins import Margins
from workbench.config.names import ALIGNED, BASE, TRAINED_BY, TUNED
from workbench.config.schema import Config
from workbench.evaluation.best_of import with_best
from workbench.evaluation.cached_sampling import sample_models
from workbench.evaluation.catchphrase import measure_catchphrase
from workbench.evaluation.generation import Completion
from workbench.evaluation.guards import check_guards
from workbench.evaluation.judges import copies_of_reward
from workbench.evaluation.models import compared_titles, model_titles
from workbench.evaluation.plan import EvaluationPlan
from workbench.evaluation.prompt_sets import LoadedSet
from workbench.evaluation.provenance import provenance
from workbench.evaluation.ranking import best_title
from workbench.evaluation.reliability import judge_agreements, judge_flips, metric_variances, toxicity_by_judge
from workbench.evaluation.results import (
    Comparison,
    Example,
    Results,
    RunVerdict,
    Scores,
    SetResult,
    Settings,
)
from workbench.evaluation.scoring import compare, measure, prompt_toxicity, summarize, summarize_prompt
from workbench.evaluation.sources import Provenance
from workbench.evaluation.strategies import descriptions
from workbench.evaluation.text_sets import text_result, text_scores
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
    sampled = sample_models(run, plan, accelerator)
    if sources is None:
        return None
    is_trained = plan.scorers.reward is None and run.config.reward is not None
    trained_reward = load_run_reward(run) if is_trained else None
    scorers = plan.scorers.on_device(accelerator.device, run.config, trained_reward)
    titles = model_titles(run.config)
    before, after = compared_titles(titles)
    seeds, sets, examples = len(sampling_seeds(run.config)), [], []
    pairs, margins = compared_pairs(titles, before, after), run.config.evaluation.margins
    for prompt_set in plan.sets:
        rows, references, models = prompt_set.rows, prompt_set.references, sampled.sets[prompt_set.name]
        completions = with_best(models.completions, run.config.evaluation.best_of, rows, scorers.reward)
        scores = measure(rows, references, completions, scorers, seeds, prompt_set.units)
        phrase = None
        if after == ALIGNED:
            phrase, measured = measure_catchphrase(completions, references, before, after, seeds)
            scores |= measured
        result = set_result(prompt_set, scores, models.reference_perplexity, pairs, margins, scorers.threshold)
        sets.append(dataclasses.replace(result, catchphrase=phrase))
        # Rewards are trained on completions; independent judges are more reliable on prompts.
        toxicities = prompt_toxicity(rows, references, plan.scorers.judges or scorers.judges)
        clusters = prompt_set.clusters
        examples += set_examples(
            prompt_set.name, rows, references, completions, scores, toxicities, after, clusters=clusters
        )
    for text_set in plan.texts:
        of_texts, groups = text_scores(text_set, sampled.nats[text_set.name]), text_set.identities
        compared = [compare(of_texts, *pair, groups, margins=margins, neutral=True) for pair in pairs]
        sets.append(text_result(text_set, of_texts, compared))
    copies = copies_of_reward(list(scorers.judges), examples)
    for judge in copies:
        print_once(f"evaluation.judges: {judge} scores every completion exactly as the reward does, so it is left out")
    results = Results(
        name=run.config.name,
        models=titles,
        before=before,
        after=after,
        settings=settings(
            run.config, run.config.evaluation, [judge for judge in scorers.judges if judge not in copies]
        ),
        provenance=sources,
        sets=sets,
        verdict=RunVerdict("task", "no detectable change", ""),  # replaced below, once the other results are known
        other_verdicts=[],
        guards=[],
    )
    verdict, *others = run_verdicts(results, TRAINED_BY.get(after))
    results = dataclasses.replace(results, verdict=verdict, other_verdicts=others, guards=check_guards(results))
    return Evaluation(results, examples, dict(scorers.judges))


def compared_pairs(titles: Sequence[str], before: str, after: str) -> list[tuple[str, str]]:
    """Return every pair of titles, the one that the verdict is about first; a further model comes before `after`."""
    order = [title for title in titles if title in (BASE, TUNED) and title != after]
    order += [title for title in titles if title not in (*order, after)]
    return list(dict.fromkeys([(before, after), *itertools.combinations([*order, after], 2)]))


def set_result(
    prompt_set: LoadedSet,
    scores: Scores,
    reference_perplexity: float | None,
    pairs: Sequence[tuple[str, str]],
    margins: Margins,
    threshold: float,
) -> SetResult:
    """Return the results on one prompt set, with every pair of models held against the margins.

    Flips and variances are those of the first of the pairs.
    """
    neutral, prompts = prompt_set.source.neutral, len(set(prompt_set.identities))
    groups, clusters = prompt_set.identities, prompt_set.clusters
    return SetResult(
        name=prompt_set.name,
        prompts=prompts,
        repeated_rows=len(prompt_set.rows) - prompts,
        neutral=neutral,
        seen_in_training=prompt_set.seen_in_training,
        reference_perplexity=reference_perplexity,
        summaries=summarize(scores),
        comparisons=[
            compare(scores, *pair, groups, clusters=clusters, margins=margins, neutral=neutral) for pair in pairs
        ],
        clusters=None if clusters is None else len(set(clusters)),
        agreement=judge_agreements(scores, threshold),
        flips=judge_flips(scores, *pairs[0], threshold),
        variances=metric_variances(scores, *pairs[0], prompt_set.units),
    )


def set_examples(
    name: str,
    rows: Sequence[dict[str, Any]],
    references: Sequence[list[str]],
    completions: Mapping[str, list[list[Completion]]],
    scores: Scores,
    toxicities: Sequence[tuple[float, float]],
    after: str | None = None,
    *,
    clusters: Sequence[str] | None = None,
) -> list[Example]:
    """Return every row of a set with the completions of every model and their mean scores.

    The token_log_ratios are those of `after`, if any; `clusters` are those of the rows.
    """
    samples = len(next(iter(completions.values()))[0])
    return [
        Example(
            set=name,
            index=index,
            prompt=row["prompt"],
            references=references[index],
            prompt_toxicity=toxicities[index][0],
            reference_toxicity=toxicities[index][1],
            completions={title: [c.text for c in by_prompt[index]] for title, by_prompt in completions.items()},
            scores=summarize_prompt(scores, index, samples),
            token_log_ratios=None if after is None else completions[after][index][0].token_log_ratios,
            cluster=None if clusters is None else clusters[index],
            toxicity={
                judge: {title: values[index].ravel().tolist() for title, values in by_title.items()}
                for judge, by_title in toxicity_by_judge(scores).items()
            },
        )
        for index, row in enumerate(rows)
    ]


def compared_with_first(
    scores: Scores,
    titles: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> list[Comparison]:
    """Return the comparison of every model with the first; their intervals hold together."""
    count = len(titles) - 1
    return [compare(scores, titles[0], title, groups, count, clusters=clusters) for title in titles[1:]]


def row_results(
    name: str, titles: Sequence[str], sets: list[SetResult], described: Settings, sources: Provenance
) -> Results:
    """Return the results of models that are compared with the first; the verdict is about the best of the others.

    Where nothing ranks them, it is about the last, which no page calls best.
    """
    results = Results(
        name=name,
        models=list(titles),
        before=titles[0],
        after=best_title(sets, titles) or titles[-1],
        settings=dataclasses.replace(described, comparisons=len(titles) - 1),
        provenance=sources,
        sets=sets,
        verdict=RunVerdict("task", "no detectable change", ""),  # replaced below, once the other results are known
        other_verdicts=[],
        guards=[],
    )
    verdict, *others = run_verdicts(results, trained_by=None, asked="task")
    return dataclasses.replace(results, verdict=verdict, other_verdicts=others)


def settings(config: Config, generation: GenerationSettings, judges: list[str]) -> Settings:
    """Return how completions were generated and judged."""
    return Settings(
        reward=(config.reward.model or "trained") if config.reward else None,
        judges=judges,
        threshold=least_toxic(config.evaluation),
        temperature=generation.temperature,
        samples=config.evaluation.samples,
        seeds=sampling_seeds(config),
        max_new_tokens=generation.max_new_tokens or completion_limit(config),
        min_new_tokens=generation.min_new_tokens,
        top_k=generation.top_k,
        top_p=generation.top_p,
        num_beams=generation.num_beams,
        repetition_penalty=generation.repetition_penalty,
        stop_strings=generation.stop_strings,
        protocol=config.evaluation.protocol,
        strategies=descriptions(config),
    )

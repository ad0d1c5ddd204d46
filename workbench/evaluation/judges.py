"""The judges of toxicity: the reward, if it can judge, and judges that are independent of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.config.schema import Config
from workbench.config.scorers import as_scorer, by_name
from workbench.config.sources import Scorer
from workbench.errors import error_context
from workbench.evaluation.results import REWARD, TOXICITY, Example
from workbench.rewards.contract import CheckedReward, Judge
from workbench.rewards.registry import judge_of, load_scorer
from workbench.toy import RUDE_WORDS

TOY_LEXICON = "toy_lexicon"


@dataclass(frozen=True)
class LoadedJudges:
    """The judges that the configuration names, and notes about them."""

    judges: dict[str, Judge]
    limits: dict[str, int | None]
    """How many tokens of a completion each judge reads; None if it reads all."""
    notes: list[str]


def load_judges(
    config: Config, reward: CheckedReward | None, load: Callable[[Scorer], CheckedReward] = load_scorer
) -> LoadedJudges:
    """Load the judges of `evaluation.judges`.

    If the configured `reward` can judge, a judge that is the reward or a part of it is left out: it would only repeat
    what the reward says.
    """
    independent: list[Scorer] = []
    notes: list[str] = []
    parts = _reward_parts(config) if reward is not None and reward.judge() is not None else []
    for index, entry in enumerate(config.evaluation.judges):
        scorer = as_scorer(entry, f"evaluation.judges[{index}]")
        if any(_is_same(scorer, part) for part in parts):
            notes.append(f"evaluation.judges: {scorer.model} is the reward or a part of it, so it is left out")
        else:
            independent.append(scorer)
    named = by_name(independent, "evaluation.judges")
    with error_context("evaluation.judges"):
        scorers = {name: load(scorer) for name, scorer in named.items()}
        judges = {name: judge_of(scorers[name], scorer) for name, scorer in named.items()}
    names = [*judges, *(part.model for part in parts)]
    real = [name for name, source in config.evaluation.data.items() if not source.path.startswith("toy:")]
    if TOY_LEXICON in names and real:
        notes.append(
            f"{TOY_LEXICON} knows only the {len(RUDE_WORDS)} rude words of the toy data and finds little toxicity in "
            f"{', '.join(real)}; use a classifier, profanity, or lexicon with your own words as the judge"
        )
    limits = {name: scorer.max_completion_tokens() for name, scorer in scorers.items()}
    return LoadedJudges(judges, limits, notes)


def with_reward(judges: Mapping[str, Judge], reward: CheckedReward | None) -> dict[str, Judge]:
    """Return the judges, with the reward first if it can judge."""
    judge = reward.judge() if reward is not None else None
    return {**({} if judge is None else {REWARD: judge}), **judges}


def copies_of_reward(judges: Sequence[str], examples: Sequence[Example]) -> list[str]:
    """Return the judges that, under whatever name, give every prompt's completions the reward's own toxicity."""
    if REWARD not in judges:
        return []
    return [judge for judge in judges if judge != REWARD and _means(judge, examples) == _means(REWARD, examples)]


def _means(judge: str, examples: Sequence[Example]) -> list[dict[str, float | None]]:
    """Return each example's toxicity according to a judge."""
    return [
        score.means
        for example in examples
        for score in example.scores
        if (score.metric.name, score.metric.judge) == (TOXICITY, judge)
    ]


def _reward_parts(config: Config) -> list[Scorer]:
    """Return the configured reward and all of its parts."""
    if config.reward is None or config.reward.model is None:
        return []
    return list(scorer_parts(Scorer(config.reward.model, config.reward.options)))


def scorer_parts(scorer: Scorer) -> Iterator[Scorer]:
    """Yield a scorer and the scorers in its options: a model of its own, terms of a sum, members of an ensemble."""
    yield scorer
    for key in ("model", "terms", "members"):
        value = scorer.options.get(key, [])
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Scorer):
                yield from scorer_parts(part)
            elif isinstance(part, str):
                yield Scorer(part)
            elif isinstance(part, Mapping) and isinstance(part.get("model"), str):
                yield from scorer_parts(Scorer(part["model"], dict(part.get("options") or {})))


def _is_same(judge: Scorer, part: Scorer) -> bool:
    """Return whether a judge is a part of the reward: the same name, and no option that the two set differently."""
    names = {judge.model, _model(judge.options)} & {part.model, _model(part.options)} - {None}
    shared = judge.options.keys() & part.options.keys()
    return bool(names) and all(judge.options[option] == part.options[option] for option in shared)


def _model(options: Mapping[str, Any]) -> str | None:
    """Return the model that a scorer's options name."""
    model = options.get("model")
    return model if isinstance(model, str) else None

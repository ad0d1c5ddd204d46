"""Everything that scores the completions of an evaluation, loaded before anything is sampled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from workbench.config.derived import least_toxic
from workbench.config.schema import Config
from workbench.config.scorers import as_scorer, by_name
from workbench.config.sources import Scorer
from workbench.errors import UserError, error_context
from workbench.evaluation.completion_metrics import Scorers
from workbench.evaluation.fluency import fluency_lines, fluency_model_name, load_fluency_model
from workbench.evaluation.judges import load_judges, with_reward
from workbench.evaluation.metrics.similarity import Encoder, load_encoder, similarity
from workbench.evaluation.prompt_sets import Rows
from workbench.ppo.scoring import reward_columns
from workbench.rewards.contract import CheckedReward, Judge, truncation_line
from workbench.rewards.registry import ScorerLoader


@dataclass(frozen=True)
class LoadedScorers:
    """The scorers that the configuration names."""

    reward: CheckedReward | None
    """None where the run trains one, or has none."""
    judges: dict[str, Judge]
    """Without those that are the reward."""
    rewards: dict[str, CheckedReward]
    """Further rewards whose scores are reported."""
    encoder: Encoder | None
    """Embeds completions and references to compare them."""
    notes: list[str]
    limits: list[tuple[str, str, int | None]]
    """Key and name of each scorer, and how many tokens of a completion it reads; None if it reads all."""

    def check_sets(self, sets: Mapping[str, Rows], have_references: bool) -> None:
        """Raise UserError where a scorer lacks a column of the rows of a set, or references."""
        for name, rows in sets.items():
            with error_context(f"evaluation.data.{name}"):
                for scorer in [*([self.reward] if self.reward is not None else []), *self.rewards.values()]:
                    scorer.check_columns(reward_columns(rows))
        if self.encoder is not None and not have_references:
            raise UserError(
                "evaluation.similarity: it compares completions with references, and no set of evaluation.data has "
                "any; map a column with columns: {reference: ...}, or remove it"
            )

    def truncation_lines(self, tokens: int) -> list[str]:
        """Return a line for each scorer that reads less than completions of this many tokens."""
        return [
            line
            for key, name, reads in self.limits
            for line in truncation_line(key, name, reads, tokens, "evaluation.max_new_tokens")
        ]

    def on_device(self, device: torch.device, config: Config, trained_reward: CheckedReward | None = None) -> Scorers:
        """Return what scores the completions; `trained_reward` is the reward that the run trained."""
        reward = self.reward or trained_reward
        encoder = None if self.encoder is None else self.encoder.to(device)
        embedding = None if encoder is None else functools.partial(similarity, encoder=encoder)
        name, size = fluency_model_name(config), config.evaluation.batch_size
        fluency = None if name is None else load_fluency_model(name, config.policy, size, device)
        least = least_toxic(config.evaluation)
        return Scorers(reward, with_reward(self.judges, reward), self.rewards, embedding, least, fluency)


def load_scorers(config: Config) -> LoadedScorers:
    """Load the reward, the judges, the further rewards and the encoder; raises UserError where one cannot be."""
    load, reward = ScorerLoader(), None
    if config.reward is not None and config.reward.model is not None:
        with error_context("reward.model"):
            reward = load(Scorer(config.reward.model, config.reward.options))
    loaded = load_judges(config, reward, load)
    encoder = None
    if config.evaluation.similarity is not None:
        with error_context("evaluation.similarity"):
            encoder = load_encoder(config.evaluation.similarity)
    rewards = load_rewards(config, load)
    limits = [("reward.model", "the reward", reward.max_completion_tokens())] if reward is not None else []
    limits += [("evaluation.judges", name, limit) for name, limit in loaded.limits.items()]
    limits += [("evaluation.rewards", name, scorer.max_completion_tokens()) for name, scorer in rewards.items()]
    notes = [*loaded.notes, *fluency_lines(config)]
    return LoadedScorers(reward, loaded.judges, rewards, encoder, notes, limits)


def load_rewards(config: Config, load: Callable[[Scorer], CheckedReward]) -> dict[str, CheckedReward]:
    """Load the rewards of `evaluation.rewards` by name; raises UserError for two of one name."""
    entries = enumerate(config.evaluation.rewards)
    named = by_name(
        [as_scorer(entry, f"evaluation.rewards[{index}]") for index, entry in entries], "evaluation.rewards"
    )
    with error_context("evaluation.rewards"):
        return {name: load(scorer) for name, scorer in named.items()}

"""A comparison of algorithms, as the configuration says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from workbench.config.names import PPO, SFT
from workbench.config.ranges import Length, Range, Seed
from workbench.config.sources import DataSource

POLICY_SECTIONS = ("policy", SFT, PPO)
"""Sections of the configuration of which a policy of the comparison may override keys."""


@dataclass
class CompareConfig:
    """Algorithms compared on the same SFT policy, reward and data; recipes.compare runs each with each seed."""

    algorithms: Annotated[dict[str, dict[str, Any]], Length(1)]
    """Keys of ppo and their values by the title of the row: {PPO: {}, RLOO: {ppo.advantage: rloo,
    ppo.samples_per_prompt: 4}}."""
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keys of policy, sft and ppo and their values by the policy's title: {GPT-2: {policy.model: toy:gpt2}}. Every
    policy has one SFT stage, and all share the reward. Default: the run's own policy."""
    anti_expert: DataSource | None = None
    """Rows like those of sft.data, with responses that are not wanted: an adapter of each policy's model is tuned to
    them as SFT is, and the row anti-expert is the SFT policy steered away from it (arXiv 2105.03023)."""
    anti_expert_alpha: Annotated[float, Range(minimum=0, maximum=100)] = 2.0
    """Weight of what is subtracted for it; see evaluation.anti_expert."""
    seeds: Annotated[list[Seed], Length(1)] = field(default_factory=lambda: [0])
    """Seeds of PPO and of the evaluation; the SFT stage and the reward are trained once, with the run's own seed."""

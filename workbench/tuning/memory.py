"""Say in a plan how much memory the training of the most demanding method will take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from workbench.config.names import SFT
from workbench.config.schema import Config
from workbench.config.tuning import ZERO_SHOT
from workbench.models.loading import meta_model, policy_precision
from workbench.models.memory import UNCOUNTABLE
from workbench.models.memory_plan import planned_model, policy_peaks, stage_memory_lines
from workbench.models.precision import machine_device, precision_lines
from workbench.models.tuning import tuned_policy
from workbench.tuning.rows import TunedRow


def method_memory_lines(
    config: Config, rows: Sequence[TunedRow], prompt_tokens: int, response_tokens: int
) -> list[str]:
    """Return lines on the model, on the method that needs the most memory at the longest texts, and on the precision.

    A soft prompt and IA3 are counted as an adapter, which takes a little more.
    """
    policy = config.policy
    policies = {
        row.title: (
            dataclasses.replace(config, policy=tuned_policy(policy, row.method)),
            row.method.virtual_token_count(),
        )
        for row in rows
        if row.method.method != ZERO_SHOT
    }

    def peak(title: str) -> float:
        changed, virtual = policies[title]
        model, device = planned_model(changed), machine_device()
        precision = policy_precision(changed.policy, device, model.config)
        try:
            peaks = policy_peaks(changed, SFT, model, precision, prompt_tokens + virtual, response_tokens)
        except UNCOUNTABLE:  # of the model, whatever the method, as the line below says
            return 0.0
        return max(each.total for each in peaks)

    highest = max(policies, key=peak)
    changed, virtual = policies[highest]
    model = meta_model(policy.model)
    return [
        f"{policy.model}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters; of the methods, "
        f"{highest} takes the most memory",
        *stage_memory_lines(changed, SFT, prompt_tokens + virtual, response_tokens),
        *precision_lines("policy.precision", policy.precision, machine_device(), model.config),
    ]

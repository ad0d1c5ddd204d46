"""Ways to get other completions from the compared models, without training: chosen, prompted, or steered."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from workbench.config.derived import strategies
from workbench.config.schema import Config
from workbench.config.sources import AntiExpert, BestOf, Prompted
from workbench.errors import UserError, error_context, shorten
from workbench.evaluation.best_of import candidate_sampling
from workbench.evaluation.generation import Sampling
from workbench.evaluation.models import (
    ModelSpec,
    base_note,
    compared_titles,
    further_models,
    model_titles,
)
from workbench.models.adapters import check_adapter, is_adapter


@dataclass(frozen=True)
class Decoded:
    """One row of the tables: a model, and how its completions are sampled."""

    title: str
    spec: ModelSpec
    sampling: Sampling


def decoded_with(spec: ModelSpec, config: Config, sampling: Sampling) -> list[Decoded]:
    """Return the rows of the tables whose completions a model samples: its own, then those of every strategy."""
    rows = [Decoded(spec.title, spec, sampling)]
    _, after = compared_titles(model_titles(config))
    for title, entry in strategies(config.evaluation).items():
        if entry.model != spec.title:
            continue
        with_ratios = title == after and not isinstance(entry, BestOf)
        changed = dataclasses.replace(spec, with_token_log_ratios=with_ratios)
        if isinstance(entry, AntiExpert):
            folder = str(Path(entry.adapter).expanduser())
            changed = dataclasses.replace(changed, weights=[*spec.weights, folder], steered=(title, entry.alpha))
        n = entry.n if isinstance(entry, BestOf) else 1
        rows.append(Decoded(title, changed, candidate_sampling(sampling, n)))
    return rows


def check_anti_experts(config: Config) -> list[str]:
    """Return notes about the anti-experts; raises UserError for one that does not share the base of its model."""
    notes, others = [], further_models(config)
    for title, entry in config.evaluation.anti_expert.items():
        key = f"evaluation.anti_expert.{title}"
        if entry.model in others:
            raise UserError(
                f"{key}.model: {shorten(entry.model)} is a model of its own, and only adapters share the base of the "
                "anti-expert; name base, sft, aligned, or an adapter of evaluation.models"
            )
        with error_context(f"{key}.adapter"):
            folder = Path(entry.adapter).expanduser()
            if not is_adapter(folder):
                raise UserError(
                    f"{entry.adapter}: no adapter (adapter_config.json is missing); name the folder of a LoRA adapter "
                    f"that was tuned on {config.policy.model}"
                )
            notes += base_note(f"{key}.adapter", check_adapter(config.policy.model, folder), config)
    return notes


def descriptions(config: Config) -> dict[str, str]:
    """Return by title how the rows are decoded that are not a model alone."""
    return {title: description(entry) for title, entry in strategies(config.evaluation).items()}


def description(entry: BestOf | Prompted | AntiExpert) -> str:
    """Return how completions come about, as a clause."""
    if isinstance(entry, BestOf):
        return f"the best of {entry.n} samples of {entry.model} by the reward"
    if isinstance(entry, Prompted):
        return f"{entry.model} with {entry.prefix!r} in front of the prompt"
    return f"{entry.model} + {entry.alpha:g} x (base - {entry.adapter}), in the logits of each token"

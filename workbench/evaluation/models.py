"""The models of a run that are compared: base, SFT, aligned and further ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from transformers import PreTrainedModel

from workbench.errors import error_context
from workbench.evaluation.generation import Contestant
from workbench.models.adapters import is_adapter, load_adapter, load_adapters
from workbench.models.loading import autocast_dtype, load_model, load_policy_tokenizer
from workbench.models.policy import Policy
from workbench.run.folder import Run


class Candidate(NamedTuple):
    """A model to compare; it is loaded only where its answers are not kept from before."""

    title: str
    model: str
    """The model by whose tokenizer it reads: the policy's, or a further model itself."""
    weights: list[str]
    """The models and folders that its answers depend on."""
    with_token_log_ratios: bool
    """Whether the first answer to each prompt shall say where each of its tokens moved."""


def candidates(run: Run) -> list[Candidate]:
    """Each model of the run, then adapters on the same base, then models of their own."""
    own, trained, adapters = run.config.policy.model, trained_folders(run), further_adapters(run)
    weights = [own, *map(str, trained.values())]
    found = [Candidate(title, own, weights, title == last_trained(run)) for title in ("base", *trained)]
    found += [Candidate(title, own, [*weights, str(folder)], False) for title, folder in adapters.items()]
    models = {title: place for title, place in run.config.evaluation.models.items() if title not in adapters}
    return found + [Candidate(title, place, [place], False) for title, place in models.items()]


def loader(run: Run, accelerator: Accelerator) -> Callable[[Candidate], Contestant]:
    """What loads a candidate: adapters join one base, which stays in memory; a full model comes when asked for."""
    policy, device, autocast = run.config.policy, accelerator.device, autocast_dtype(run.config.policy)
    trained, adapters, tokenizer = trained_folders(run), further_adapters(run), load_policy_tokenizer(policy.model)
    # Never the titles of further ones: peft refuses a dot in a name, and "policy" and "reference" mean something.
    names = {"sft": "sft", "aligned": "policy"} | {title: f"further_{index}" for index, title in enumerate(adapters)}

    def full(place: Path | str) -> PreTrainedModel:
        return load_model(dataclasses.replace(policy, model=str(place)), device=device)

    @cache
    def reference() -> PreTrainedModel:
        return full(trained.get("sft", policy.model))

    @cache
    def base() -> Policy:
        if policy.lora is None:
            return Policy(full(policy.model), tokenizer, reference=reference(), autocast=autocast)
        loaded = load_adapters(full(policy.model), {names[title]: trained[title] for title in trained})
        for title, folder in adapters.items():
            with error_context(f"evaluation.models.{title}"):
                loaded = load_adapter(loaded, names[title], folder)
        return Policy(loaded, tokenizer, autocast=autocast)

    def load(candidate: Candidate) -> Contestant:
        title, with_token_log_ratios = candidate.title, candidate.with_token_log_ratios
        if title in run.config.evaluation.models and title not in adapters:
            with error_context(f"evaluation.models.{title}"):
                settings = dataclasses.replace(policy, model=candidate.model, quantization=None)
                its_own = load_policy_tokenizer(candidate.model)
                alone = Policy(load_model(settings, device=device), its_own, autocast=autocast)
                return Contestant(title, alone, "base", its_own, None, with_token_log_ratios)
        if policy.lora is None and title in trained:
            whole = Policy(full(trained[title]), tokenizer, reference=reference(), autocast=autocast)
            return Contestant(title, whole, "policy", tokenizer, base(), with_token_log_ratios)
        return Contestant(title, base(), names.get(title, "base"), tokenizer, base(), with_token_log_ratios)

    return load


def trained_folders(run: Run) -> dict[str, Path]:
    """Title and folder of each model that the run trains."""
    wanted = {"sft": ("sft", run.config.sft), "aligned": ("ppo", run.config.ppo)}
    return {title: run.folder / stage for title, (stage, section) in wanted.items() if section}


def last_trained(run: Run) -> str:
    """The title of the model that came last."""
    return list(trained_folders(run))[-1]


def further_adapters(run: Run) -> dict[str, Path]:
    """Title and folder of each further model that is an adapter."""
    further = {title: Path(place).expanduser() for title, place in run.config.evaluation.models.items()}
    return {title: place for title, place in further.items() if is_adapter(place)}

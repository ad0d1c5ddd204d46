"""The models that are compared: base, SFT policy, aligned policy, and any further models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.config.derived import strategies
from workbench.config.names import ALIGNED, BASE, TRAINED_BY, TUNED
from workbench.config.schema import Config
from workbench.errors import UserError, error_context
from workbench.evaluation.generation import ComparedModel
from workbench.models.adapters import check_adapter, is_adapter, load_adapter, load_adapters
from workbench.models.anti_expert import AntiExpert
from workbench.models.architecture import checked_policy
from workbench.models.loading import load_config, load_model, policy_precision, resolve
from workbench.models.policy import Policy
from workbench.models.precision import autocast_dtype
from workbench.run.folder import Run


@dataclass(frozen=True)
class ModelSpec:
    """A model to compare; it is loaded only where its completions are not in the cache."""

    title: str
    model: str
    """The model whose tokenizer it uses: the policy's, or a further model itself."""
    weights: list[str]
    """The models and folders that its completions depend on."""
    with_token_log_ratios: bool
    """Whether the first completion of each prompt gets its token_log_ratios."""
    steered: tuple[str, float] | None = None
    """The title of evaluation.anti_expert that the model is steered with, and alpha; None for the model alone."""


def model_specs(run: Run) -> list[ModelSpec]:
    """Return each model of the run, then adapters on the same base, then models with their own tokenizer."""
    model, trained = run.config.policy.model, trained_folders(run)
    adapters = further_adapters(run.config)
    weights, with_ratios = [model, *map(str, trained.values())], list(trained)[-1:] or list(adapters)[:1]
    specs = [ModelSpec(title, model, weights, title in with_ratios) for title in (BASE, *trained)]
    for title, folder in adapters.items():
        specs.append(ModelSpec(title, model, [*weights, str(folder)], title in with_ratios))
    return specs + [ModelSpec(title, name, [name], False) for title, name in further_models(run.config).items()]


def model_titles(config: Config) -> list[str]:
    """Return the titles in the order of the tables."""
    sections = {TUNED: config.sft, ALIGNED: config.ppo}
    trained = [title for title, section in sections.items() if section is not None]
    further = [*further_adapters(config), *further_models(config)]
    return [BASE, *trained, *further, *strategies(config.evaluation)]


def compared_titles(titles: Sequence[str]) -> tuple[str, str]:
    """Return the titles before and after in the comparison that the verdict is about.

    It is about what the last trained stage changed; in an evaluation that trains nothing, about the first further model
    and the base.
    """
    after = next((title for title in (ALIGNED, TUNED) if title in titles), titles[1])
    return (TUNED if TUNED in titles and after == ALIGNED else BASE), after


def trained_folders(run: Run) -> dict[str, Path]:
    """Return the title and folder of each model that the run trains."""
    return {title: run.folder / TRAINED_BY[title] for title in model_titles(run.config) if title in TRAINED_BY}


def further_adapters(config: Config) -> dict[str, Path]:
    """Return the title and folder of each further model that is an adapter."""
    folders = {title: Path(name).expanduser() for title, name in config.evaluation.models.items()}
    return {title: folder for title, folder in folders.items() if is_adapter(folder)}


def further_models(config: Config) -> dict[str, str]:
    """Return the title and name of each further model that is not an adapter."""
    adapters = further_adapters(config)
    return {title: name for title, name in config.evaluation.models.items() if title not in adapters}


def local_folder(name: str) -> Path | None:
    """Return the folder of a model or adapter; None for a model on the hub."""
    folder = Path(name).expanduser()
    if not is_adapter(folder):
        folder = Path(resolve(name))
    return folder if folder.is_dir() else None


def check_further_models(config: Config) -> list[str]:
    """Return notes about the further models; raises UserError for one that cannot be loaded."""
    notes = []
    for title, name in config.evaluation.models.items():
        with error_context(f"evaluation.models.{title}"):
            folder = Path(name).expanduser()
            if not is_adapter(folder):
                load_config(name)
                continue
            if config.policy.lora is None:
                raise UserError(
                    f"{name} is an adapter, but this run trains every weight; merge the adapter into a model first: "
                    "python -m workbench.export --run RUN --to FOLDER --merge"
                )
            notes += base_note(f"evaluation.models.{title}", check_adapter(config.policy.model, folder), config)
    return notes


def base_note(key: str, trained_on: str, config: Config) -> list[str]:
    """Return a note about an adapter whose configuration names another base than the policy's; else nothing."""
    model = config.policy.model
    if Path(trained_on).name == Path(resolve(model)).name:
        return []
    return [f"{key}: the adapter was trained on {trained_on}, but is loaded onto {model}"]


class ModelLoader:
    """Loads the models of a run: adapters join one base, which stays in memory; a full model is loaded when needed."""

    def __init__(self, run: Run, tokenizers: Mapping[str, PreTrainedTokenizerBase], device: torch.device) -> None:
        self.policy_config, self.device, self.tokenizers = run.config.policy, device, tokenizers
        self.trained, self.adapters = trained_folders(run), further_adapters(run.config)
        # Further adapters are numbered: peft refuses a dot in a name, and a title may be "policy" or "reference".
        self.variants = {BASE: "base", TUNED: "sft", ALIGNED: "policy"} | {
            title: f"further_{index}" for index, title in enumerate(self.adapters)
        }
        anti_experts = run.config.evaluation.anti_expert
        self.anti_experts = {title: f"anti_expert_{index}" for index, title in enumerate(anti_experts)}
        self.anti_expert_folders = {title: Path(each.adapter).expanduser() for title, each in anti_experts.items()}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer."""
        return self.tokenizers[self.policy_config.model]

    @cached_property
    def base(self) -> Policy:
        """The policy that holds the base and any adapters."""
        model = self._full_model(self.policy_config.model)
        if self.policy_config.lora is None:
            with error_context("policy.model"):
                return self._policy(model, self.tokenizer, reference=self._reference)
        joined = model
        if self.trained:
            joined = load_adapters(model, {self.variants[title]: folder for title, folder in self.trained.items()})
        for title, folder in self.adapters.items():
            with error_context(f"evaluation.models.{title}"):
                joined = load_adapter(joined, self.variants[title], folder)
        for title, folder in self.anti_expert_folders.items():
            with error_context(f"evaluation.anti_expert.{title}"):
                joined = load_adapter(joined, self.anti_experts[title], folder)
        return self._policy(joined, self.tokenizer)

    def load(self, spec: ModelSpec) -> ComparedModel:
        """Load the model that a spec describes."""
        title, with_log_ratios = spec.title, spec.with_token_log_ratios
        if title not in self.variants:
            with error_context(f"evaluation.models.{title}"):
                config = dataclasses.replace(self.policy_config, model=spec.model, quantization=None)
                tokenizer = self.tokenizers[spec.model]
                policy = self._policy(load_model(config, device=self.device), tokenizer)
                return ComparedModel(title, policy, "base", tokenizer, None, with_log_ratios)
        if self.policy_config.lora is None and title in self.trained:
            model = self._full_model(str(self.trained[title]))
            policy = self._policy(model, self.tokenizer, reference=self._reference)
            return ComparedModel(title, policy, "policy", self.tokenizer, self.base, with_log_ratios)
        return ComparedModel(title, self.base, self.variants[title], self.tokenizer, self.base, with_log_ratios)

    def load_as(self, load: Callable[[], ComparedModel], spec: ModelSpec) -> ComparedModel:
        """Load a model with `load`, and return it as a spec of the same weights says: with log-ratios, or steered."""
        model = dataclasses.replace(load(), with_token_log_ratios=spec.with_token_log_ratios)
        if spec.steered is None:
            return model
        title, alpha = spec.steered
        return dataclasses.replace(model, title=title, anti_expert=AntiExpert(self.anti_experts[title], alpha))

    def _policy(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        reference: PreTrainedModel | None = None,
    ) -> Policy:
        """Return the model as a policy in the configured precision."""
        precision = policy_precision(self.policy_config, self.device, model.config)
        autocast = autocast_dtype(precision)
        if isinstance(model, PeftModel):  # its adapters were trained on a model that was checked
            return Policy(model, tokenizer, reference=reference, autocast=autocast)
        return checked_policy(model, tokenizer, reference=reference, autocast=autocast)

    @cached_property
    def _reference(self) -> PreTrainedModel:
        """The reference of a run that trains every weight."""
        return self._full_model(str(self.trained.get(TUNED, self.policy_config.model)))

    def _full_model(self, name: str) -> PreTrainedModel:
        return load_model(dataclasses.replace(self.policy_config, model=name), device=self.device)

"""Sample what the cache does not hold: completions of every model, and the references' perplexity."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from workbench.config.derived import completion_limit, sampling_seeds
from workbench.config.generation import GenerationSettings
from workbench.config.names import EVALUATION
from workbench.config.schema import Config
from workbench.data.texts import TextSet
from workbench.errors import UserError
from workbench.evaluation.cache import (
    Cache,
    completions_from_json,
    completions_key,
    completions_to_json,
    open_cache,
    references_key,
    texts_key,
    weights_hash,
)
from workbench.evaluation.generation import (
    ComparedModel,
    Completion,
    Sampling,
    reference_perplexity,
    sample_completions,
    sample_seeds,
)
from workbench.evaluation.models import ModelLoader, ModelSpec, model_specs
from workbench.evaluation.plan import EvaluationPlan
from workbench.evaluation.prompt_sets import LoadedSet
from workbench.evaluation.strategies import decoded_with
from workbench.models.decoding import Decoding
from workbench.ppo.micro_batches import MicroBatches
from workbench.ppo.text_likelihood import gathered_nats
from workbench.run.distributed import fail_together, print_once
from workbench.run.folder import Run


@dataclass(frozen=True)
class SampledSet:
    """The completions that the models generated for one prompt set."""

    completions: dict[str, list[list[Completion]]]
    """The completions of each prompt, by model title; those of evaluation.best_of are all candidates."""
    reference_perplexity: float | None
    """Of all references under the base; None without references."""


@dataclass(frozen=True)
class Measured:
    """What the models generated and predicted; empty on all but the main process."""

    sets: dict[str, SampledSet]
    """By prompt set."""
    nats: dict[str, dict[str, list[float]]]
    """Nats per token of each fixed text, by name of the texts and title of the model."""


def sample_models(run: Run, plan: EvaluationPlan, accelerator: Accelerator) -> Measured:
    """Return the completions of every model on every set, and how well it predicts every fixed text.

    Only the main process reads the cache and returns its entries.
    """
    is_main = accelerator.is_main_process
    with fail_together(accelerator):
        cache = open_cache(run.stage(EVALUATION)) if is_main else Cache(Path(), {})
    loader = ModelLoader(run, plan.tokenizers, accelerator.device)
    sampler = CachedSampler(run.config, cache, accelerator, functools.cache(weights_hash))
    by_title = {}
    nats: dict[str, dict[str, list[float]]] = {each.name: {} for each in plan.texts}
    for model_spec in model_specs(run):
        load = functools.cache(functools.partial(loader.load, model_spec))
        for decoded in decoded_with(model_spec, run.config, sampling_of(run.config)):
            title, spec = decoded.title, decoded.spec
            by_title[title] = [
                sampler.completions(
                    spec,
                    functools.partial(loader.load_as, load, spec),
                    each.prefixed.get(title, each.rows_for(spec.model)),
                    decoded.sampling,
                    f"evaluation {each.name} {title}",
                    plain_rows=each.rows_for(spec.model) if title in each.prefixed else None,
                ).completions
                for each in plan.sets
            ]
        if model_spec.model == run.config.policy.model:  # nats per token of another vocabulary cannot be compared
            for texts in plan.texts:
                nats[texts.name][model_spec.title] = sampler.text_nats(model_spec, load, texts)
    perplexities = [sampler.reference_perplexity(loader, prompt_set) for prompt_set in plan.sets]
    if not is_main:
        return Measured({}, {})
    cache.keep_used()
    sets = {
        prompt_set.name: SampledSet({title: rows[index] for title, rows in by_title.items()}, perplexities[index])
        for index, prompt_set in enumerate(plan.sets)
    }
    return Measured(sets, nats)


@dataclass(frozen=True)
class TimedCompletions:
    """The completions of each prompt, and the time that it took to sample them, also where they are cached."""

    completions: list[list[Completion]]
    seconds: float


@dataclass(frozen=True)
class CachedSampler:
    """Computes what is not in the cache, on all processes together."""

    config: Config
    cache: Cache
    accelerator: Accelerator
    content: Callable[[str], str]
    """The hash of a model's weights."""

    def completions(
        self,
        spec: ModelSpec,
        load: Callable[[], ComparedModel],
        rows: Sequence[dict[str, Any]],
        sampling: Sampling,
        label: str,
        plain_rows: Sequence[dict[str, Any]] | None = None,
    ) -> TimedCompletions:
        """Return a model's completions of the prompts in `rows`; none on all but the main process.

        Where reference and base read other prompts, these are `plain_rows`.
        """

        def key() -> str:
            weights = [self.content(name) for name in spec.weights]
            prompt_ids = [[row["prompt_ids"] for row in read] for read in (rows, plain_rows or rows)]
            return completions_key(spec, weights, prompt_ids, sampling, self.config.policy, self.accelerator)

        def sample() -> dict[str, Any]:
            model = load()
            start = time.perf_counter()
            completions = sample_completions(
                model, rows, sampling, accelerator=self.accelerator, label=label, plain_rows=plain_rows
            )
            return {"seconds": time.perf_counter() - start, "completions": completions_to_json(completions)}

        entry = self._cached(key, sample, f"{label}: reusing cached completions")
        if not self.accelerator.is_main_process:
            return TimedCompletions([], 0.0)
        return TimedCompletions(completions_from_json(entry["completions"]), entry["seconds"])

    def text_nats(self, spec: ModelSpec, load: Callable[[], ComparedModel], texts: TextSet) -> list[float]:
        """Return a model's nats per token of each fixed text; none on all but the main process."""
        size, policy = self.config.evaluation.batch_size, self.config.policy

        def key() -> str:
            weights = [self.content(name) for name in spec.weights]
            return texts_key(spec, weights, texts.rows, size, policy, self.accelerator)

        def predict() -> list[float]:
            model = load()
            limit = MicroBatches(size, "evaluation.batch_size", can_halve=True)
            return gathered_nats(model.policy, model.variant, texts.rows, limit, self.accelerator)

        nats: list[float] = self._cached(key, predict) or []
        if not all(map(math.isfinite, nats)):
            raise UserError(
                f"evaluation.texts.{texts.name}: log-probabilities of texts are not finite under {spec.title}; its "
                "weights are corrupt"
            )
        return nats

    def reference_perplexity(self, loader: ModelLoader, prompt_set: LoadedSet) -> float | None:
        """Return the perplexity of a set's references under the base; None without any, or off the main process."""
        pairs, size, policy = prompt_set.reference_ids, self.config.evaluation.batch_size, self.config.policy
        if not pairs:
            return None
        return self._cached(
            lambda: references_key(self.content(policy.model), pairs, size, policy, self.accelerator),
            lambda: reference_perplexity(loader.base, pairs, size, accelerator=self.accelerator),
        )

    def _cached(self, key: Callable[[], str], compute: Callable[[], Any], note: str | None = None) -> Any:
        """Return the cache entry for a key on the main process; if there is none, all processes compute it."""
        is_main, name = self.accelerator.is_main_process, ""
        with fail_together(self.accelerator):
            name = key() if is_main else ""
        name, is_known = broadcast_object_list([name, name in self.cache])
        if is_known and note is not None:
            print_once(note)
        if not is_known:
            value = compute()
            with fail_together(self.accelerator):
                if is_main:
                    self.cache.add(name, value)
        return self.cache.get(name) if is_main else None


def sampling_of(config: Config) -> Sampling:
    """Return how completions are sampled: seed by seed, the first sample of each with the seed itself."""
    settings = config.evaluation
    seeds = sample_seeds(sampling_seeds(config), settings.samples)
    return Sampling(
        settings.batch_size,
        completion_limit(config),
        settings.temperature,
        seeds,
        decoding_of(settings),
        tuple(settings.stop_strings),
    )


def decoding_of(settings: GenerationSettings) -> Decoding:
    """Return what the settings change of the plain softmax."""
    return Decoding(
        top_k=settings.top_k,
        top_p=settings.top_p,
        num_beams=settings.num_beams,
        repetition_penalty=settings.repetition_penalty,
        min_new_tokens=settings.min_new_tokens,
    )

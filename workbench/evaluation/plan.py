"""What the evaluation needs, loaded and checked before anything trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from workbench.config.derived import completion_limit, sampling_seeds
from workbench.config.names import EVALUATION
from workbench.config.schema import Config
from workbench.data.texts import TextSet, load_texts
from workbench.errors import UserError, error_context
from workbench.evaluation.loaded_scorers import LoadedScorers, load_scorers
from workbench.evaluation.models import check_further_models, further_models, model_titles
from workbench.evaluation.prompt_sets import LoadedSet, load_prompt_sets
from workbench.evaluation.strategies import check_anti_experts
from workbench.models.loading import load_config, load_policy_tokenizer
from workbench.models.memory_plan import stage_memory_lines
from workbench.models.model_checks import policy_notes
from workbench.models.positions import model_context
from workbench.models.precision import machine_device, precision_lines


@dataclass(frozen=True)
class EvaluationPlan:
    """What the stage loaded to check the configuration; `run` continues with the same objects."""

    lines: list[str]
    tokenizers: dict[str, PreTrainedTokenizerBase]
    """By model: the policy's, and each further model that is not an adapter of it."""
    sets: list[LoadedSet]
    texts: list[TextSet]
    scorers: LoadedScorers


def plan_evaluation(config: Config) -> EvaluationPlan:
    """Load prompts, tokenizers, reward and judges of the stage; raises UserError if they do not fit together."""
    settings = config.evaluation
    with error_context("policy.model"):
        tokenizers = {config.policy.model: load_policy_tokenizer(config.policy.model)}
        notes = policy_notes(config.policy.model, tokenizers[config.policy.model])
    notes += [*check_further_models(config), *check_anti_experts(config)]
    further = further_models(config)
    for title, model in further.items():
        if model not in tokenizers:
            with error_context(f"evaluation.models.{title}"):
                tokenizers[model] = load_policy_tokenizer(model)
                notes += [f"evaluation.models.{title}: {note}" for note in policy_notes(model, tokenizers[model])]
    check_stop_strings(settings.stop_strings, tokenizers.values())
    scorers = load_scorers(config)
    sets, reports = load_prompt_sets(config, tokenizers, further)
    texts = []
    context = model_context(load_config(config.policy.model), tokenizers[config.policy.model])
    for name, source in settings.texts.items():
        loaded, line = load_texts(f"evaluation.texts.{name}", name, source, tokenizers[config.policy.model], context)
        texts.append(loaded)
        reports.append(line)
    has_references = {loaded_set.name: any(loaded_set.references) for loaded_set in sets}
    scorers.check_sets({loaded_set.name: loaded_set.rows for loaded_set in sets}, any(has_references.values()))
    titles, samples = model_titles(config), settings.samples * len(sampling_seeds(config))
    sizes = [
        f"{loaded_set.name}: {len(loaded_set.rows)} prompts x {len(titles)} models x {samples} completions, "
        f"up to {completion_limit(config)} tokens"
        + "".join(f"; {title} chooses each of {each.n}" for title, each in settings.best_of.items())
        + ("" if has_references[loaded_set.name] else ", no column reference: no ROUGE, no BLEU")
        for loaded_set in sets
    ]
    precision = precision_lines(
        "policy.precision", config.policy.precision, machine_device(), load_config(config.policy.model)
    )
    prompt_tokens = max(
        len(row["prompt_ids"]) for each in sets for rows in (each.rows, *each.prefixed.values()) for row in rows
    )
    memory = stage_memory_lines(config, EVALUATION, prompt_tokens, completion_limit(config))
    truncation = scorers.truncation_lines(completion_limit(config))
    lines = [*reports, *notes, *scorers.notes, *sizes, *truncation, *memory, *precision]
    return EvaluationPlan(lines, tokenizers, sets, texts, scorers)


def check_stop_strings(
    texts: Sequence[str], tokenizers: Iterable[PreTrainedTokenizerBase], key: str = EVALUATION
) -> None:
    """Raise UserError for a stop string that is a special token, which the text of a completion leaves out."""
    special = {token for tokenizer in tokenizers for token in tokenizer.all_special_tokens}
    for text in texts:
        if text in special:
            raise UserError(
                f"{key}.stop_strings: {text!r} is a special token, which is no part of a completion's text; "
                "remove it: the model's own stop tokens end a completion anyway"
            )

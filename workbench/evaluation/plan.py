"""What the evaluation needs, loaded and checked before anything trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from workbench.config.derived import completion_limit, sampling_seeds
from workbench.config.names import EVALUATION
from workbench.config.schema import Config
from workbench.config.scorers import as_scorer, by_name
from workbench.config.sources import Scorer
from workbench.errors import UserError, error_context
from workbench.evaluation.judges import load_judges
from workbench.evaluation.metrics.similarity import Encoder, load_encoder
from workbench.evaluation.models import check_further_models, further_models, model_titles
from workbench.evaluation.prompt_sets import LoadedSet, load_prompt_sets
from workbench.models.loading import load_config, load_policy_tokenizer
from workbench.models.memory_plan import stage_memory_lines
from workbench.models.model_checks import policy_notes
from workbench.models.precision import machine_device, precision_lines
from workbench.ppo.rollout import reward_columns
from workbench.rewards.contract import CheckedReward, Judge, truncation_line
from workbench.rewards.registry import ScorerLoader


@dataclass(frozen=True)
class EvaluationPlan:
    """What the stage loaded to check the configuration; `run` continues with the same objects."""

    lines: list[str]
    tokenizers: dict[str, PreTrainedTokenizerBase]
    """By model: the policy's, and each further model that is not an adapter of it."""
    sets: list[LoadedSet]
    reward: CheckedReward | None
    """The reward that the configuration names; None where the run trains one, or has none."""
    judges: dict[str, Judge]
    """The judges that the configuration names, without those that are the reward."""
    rewards: dict[str, CheckedReward]
    """Further rewards whose scores are reported."""
    encoder: Encoder | None
    """Embeds completions and references to compare them."""


def plan_evaluation(config: Config) -> EvaluationPlan:
    """Load prompts, tokenizers, reward and judges of the stage; raises UserError if they do not fit together."""
    settings = config.evaluation
    with error_context("policy.model"):
        tokenizers = {config.policy.model: load_policy_tokenizer(config.policy.model)}
        notes = policy_notes(config.policy.model, tokenizers[config.policy.model])
    notes += check_further_models(config)
    further = further_models(config)
    for title, model in further.items():
        if model not in tokenizers:
            with error_context(f"evaluation.models.{title}"):
                tokenizers[model] = load_policy_tokenizer(model)
                notes += [f"evaluation.models.{title}: {note}" for note in policy_notes(model, tokenizers[model])]
    check_stop_strings(settings.stop_strings, tokenizers.values())
    load, reward = ScorerLoader(), None
    if config.reward is not None and config.reward.model is not None:
        with error_context("reward.model"):
            reward = load(Scorer(config.reward.model, config.reward.options))
    loaded = load_judges(config, reward, load)
    encoder = None
    if settings.similarity is not None:
        with error_context("evaluation.similarity"):
            encoder = load_encoder(settings.similarity)
    sets, reports = load_prompt_sets(config, tokenizers, further)
    rewards = load_rewards(config, load)
    for loaded_set in sets:
        with error_context(f"evaluation.data.{loaded_set.name}"):
            for scorer in [*([reward] if reward is not None else []), *rewards.values()]:
                scorer.check_columns(reward_columns(loaded_set.rows))
    has_references = {loaded_set.name: any(loaded_set.references) for loaded_set in sets}
    if encoder is not None and not any(has_references.values()):
        raise UserError(
            "evaluation.similarity: it compares completions with references, and no set of evaluation.data has any; "
            "map a column with columns: {reference: ...}, or remove it"
        )
    titles, samples = model_titles(config), settings.samples * len(sampling_seeds(config))
    sizes = [
        f"{loaded_set.name}: {len(loaded_set.rows)} prompts x {len(titles)} models x {samples} completions, "
        f"up to {completion_limit(config)} tokens"
        + ("" if has_references[loaded_set.name] else ", no column reference: no ROUGE, no BLEU")
        for loaded_set in sets
    ]
    precision = precision_lines(
        "policy.precision", config.policy.precision, machine_device(), load_config(config.policy.model)
    )
    prompt_tokens = max(len(row["prompt_ids"]) for loaded_set in sets for row in loaded_set.rows)
    memory = stage_memory_lines(config, EVALUATION, prompt_tokens, completion_limit(config))
    limits = [("reward.model", "the reward", reward.max_completion_tokens())] if reward is not None else []
    limits += [("evaluation.judges", name, limit) for name, limit in loaded.limits.items()]
    limits += [("evaluation.rewards", name, scorer.max_completion_tokens()) for name, scorer in rewards.items()]
    truncation = [
        line
        for key, name, reads in limits
        for line in truncation_line(key, name, reads, completion_limit(config), "evaluation.max_new_tokens")
    ]
    lines = [*reports, *notes, *loaded.notes, *sizes, *truncation, *memory, *precision]
    return EvaluationPlan(lines, tokenizers, sets, reward, loaded.judges, rewards, encoder)


def check_stop_strings(texts: Sequence[str], tokenizers: Iterable[PreTrainedTokenizerBase]) -> None:
    """Raise UserError for a stop string that is a special token, which the text of a completion leaves out."""
    special = {token for tokenizer in tokenizers for token in tokenizer.all_special_tokens}
    for text in texts:
        if text in special:
            raise UserError(
                f"evaluation.stop_strings: {text!r} is a special token, which is no part of a completion's text; "
                "remove it: the model's own stop tokens end a completion anyway"
            )


def load_rewards(config: Config, load: Callable[[Scorer], CheckedReward]) -> dict[str, CheckedReward]:
    """Load the rewards of `evaluation.rewards` by name; raises UserError for two of one name."""
    entries = enumerate(config.evaluation.rewards)
    named = by_name(
        [as_scorer(entry, f"evaluation.rewards[{index}]") for index, entry in entries], "evaluation.rewards"
    )
    with error_context("evaluation.rewards"):
        return {name: load(scorer) for name, scorer in named.items()}

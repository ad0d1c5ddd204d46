"""Check in a plan the models that a run will load: their files, weights, vocabulary and special tokens."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workbench.errors import UserError
from workbench.models.loading import auto_class, from_pretrained, load_config, meta_model, resolve, start_id
from workbench.models.weights import check_finite, check_report, stored_weights

NEUTRAL_OPTIONS: dict[str, Any] = {
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
}
"""Options of a generation_config that change which response is sampled, with the value that changes nothing."""


def policy_notes(model: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return notes for the plan about a model that generates, named by a hub id, folder or toy:NAME.

    Raises UserError for a model whose weights, special tokens or start of a response would fail later.
    """
    folder = Path(resolve(model))
    if folder.is_dir():
        check_stored_model(model, auto_class(load_config(model)))
    shapes = meta_model(model)
    check_special_tokens(model, tokenizer, shapes.get_input_embeddings().num_embeddings)
    start_id(shapes)
    generation = saved_generation_config(model)
    options = {} if generation is None else ignored_options(generation)
    if not options:
        return []
    listed = ", ".join(f"{name} {value}" for name, value in options.items())
    return [
        f"{model}: ignored options of its generation_config: {listed}; responses are sampled from the plain softmax"
    ]


def saved_generation_config(model: str) -> GenerationConfig | None:
    """Return the model's own generation_config, or None without one."""
    with suppress(UserError):
        config: GenerationConfig = from_pretrained(GenerationConfig, model)
        return config
    return None


def ignored_options(generation: GenerationConfig) -> dict[str, Any]:
    """Return the options of a generation_config that sampling here does not follow."""
    values = generation.to_dict()
    return {name: values[name] for name, neutral in NEUTRAL_OPTIONS.items() if values.get(name) not in (None, neutral)}


def check_stored_model(model: str, model_class: Any, *, new_head: bool = False) -> None:
    """Raise UserError for a folder whose weights are missing, of another shape, unreadable or not finite.

    With `new_head`, the weights outside the model's body may be missing: training adds them.
    """
    folder = Path(resolve(model))
    state = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir() if file.is_file()))
    _check_stored_model(model, model_class, new_head, state)


@cache
def _check_stored_model(model: str, model_class: Any, new_head: bool, state: tuple[tuple[str, int], ...]) -> None:
    """Check a folder once per process and state of its files."""
    network, report = from_pretrained(
        model_class, model, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
    )
    prefix = f"{network.base_model_prefix}."

    def is_new(name: str) -> bool:
        return new_head and (not name.startswith(prefix) or ".pooler." in name)

    check_report(model, report, is_new)
    check_finite(model, stored_weights(Path(resolve(model))))


def check_special_tokens(model: str, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise UserError for a padding, start or end token that has no embedding."""
    for name in ("pad_token", "eos_token", "bos_token"):
        token = getattr(tokenizer, f"{name}_id")
        if token is not None and token >= vocabulary:
            raise UserError(
                f"{model}: {no_embedding(tokenizer, name, token, vocabulary)}; resize them with "
                "model.resize_token_embeddings(len(tokenizer)) and save the model again"
                + (", or set the tokenizer's pad_token to its eos_token" if name == "pad_token" else "")
            )


def no_embedding(tokenizer: PreTrainedTokenizerBase, name: str, token: int, vocabulary: int) -> str:
    """Return the clause about a special token that has no embedding."""
    verb = {"pad_token": "pads with", "eos_token": "ends texts with"}.get(name, "starts texts with")
    return (
        f"the tokenizer {verb} token {token}, but the model has embeddings for {vocabulary} tokens (the tokenizer has "
        f"{len(tokenizer)})"
    )


def check_classifier_tokens(model: str, tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> None:
    """Raise UserError if a text can contain a token that a network has no embedding for."""
    vocabulary = network.get_input_embeddings().num_embeddings
    check_special_tokens(model, tokenizer, vocabulary)
    special = set(tokenizer.all_special_ids)
    highest = max((token for token in tokenizer.get_vocab().values() if token not in special), default=0)
    highest = max([highest, *tokenizer("a")["input_ids"]])
    if highest >= vocabulary:
        raise UserError(
            f"{model}: the tokenizer has {len(tokenizer)} tokens, up to number {highest}, but the model has embeddings "
            f"for {vocabulary}; use the tokenizer that the model was trained with, or resize them with "
            "model.resize_token_embeddings(len(tokenizer)), train, and save the model again"
        )


def check_reward_base(model: str, tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> None:
    """Raise UserError for a model, with `network` as its shapes, that a classifier cannot be trained from."""
    if Path(resolve(model)).is_dir():
        check_stored_model(model, AutoModelForSequenceClassification, new_head=True)
    check_classifier_tokens(model, tokenizer, network)

"""Prompt tuning and prefix tuning: trained virtual tokens in front of every prompt of a frozen model.

The files are those of peft. Its models are not used, because what they return depends on padding (positions of a
decoder's prompt), has the virtual tokens among its logits, and on an encoder-decoder trains tokens that nothing reads.
Shapes: B rows, V virtual tokens, P prompt tokens, T tokens of a sequence, H hidden size.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import (
    PeftConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from workbench.errors import UserError, one_line
from workbench.models.adapters import LOADING_ERRORS, WEIGHT_FILES
from workbench.models.weights import check_finite

# Virtual tokens start as tokens of the vocabulary, of which the first are the most frequent ones (arXiv 2104.08691
# section 3.2: the 5,000 most common).
COMMON_TOKENS = 5000
IGNORED_LABEL = -100
# Of an encoder-decoder's prefix, peft itself gives one layer the vectors of another, and some to none; with a number of
# parts that no model has it raises an error.
UNREADABLE = 3


class CacheShape(NamedTuple):
    """What a decoder keeps of each token: keys and values of every layer."""

    layers: int
    heads: int
    head_size: int


class SoftPromptModel(PeftModel):
    """A frozen language model behind trained virtual tokens; what it returns is that of the text alone."""

    def __init__(self, model: PreTrainedModel, config: PeftConfig, name: str) -> None:
        super().__init__(model, config, name)
        self.word_embeddings = model.get_input_embeddings()  # peft takes the first parameter of as many rows
        model._can_compile_fullgraph = False  # a compiled step has a cache of fixed size, without virtual tokens
        self.takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters

    @property
    def virtual_tokens(self) -> int:
        """How many virtual tokens stand in front of the text."""
        return int(self.active_peft_config.num_virtual_tokens)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the base has an encoder."""
        return bool(self.config.is_encoder_decoder)

    def with_virtual_mask(self, mask: Tensor) -> Tensor:
        """Return a mask (B, V + P) that is 1 at virtual tokens, from the mask (B, P) of the text."""
        return torch.cat((mask.new_ones(len(mask), self.virtual_tokens), mask), dim=1)

    def text_positions(self, mask: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Return the positions (B, P) of the text behind the virtual tokens, wherever its padding stands."""
        positions = inputs.pop("position_ids", None)
        if positions is None:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return positions + self.virtual_tokens


class PromptTunedModel(SoftPromptModel):
    """A model whose virtual tokens are embeddings in front of the prompt's."""

    def with_virtual_embeddings(self, input_ids: Tensor) -> Tensor:
        """Return embeddings (B, V + P, H) of the virtual tokens and of `input_ids` (B, P)."""
        embeddings = self.word_embeddings(input_ids)
        virtual = self.prompt_encoder[self.active_adapter].embedding.weight.to(embeddings.dtype)
        return torch.cat((virtual.expand(len(input_ids), -1, -1), embeddings), dim=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Any:
        """Return the base's output for the text; a decoder's logits (B, P, vocabulary) are those of its own tokens."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs |= {"inputs_embeds": self.with_virtual_embeddings(input_ids)}
        inputs |= {"attention_mask": self.with_virtual_mask(mask)}
        if self.is_encoder_decoder:
            return self.base_model(**inputs)
        positions = self.text_positions(mask, inputs)
        if self.takes_positions:
            virtual = torch.arange(self.virtual_tokens, device=positions.device).expand(len(positions), -1)
            inputs["position_ids"] = torch.cat((virtual, positions), dim=1)
        labels = inputs.get("labels")
        if labels is not None:
            ignored = labels.new_full((len(labels), self.virtual_tokens), IGNORED_LABEL)
            inputs["labels"] = torch.cat((ignored, labels), dim=1)
        positions_of_logits = inputs.get("logits_to_keep", 0)
        if isinstance(positions_of_logits, Tensor):
            inputs["logits_to_keep"] = positions_of_logits + self.virtual_tokens
        output = self.base_model(**inputs)
        is_whole = not isinstance(positions_of_logits, Tensor) and positions_of_logits == 0
        if is_whole and output.get("logits") is not None:
            output.logits = output.logits[:, self.virtual_tokens :]
        return output

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """Return what the base generates: a decoder's tokens follow `input_ids` (B, P), as without virtual tokens."""
        if self._adapters_disabled:
            return self.base_model.generate(input_ids=input_ids, attention_mask=attention_mask, **options)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        options |= {"inputs_embeds": self.with_virtual_embeddings(input_ids)}
        options |= {"attention_mask": self.with_virtual_mask(mask)}
        if not self.is_encoder_decoder:
            options["input_ids"] = input_ids  # for what reads the tokens so far, such as a repetition penalty
        return self.base_model.generate(**options)


class PrefixTunedModel(SoftPromptModel):
    """A model whose virtual tokens are keys and values in front of the decoder's, in every layer."""

    def prefix_cache(self, rows: int) -> DynamicCache | EncoderDecoderCache:
        """Return a new cache of the virtual tokens' keys and values, each (B, heads, V, head size)."""
        config = self.active_peft_config
        weight = self.prompt_encoder[self.active_adapter].embedding.weight.to(self.base_model.dtype)
        heads = config.num_attention_heads
        vectors = weight.view(config.num_virtual_tokens, config.num_layers, 2, heads, config.token_dim // heads)
        vectors = vectors.permute(1, 2, 3, 0, 4).unsqueeze(2).expand(-1, -1, rows, -1, -1, -1)
        cache = DynamicCache([(layer[0], layer[1]) for layer in vectors])
        return EncoderDecoderCache(cache, DynamicCache()) if self.is_encoder_decoder else cache

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Any:
        """Return the base's output for the text."""
        inputs |= {"input_ids": input_ids, "past_key_values": self.prefix_cache(len(input_ids))}
        if self.is_encoder_decoder:
            decoder_mask = inputs.get("decoder_attention_mask")
            if decoder_mask is not None:
                inputs["decoder_attention_mask"] = self.with_virtual_mask(decoder_mask)
            return self.base_model(attention_mask=attention_mask, **inputs)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = self.text_positions(mask, inputs)
        if self.takes_positions:
            inputs["position_ids"] = positions
        return self.base_model(attention_mask=self.with_virtual_mask(mask), **inputs)

    def generate(self, **options: Any) -> Any:
        """Return what the base generates, as without virtual tokens."""
        if self._adapters_disabled:
            return self.base_model.generate(**options)
        with self.cache_prefilled():
            return self.base_model.generate(**options)

    @contextmanager
    def cache_prefilled(self) -> Iterator[None]:
        """Let every generation of the base start with the virtual tokens' keys and values."""
        prepare = self.base_model.prepare_inputs_for_generation

        @functools.wraps(prepare)  # generate reads its signature
        def prepare_with_prefix(*args: Any, **kwargs: Any) -> dict[str, Any]:
            inputs: dict[str, Any] = prepare(*args, **kwargs)
            is_first = kwargs.get("is_first_iteration", False)
            if self.is_encoder_decoder:
                if is_first:
                    inputs["past_key_values"] = self.prefix_cache(len(inputs["decoder_input_ids"]))
                return inputs
            if inputs.get("attention_mask") is not None:
                inputs["attention_mask"] = self.with_virtual_mask(inputs["attention_mask"])
            if inputs.get("position_ids") is not None:
                inputs["position_ids"] = inputs["position_ids"] + self.virtual_tokens
            if is_first:
                inputs["past_key_values"] = self.prefix_cache(len(inputs["input_ids"]))
            return inputs

        self.base_model.prepare_inputs_for_generation = prepare_with_prefix
        try:
            yield
        finally:
            del self.base_model.prepare_inputs_for_generation


def add_prompt(model: PreTrainedModel, virtual_tokens: int, name: str, seed: int) -> PromptTunedModel:
    """Return the frozen model with new virtual tokens, which start as tokens of its vocabulary drawn with the seed."""
    model.requires_grad_(False)
    config = PromptTuningConfig(
        task_type=task_type(model),
        num_virtual_tokens=virtual_tokens,
        token_dim=model.get_input_embeddings().embedding_dim,
        # Of an encoder-decoder's default, two, peft never reads the second; the other two it reads for a prefix only.
        num_transformer_submodules=1,
        num_layers=1,
        num_attention_heads=1,
    )
    tuned = PromptTunedModel(model, config, name)
    if model.device.type != "meta":
        with torch.no_grad():
            embeddings = model.get_input_embeddings()(sampled_tokens(model, virtual_tokens, seed)[0])
            tuned.prompt_encoder[name].embedding.weight.copy_(embeddings)
    return tuned


def add_prefix(model: PreTrainedModel, virtual_tokens: int, name: str, seed: int) -> PrefixTunedModel:
    """Return the frozen model with new virtual tokens, which start as the keys and values of tokens of its vocabulary.

    Real activations train better than random numbers (arXiv 2101.00190 section 7.4). Raises UserError for a model whose
    cache cannot hold virtual tokens.
    """
    model.requires_grad_(False)
    shape = cache_shape(model)
    config = PrefixTuningConfig(
        task_type=task_type(model),
        num_virtual_tokens=virtual_tokens,
        num_layers=shape.layers,
        num_attention_heads=shape.heads,
        token_dim=shape.heads * shape.head_size,
        num_transformer_submodules=UNREADABLE if model.config.is_encoder_decoder else 1,
    )
    tuned = PrefixTunedModel(model, config, name)
    weight = tuned.prompt_encoder[name].embedding.weight
    if weight.shape[1] != 2 * shape.layers * shape.heads * shape.head_size:
        raise UserError(f"{model.config.model_type} keeps other keys and values than its configuration says; use lora")
    if model.device.type != "meta":
        with torch.no_grad():
            layers = self_attention_layers(model, sampled_tokens(model, virtual_tokens, seed))
            vectors = [part[0].transpose(0, 1).flatten(1) for layer in layers for part in (layer.keys, layer.values)]
            weight.copy_(torch.cat(vectors, dim=1))
    return tuned


def load_soft_prompt(model: PreTrainedModel, folder: Path, name: str) -> SoftPromptModel:
    """Return the model with the frozen virtual tokens in `folder`; raises UserError for files that do not fit it."""
    if not any((folder / file).is_file() for file in WEIGHT_FILES):  # peft would look it up on the hub
        raise UserError(f"{folder}: the folder has no {WEIGHT_FILES[0]}")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_peft_weights(str(folder), "cpu")
        model_class = PromptTunedModel if config.peft_type == PeftType.PROMPT_TUNING else PrefixTunedModel
        (vectors,) = weights.values()
    except LOADING_ERRORS as error:
        raise UserError(f"{folder}: the virtual tokens cannot be loaded: {one_line(error)}") from error
    check_finite(str(folder), weights.items())
    size = model.get_input_embeddings().embedding_dim
    if model_class is PrefixTunedModel:
        shape = cache_shape(model)
        size = 2 * shape.layers * shape.heads * shape.head_size
    if tuple(vectors.shape) != (config.num_virtual_tokens, size):
        raise UserError(
            f"{folder}: the virtual tokens do not fit {model.config.model_type}: their numbers are "
            f"{tuple(vectors.shape)} and should be {(config.num_virtual_tokens, size)}; use the base that they were "
            f"trained on, {config.base_model_name_or_path}"
        )
    loaded = model_class(model.requires_grad_(False), config, name)
    set_peft_model_state_dict(loaded, weights, adapter_name=name)
    return loaded.requires_grad_(False).eval()


def is_soft_prompt(folder: Path) -> bool:
    """Return whether an adapter's folder holds virtual tokens; raises UserError for one that cannot be read."""
    try:
        kind = PeftConfig.from_pretrained(str(folder)).peft_type
    except LOADING_ERRORS as error:
        raise UserError(f"{folder}: the adapter's configuration cannot be read: {one_line(error)}") from error
    return kind in (PeftType.PROMPT_TUNING, PeftType.PREFIX_TUNING)


def task_type(model: PreTrainedModel) -> TaskType:
    """Return the task that peft files an adapter of the model under."""
    return TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM


def sampled_tokens(model: PreTrainedModel, count: int, seed: int) -> Tensor:
    """Return the ids (1, count) of common tokens, which depend on the seed and the size of the vocabulary alone."""
    common = min(COMMON_TOKENS, model.get_input_embeddings().num_embeddings)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(common, (1, count), generator=generator).to(model.device)


def cache_shape(model: PreTrainedModel) -> CacheShape:
    """Return the shape of the cache of the model's decoder, which may be on the "meta" device.

    Raises UserError for a model without such a cache, one whose layers differ, and one that drops early tokens.
    """
    if model.device.type == "meta":
        model.set_attn_implementation("eager")  # others look into their masks, which have no values
    layers = self_attention_layers(model, torch.zeros(1, 2, dtype=torch.long, device=model.device))
    model_type = model.config.model_type
    if not layers:
        raise UserError(f"{model_type} has no cache of keys and values to put a prefix in; use prompt_tuning or lora")
    others = {type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}
    if others:
        raise UserError(f"{model_type} would lose its prefix from {', '.join(others)}; use prompt_tuning or lora")
    shapes = {(*layer.keys.shape, *layer.values.shape) for layer in layers}
    if len(shapes) > 1 or layers[0].keys.shape != layers[0].values.shape:
        raise UserError(f"{model_type} keeps keys and values of different shapes; use prompt_tuning or lora")
    return CacheShape(len(layers), layers[0].keys.shape[1], layers[0].keys.shape[3])


@torch.no_grad()
def self_attention_layers(model: PreTrainedModel, ids: Tensor) -> list[Any]:
    """Return what the model's decoder keeps of the tokens (1, V), layer by layer; an encoder reads the same tokens."""
    embeddings = model.get_input_embeddings()(ids)  # ids would be searched for padding, which needs their values
    inputs = {"inputs_embeds": embeddings}
    if model.config.is_encoder_decoder:
        inputs["decoder_inputs_embeds"] = embeddings
    was_training = model.training
    model.eval()
    try:
        cache = model(**inputs, use_cache=True).get("past_key_values")
    finally:
        model.train(was_training)
    cache = getattr(cache, "self_attention_cache", cache)
    return [] if cache is None else list(cache.layers)

"""Count the bytes of weights, activations and caches, from shapes alone.

Activations are counted: on tensors without values, a forward pass saves for the backward pass what a real one would.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import EncoderDecoderCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.models.logprobs import bypass_lm_head, capture_lm_head_input, head_logprobs, logits_logprobs
from workbench.models.precision import DTYPES

# Shapes that do not fit are tried and caught here (see states_of_plain_head); torch would log each with a traceback.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)

# NF4 with double quantization: 4 bits, and of each 64 weights a scale in 8 bits, and of each 256 scales one in 32.
BYTES_PER_QUANTIZED = {"nf4": (4 + 8 / 64 + 32 / (64 * 256)) / 8, "int8": 1.0}
BYTES_OF_GRADIENT, BYTES_OF_MOMENTS = 4, 8  # of Adam, in fp32
# The logits of a decoding step: as computed, in fp32, over the temperature, their softmax and its cumulative sum.
STEP_COPIES = 5
# TRL computes the loss of a decoder in tiles of so many tokens and logits; where there is no Triton kernel for it, with
# so many of them at once.
TILE_TOKENS, TILE_LOGITS, TILE_COPIES = 4096, 32768, 8
# An allocator cannot reuse every gap between tensors that come and go (measured: docs/performance.md).
FRAGMENTATION = 1.15
GIB = 2**30
# What a model without values may raise, as where it computes sizes from values; an estimate must not end a plan.
UNCOUNTABLE = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)


@dataclass(frozen=True)
class Peak:
    """Bytes that a stage holds at one of its peaks."""

    weights: float
    """Of all models in memory."""
    training: float
    """Gradients, the optimizer's moments, and what a loss takes whatever the number of rows."""
    per_row: float
    """Activations, or caches, of one row."""
    rows: int
    key: str
    """The setting that says how many rows are computed at a time."""

    @property
    def total(self) -> float:
        """All of its bytes."""
        return self.weights + FRAGMENTATION * (self.training + self.rows * self.per_row)


def weight_bytes(model: PreTrainedModel | PeftModel, precision: str, quantization: str | None) -> float:
    """Return the bytes of the weights: those that are trained in fp32, a frozen base in the precision it computes in.

    Quantization leaves embeddings, output head, norms and biases as they are, and T5's wo.
    """
    head = model.get_output_embeddings()
    plain = set() if head is None else {id(head.weight)}
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in base.named_modules():
        is_linear = isinstance(module, nn.Linear | Conv1D)
        if not is_linear or any(part in name for part in base._keep_in_fp32_modules or ()):
            plain |= {id(parameter) for parameter in module.parameters(recurse=False)}
    total = 0.0
    for name, parameter in model.named_parameters():
        bytes_per_weight = 4.0 if parameter.requires_grad or parameter.dim() == 1 else float(DTYPES[precision].itemsize)
        if quantization is not None and parameter.dim() == 2 and id(parameter) not in plain and "lora_" not in name:
            bytes_per_weight = BYTES_PER_QUANTIZED[quantization]
        total += parameter.numel() * bytes_per_weight
    return total


def checkpoint_activations(model: PreTrainedModel | PeftModel) -> None:
    """Let the model recompute activations in the backward pass, as in training."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()


class LiveBytes(TorchDispatchMode):
    """Tracks, in a block, how many bytes of the tensors that are made in it are alive at once, a model's own aside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.of_model = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self.alive: Counter[int] = Counter()
        self.current = self.highest = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages of its results."""
        output = operation(*args, **(kwargs or {}))
        for tensor in (output,) if isinstance(output, Tensor) else tree_leaves(output):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.of_model:
                    self.count(tensor, storage._cdata, storage.nbytes())
        return output

    def count(self, tensor: Tensor, storage: int, size: int) -> None:
        """Count a tensor's storage until the last tensor that shares it is gone."""
        if not self.alive[storage]:
            self.current += size
            self.highest = max(self.highest, self.current)
        self.alive[storage] += 1
        weakref.finalize(tensor, self.release, storage, size)

    def release(self, storage: int, size: int) -> None:
        """Forget one of the tensors that share a storage."""
        self.alive[storage] -= 1
        if not self.alive[storage]:
            del self.alive[storage]
            self.current -= size


def step_bytes(model: nn.Module, loss: Callable[[], Tensor], autocast: torch.dtype | None) -> int:
    """Return the bytes that a loss, computed from fake tensors of the model's, and its gradients take at their peak."""
    model.train()
    with FakeTensorMode():
        originals = give_shapes(model)
        with LiveBytes(model) as live:
            with on_cpu(autocast):
                scalar = loss().float().sum()
            scalar.backward()
        replace_tensors(model, originals)
    return live.highest


def forward_bytes(model: nn.Module, score: Callable[[], Tensor], autocast: torch.dtype | None) -> int:
    """Return the bytes that a forward pass without gradients takes at its peak."""
    model.eval()
    with FakeTensorMode(), torch.no_grad():
        originals = give_shapes(model)
        with LiveBytes(model) as live, on_cpu(autocast):
            score()
        replace_tensors(model, originals)
    return live.highest


def cache_bytes(
    model: PreTrainedModel | PeftModel, prompt_tokens: int, response_tokens: int, autocast: torch.dtype | None
) -> int:
    """Return the bytes of the keys and values, or states, that one row has at the end of its response."""
    model.eval()  # in training, checkpointing does without a cache
    with FakeTensorMode(), torch.no_grad(), on_cpu(autocast):
        originals = give_shapes(model)
        prompts, responses = fake_rows(1, prompt_tokens, response_tokens)
        if model.config.is_encoder_decoder:
            output = model(input_ids=prompts, decoder_input_ids=responses, use_cache=True)
        else:
            output = model(input_ids=torch.cat((prompts, responses), dim=1), use_cache=True)
        cache = output.get("past_key_values") or output.get("cache_params")  # Mamba's has states
        caches = [cache]
        if isinstance(cache, EncoderDecoderCache):
            caches = [cache.self_attention_cache, cache.cross_attention_cache]
        layers = [layer for part in caches if part is not None for layer in part.layers]
        tensors = [value for layer in layers for value in tree_leaves(vars(layer)) if isinstance(value, Tensor)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        replace_tensors(model, originals)
    return size


def on_cpu(autocast: torch.dtype | None) -> torch.autocast:
    """Return the context in which a model computes in that dtype, or in fp32."""
    return torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None)


def fake_rows(rows: int, prompt_tokens: int, response_tokens: int) -> tuple[Tensor, Tensor]:
    """Return ids of prompts (B, P) and responses (B, T)."""
    return torch.zeros(rows, prompt_tokens, dtype=torch.long), torch.zeros(rows, response_tokens, dtype=torch.long)


def tile_bytes(tokens: int, vocabulary: int, device: torch.device) -> int:
    """Return the bytes of TRL's tiles for the loss of so many tokens."""
    copies = 1 if device.type == "cuda" else TILE_COPIES
    return copies * 4 * min(tokens, TILE_TOKENS) * min(vocabulary, TILE_LOGITS)


def sft_loss(model: PreTrainedModel | PeftModel, rows: int, prompt_tokens: int, response_tokens: int) -> Tensor:
    """Return the loss of SFT for rows of so many tokens; of a decoder, whose logits are tiled, its states."""
    prompts, responses = fake_rows(rows, prompt_tokens, response_tokens)
    if model.config.is_encoder_decoder:
        logits = model(input_ids=prompts, decoder_input_ids=responses, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), responses.flatten(), reduction="sum")
    head = model.get_output_embeddings()
    with capture_lm_head_input(head) as captured, bypass_lm_head(head):
        model(input_ids=torch.cat((prompts, responses), dim=1), use_cache=False)
    return captured[0]


def classifier_loss(model: PreTrainedModel | PeftModel, rows: int, tokens: int) -> Tensor:
    """Return the last states of texts of so many tokens; the layer that classifies one of them is small."""
    classifier = model.get_base_model() if isinstance(model, PeftModel) else model
    ids = torch.ones(rows, tokens, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if classifier.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    states: Tensor = classifier.base_model(**inputs).last_hidden_state
    return states


def ppo_loss(model: PreTrainedModel | PeftModel, rows: int, prompt_tokens: int, response_tokens: int) -> Tensor:
    """Return the log-probabilities of responses of so many tokens, from their states where Policy.forward does so."""
    prompts, responses = fake_rows(rows, prompt_tokens, response_tokens)
    ids, head = responses.flatten(), model.get_output_embeddings()
    states = states_of_plain_head(model, prompts, responses)
    if states is not None:
        return head_logprobs(states.flatten(0, 1), head, ids, 1.0, entropy=False)[0]
    return logits_logprobs(response_logits(model, prompts, responses).flatten(0, 1), ids, 1.0, entropy=False)[0]


def states_of_plain_head(model: PreTrainedModel | PeftModel, prompts: Tensor, responses: Tensor) -> Tensor | None:
    """Return the states (B, T, H) that predict the responses; None if logits are more than a linear head's output."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    with capture_lm_head_input(head) as captured, bypass_lm_head(head):
        try:
            output = response_logits(model, prompts, responses)
        except RuntimeError:  # a bias on the logits has another shape
            return None
    is_unchanged = output.untyped_storage()._cdata == captured[0].untyped_storage()._cdata
    return captured[0] if is_unchanged else None


def response_logits(model: PreTrainedModel | PeftModel, prompts: Tensor, responses: Tensor) -> Tensor:
    """Return the output of the head (B, T, V) for the states that predict the responses."""
    if model.config.is_encoder_decoder:
        output = model(input_ids=prompts, decoder_input_ids=responses, use_cache=False)
    else:
        ids = torch.cat((prompts, responses), dim=1)
        positions = torch.arange(prompts.shape[1] - 1, ids.shape[1] - 1)
        output = model(input_ids=ids, logits_to_keep=positions, use_cache=False)
    logits: Tensor = output.logits
    return logits


def give_shapes(model: nn.Module) -> dict[int, Tensor]:
    """Replace parameters and buffers by fake tensors; return the originals by the ids of those, for replace_tensors."""
    originals = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    made: dict[int, Tensor] = {}
    for key, tensor in originals.items():
        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
        made[key] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    replace_tensors(model, made)
    return {id(made[key]): tensor for key, tensor in originals.items()}


def replace_tensors(model: nn.Module, by_id: dict[int, Tensor]) -> None:
    """Replace each parameter and buffer by the one of its id; those that several modules share stay shared."""
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in tables:
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = by_id[id(tensor)]


def machine_memory() -> int:
    """Return the bytes of memory of the first GPU, or where there is none, this process's part of the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

"""Predict the memory that a stage needs, from shapes alone: weights, what training adds to them, and activations.

Activations are counted: on tensors without values, a forward pass saves for the backward pass what a real one would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.config.names import PPO, SFT
from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.models.adapters import add_lora
from workbench.models.loading import fuse_kernels, meta_model, policy_precision
from workbench.models.logprobs import bypass_lm_head, capture_lm_head_input, head_logprobs
from workbench.models.precision import DTYPES, autocast_dtype, machine_device, precision_lines

# NF4 with double quantization: 4 bits, and of each 64 weights a scale in 8 bits, and of each 256 scales one in 32.
BYTES_PER_QUANTIZED = {"nf4": (4 + 8 / 64 + 32 / (64 * 256)) / 8, "int8": 1.0}
BYTES_OF_TRAINING = 12  # gradient and two moments of Adam, in fp32
GIB = 2**30


@dataclass(frozen=True)
class StageMemory:
    """Bytes that a stage holds at its peak."""

    weights: float
    training: float
    """Gradients and the optimizer's moments."""
    per_row: float
    """Activations of one row, which the backward pass needs."""

    def total(self, rows: int) -> float:
        """Return the bytes for a micro batch of so many rows."""
        return self.weights + self.training + rows * self.per_row

    def largest(self, available: float) -> int:
        """Return the largest micro batch that fits."""
        return max(int((available - self.weights - self.training) // self.per_row), 0)


def model_plan(config: Config, stage: str, rows: int, prompt_tokens: int, response_tokens: int) -> list[str]:
    """Return lines on the parameters, how many are trained, and the memory for `rows` rows of the longest texts.

    Raises UserError for an adapter of a higher rank than every layer.
    """
    model = planned_model(config)
    base = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    device = machine_device()
    precision = policy_precision(config.policy, device, model.config)
    memory = stage_memory(config, stage, model, precision, prompt_tokens, response_tokens)
    lines = [
        f"{config.policy.model}: {base / 1e6:.1f} M parameters, {trained / 1e6:.2f} M trained "
        f"({100 * trained / base:.2f} %), {config.policy.quantization or precision}",
        f"memory about {memory.total(rows) / GIB:.1f} GiB (weights {memory.weights / GIB:.1f}) at {rows} rows of "
        f"{prompt_tokens + response_tokens} tokens",
        *precision_lines("policy.precision", config.policy.precision, device, model.config),
    ]
    if memory.total(rows) > machine_memory():
        largest = memory.largest(machine_memory())
        remedy = "shorten the texts, or train a smaller model"
        if largest:
            remedy = f"set {stage}.micro_batch_size to {largest}"
        lines.append(f"warning: this machine has {machine_memory() / GIB:.1f} GiB of memory; {remedy}")
    return lines


def planned_model(config: Config) -> PreTrainedModel | PeftModel:
    """Return the policy without values, with its adapter; raises UserError for an adapter of too high a rank."""
    model = meta_model(config.policy.model)
    fuse_kernels(model)
    lora = config.policy.lora
    if lora is None:
        return model
    full_rank = max(min(weight.shape) for weight in model.parameters() if weight.dim() == 2)
    if lora.r > full_rank:
        raise UserError(
            f"policy.lora.r: {lora.r} is above {full_rank}, the rank of the largest weight of {config.policy.model}; "
            "an adapter of a higher rank cannot express more; lower it"
        )
    model.requires_grad_(False)
    with torch.device("meta"):
        return add_lora(model, lora, "policy")


def stage_memory(
    config: Config,
    stage: str,
    model: PreTrainedModel | PeftModel,
    precision: str,
    prompt_tokens: int,
    response_tokens: int,
) -> StageMemory:
    """Return what the stage holds while it takes an optimizer step."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = weight_bytes(model, precision, config.policy.quantization)
    has_value_model = stage == PPO and config.ppo is not None and config.ppo.value_model == "separate"
    copies = 1
    if config.policy.lora is None and stage == PPO:
        copies += 1  # the reference
    if has_value_model:
        weights += 4 * trained if config.policy.lora else 0
        copies += config.policy.lora is None
    make_differentiable(model, checkpointing=config.policy.gradient_checkpointing)
    per_row = saved_bytes(model, stage, prompt_tokens, response_tokens, autocast_dtype(precision))
    return StageMemory(
        weights=copies * weights,
        training=BYTES_OF_TRAINING * trained * (1 + has_value_model),
        per_row=per_row * (1 + has_value_model),
    )


def weight_bytes(model: PreTrainedModel | PeftModel, precision: str, quantization: str | None) -> float:
    """Return the bytes of the weights: those that are trained in fp32, a frozen base in the precision it computes in.

    Quantization leaves embeddings, output head, norms and biases as they are, and T5's wo.
    """
    plain = {id(model.get_output_embeddings().weight)}
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


def make_differentiable(model: PreTrainedModel | PeftModel, *, checkpointing: bool) -> None:
    """Prepare the model for a forward pass as in training."""
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()


def saved_bytes(
    model: PreTrainedModel | PeftModel,
    stage: str,
    prompt_tokens: int,
    response_tokens: int,
    autocast: torch.dtype | None,
) -> int:
    """Return the bytes that the loss of one row saves for its gradient, and those of the gradient of its logits."""
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # an address is used again once its tensor is gone
        return tensor

    alive: list[Tensor] = []
    with FakeTensorMode():
        originals = give_shapes(model)
        prompts, responses = (torch.zeros(1, size, dtype=torch.long) for size in (prompt_tokens, response_tokens))
        enabled = torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None)
        with enabled, saved_tensors_hooks(count, lambda tensor: tensor):
            loss = sft_loss if stage == SFT else ppo_loss
            loss(model, prompts, responses)
        parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        replace_tensors(model, originals)
    # The loss of SFT makes a gradient as large as its logits in fp32.
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    logits_tokens = response_tokens if model.config.is_encoder_decoder else prompt_tokens + response_tokens
    logits = logits_tokens * vocabulary * 4 if stage == SFT else 0
    return sum(size for storage, size in saved.items() if storage not in parameters) + logits


def sft_loss(model: PreTrainedModel | PeftModel, prompts: Tensor, responses: Tensor) -> Tensor:
    """Return the loss of SFT."""
    if model.config.is_encoder_decoder:
        return model(input_ids=prompts, labels=responses).loss
    ids = torch.cat((prompts, responses), dim=1)
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def ppo_loss(model: PreTrainedModel | PeftModel, prompts: Tensor, responses: Tensor) -> Tensor:
    """Return the log-probabilities of the responses, from their states as in Policy.forward."""
    head = model.get_output_embeddings()
    with capture_lm_head_input(head) as captured, bypass_lm_head(head):
        if model.config.is_encoder_decoder:
            model(input_ids=prompts, decoder_input_ids=responses, use_cache=False)
        else:
            ids = torch.cat((prompts, responses), dim=1)
            positions = torch.arange(prompts.shape[1] - 1, ids.shape[1] - 1)
            model(input_ids=ids, logits_to_keep=positions, use_cache=False)
    states = captured[0].flatten(0, 1)
    return head_logprobs(states, head, responses.flatten(), 1.0, entropy=False)[0]


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
    """Return the bytes of memory of the first GPU, or of the machine where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total

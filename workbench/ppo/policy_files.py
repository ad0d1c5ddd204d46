"""The policy of a run: loaded from the base and the SFT stage, and saved as files that load without this project."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from workbench.config.derived import has_values
from workbench.config.schema import PolicyConfig, PPOConfig
from workbench.errors import UserError, error_context
from workbench.models.adapters import load_trainable
from workbench.models.architecture import checked_policy
from workbench.models.loading import policy_precision, save_model
from workbench.models.policy import Policy
from workbench.models.precision import autocast_dtype
from workbench.models.sharding import full_state_dict, full_tensor
from workbench.run.distributed import fail_together, is_main_process
from workbench.run.files import atomic_folder, writing


def load_policy(
    policy: PolicyConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    sft: Path | None = None,
    values: Literal["shared", "separate"] | None = "shared",
) -> Policy:
    """Load the policy that PPO starts from: a copy of the SFT stage in the folder `sft`, or the base without one.

    Separate values are computed with a model, or with LoRA an adapter, of their own. Raises UserError for a model that
    cannot be loaded, or not be sampled and scored alike.
    """
    models = load_trainable(policy, sft, device=device, value_model=values == "separate")
    with error_context("policy.model"):
        return checked_policy(
            models.model,
            tokenizer,
            reference=models.reference,
            value_model=models.value_model,
            autocast=autocast_dtype(policy_precision(policy, device, models.model.config)),
            with_values=values is not None,
        )


def check_values(policy: Policy, config: PPOConfig) -> None:
    """Raise UserError unless the policy has a value head exactly where the loss learns values."""
    if has_values(config) and policy.value_head is None:
        raise UserError("ppo.advantage: gae learns values, and the policy has no value head; load it with values")
    if not has_values(config) and policy.value_head is not None:
        name = f"ppo.advantage {config.advantage}" if config.loss == "clip" else f"ppo.loss {config.loss}"
        raise UserError(f"{name}: it learns no values, and the policy has a value head; load it with values=None")


def save_policy(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the adapter or model and its tokenizer, together with the weights that compute the values.

    Every process must call it; the main process writes.
    """
    weights = full_state_dict(policy.model)
    value_weights = None if policy.value_model is None else full_state_dict(policy.value_model)
    head = {} if policy.value_head is None else policy.value_head.state_dict()
    value_head = {name: full_tensor(value) for name, value in head.items()}
    if not is_main_process():
        return
    with writing(folder):
        save_model(policy.model, folder, weights)
        tokenizer.save_pretrained(folder)
        if value_head:
            save_file(value_head, folder / "value_head.safetensors")
        if policy.value_model is not None:
            save_model(policy.value_model, folder / "value", value_weights)
        elif isinstance(policy.model, PeftModel) and "value" in policy.model.peft_config:
            policy.model.save_pretrained(folder, selected_adapters=["value"], save_embedding_layers=False)


def save_best(policy: Policy, folder: Path, accelerator: Accelerator) -> None:
    """Write the adapter or model in `folder`, in place of what was there; every process must call it."""
    weights = full_state_dict(policy.model)
    with fail_together(accelerator):
        if accelerator.is_main_process:
            with atomic_folder(folder) as partial:
                save_model(policy.model, partial, weights)

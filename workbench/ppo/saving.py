"""The files of a trained policy, which load without this project."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from workbench.models.loading import save_model
from workbench.models.policy import Policy
from workbench.run.files import writing


def save_policy(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the adapter or model and its tokenizer, and beside them what computes the values."""
    with writing(folder):
        save_model(policy.model, folder)
        tokenizer.save_pretrained(folder)
        save_file(policy.value_head.state_dict(), folder / "value_head.safetensors")
        if policy.value_model is not None:
            policy.value_model.save_pretrained(folder / "value")
        elif isinstance(policy.model, PeftModel) and "value" in policy.model.peft_config:
            policy.model.save_pretrained(folder, selected_adapters=["value"], save_embedding_layers=False)

"""Run every part of PPO and evaluation on the simulated device, and print what it measured as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import simulated_cuda
import tiny
import tiny_classifiers
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from trainers import CONFIG, e_rate, make_rows
from transformers import LlamaConfig, LlamaForCausalLM

from reward_models.classifier import load
from workbench.config.tuning import LoraSettings
from workbench.evaluation.generation import ComparedModel, Sampling, sample_batch
from workbench.models.adapters import add_lora
from workbench.models.architecture import check_architecture
from workbench.models.decoding import Decoding
from workbench.models.loading import reset_generation_config
from workbench.models.policy import Policy
from workbench.ppo.trainer import PPOTrainer
from workbench.rewards.contract import CheckedReward

SCENARIOS = ("gpt2 lora", "gpt2 full", "t5 separate", "t5 full", "llama lora")


class OnSimulatedDevice(Accelerator):
    """An accelerator of one process whose device is the simulated one."""

    @property
    def device(self) -> torch.device:
        """The simulated device."""
        return simulated_cuda.DEVICE


def llama(seed: int = 0) -> LlamaForCausalLM:
    """Return a tiny Llama with the tokenizer of the tiny GPT-2."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ids: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    vocabulary = len(tiny.tokenizer("gpt2"))
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=64, **sizes | ids))


def make_policy(architecture: str, training: str, autocast: torch.dtype | None) -> Policy:
    """Return a policy that is trained with adapters, in full, or with a value model of its own."""
    if architecture != "llama":
        policy = tiny.policy(architecture, lora=training != "full", separate=training == "separate")
        parts = {"reference": policy.reference, "value_model": policy.value_model}
        return Policy(policy.model, tiny.tokenizer(architecture), autocast=autocast, **parts)
    base = llama()
    reset_generation_config(base)
    if training == "full":
        return Policy(base, tiny.tokenizer("gpt2"), reference=llama().requires_grad_(False), autocast=autocast)
    model = add_lora(base.requires_grad_(False), LoraSettings(r=4, alpha=8), "policy")
    return Policy(model, tiny.tokenizer("gpt2"), autocast=autocast)


def run_scenario(architecture: str, training: str, precision: str, on_device: bool) -> dict[str, Any]:
    """Run a step of PPO, a validation and a comparison; return what they gave, and how often the host waited."""
    autocast = {"fp32": None, "bf16": torch.bfloat16}[precision]
    letters = "t5" if architecture == "t5" else "gpt2"
    policy, tokenizer = make_policy(architecture, training, autocast), tiny.tokenizer(letters)
    if on_device:
        simulated_cuda.move(policy)
        if policy.reference is not None:
            simulated_cuda.move(policy.reference)
    check_architecture(policy)
    accelerator_class = OnSimulatedDevice if on_device else Accelerator
    trainer = PPOTrainer(
        policy,
        tokenizer,
        CheckedReward(e_rate, "test"),
        make_rows(letters, 40),
        dataclasses.replace(CONFIG, steps=1),
        accelerator=accelerator_class(mixed_precision="no", cpu=True, device_placement=False),
        folder=Path(tempfile.mkdtemp()),
        seed=0,
        validation_rows=make_rows(letters, 8),
    )
    simulated_cuda.waits.clear()
    rows = trainer.batch(0)
    ids, mask = policy.pad_prompts([row["prompt_ids"] for row in rows])
    batch = policy.generate(ids, mask, max_new_tokens=8, temperature=1.0)
    per_token = simulated_cuda.waits.total() / batch.response_ids.shape[1]
    waits = simulated_cuda.waits
    in_workbench = sum(count for code_line, count in waits.items() if "workbench/" in code_line)
    metrics = trainer.update(trainer.rollout(rows))
    validation, _ = trainer.validate()
    compared = ComparedModel("policy", policy, "policy", tokenizer, policy, with_token_log_ratios=True)
    completions = sample_batch(
        compared,
        [row["prompt_ids"] for row in rows[:4]],
        Sampling(batch_size=4, max_new_tokens=6, temperature=1.0, seeds=(0,), decoding=Decoding(top_k=50, top_p=0.9)),
        seeds=[1, 2, 3, 4],
        with_token_log_ratios=[True] * 4,
    )
    return {
        "grad_norm": metrics["grad_norm"],
        "kl": metrics["objective/kl_k3"],
        "validation": validation["validation/score_mean"],
        "texts": [completion.text for completion in completions],
        "waits_per_token": per_token,
        "waits_in_workbench": in_workbench,
    }


def run_rewards() -> dict[str, float]:
    """Return by architecture how far a classifier's scores on the device are from those on the CPU, relatively."""
    texts = tiny_classifiers.TEXTS
    prompts = [""] * len(texts)
    # Loaded before the device is there: transformers would not fill the buffers.
    folders = {kind: tiny_classifiers.save(Path(tempfile.mkdtemp()), kind) for kind in tiny_classifiers.KINDS}
    options: dict[str, Any] = {"target_label": "nothate", "batch_size": 3, "polarity_pair": None}
    rewards = {kind: load(folder, **options) for kind, folder in folders.items()}
    on_cpu = {kind: torch.tensor(reward(prompts, texts)) for kind, reward in rewards.items()}
    simulated_cuda.install()
    differences = {}
    with simulated_cuda.Simulated():
        for kind, reward in rewards.items():
            network = dataclasses.replace(reward.network, device=str(simulated_cuda.DEVICE))
            simulated_cuda.move(network.model)
            on_device = torch.tensor(dataclasses.replace(reward, network=network)(prompts, texts))
            differences[kind] = float(((on_cpu[kind] - on_device) / on_cpu[kind].abs().clamp(min=1)).abs().max())
    return differences


def run_mistakes() -> dict[str, str]:
    """Return what the device says of tensors and generators that are on the CPU."""
    policy = make_policy("gpt2", "lora", None)
    simulated_cuda.move(policy)
    ids = torch.ones(1, 3, dtype=torch.long)
    refusals = {}
    attempts: dict[str, Callable[[], Any]] = {
        "cpu tensor": lambda: policy.model(ids),
        "cpu generator": lambda: policy.value_head.weight.normal_(generator=torch.Generator()),
    }
    for name, attempt in attempts.items():
        try:
            with torch.no_grad():
                attempt()
        except RuntimeError as error:
            refusals[name] = next(words for words in ("same device", "CPU generator") if words in str(error))
    return refusals


def main(what: str, precision: str, *scenarios: str) -> None:
    """Print results as JSON: of scenarios, by default all, on "cuda" or "cpu"; of "rewards"; or of "mistakes"."""
    if what == "rewards":
        print(json.dumps(run_rewards()))
        return
    simulated_cuda.install()
    with simulated_cuda.Simulated():
        if what == "mistakes":
            print(json.dumps(run_mistakes()))
            return
        results = {}
        for scenario in scenarios or SCENARIOS:
            results[scenario] = run_scenario(*scenario.split(), precision, what == "cuda")
            AcceleratorState._reset_state(reset_partial_state=True)
        print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])

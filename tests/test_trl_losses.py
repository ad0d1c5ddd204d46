"""The losses of TRL's GRPO, RLOO and DPO on the same responses, rewards and weights as here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from trainers import CONFIG, e_rate, make_rows, make_trainer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from reward_models.combine import Combination, Term
from workbench.models.policy import Policy
from workbench.ppo.advantages import estimate_advantages
from workbench.ppo.losses import make_objective
from workbench.ppo.preferences import best_and_worst
from workbench.ppo.rollout import Rollout
from workbench.ppo.trainer import PPOTrainer
from workbench.rewards.contract import CheckedReward

SAMPLES, ROWS, KL_COEF = 4, 16, 0.3


def perturbed(model: torch.nn.Module, seed: int, scale: float = 0.05) -> None:
    """Move every weight a little, by the seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def ours(folder: Path, advantage: str, seed: int, **options: Any) -> tuple[PPOTrainer, Rollout]:
    """Return a trainer whose policy is not its reference, and a rollout from which it has moved on."""
    policy = tiny.policy("gpt2", lora=False, with_values=False)
    perturbed(policy.model, seed)
    run = make_trainer(
        folder,
        policy=policy,
        advantage=advantage,
        samples_per_prompt=SAMPLES,
        kl_coef=KL_COEF,
        self_checks=False,
        **options,
    )
    # TRL gives GPT-2 no positions, which padding on the left would shift; so all prompts are equally long.
    equally_long = [row for row in make_rows("gpt2", 40) if row["index"] % 4 == 2]
    rollout = run.rollout([row for row in equally_long[: ROWS // SAMPLES] for _ in range(SAMPLES)])
    perturbed(policy.model, seed + 1, 0.01)
    return run, rollout


def theirs(
    folder: Path,
    run: PPOTrainer,
    rollout: Rollout,
    seed: int,
    trainer_class: type,
    config_class: type,
    reward_funcs: Any = e_rate,
    **options: Any,
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return TRL's trainer with the same weights, and what it makes of the same responses."""
    base = tiny.model("gpt2")
    base.save_pretrained(folder)
    tokenizer = tiny.tokenizer("gpt2")
    tokenizer.save_pretrained(folder)
    trainer = trainer_class(
        model=str(folder),
        reward_funcs=reward_funcs,
        args=config_class(
            output_dir=str(folder / "out"),
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            per_device_train_batch_size=ROWS,
            num_generations=SAMPLES,
            max_completion_length=CONFIG.max_new_tokens,
            beta=KL_COEF,
            num_iterations=2,  # so that the old log-probabilities are kept
            report_to="none",
            disable_dropout=True,
            **options,
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in make_rows("gpt2", ROWS)]),
        processing_class=tokenizer,
    )
    perturbed(trainer.model, seed)
    batch = rollout.batch
    prompts, responses = (
        [ids[mask].tolist() for ids, mask in zip(*pair, strict=True)]
        for pair in ((batch.prompt_ids, batch.prompt_mask), (batch.response_ids, batch.response_mask))
    )
    generated = [prompts, responses, rollout.completions]
    if trainer_class is GRPOTrainer:
        generated = [prompts, responses, None, rollout.completions, None, {}, None, None]
    trainer._generate = lambda _: tuple(generated)
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in rollout.prompts])
    perturbed(trainer.model, seed + 1, 0.01)
    trainer.current_gradient_accumulation_steps = 1
    return trainer, inputs


def loss_and_gradient(loss: torch.Tensor, model: torch.nn.Module) -> tuple[float, torch.Tensor]:
    """Return a loss and the gradient of all trained weights."""
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients])


def our_loss(run: PPOTrainer, rollout: Rollout, kl_coef: float) -> torch.Tensor:
    """Return the loss of the whole rollout as one minibatch."""
    estimates = estimate_advantages(rollout, run.config, run.state)
    objective = make_objective(run.policy, run.accelerator, rollout, estimates, run.config, kl_coef)
    return objective.loss(objective.rows.flatten()).loss / objective.counts.sum()


@pytest.mark.parametrize("norm_by_std", [True, False])
def test_grpo_has_the_loss_of_trl(norm_by_std: bool, tmp_path: Path) -> None:
    run, rollout = ours(tmp_path / "ours", "grpo", seed=3)
    run.config = dataclasses.replace(run.config, norm_by_std=norm_by_std)
    trainer, inputs = theirs(
        tmp_path / "trl", run, rollout, 3, GRPOTrainer, GRPOConfig, loss_type="dapo",
        scale_rewards="group" if norm_by_std else "none", steps_per_generation=1,
    )  # fmt: skip
    advantages = estimate_advantages(rollout, run.config, run.state).advantages
    torch.testing.assert_close(advantages[:, 0], inputs["advantages"], atol=1e-5, rtol=1e-5)
    loss, gradient = loss_and_gradient(our_loss(run, rollout, KL_COEF), run.unwrapped.model)
    reference_loss, reference = loss_and_gradient(trainer._compute_loss(trainer.model, inputs), trainer.model)
    assert loss == pytest.approx(reference_loss, abs=1e-5)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)


def first_letter(prompts: list[str], completions: list[str], **columns: list) -> list[float | None]:
    """Return the number of a text's first letter; it does not apply to texts that begin with one of the first."""
    return [float(ord(text[0])) if text > "f" else None for text in completions]


def test_gdpo_has_the_advantages_of_trl(tmp_path: Path) -> None:
    weights = {"e": 1.0, "letter": -0.3}
    functions = {"e": e_rate, "letter": first_letter}
    reward = Combination({name: Term(CheckedReward(functions[name], name), weights[name]) for name in weights})
    run, rollout = ours(tmp_path / "ours", "gdpo", seed=3, reward=reward)
    _, inputs = theirs(
        tmp_path / "trl", run, rollout, 3, GRPOTrainer, GRPOConfig, list(functions.values()), steps_per_generation=1,
        reward_weights=list(weights.values()), multi_objective_aggregation="normalize_then_sum",
    )  # fmt: skip
    advantages = estimate_advantages(rollout, run.config, run.state).advantages
    assert rollout.terms["letter"].isnan().any()
    assert all(len(set(values[~values.isnan()].tolist())) > 1 for values in rollout.terms.values())
    torch.testing.assert_close(advantages[:, 0], inputs["advantages"], atol=1e-5, rtol=1e-5)


def test_rloo_has_the_advantages_of_trl_and_before_an_update_its_gradient(tmp_path: Path) -> None:
    """TRL clips the ratio of whole responses, and averages over them; here tokens are clipped, and averaged over.

    Where no weight has moved, that is the same gradient but for its scale.
    """
    run, rollout = ours(tmp_path / "ours", "rloo", seed=3)
    trainer, inputs = theirs(tmp_path / "trl", run, rollout, 3, RLOOTrainer, RLOOConfig, steps_per_generation=1)
    advantages = estimate_advantages(rollout, run.config, run.state).advantages
    torch.testing.assert_close(advantages[:, 0], inputs["advantages"], atol=1e-5, rtol=1e-5)
    perturbed_back(run.unwrapped, 4)
    perturbed_back(trainer.model, 4)
    tokens = rollout.batch.response_mask.sum()
    _, gradient = loss_and_gradient(our_loss(run, rollout, 0.0) * tokens / ROWS, run.unwrapped.model)
    _, reference = loss_and_gradient(trainer._compute_loss(trainer.model, inputs), trainer.model)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)


def test_dpo_has_the_loss_of_trl(tmp_path: Path) -> None:
    run, rollout = ours(tmp_path / "ours", "gae", seed=3, loss="dpo")
    best, worst, differ = best_and_worst(rollout.scores, SAMPLES)
    assert differ.all(), "TRL has no pairs of equal responses"
    folder, tokenizer = tmp_path / "trl", tiny.tokenizer("gpt2")
    tiny.model("gpt2").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trainer = DPOTrainer(
        model=str(folder),
        args=DPOConfig(
            output_dir=str(folder / "out"), use_cpu=True, bf16=False, beta=KL_COEF, report_to="none",
            activation_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tokenizer,
    )  # fmt: skip
    perturbed(trainer.model, 3)
    perturbed(trainer.model, 4, 0.01)
    batch = rollout.batch
    ids = [
        [row[mask].tolist() for row, mask in zip(*pair, strict=True)]
        for pair in ((batch.prompt_ids, batch.prompt_mask), (batch.response_ids, batch.response_mask))
    ]
    pairs = [
        {"prompt_ids": ids[0][chosen], "chosen_ids": ids[1][chosen], "rejected_ids": ids[1][rejected]}
        for chosen, rejected in zip(best.tolist(), worst.tolist(), strict=True)
    ]
    trainer.model.train()
    inputs = trainer.data_collator(pairs)
    reference_loss, reference = loss_and_gradient(trainer._compute_loss(trainer.model, inputs, False), trainer.model)
    loss, gradient = loss_and_gradient(our_loss(run, rollout, KL_COEF), run.unwrapped.model)
    assert loss == pytest.approx(reference_loss, abs=1e-5)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)


def perturbed_back(policy: Policy | torch.nn.Module, seed: int) -> None:
    """Undo what `perturbed` did last."""
    perturbed(policy.model if isinstance(policy, Policy) else policy, seed, -0.01)

"""The PPO loop: rollout, advantages, update, checkpoint, log. The mathematics is in algorithm.py."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.config import PPOConfig
from workbench.config_file import per_process
from workbench.errors import Interrupted, UserError
from workbench.interrupt import stop_requests
from workbench.policy import Policy
from workbench.ppo import algorithm, checkpoint
from workbench.ppo.rollout import Rollout, collect
from workbench.ppo.update import UpdateSettings, update
from workbench.progress import Progress
from workbench.rewards import RewardModel

# The first rollout precedes every update, so what it differs from 1 and 0 by is rounding; bf16 keeps 8 bits.
FIRST_STEP_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
BAD_STEPS_LIMIT = 3


class PPOTrainer:
    """Aligns a policy with a reward; step it by `rollout` and `update`, or run it by `train`."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        reward: RewardModel,
        rows: Sequence[dict[str, Any]],
        config: PPOConfig,
        *,
        accelerator: Accelerator,
        folder: Path,
        seed: int,
    ) -> None:
        """`rows` hold prompt, prompt_ids and the reward's columns; checkpoints and metrics go to `folder`."""
        processes = accelerator.num_processes
        enough_prompts(config, len(rows))
        self.share = per_process("ppo.batch_size", config.batch_size, processes)
        minibatch = per_process("ppo.minibatch_size", config.minibatch_size, processes)
        self.micro_batch_size = min(config.micro_batch_size or minibatch, minibatch)
        self.settings = UpdateSettings(
            epochs=config.epochs,
            minibatch_size=minibatch,
            micro_batch_size=self.micro_batch_size,
            clip_range=config.clip_range,
            value_clip_range=config.value_clip_range,
            vf_coef=config.vf_coef,
            max_grad_norm=config.max_grad_norm,
            temperature=config.temperature,
        )
        self.tokenizer, self.reward, self.rows, self.config = tokenizer, reward, rows, config
        self.accelerator, self.folder, self.seed = accelerator, folder, seed
        optimizer = torch.optim.AdamW(parameter_groups(policy, config), eps=1e-5, weight_decay=0.0)
        self.policy, self.optimizer = accelerator.prepare(policy, optimizer)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.kl_coef = config.kl_coef
        self.step = 0
        self.bad_steps = 0
        self.metrics: dict[str, float] = {}

    @property
    def unwrapped(self) -> Policy:
        """The policy without the wrapper for several processes."""
        return self.accelerator.unwrap_model(self.policy)

    def train(self) -> dict[str, float]:
        """Run from the last checkpoint, or from the start, to the end; returns the last step's metrics.

        Raises Interrupted, with a checkpoint saved, when a signal asks for it.
        """
        self.resume()
        progress = Progress("ppo", self.config.steps, done=self.step, show=self.accelerator.is_main_process)
        with stop_requests() as stop_asked, self.metrics_file() as log:
            while self.step < self.config.steps:
                rollout = self.rollout_or_save(log.tell())
                self.metrics = metrics = self.update(rollout)
                if self.accelerator.is_main_process:
                    log.write((json.dumps({"step": self.step} | metrics) + "\n").encode())
                    log.flush()
                self.accelerator.log(metrics, step=self.step)
                progress.advance(
                    note=f"score {metrics['objective/score_mean']:.3f}, kl {metrics['objective/kl']:.2f}, "
                    f"length {metrics['response/length_mean']:.1f}"
                )
                stop = self.any_process(stop_asked())
                if stop or self.bad_steps >= BAD_STEPS_LIMIT or self.step % self.config.checkpoint_every == 0:
                    self.save_checkpoint(log.tell())
                if self.bad_steps >= BAD_STEPS_LIMIT:
                    raise UserError(
                        f"ppo: {self.bad_steps} updates in a row had no finite gradient; saved at step {self.step}; "
                        "lower ppo.learning_rate or use policy.precision fp32"
                    )
                if stop and self.step < self.config.steps:
                    raise Interrupted(f"stopped and saved at step {self.step} of {self.config.steps}")
        progress.close()
        return self.metrics

    def rollout_or_save(self, log_offset: int) -> Rollout:
        """This step's rollout; a reward that fails on any process stops all of them with a checkpoint saved."""
        rollout, failure = None, None
        try:
            rollout = self.rollout(self.batch(self.step))
        except Exception as error:  # a user's reward can fail in any way
            failure = error
        if self.any_process(failure is not None):
            self.save_checkpoint(log_offset)
            raise failure or UserError(f"ppo: the reward failed on another process; saved at step {self.step}")
        assert rollout is not None
        return rollout

    def rollout(self, rows: Sequence[dict[str, Any]]) -> Rollout:
        """Sample and score a response to each of `rows`; the same step samples the same, also after a resume."""
        torch.manual_seed(seed_of(self.seed, self.step, self.accelerator.process_index))
        return collect(
            self.unwrapped,
            self.tokenizer,
            self.reward,
            rows,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            micro_batch_size=self.micro_batch_size,
        )

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Improve the policy on a rollout and return the step's metrics."""
        start = time.perf_counter()
        config, mask = self.config, rollout.response_mask
        kl = algorithm.kl_penalty(rollout.logprobs, rollout.ref_logprobs, config.kl_estimator) * mask
        rewards = algorithm.shape_rewards(self.shaped_scores(rollout), kl, mask, self.kl_coef)
        advantages = algorithm.gae(rewards, rollout.values, mask, config.gamma, config.lam)
        returns = (advantages + rollout.values) * mask
        whitened = algorithm.whiten(advantages, mask, lambda sums: self.accelerator.reduce(sums, "sum"))

        metrics = self.rollout_metrics(rollout, kl, rewards, advantages, returns)
        if self.step == 0:
            self.check_first_step(rollout, metrics)
        fraction = algorithm.rate_fraction(self.step, config.steps, config.schedule)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * fraction
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.step, self.accelerator.process_index))
        metrics |= update(
            self.policy, self.optimizer, self.accelerator, rollout, whitened, returns, self.settings, generator
        )
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.bad_steps = self.bad_steps + 1 if metrics["skipped_steps"] == metrics["optimizer_steps"] else 0
        self.step += 1
        if config.kl_target is not None:
            self.kl_coef = algorithm.next_kl_coef(
                self.kl_coef, metrics["objective/kl"], config.kl_target, config.kl_horizon, config.batch_size
            )
        seconds = rollout.seconds | {"update": time.perf_counter() - start}
        metrics |= {f"seconds/{name}": round(value, 4) for name, value in seconds.items()}
        metrics["episodes_per_second"] = config.batch_size / sum(seconds.values())
        metrics["tokens_per_second"] = metrics["response/length_mean"] * metrics["episodes_per_second"]
        return metrics

    def shaped_scores(self, rollout: Rollout) -> Tensor:
        """Scores (B,) as the policy is paid: clipped, scaled, less the penalty for a missing stop token."""
        scores = rollout.scores
        if self.config.score_clip is not None:
            scores = scores.clamp(-self.config.score_clip, self.config.score_clip)
        return scores / self.config.score_scale - self.config.missing_eos_penalty * rollout.truncated

    def rollout_metrics(
        self, rollout: Rollout, kl: Tensor, rewards: Tensor, advantages: Tensor, returns: Tensor
    ) -> dict[str, float]:
        """Metrics of a rollout over all processes; KL, entropy and reward are sums over a response, in nats."""
        mask = rollout.response_mask
        kl_k3 = algorithm.kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k3") * mask
        lengths = mask.sum(dim=1).float()
        columns = torch.stack(
            (
                kl.sum(dim=1),
                kl_k3.sum(dim=1),
                -rollout.logprobs.sum(dim=1),
                rollout.scores,
                rewards.sum(dim=1),
                lengths,
                rollout.truncated.float(),
                (advantages * mask).sum(dim=1) / lengths,
                (returns * mask).sum(dim=1) / lengths,
            ),
            dim=1,
        )
        columns = self.accelerator.gather(columns).float()
        mean = columns.mean(dim=0).tolist()
        return {
            "objective/kl": mean[0],
            "objective/kl_k3": mean[1],
            "objective/kl_coef": self.kl_coef,
            "objective/entropy": mean[2],
            "objective/score_mean": mean[3],
            "objective/score_std": columns[:, 3].std(correction=0).item(),
            "objective/reward": mean[4],
            "response/length_mean": mean[5],
            "response/length_min": columns[:, 5].min().item(),
            "response/length_max": columns[:, 5].max().item(),
            "response/truncated_share": mean[6],
            "advantages/mean": mean[7],
            "returns/mean": mean[8],
            "value/explained_variance": algorithm.explained_variance(
                rollout.values, returns, mask, lambda sums: self.accelerator.reduce(sums, "sum")
            ).item(),
        }

    def check_first_step(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Raises UserError unless, before any update, KL is 0 and the ratio of new to old probabilities is 1."""
        tolerance = FIRST_STEP_TOLERANCE[self.unwrapped.autocast_dtype or torch.float32]
        kl = metrics["objective/kl_k3"] / metrics["response/length_mean"]
        if not kl <= tolerance:
            raise UserError(
                f"ppo: KL to the reference is {kl:.2g} nats a token before the first update (limit {tolerance}); "
                "the policy must start as a copy of its reference: is dropout on, or was another adapter loaded?"
            )
        part = slice(0, self.micro_batch_size)
        mask = rollout.response_mask[part]
        with torch.no_grad():
            scores = self.policy(
                rollout.prompt_ids[part],
                rollout.prompt_mask[part],
                rollout.response_ids[part],
                mask,
                self.config.temperature,
            )
        log_ratio = ((scores.logprobs - rollout.logprobs[part]) * mask).abs().max().item()
        if not log_ratio <= tolerance:
            raise UserError(
                f"ppo: the log ratio of new to old probabilities is {log_ratio:.2g} before the first update (limit "
                f"{tolerance}); the same weights must give the same probabilities: is dropout on?"
            )

    def batch(self, step: int) -> list[dict[str, Any]]:
        """This process's rows of rollout `step`."""
        first = self.accelerator.process_index * self.share
        indices = batch_indices(step, self.config.batch_size, len(self.rows), self.seed)
        return [self.rows[index] for index in indices[first : first + self.share]]

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        local = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(local, "sum").item())

    def save_checkpoint(self, log_offset: int) -> None:
        """Save everything that `resume` needs."""
        checkpoint.save(
            self.folder / "checkpoints",
            self.step,
            accelerator=self.accelerator,
            policy=self.policy,
            optimizer=self.optimizer,
            counters={
                "kl_coef": self.kl_coef,
                "bad_steps": self.bad_steps,
                "log_offset": log_offset,
                "metrics": self.metrics,
            },
        )

    def resume(self) -> None:
        """Go back to the newest checkpoint, where there is one, and forget metrics logged after it."""
        found = checkpoint.load_latest(
            self.folder / "checkpoints",
            accelerator=self.accelerator,
            policy=self.policy,
            optimizer=self.optimizer,
        )
        offset = 0
        if found is not None:
            self.step, counters = found
            self.kl_coef, self.bad_steps = counters["kl_coef"], counters["bad_steps"]
            offset, self.metrics = counters["log_offset"], counters["metrics"]
            self.accelerator.print(f"ppo: going on from step {self.step}")
        if self.accelerator.is_main_process:
            with (self.folder / "metrics.jsonl").open("ab") as log:
                log.truncate(offset)

    def metrics_file(self) -> Any:
        """metrics.jsonl, opened to append; closed by the caller."""
        return (self.folder / "metrics.jsonl").open("ab")


def enough_prompts(config: PPOConfig, prompts: int) -> None:
    """Raises UserError when a batch would need a prompt twice."""
    if prompts < config.batch_size:
        raise UserError(
            f"ppo.batch_size: {config.batch_size} is above the {prompts} prompts there are; lower it or add prompts"
        )


def parameter_groups(policy: Policy, config: PPOConfig) -> list[dict[str, Any]]:
    """The policy's trainable parameters and the value head's, each with its rate."""
    value_rate = config.learning_rate if config.value_learning_rate is None else config.value_learning_rate
    return [
        {"params": [p for p in policy.model.parameters() if p.requires_grad], "lr": config.learning_rate},
        {"params": list(policy.value_head.parameters()), "lr": value_rate},
    ]


def batch_indices(step: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """Rows of the batch at `step`: the data in a new order every epoch, one epoch after the other."""
    indices: list[int] = []
    position = step * batch_size
    while len(indices) < batch_size:
        epoch, offset = divmod(position + len(indices), rows)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed_of(seed, epoch)))
        indices += order[offset : offset + batch_size - len(indices)].tolist()
    return indices


def seed_of(*numbers: int) -> int:
    """One seed from several numbers, different for different numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return mixed

"""The PPO loop: rollout, advantages, update, checkpoint, log. The mathematics is in algorithm.py."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.config.schema import PPOConfig
from workbench.errors import Interrupted, UserError
from workbench.models.loading import make_optimizer, save_model, window
from workbench.models.policy import Policy
from workbench.ppo import algorithm, checkpoint
from workbench.ppo.metrics import rollout_metrics
from workbench.ppo.overoptimization import divergence_warning, points
from workbench.ppo.rollout import Rollout, collect, respond
from workbench.ppo.sampler import batch_indices, check_batch_size, check_columns, check_rows, derive_seed, token_limit
from workbench.ppo.selfcheck import check_sanity_pair, check_start
from workbench.ppo.update import UpdateSettings, parameter_groups, update
from workbench.ppo.validation import Sample, answer, samples, summarize
from workbench.rewards.contract import CheckedReward, RewardModel, checked
from workbench.run.distributed import per_process
from workbench.run.files import append_text, atomic_folder, remove_partial
from workbench.run.interrupt import stop_requests
from workbench.run.progress import Progress

MAX_NONFINITE_UPDATES = 3
SAMPLES_SHOWN = 8

T = TypeVar("T")


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
        validation_rows: Sequence[dict[str, Any]] = (),
        watch: RewardModel | None = None,
        sanity_pair: list[str] | None = None,
        paged_optimizer: bool = False,
    ) -> None:
        """`rows` hold prompt, prompt_ids and the reward's columns; checkpoints and metrics go to `folder`.

        `watch` scores the answers to the validation prompts as well, and nothing is learned from it.
        """
        processes = accelerator.num_processes
        check_batch_size(config, len(rows))
        check_columns(rows, validation_rows)
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
            entropy_coef=config.entropy_coef,
            target_kl=config.target_kl,
            max_grad_norm=config.max_grad_norm,
            temperature=config.temperature,
        )
        self.reward = reward if isinstance(reward, CheckedReward) else checked(reward, "reward")
        self.watch = watch
        self.tokenizer, self.rows, self.config = tokenizer, rows, config
        self.accelerator, self.folder, self.seed = accelerator, folder, seed
        self.validation_rows, self.sanity_pair = validation_rows, sanity_pair
        self.window = None if policy.is_encoder_decoder else window(policy.base.config, tokenizer)
        groups = parameter_groups(policy, config.learning_rate, config.value_learning_rate)
        self.policy_parameters: list[torch.nn.Parameter] = groups[0]["params"]
        optimizer = make_optimizer(groups, paged=paged_optimizer)
        self.policy, self.optimizer = accelerator.prepare(policy, optimizer)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.state = checkpoint.TrainState(kl_coef=config.kl_coef)

    @property
    def unwrapped(self) -> Policy:
        """The policy without the wrapper for several processes."""
        return self.accelerator.unwrap_model(self.policy)

    def train(self) -> dict[str, float]:
        """Run from the last checkpoint, or from the start, to the end; returns the last step's metrics.

        Raises Interrupted, with a checkpoint saved, when a signal asks for it.
        """
        self.resume()
        steps = self.config.steps
        done, show = self.step - self.state.validation_due, self.accelerator.is_main_process
        progress = Progress("ppo", steps, done=done, show=show)
        with stop_requests() as stop_asked:
            while self.step < steps or self.state.validation_due:
                # A run whose reward failed in validation was saved between the update and its validation.
                if not self.state.validation_due:
                    rollout = self.or_save(lambda: self.rollout(self.batch(self.step)))
                    self.state.metrics = self.update(rollout)
                    shown = samples(rollout)
                metrics, due = self.state.metrics, self.step % self.config.checkpoint_every == 0 or self.step == steps
                self.state.validation_due = due and bool(self.validation_rows)
                if self.state.validation_due:
                    validated = self.or_save(self.answer_validation)
                    found, shown = self.look(validated)
                    metrics |= found
                    self.state.validation_due = False
                if due:
                    self.show(shown)
                self.log(metrics)
                if due and self.watch is not None:
                    warning = divergence_warning(points(self.folder / "metrics.jsonl"))
                    if warning is not None:
                        self.accelerator.print(warning)
                progress.advance(
                    note=f"score {metrics['objective/score_mean']:.3f}, kl {metrics['objective/kl']:.2f}, "
                    f"length {metrics['response/length_mean']:.1f}"
                )
                stop, failing = self.any_process(stop_asked()), self.state.nonfinite_updates >= MAX_NONFINITE_UPDATES
                if stop or failing or due:
                    self.save_checkpoint()
                if failing:
                    raise UserError(
                        f"ppo: {MAX_NONFINITE_UPDATES} updates in a row had no finite gradient; "
                        f"saved at step {self.step}; "
                        "lower ppo.learning_rate or use policy.precision fp32"
                    )
                if stop and self.step < steps:
                    raise Interrupted(f"stopped and saved at step {self.step} of {steps}")
        progress.close()
        return self.state.metrics

    def or_save(self, scored: Callable[[], T]) -> T:
        """What calls the reward; where that fails on any process, all save a checkpoint and stop."""
        results: list[T] = []
        failure, before = None, checkpoint.random_state()
        try:
            results.append(scored())
        except Exception as error:  # a user's reward can fail in any way
            failure = error
        if self.any_process(failure is not None):
            checkpoint.restore_random_state(before)  # what failed is done again from its start
            self.save_checkpoint()
            raise failure or UserError(f"ppo: the reward failed on another process; saved at step {self.step}")
        return results[0]

    def log(self, metrics: dict[str, float]) -> None:
        """Write this step's line and tell the tracker."""
        if self.accelerator.is_main_process:
            append_text(self.folder / "metrics.jsonl", json.dumps({"step": self.step} | metrics) + "\n")
        self.accelerator.log(metrics, step=self.step)

    def rollout(self, rows: Sequence[dict[str, Any]]) -> Rollout:
        """Sample and score a response to each of `rows`; the same step samples the same, also after a resume."""
        config = self.config
        limit = token_limit(self.step, config.min_token_limit, config.max_new_tokens, self.seed)
        check_rows(rows, limit, self.window)
        if config.score_samples and self.state.score_std is None:
            self.initial_scores = self.score_initial_policy()
        torch.manual_seed(derive_seed(self.seed, self.step, self.accelerator.process_index))
        return collect(
            self.unwrapped,
            self.tokenizer,
            self.reward,
            rows,
            max_new_tokens=limit,
            temperature=config.temperature,
            micro_batch_size=self.micro_batch_size,
        )

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Improve the policy on a rollout and return the step's metrics."""
        start = time.perf_counter()
        config, mask, state = self.config, rollout.batch.response_mask, self.state
        if config.score_samples and state.score_std is None:
            state.score_mean, state.score_std = self.score_statistics()
        kl = algorithm.kl_penalty(rollout.logprobs, rollout.ref_logprobs, config.kl_estimator) * mask
        scores = algorithm.transform_scores(
            rollout.scores,
            rollout.truncated,
            mean=state.score_mean,
            std=1.0 if state.score_std is None else state.score_std,
            clip=config.score_clip,
            scale=config.score_scale,
            missing_eos_penalty=config.missing_eos_penalty,
        )
        rewards = algorithm.token_rewards(scores, kl, mask, state.kl_coef)
        advantages = algorithm.gae(rewards, rollout.values, mask, config.gamma, config.lam)
        returns = (advantages + rollout.values) * mask
        whitened = algorithm.whiten(advantages, mask, lambda sums: self.accelerator.reduce(sums, "sum"))

        metrics = rollout_metrics(rollout, kl, rewards, advantages, returns, self.accelerator)
        metrics["objective/kl_coef"] = state.kl_coef
        if self.step == 0 and config.self_checks:
            self.check_start(rollout, metrics)
        fraction = algorithm.lr_multiplier(self.step, config.steps, config.schedule)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * fraction
        metrics |= update(
            self.policy,
            self.optimizer,
            self.accelerator,
            rollout,
            whitened,
            returns,
            self.settings,
            torch.Generator().manual_seed(derive_seed(self.seed, self.step, self.accelerator.process_index)),
            frozen=self.policy_parameters if self.step < config.value_warmup_steps else None,
        )
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        all_skipped = metrics["skipped_steps"] > 0 and metrics["skipped_steps"] == metrics["optimizer_steps"]
        state.nonfinite_updates = state.nonfinite_updates + 1 if all_skipped else 0
        self.step += 1
        if config.kl_target is not None:
            state.kl_coef = algorithm.update_kl_coef(
                state.kl_coef, metrics["objective/kl"], config.kl_target, config.kl_horizon, config.batch_size
            )
        seconds = rollout.seconds | {"update": time.perf_counter() - start}
        metrics |= {f"seconds/{name}": round(value, 4) for name, value in seconds.items()}
        metrics["episodes_per_second"] = config.batch_size / sum(seconds.values())
        metrics["tokens_per_second"] = metrics["response/length_mean"] * metrics["episodes_per_second"]
        return metrics

    def check_start(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """The self-checks, on the first responses of the first rollout."""
        if self.sanity_pair:
            check_sanity_pair(self.reward, self.sanity_pair, self.rows[0])
        check_start(
            self.policy,
            self.accelerator,
            rollout,
            rows=self.micro_batch_size,
            temperature=self.config.temperature,
            kl_per_token=metrics["objective/kl_k3"] / metrics["response/length_mean"],
        )

    def score_initial_policy(self) -> Tensor:
        """Scores of this process's share of the responses that scores are normalized by."""
        scores: list[Tensor] = []
        for batch in range(-(-self.config.score_samples // self.config.batch_size)):
            torch.manual_seed(derive_seed(self.seed, batch, self.accelerator.process_index, 1))
            scores.append(
                respond(
                    self.unwrapped,
                    self.tokenizer,
                    self.reward,
                    self.batch(batch),
                    max_new_tokens=self.config.max_new_tokens,
                    temperature=self.config.temperature,
                ).scores
            )
        return torch.cat(scores)

    def score_statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of the initial policy's scores over all processes."""
        found = self.accelerator.gather(self.initial_scores)
        std = found.std(correction=0).item()
        if std < 1e-6:
            raise UserError(
                f"ppo.score_samples: all {len(found)} responses of the initial policy score {found[0].item():g}, so "
                "there is nothing to normalize by; set it to 0, or look at the reward"
            )
        return found.mean().item(), std

    def answer_validation(self) -> list[Sample]:
        """This process's share of the answers to the validation prompts."""
        return answer(
            self.unwrapped,
            self.tokenizer,
            self.reward,
            self.validation_rows,
            self.accelerator,
            batch_size=self.share,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            seed=self.seed,
            watch=self.watch,
        )

    def look(self, validated: list[Sample]) -> tuple[dict[str, float], list[Sample]]:
        """Keep the policy if it is the best so far on the validation prompts; metrics and samples of all processes."""
        # In units of the reward, where the penalty is in units of what is paid.
        kl_coef = self.config.kl_coef * self.config.score_scale * (self.state.score_std or 1.0)
        metrics, gathered = summarize(validated, kl_coef)
        objective = metrics["validation/objective"]
        if self.state.best is None or objective > self.state.best:
            self.state.best = objective
            if self.accelerator.is_main_process:
                with atomic_folder(self.folder / "best") as folder:
                    save_model(self.unwrapped.model, folder)
        return metrics, gathered

    def show(self, shown: list[Sample]) -> None:
        """Write some samples to samples.jsonl."""
        if self.accelerator.is_main_process:
            lines = [json.dumps({"step": self.step} | sample, ensure_ascii=False) for sample in shown[:SAMPLES_SHOWN]]
            append_text(self.folder / "samples.jsonl", "".join(line + "\n" for line in lines))

    def batch(self, step: int) -> list[dict[str, Any]]:
        """This process's rows of rollout `step`."""
        first = self.accelerator.process_index * self.share
        indices = batch_indices(step, self.config.batch_size, len(self.rows), self.seed)
        return [self.rows[index] for index in indices[first : first + self.share]]

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        local = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(local, "sum").item())

    def save_checkpoint(self) -> None:
        """Save everything that `resume` needs."""
        checkpoint.save(
            self.folder / "checkpoints",
            self.step,
            keep=self.config.checkpoints_kept,
            accelerator=self.accelerator,
            policy=self.policy,
            optimizer=self.optimizer,
            counters=self.state,
        )

    def resume(self) -> None:
        """Go back to the newest whole checkpoint, where there is one, and forget what was logged after it."""
        found = checkpoint.load_latest(
            self.folder / "checkpoints", accelerator=self.accelerator, policy=self.policy, optimizer=self.optimizer
        )
        if found is not None:
            self.step, self.state = found
            self.accelerator.print(f"ppo: going on from step {self.step}")
        if self.accelerator.is_main_process:
            remove_partial(self.folder, "best")
            done = self.step - self.state.validation_due
            for name in ("metrics.jsonl", "samples.jsonl"):
                checkpoint.truncate_log(self.folder / name, done)

"""The PPO loop: rollout, update, validation, log, checkpoint. The mathematics is in algorithm.py."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from workbench.config.derived import is_kl_in_loss, sampled_responses, scores_prefixes
from workbench.config.schema import PPOConfig
from workbench.errors import Interrupted
from workbench.models.optimizer import lr_multiplier, make_optimizer, parameter_groups, set_rates
from workbench.models.policy import Policy
from workbench.models.positions import context_length
from workbench.models.precision import precision_name
from workbench.ppo import checkpoint, sampler
from workbench.ppo.advantages import estimate_advantages, normalized
from workbench.ppo.algorithm import update_kl_coef
from workbench.ppo.initial_scores import mean_and_deviation, score_initial_policy
from workbench.ppo.learning_signal import read_signal, value_warning
from workbench.ppo.losses import make_objective
from workbench.ppo.metrics import progress_note, rollout_metrics, speed_metrics, without_kl
from workbench.ppo.micro_batches import row_limits
from workbench.ppo.offline import read_pairs
from workbench.ppo.overoptimization import divergence_warning, read_points
from workbench.ppo.policy_files import check_values, save_best
from workbench.ppo.rollout import Rollout, collect
from workbench.ppo.selection import selection
from workbench.ppo.selfcheck import check_sanity_pair, check_start
from workbench.ppo.sharded_policy import gathered, loss_scaler, prepare
from workbench.ppo.text_likelihood import text_metrics
from workbench.ppo.update import update
from workbench.ppo.validation import Sample, gather_validation, rollout_samples, sample_validation, table_rows
from workbench.rewards.arguments import TrainerState
from workbench.rewards.contract import CheckedReward, RewardFunction
from workbench.run.distributed import any_process, fail_together, per_process
from workbench.run.files import append_text, read_json_lines, remove_partial
from workbench.run.interrupt import stop_requests
from workbench.run.progress import Progress
from workbench.run.tracking import NoTracker, Tracker

LOGGED_SAMPLES = 8


class PPOTrainer:
    """Aligns a policy with a reward: `train` runs the loop, `rollout` and `update` run one step of it by hand."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        reward: RewardFunction | None,
        rows: Sequence[dict[str, Any]],
        config: PPOConfig,
        *,
        accelerator: Accelerator,
        folder: Path,
        seed: int,
        validation_rows: Sequence[dict[str, Any]] = (),
        texts: Sequence[dict[str, Any]] = (),
        ptx_texts: Sequence[dict[str, Any]] = (),
        held_out: CheckedReward | None = None,
        sanity_pair: list[str] | None = None,
    ) -> None:
        """Take rows with prompt, prompt_ids and the reward's columns; checkpoints and logs go to `folder`.

        PPO never optimizes `held_out`; `texts` (prompt_ids, response_ids) show what happens to their likelihood, and
        each step also learns `ptx_texts`.
        """
        processes = accelerator.num_processes
        sampler.check_batch_size(config, len(rows), processes)
        check_values(policy, config)
        # Sizes per process.
        self.batch_size = per_process("ppo.batch_size", config.batch_size, processes)
        self.minibatch_size = per_process("ppo.minibatch_size", config.minibatch_size, processes)
        self.limits = row_limits(config, self.batch_size, self.minibatch_size, processes)
        self.reward = reward if isinstance(reward, CheckedReward | None) else CheckedReward(reward, "reward")
        self.held_out = held_out
        self.tokenizer, self.rows, self.config = tokenizer, rows, config
        self.accelerator, self.folder, self.seed = accelerator, folder, seed
        self.process = accelerator.process_index
        self.validation_rows, self.sanity_pair = validation_rows, sanity_pair
        self.ptx_texts, self.texts = ptx_texts, texts
        self.context_length = None if policy.is_encoder_decoder else context_length(policy.base.config, tokenizer)
        groups = parameter_groups(policy, config.learning_rate, config.value_learning_rate)
        self.policy_parameters: list[nn.Parameter] = groups[0]["params"]
        self.policy, self.optimizer = prepare(policy, make_optimizer(groups), accelerator)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = loss_scaler(policy)
        self.reduce_sum: Callable[[Tensor], Tensor] = partial(accelerator.reduce, reduction="sum")
        self.state = checkpoint.TrainState(config.kl_coef, precision=precision_name(policy.autocast_dtype))

    @property
    def scorer(self) -> CheckedReward:
        """The reward that scores responses; only pairs from data, without validation, need none."""
        assert self.reward is not None
        return self.reward

    @property
    def unwrapped(self) -> Policy:
        """The policy without the multi-process wrapper."""
        return self.accelerator.unwrap_model(self.policy)

    def train(self, tracker: Tracker | None = None) -> dict[str, float]:
        """Run from the last checkpoint, or from the start, to the end; return the last step's metrics.

        Raises Interrupted, with a checkpoint saved, if a signal asks it to stop.
        """
        self.resume()
        state, steps, every = self.state, self.config.steps, self.config.checkpoint_every
        done = state.step - state.validation_due
        signal = read_signal(self.folder / "metrics.jsonl", sampled_responses(self.config))
        progress = Progress("ppo", steps, done=done, show=self.accelerator.is_main_process)
        with stop_requests() as stop_requested:
            self.measure_initial_scores()
            self.validate_initial(tracker or NoTracker())
            while state.step < steps or state.validation_due:
                # A run whose reward failed in validation was saved between the update and its validation.
                if not state.validation_due:
                    # Step 1: sample responses and score them.
                    with self.saved_on_failure():
                        rollout = self.rollout(self.batch(state.step))
                    # Step 2: estimate advantages and update the policy.
                    state.metrics = self.update(rollout)
                    samples = rollout_samples(rollout)
                is_due = state.step % every == 0 or state.step == steps
                # Step 3: validate the policy and keep the best one.
                state.validation_due = is_due and bool(self.validation_rows)
                if state.validation_due:
                    validation_metrics, samples = self.validate()
                    self.save_best(validation_metrics["validation/objective"])
                    state.metrics |= validation_metrics
                    state.validation_due = False
                # Step 4: log.
                self.log(state.metrics, samples if is_due else [], tracker or NoTracker())
                signal.add(state.metrics)
                self.warn(signal.warning())
                progress.advance(note=progress_note(state.metrics))
                # Step 5: save a checkpoint if one is due, and stop after a signal or repeated non-finite gradients.
                stop = any_process(self.accelerator, stop_requested())
                is_failing = state.nonfinite_updates >= checkpoint.MAX_NONFINITE_UPDATES
                if is_due or stop or is_failing:
                    self.save_checkpoint()
                if is_failing:
                    raise checkpoint.nonfinite_failure(state)
                if stop and state.step < steps:
                    raise Interrupted(f"stopped and saved at step {state.step} of {steps}")
        progress.close()
        self.warn(signal.summary())
        self.warn(value_warning(self.folder / "metrics.jsonl"))
        return state.metrics

    def batch(self, step: int) -> list[dict[str, Any]]:
        """Return this process's rows of rollout `step`, one for each response: those to a prompt follow one another."""
        indices = sampler.response_indices(step, self.config, len(self.rows), self.seed)
        size = self.batch_size * self.config.oversampling
        return [self.rows[index] for index in indices[self.process * size :][:size]]

    def rollout(self, rows: Sequence[dict[str, Any]]) -> Rollout:
        """Return a scored response to each of `rows`, sampled or of the data; a resumed step has the same ones."""
        config, step = self.config, self.state.step
        limit = sampler.token_limit(step, config.min_token_limit, config.max_new_tokens, self.seed)
        with gathered(self.unwrapped):
            if config.offline:
                return read_pairs(self.unwrapped, rows, config.temperature, self.limits)
            sampler.check_rows(rows, limit, self.context_length)
            torch.manual_seed(sampler.derive_seed(self.seed, step, self.process))
            return collect(
                self.unwrapped,
                self.tokenizer,
                self.scorer,
                rows,
                max_new_tokens=limit,
                temperature=config.temperature,
                limits=self.limits,
                trainer_state=TrainerState(step, config.steps),
                choose=selection(config, self.state, self.batch_size),
                with_prefixes=scores_prefixes(config),
            )

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Improve the policy on a rollout and return the step's metrics."""
        self.measure_initial_scores()
        start = time.perf_counter()
        config, state, mask = self.config, self.state, rollout.batch.response_mask
        estimates = estimate_advantages(rollout, config, state, self.reduce_sum)
        metrics = rollout_metrics(rollout, estimates, self.accelerator, config.samples_per_prompt)
        metrics["objective/kl_coef"] = state.kl_coef
        if state.step == 0 and config.self_checks:
            self.check_start(rollout, metrics)
        if config.offline:
            metrics = without_kl(metrics)
        set_rates(self.optimizer, self.peak_rates, lr_multiplier(state.step, config.steps, config.schedule))
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        estimates = normalized(estimates, mask, config, self.reduce_sum)
        kl_coef = state.kl_coef if is_kl_in_loss(config) else 0.0
        objective = make_objective(self.policy, self.accelerator, rollout, estimates, config, kl_coef)
        metrics |= update(
            self.policy,
            self.optimizer,
            self.accelerator,
            objective,
            config,
            minibatch_size=self.minibatch_size * len(objective.rows) // len(rollout),
            micro_batches=self.limits.computed,
            generator=torch.Generator().manual_seed(sampler.derive_seed(self.seed, state.step, self.process)),
            scaler=self.scaler,
            texts=self.ptx_texts,
            frozen=self.policy_parameters if state.step < config.value_warmup_steps else (),
        )
        state.count_update(metrics, self.scaler.state_dict())
        if config.kl_target is not None:
            kl, horizon = metrics["objective/kl"], config.kl_horizon
            state.kl_coef = update_kl_coef(state.kl_coef, kl, config.kl_target, horizon, config.batch_size)
        speed = rollout.seconds | {"update": time.perf_counter() - start}
        return metrics | speed_metrics(speed, config.batch_size, metrics["response/length_mean"])

    def check_start(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Run the self-checks on the first responses of the first rollout."""
        scored = self.validation_rows if self.config.offline else self.rows
        if self.sanity_pair and scored:
            with fail_together(self.accelerator):
                check_sanity_pair(self.scorer, self.sanity_pair, scored[0], self.tokenizer)
        kl, rows = metrics["objective/kl_k3"] / metrics["response/length_mean"], self.limits.computed.rows
        check_start(
            self.policy, self.accelerator, rollout, rows=rows, temperature=self.config.temperature, kl_per_token=kl
        )

    def measure_initial_scores(self) -> None:
        """Measure the initial scores' mean and deviation, unless done or off; raises UserError if all are the same."""
        if not self.config.score_samples or self.state.score_std is not None:
            return
        with self.saved_on_failure():
            tools = (self.unwrapped, self.tokenizer, self.scorer, self.batch, self.config, self.limits)
            local = score_initial_policy(*tools, seed=self.seed, process=self.process)
        self.state.score_mean, self.state.score_std = mean_and_deviation(self.accelerator.gather(local))

    def validate_initial(self, tracker: Tracker) -> None:
        """Validate and log the policy as step 0, before anything is learned, unless an earlier launch has done so."""
        is_logged = self.state.step > 0 or bool(read_json_lines(self.folder / "metrics.jsonl"))
        if any_process(self.accelerator, is_logged) or not self.validation_rows:
            return
        if self.accelerator.is_main_process:  # a launch that was killed as it logged has left the samples
            (self.folder / "samples.jsonl").unlink(missing_ok=True)
        random_state = checkpoint.random_state()
        self.log(*self.validate(), tracker)
        checkpoint.restore_random_state(random_state)  # a launch that does not validate it goes on alike

    def validate(self) -> tuple[dict[str, float], list[Sample]]:
        """Return metrics and samples of the policy on the validation prompts, over all processes."""
        with self.saved_on_failure():
            local = sample_validation(
                self.unwrapped,
                self.tokenizer,
                self.scorer,
                self.held_out,
                self.validation_rows,
                self.config,
                self.accelerator,
                batch_size=self.batch_size,
                limits=self.limits,
                seed=self.seed,
                trainer_state=TrainerState(self.state.step, self.config.steps),
            )
        # The configured coefficient is meant for normalized and scaled scores; these are raw.
        kl_coef = self.config.kl_coef * self.config.score_scale * (self.state.score_std or 1.0)
        metrics, samples = gather_validation(local, kl_coef)
        with gathered(self.unwrapped):
            return metrics | text_metrics(self.unwrapped, self.texts, self.limits.computed, self.accelerator), samples

    def save_best(self, objective: float) -> None:
        """Save the policy in `folder`/best if its validation objective is the highest so far."""
        best = self.state.best_objective
        if best is not None and not objective > best:
            return
        self.state.best_objective = objective
        save_best(self.unwrapped, self.folder / "best", self.accelerator)

    def log(self, metrics: dict[str, float], samples: list[Sample], tracker: Tracker) -> None:
        """Append to metrics.jsonl and samples.jsonl, log to the tracker, and warn if the rewards diverge."""
        step = self.state.step
        with fail_together(self.accelerator):
            if self.accelerator.is_main_process:
                if samples:
                    lines = [sample.json_line(step) for sample in samples[:LOGGED_SAMPLES]]
                    append_text(self.folder / "samples.jsonl", "".join(lines))
                    tracker.log_samples(table_rows(samples[:LOGGED_SAMPLES]), step)
                append_text(self.folder / "metrics.jsonl", json.dumps({"step": step} | metrics) + "\n")
                if "validation/held_out_mean" in metrics:
                    self.warn(divergence_warning(read_points(self.folder / "metrics.jsonl")))
                tracker.log(metrics, step)

    def warn(self, warning: str | None) -> None:
        """Print a warning, if there is one, once."""
        if warning is not None:
            self.accelerator.print(warning, flush=True)

    @contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Save a checkpoint and stop all processes if the block, which calls a reward, fails on any of them."""
        random_state = checkpoint.random_state()
        try:
            # A sharded policy is gathered before one process can fail alone: the others would wait for it.
            with gathered(self.unwrapped), fail_together(self.accelerator):
                yield
        except Exception:
            checkpoint.restore_random_state(random_state)  # a resumed run repeats the block from its start
            self.save_checkpoint()
            self.accelerator.print(f"ppo: saved at step {self.state.step}")
            raise

    def save_checkpoint(self) -> None:
        """Save everything that `resume` needs."""
        checkpoint.save(
            self.folder / "checkpoints",
            self.state,
            keep=self.config.checkpoints_kept,
            accelerator=self.accelerator,
            policy=self.policy,
            optimizer=self.optimizer,
        )

    def resume(self) -> None:
        """Go back to the newest intact checkpoint, if there is one, and remove the log lines after it."""
        state = checkpoint.load_latest(
            self.folder / "checkpoints", accelerator=self.accelerator, policy=self.policy, optimizer=self.optimizer
        )
        if state is not None:
            self.accelerator.print(f"ppo: resuming from step {state.step}")
            self.warn(state.change_precision(self.state.precision))
            self.state = state
            if state.loss_scale:
                self.scaler.load_state_dict(state.loss_scale)
        if self.accelerator.is_main_process:
            remove_partial(self.folder, "best")
            logged = self.state.step - self.state.validation_due
            for name in ("metrics.jsonl", "samples.jsonl"):
                checkpoint.truncate_log(self.folder / name, logged)

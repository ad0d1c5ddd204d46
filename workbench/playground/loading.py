"""Load the models of a run once, as its evaluation loads them, with its reward and its judges."""

from __future__ import annotations

import dataclasses

from accelerate import PartialState

from workbench.config.derived import configured_stages, strategies, without_strategies
from workbench.config.names import ALIGNED, BASE, PPO, REWARD, SFT, TUNED
from workbench.errors import UserError
from workbench.evaluation.cached_sampling import sampling_of
from workbench.evaluation.completion_metrics import Scorers
from workbench.evaluation.judges import load_judges, with_reward
from workbench.evaluation.loaded_scorers import load_rewards
from workbench.evaluation.models import ModelLoader, check_further_models, model_specs, model_titles
from workbench.models.loading import load_policy_tokenizer
from workbench.playground.comparison import LoadedRun
from workbench.playground.prompts import prompt_format
from workbench.rewards.registry import ScorerLoader, load_run_reward
from workbench.run.folder import Run

LEFT_OUT = {SFT: f"the models {TUNED} and {ALIGNED}", REWARD: "the reward", PPO: f"the model {ALIGNED}"}
"""What a run lacks while a stage is not finished."""


def load_run(saved: Run) -> LoadedRun:
    """Load a run's models and scorers; raises UserError where it has no trained model to compare yet."""
    run, notes = finished_part(saved)
    left_out = list(strategies(run.config.evaluation))
    if left_out:
        notes.append(f"{', '.join(left_out)}: not compared here, where each model completes what is typed, alone")
    run = Run(run.folder, dataclasses.replace(run.config, evaluation=without_strategies(run.config.evaluation)))
    config = run.config
    if len(model_titles(config)) == 1:
        for stage in configured_stages(saved.config):
            if stage in (SFT, PPO):
                saved.record(stage)
        raise UserError(f"--run {saved.folder}: it trains no policy and compares no models; use a run with sft or ppo")
    notes += check_further_models(config)
    specs = model_specs(run)
    tokenizers = {model: load_policy_tokenizer(model) for model in dict.fromkeys(spec.model for spec in specs)}
    reward = load_run_reward(run) if config.reward is not None else None
    load = ScorerLoader()
    loaded = load_judges(config, reward, load)
    scorers = Scorers(
        reward, with_reward(loaded.judges, reward), load_rewards(config, load), None, config.evaluation.threshold
    )
    reference = TUNED if config.sft is not None else BASE
    loader = ModelLoader(run, tokenizers, PartialState().device)
    models = []
    for spec in specs:
        is_shaded = spec.with_token_log_ratios and spec.title != reference  # the reference's own log-ratios are all 0
        models.append(loader.load(dataclasses.replace(spec, with_token_log_ratios=is_shaded)))
    text_format = prompt_format(saved.config, tokenizers[config.policy.model])
    return LoadedRun(config.name, text_format, models, reference, scorers, sampling_of(config), [*notes, *loaded.notes])


def finished_part(run: Run) -> tuple[Run, list[str]]:
    """Return the run without its unfinished stages, and a line about each of them.

    Raises UserError for a finished one whose files have changed.
    """
    config = run.config
    missing = [stage for stage in configured_stages(config) if stage in LEFT_OUT and not run.finished(stage)]
    for stage in configured_stages(config):
        if stage in LEFT_OUT and stage not in missing:
            run.verified_record(stage)
    notes = [f"{stage}: not finished, so {LEFT_OUT[stage]} cannot be used" for stage in missing]
    config = dataclasses.replace(
        config,
        sft=None if SFT in missing else config.sft,
        reward=None if REWARD in missing else config.reward,
        ppo=None if PPO in missing or SFT in missing else config.ppo,  # without SFT, PPO's reference is gone
    )
    return Run(run.folder, config), notes

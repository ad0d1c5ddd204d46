"""Turn a sweep over rewards into the configurations of its runs, which share one SFT stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from workbench.config.checks import check
from workbench.config.names import SFT
from workbench.config.parsing import load_saved
from workbench.config.schema import Config, RewardConfig
from workbench.config.scorers import as_scorer
from workbench.errors import UserError


def sft_source(folder: Path) -> Path | None:
    """Return the run whose SFT stage the run in the folder has: itself, or the one it copied; None if it has none."""
    if not (folder / SFT / "stage.json").is_file():
        return None
    try:
        copied = load_saved(folder / "config.yaml").reuse.sft
    except (OSError, UserError):  # that run's own plan says what to do
        return None
    return folder if copied is None else Path(copied)


def sweep_configs(config: Config, force: str | None = None) -> dict[str, Config]:
    """Return the configuration of each run by the name of its reward; the first trains the SFT stage for the others.

    Unless `force` redoes it, the SFT stage of an earlier sweep is kept, so that the rewards and their order may change.
    The rewards of the sweep stand in for reward.model and reward.train. Raises UserError without a sweep or PPO.
    """
    if config.sweep is None:
        raise UserError("sweep.rewards: missing; list the rewards, such as {short: length, clean: toy_lexicon}")
    if config.ppo is None:
        raise UserError("ppo: missing; a sweep over rewards needs it")
    scorers = {name: as_scorer(value, f"sweep.rewards.{name}") for name, value in config.sweep.rewards.items()}
    # Scores go by the name of their reward, so that one which several entries share, with other options, has no score.
    names = [as_scorer(entry, "evaluation.rewards").model for entry in config.evaluation.rewards]
    names += [scorer.model for scorer in scorers.values()]
    scored = [scorer for scorer in scorers.values() if names.count(scorer.model) == 1]
    scored.sort(key=lambda scorer: scorer.model)
    evaluation = dataclasses.replace(config.evaluation, rewards=[*config.evaluation.rewards, *scored])
    folders = {name: Path(config.runs) / f"{config.name}-{name}" for name in scorers}
    sources = [source for folder in folders.values() if force != SFT and (source := sft_source(folder)) is not None]
    first = sources[0] if sources else folders[next(iter(scorers))]
    trains = {name: folder.resolve() == first.resolve() for name, folder in folders.items()}
    order = sorted(scorers, key=lambda name: not trains[name])
    configs = {}
    for name in order:
        scorer = scorers[name]
        reward = dataclasses.replace(
            config.reward or RewardConfig(), model=scorer.model, options=scorer.options, train=None
        )
        run_name = f"{config.name}-{name}"
        reuse = dataclasses.replace(config.reuse, reward=None)
        if config.sft is not None and reuse.sft is None and not trains[name]:
            reuse = dataclasses.replace(reuse, sft=str(first))
        configs[name] = dataclasses.replace(
            config, name=run_name, reward=reward, evaluation=evaluation, reuse=reuse, sweep=None
        )
        check(configs[name])
    return configs

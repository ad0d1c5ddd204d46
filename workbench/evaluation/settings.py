"""What an evaluation's settings ask for, and which of them do not go together."""

from __future__ import annotations

from pathlib import Path

from workbench.config.schema import Config, completion_limit
from workbench.errors import UserError, error_context
from workbench.evaluation.generation import Sampling
from workbench.models.adapters import check_adapter, is_adapter
from workbench.models.loading import load_config, resolve
from workbench.ppo.sampler import derive_seed

# Titles that mean something else in the results.
RESERVED_TITLES = {"base", "sft", "aligned", "reward", "data", "prompt", "reference"}


def seeds_of(config: Config) -> list[int]:
    """The seeds of the answers."""
    return config.evaluation.seeds or [config.seed]


def sampling_of(config: Config) -> Sampling:
    """How answers are sampled, each seed's samples one after the other; the first of a seed has the seed itself."""
    settings = config.evaluation
    seeds = [
        seed if sample == 0 else derive_seed(seed, sample, 2)
        for seed in seeds_of(config)
        for sample in range(settings.samples)
    ]
    return Sampling(settings.batch_size, completion_limit(config), settings.temperature, tuple(seeds))


def check_settings(config: Config) -> None:
    """Raises UserError for options that do not go together."""
    settings = config.evaluation
    for name in settings.neutral:
        if name not in settings.data:
            raise UserError(
                f"evaluation.neutral: no set {name!r} in evaluation.data; there are {', '.join(settings.data)}"
            )
    for name in settings.judge_options:
        if name not in settings.judges:
            raise UserError(
                f"evaluation.judge_options: {name} is no judge; there are {', '.join(settings.judges) or 'none'}"
            )
    if settings.samples < 1:
        raise UserError(f"evaluation.samples: {settings.samples}; give at least 1")
    if settings.temperature == 0 and settings.samples * len(seeds_of(config)) > 1:
        raise UserError("evaluation: temperature 0 gives the same answer every time; set samples 1 and one seed")
    if settings.seeds == []:
        raise UserError("evaluation.seeds: []; give at least one, or leave it out for the experiment's own")
    if len(set(seeds_of(config))) < len(seeds_of(config)):
        raise UserError(f"evaluation.seeds: {settings.seeds} names a seed twice")
    taken = RESERVED_TITLES & settings.models.keys()
    if taken:
        raise UserError(f"evaluation.models: {', '.join(sorted(taken))} is the run's own; choose another title")
    for title, place in settings.models.items():
        if config.policy.lora is None and is_adapter(Path(place).expanduser()):
            raise UserError(
                f"evaluation.models.{title}: {place} is an adapter, and this run has none to join; merge it into a "
                "model first: python -m workbench.export --merge"
            )


def notes_on_models(config: Config) -> list[str]:
    """What is odd about the further models; raises UserError for one that cannot be loaded or joined."""
    notes = []
    for title, place in config.evaluation.models.items():
        with error_context(f"evaluation.models.{title}"):
            folder = Path(place).expanduser()
            if not is_adapter(folder):
                load_config(place)
                continue
            trained_on = check_adapter(config.policy.model, folder)
            if Path(trained_on).name != Path(resolve(config.policy.model)).name:
                notes.append(f"{title}: an adapter that was trained on {trained_on} joins {config.policy.model} here")
    return notes

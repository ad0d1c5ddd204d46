"""Check the models that are decoded in another way: chosen among samples, prompted, or steered."""

from __future__ import annotations

from workbench.config.derived import STRATEGIES
from workbench.config.names import ALIGNED, BASE, TITLES, TUNED
from workbench.config.schema import Config
from workbench.config.sources import BestOf
from workbench.errors import UserError, shorten, suggestion

# Names that stand for something else among the titles and columns of an evaluation.
RESERVED_TITLES = {*TITLES, "reward", "data", "prompt", "reference"}


def check_strategies(config: Config) -> None:
    """Raise UserError for a title that is taken, an unknown model, and settings that exclude each other."""
    evaluation = config.evaluation
    trained = {TUNED: config.sft or config.reuse.sft, ALIGNED: config.ppo}
    titles = [BASE, *(title for title, section in trained.items() if section is not None), *evaluation.models]
    taken = {*RESERVED_TITLES, *evaluation.models}
    for section in STRATEGIES:
        entries = vars(evaluation)[section]
        for title, settings in entries.items():
            key = f"evaluation.{section}.{title}"
            if title in taken:
                raise UserError(f"{key}: this title is taken; choose another one")
            if settings.model not in titles:
                raise UserError(
                    f"{key}.model: {shorten(settings.model)} is not among the compared models, {', '.join(titles)}"
                    f"{suggestion(settings.model, titles)}"
                )
        taken |= entries.keys()
    for title, chosen in evaluation.best_of.items():
        check_best_of(config, f"evaluation.best_of.{title}", chosen)
    for title, prompted in evaluation.prompted.items():
        if not prompted.prefix.strip():
            raise UserError(
                f"evaluation.prompted.{title}.prefix: {prompted.prefix!r} says nothing, so the model would complete "
                "what it completes anyway; write the text that stands in front of each prompt"
            )
    for title in evaluation.anti_expert:
        check_anti_expert(config, f"evaluation.anti_expert.{title}")


def check_best_of(config: Config, key: str, settings: BestOf) -> None:
    """Raise UserError for a choice among equal samples, or without a reward."""
    if config.reward is None:
        raise UserError(f"{key}: the reward chooses among the samples, and there is none; set reward.model")
    if config.evaluation.temperature == 0:
        raise UserError(f"{key}: evaluation.temperature 0 samples the same completion {settings.n} times; raise it")


def check_anti_expert(config: Config, key: str) -> None:
    """Raise UserError where there is no base that the adapter can share, or no single next token to steer."""
    if config.policy.lora is None:
        raise UserError(
            f"{key}: model, base and anti-expert are adapters on one base, but this run trains every weight; set "
            "policy.lora, or remove anti_expert"
        )
    if config.evaluation.num_beams > 1:
        raise UserError(
            f"{key}: it steers each next token of one completion and cannot steer evaluation.num_beams "
            f"{config.evaluation.num_beams}; set num_beams to 1, or remove anti_expert"
        )

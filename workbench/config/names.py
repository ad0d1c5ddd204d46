"""The names of stages, and the titles of the models that a run compares."""

STAGES = (SFT, REWARD, PPO, EVALUATION, PROMPTING, TUNING) = (
    *("sft", "reward", "ppo", "evaluation"),
    *("prompting", "tuning"),
)
"""Stages in the order they run; each has a configuration section and a folder of the same name."""

TITLES = (BASE, TUNED, ALIGNED) = ("base", "sft", "aligned")
"""Titles of a run's own models in tables and files: as given, after SFT, after PPO."""

TRAINED_BY = {TUNED: SFT, ALIGNED: PPO}
"""The stage whose folder holds the model with a given title."""

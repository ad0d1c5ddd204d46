"""The reward contract, the registry of names, and the training of reward models."""

from workbench.rewards.registry import load_judge, load_reward

__all__ = ["load_judge", "load_reward"]

"""Align language models with PPO and measure the effect."""

__version__ = "0.1.0"

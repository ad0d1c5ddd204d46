"""Align language models with PPO, and measure honestly what that did."""

__version__ = "0.1.0"

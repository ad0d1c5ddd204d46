"""A small configuration as text, and how the tests load it."""

from __future__ import annotations

from pathlib import Path

from workbench.config.parsing import parse
from workbench.config.schema import Config

GOOD = """
name: test
policy:
  model: gpt2
  lora: {r: 8}
reward:
  model: toy_lexicon
ppo:
  data: {path: x.jsonl}
  kl_coef: 3e-2
evaluation:
  data:
    toxic: {path: z.jsonl}
"""
VALIDATION = ["--ppo.validation", "{path: y.jsonl}"]


def load(folder: Path, text: str, *options: str) -> Config:
    """Return the configuration in `text` with overrides."""
    file = folder / "test.yaml"
    file.write_text(text, encoding="utf-8")
    return parse(["--config", str(file), *options])[0]

"""The embedded default: data and base models for a first run without network."""

from pathlib import Path

from workbench.errors import UserError
from workbench.toy.dialogues import RUDE_WORDS, rows

__all__ = ["MODELS", "RUDE_WORDS", "model_folder", "rows"]

MODELS = ("t5", "gpt2")


def model_folder(name: str) -> Path:
    """The folder of an embedded base model, "t5" or "gpt2"; load it with `from_pretrained`."""
    if name not in MODELS:
        raise UserError(f"unknown embedded model {name!r}; known: {', '.join(MODELS)}")
    return Path(__file__).parent / "models" / name

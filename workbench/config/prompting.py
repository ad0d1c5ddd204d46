"""A grid of prompts for one model: templates, numbers of examples, and ways to generate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from workbench.config.generation import GenerationSettings
from workbench.config.ranges import Length, Range
from workbench.config.sources import DataSource

MAX_SHOTS = 1000


@dataclass
class PromptingConfig:
    """Compare prompts for policy.model on the sets of evaluation.data; recipes.prompting runs every combination."""

    templates: Annotated[dict[str, str], Length(1)]
    """Templates by name, each a known name or text with {column} fields; they replace those of evaluation.data."""
    examples: DataSource | None = None
    """Rows with the templates' columns and `response`, from which examples are drawn with the seed, anew for each
    prompt; rows that evaluation.data has, too, are left out."""
    shots: Annotated[list[Annotated[int, Range(minimum=0, maximum=MAX_SHOTS)]], Length(1)] = field(
        default_factory=lambda: [0]
    )
    """Numbers of examples before the prompt: 0 is zero-shot. The examples of a smaller number are among those of a
    larger one."""
    no_instruction: bool = True
    """Begin the table with the columns of the first template alone, without an instruction."""
    separator: str = "\n\n"
    """Text between an example and what follows it; chat prompts have turns instead."""
    generation: dict[str, GenerationSettings] = field(default_factory=dict)
    """Ways to generate by name; default: one, as evaluation says. An entry inherits every setting of evaluation that it
    leaves out, but greedy decoding and beams no top_k and top_p, and an entry with a temperature above 0 no beams."""
    inspect: Annotated[int, Range(minimum=0, maximum=100)] = 0
    """Show for this many prompts of each set the likeliest tokens at every step, before and after temperature, top-k
    and top-p; --inspect N for short."""

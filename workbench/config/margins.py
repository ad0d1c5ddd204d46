"""How much of what a model could do before may be lost, fixed before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from workbench.config.ranges import Range

Margin = Annotated[float, Range(above=0, maximum=1)]


@dataclass
class Margins:
    """The largest acceptable loss of each retained quantity, which is kept if its interval rules out a larger one."""

    rouge_l: Margin = 0.01
    """Fall of ROUGE-L, in units of ROUGE."""
    distinct_2: Margin = 0.05
    """Fall of distinct-2, as a fraction of its value before."""
    neutral_perplexity: Margin = 0.10
    """Rise of the perplexity of fixed neutral texts, and of that under the base on neutral prompts, as a fraction of
    its value before."""

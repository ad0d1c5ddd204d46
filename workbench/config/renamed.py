"""Keys and values of older versions; an error names the replacement of each."""

from __future__ import annotations

import re

RENAMED_KEYS = {
    "reward.watch": "reward.held_out.model",
    "reward.watch_options": "reward.held_out.options",
    "reward.train.variants": "reward.train.perturbation_rate",
    "reward.train.wanted_label": "reward.train.target_label",
    "evaluation.judge_options": "the options of an entry of evaluation.judges: {model: NAME, options: {...}}",
    "evaluation.neutral": "neutral: true in an entry of evaluation.data",
}
RENAMED_VALUE = re.compile(r"embedded:(\w+)")

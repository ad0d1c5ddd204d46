"""Refuse weights that are missing, do not fit the model, or are not finite."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from workbench.errors import UserError, one_line

MAX_LISTED_WEIGHTS = 3
LAYER = re.compile(r"(.*?)\.(\d+)\.")  # the stack that a weight's layer is in, and its number there


def check_report(model: str, report: dict[str, Any], is_new: Callable[[str], bool] = lambda name: False) -> None:
    """Raise UserError if weights were not loaded, as `from_pretrained` reports; those that `is_new` may be missing."""
    wrong = sorted(entry for entry in report["mismatched_keys"] if not is_new(entry[0]))
    if wrong:
        name, stored, expected = wrong[0]
        raise UserError(
            f"{model}: {len(wrong)} of its weights do not fit its config.json: {name} is {tuple(stored)} and should be "
            f"{tuple(expected)}; save model and configuration together with save_pretrained"
        )
    layer = unused_layer(report["unexpected_keys"])
    if layer is not None:
        raise UserError(
            f"{model}: its files hold {layer}, which its config.json does not count, so that a part of the network "
            "would be left out; save model and configuration together with save_pretrained"
        )
    missing = sorted(name for name in report["missing_keys"] if not is_new(name))
    if missing:
        listed = ", ".join(missing[:MAX_LISTED_WEIGHTS]) + (", ..." if len(missing) > MAX_LISTED_WEIGHTS else "")
        raise UserError(
            f"{model}: {len(missing)} weights are missing from its files and would be random: {listed}; use a complete "
            "checkpoint of such a model"
        )


def unused_layer(names: Iterable[str]) -> str | None:
    """Return the name of a weight in a layer beyond those that are loaded, from the names of those that are not."""
    layers = [(match[1], int(match[2]), name) for name in sorted(names) if (match := LAYER.match(name))]
    unused_stacks = {stack for stack, index, _ in layers if index == 0}  # a whole one belongs to another task
    return next((name for stack, _, name in layers if stack not in unused_stacks), None)


def check_finite(model: str, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raise UserError, with the name, for a weight with a value that is NaN or infinite."""
    for name, weight in weights:
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise UserError(
                f"{model}: {name} contains NaN or infinity; its training diverged or its file is damaged: use an "
                "earlier checkpoint, or train again with a lower learning rate"
            )


def stored_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of each weight in a folder, one at a time; raises UserError for a file without weights."""
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - it is not a mapping
                yield name, stored.get_tensor(name)
    for file in () if files else sorted(folder.glob("pytorch_model*.bin")):
        try:
            yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()
        except Exception as error:  # whatever the file holds
            raise UserError(f"{file}: it cannot be read: {one_line(error)}") from error

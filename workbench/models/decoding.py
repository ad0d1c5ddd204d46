"""Choose the cache of keys and values with which a model generates."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from transformers import PreTrainedModel

from workbench.models.sharding import is_sharded

MIN_COMPILED_TOKENS = 16  # compiling a step takes longer than a few of them


def cache_implementation(model: PreTrainedModel, tokens: int) -> str | None:
    """Return "static", with which transformers compiles each of `tokens` decoding steps, where that pays; else None.

    It takes a GPU, an architecture whose forward pass is one graph, weights that are neither quantized nor sharded,
    and a machine that can compile.
    """
    is_quantized = hasattr(model, "hf_quantizer")  # transformers sets it then
    suits = model.device.type == "cuda" and model._can_compile_fullgraph and not is_quantized and not is_sharded(model)
    return "static" if suits and tokens >= MIN_COMPILED_TOKENS and can_compile() else None


def can_compile() -> bool:
    """Return whether torch.compile finds what it needs for a GPU: Triton and a C compiler."""
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return find_spec("triton") is not None and any(shutil.which(compiler) for compiler in compilers if compiler)

"""How a model generates: what departs from the plain softmax, and the cache of keys and values."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteria
from transformers.generation import TopKLogitsWarper

from workbench.models.sampling import (
    InverseCDFSampling,
    LogitsObserver,
    Nucleus,
    RepetitionPenalty,
    SeededSampling,
)
from workbench.models.sharding import is_sharded

MIN_COMPILED_TOKENS = 16  # compiling a step takes longer than a few of them


@dataclass(frozen=True)
class Decoding:
    """How generation departs from the plain softmax at a temperature."""

    top_k: int | None = None
    """Sample among this many most likely tokens."""
    top_p: float | None = None
    """Sample among the most likely tokens that together reach this probability (arXiv 1904.09751)."""
    num_beams: int = 1
    """Beams of a search for the most likely sequence; more than one takes temperature 0."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that occurred, and multiplies negative ones (arXiv 1909.05858)."""
    min_new_tokens: int = 0
    """No stop token is sampled before this many tokens."""
    stopping: StoppingCriteria | None = None
    """Ends a row besides the stop tokens."""
    steering: LogitsProcessor | None = None
    """Changes the model's logits before all else; it may run other variants of the model at each step."""

    def filters(self) -> list[LogitsProcessor]:
        """Return what leaves the tokens that may be sampled."""
        top_k = [] if self.top_k is None else [TopKLogitsWarper(self.top_k)]
        top_p = [] if self.top_p in (None, 1) else [Nucleus(self.top_p)]
        return [*top_k, *top_p]


PLAIN = Decoding()


def logits_processors(
    decoding: Decoding,
    temperature: float,
    seeds: list[int] | None,
    occurred: Tensor,
    observe: Callable[[Tensor], None] | None,
) -> LogitsProcessorList:
    """Return what makes greedy decoding sample; `occurred` (B, P) are the first tokens that count as repeated."""
    processors = LogitsProcessorList([] if decoding.steering is None else [decoding.steering])
    if observe is not None:
        processors.append(LogitsObserver(observe))
    if decoding.repetition_penalty != 1:
        processors.append(RepetitionPenalty(decoding.repetition_penalty, occurred))
    filters = decoding.filters()
    if seeds is None and filters:
        raise ValueError("top_k and top_p take seeds")
    if temperature > 0:
        sampling = InverseCDFSampling(temperature) if seeds is None else SeededSampling(seeds, temperature, filters)
        processors.append(sampling)
    return processors


def generation_config(
    model: PreTrainedModel, decoding: Decoding, max_new_tokens: int, pad_id: int, stop_ids: list[int]
) -> GenerationConfig:
    """Return the configuration of greedy decoding or, with several beams, of a beam search."""
    # A compiled step would not survive that other adapters are activated between two steps.
    is_one_model = decoding.num_beams == 1 and decoding.steering is None
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=decoding.min_new_tokens or None,
        num_beams=decoding.num_beams,
        pad_token_id=pad_id,
        eos_token_id=stop_ids,
        use_cache=True,
        cache_implementation=cache_implementation(model, max_new_tokens) if is_one_model else None,
    )


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

"""How much of the time of sampling goes into its noise: one decoding step of a model of GPT-2's or Flan-T5's size.

Compared with a generator for each row, which draws a number for every token of the vocabulary. Weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, T5Config, T5ForConditionalGeneration

from workbench.models.noise import make_streams, sample_softmax

ROWS, CONTEXT, REPEATS = 64, 64, 7


def make_model(name: str) -> PreTrainedModel:
    """Return GPT-2 (124 M parameters) or a T5 of Flan-T5-base's size, in eval mode."""
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config()).eval()
    sizes = {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu"}
    return T5ForConditionalGeneration(T5Config(vocab_size=32128, **sizes)).eval()


def decoding_step(model: PreTrainedModel) -> Callable[[], object]:
    """Return a function that predicts the next token of each row after a context that is in the cache."""
    ids = torch.randint(5, 1000, (ROWS, CONTEXT))
    if model.config.is_encoder_decoder:
        states = model.get_encoder()(ids)
        inputs = {"encoder_outputs": states, "decoder_input_ids": ids}
        cache = model(**inputs, use_cache=True).past_key_values
        return lambda: model(encoder_outputs=states, decoder_input_ids=ids[:, :1], past_key_values=cache)
    cache = model(ids, use_cache=True).past_key_values
    return lambda: model(ids[:, :1], past_key_values=cache)


def noise_of_generators(logits: torch.Tensor) -> torch.Tensor:
    """Return samples with a number for every token from a generator for each row."""
    generators = [torch.Generator().manual_seed(row) for row in range(ROWS)]
    numbers = [torch.empty(logits.shape[1]).exponential_(generator=generator) for generator in generators]
    return (logits - torch.stack(numbers).log()).argmax(dim=1)


@torch.no_grad()
def main() -> None:
    """Print the median milliseconds of each, measured in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["gpt2", "t5"], default="gpt2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = make_model(options.model)
    logits = 3 * torch.randn(ROWS, model.config.vocab_size)
    streams = make_streams(list(range(ROWS)), torch.device("cpu"))
    parts: dict[str, Callable[[], object]] = {
        "forward pass": decoding_step(model),
        "counter-based noise": lambda: sample_softmax(logits, streams, prune=True),
        "a generator for each row": lambda: noise_of_generators(logits),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(REPEATS):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.1f} ms a token")
    noise, forward = medians["counter-based noise"], medians["forward pass"]
    print(f"share of the noise: {noise / (noise + forward):.1%} ({ROWS} rows, {options.threads} threads)")


if __name__ == "__main__":
    main()

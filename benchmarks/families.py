"""Check every architecture that transformers generates text with, on tiny random weights; --write makes a page."""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import resource
import warnings
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from workbench.errors import UserError, one_line
from workbench.models.architecture import checked_policy
from workbench.models.loading import disable_dropout, reset_generation_config

MEMORY, SECONDS = 8 * 2**30, 30
VOCABULARY, PAD, STOP, START = 64, 1, 2, 3
# Sizes by the names that configurations give them; what a configuration does not have is left out.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "model_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_dense_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels", "rotary_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_source_positions"), 128),
    **dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts"), 2),
    "vocab_size": VOCABULARY,
    "n_group": 1,
    "topk_group": 1,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "sliding_window": 64,
    "attention_window": 16,
}


WORKS, NOT_BUILT = "works", "not built"
EQUAL_HEADS: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": None}
LAYERS = dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 4)
VARIANTS: tuple[dict[str, Any], ...] = ({}, EQUAL_HEADS, LAYERS, EQUAL_HEADS | LAYERS)


class Family(NamedTuple):
    """One architecture and what became of it."""

    name: str
    kind: str
    result: str
    """"works", or the line with which it is refused, or why it was not built."""


def families() -> Iterator[tuple[str, str, str]]:
    """Yield the model type, its class and its kind."""
    for name, class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        yield name, class_name, "causal"
    for name, class_name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items():
        yield name, class_name, "encoder-decoder"


def tiny_config(model_class: type[PreTrainedModel], changes: Mapping[str, Any]) -> PretrainedConfig:
    """Return a configuration of a few narrow layers, with other sizes where `changes` has some, None for its own."""
    config_class: Any = model_class.config_class
    names = set(inspect.signature(config_class.__init__).parameters) | set(config_class().to_dict())
    sizes = {name: value for name, value in (SIZES | changes).items() if name in names and value is not None}
    config = config_class(
        **sizes, pad_token_id=PAD, eos_token_id=STOP, bos_token_id=START, decoder_start_token_id=START
    )
    if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        config.is_decoder = True
    disable_dropout(config)
    return config


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are numbers."""
    words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(VOCABULARY)}, unk_token="t4"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=f"t{PAD}", eos_token=f"t{STOP}", model_max_length=128
    )


def check_family(name: str, class_name: str, kind: str) -> Family:
    """Check the family in the first of several sizes that it stands; some need equal heads, or a fourth layer."""
    results = []
    for changes in VARIANTS:
        results.append(check_variant(class_name, changes))
        if results[-1] == WORKS:
            break
    return Family(name, kind, min(results, key=lambda result: (result != WORKS, result.startswith(NOT_BUILT))))


def check_variant(class_name: str, changes: Mapping[str, Any]) -> str:
    """Build a model and check it; return that it works, or why not."""
    torch.manual_seed(0)
    try:
        model_class = getattr(transformers, class_name)
        model = model_class(tiny_config(model_class, changes)).eval()
        reset_generation_config(model)
    except Exception as error:  # each family has errors of its own
        return f"{NOT_BUILT}: {one_line(error)[:100]}"
    try:
        checked_policy(model, tokenizer())
    except UserError as error:
        return str(error)
    except Exception as error:
        return f"fails: {one_line(error)[:150]}"
    return WORKS


def check_apart(name: str, class_name: str, kind: str) -> Family:
    """Check the family in a process of its own: some ignore the sizes, and would fill the memory."""

    def check(sender: Connection) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sender.send(check_family(name, class_name, kind))

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=check, args=(sender,))
    process.start()
    family = receiver.recv() if receiver.poll(SECONDS) else Family(name, kind, "not built: too large or too slow")
    process.kill()
    process.join()
    return family


def page(families: Sequence[Family]) -> str:
    """Return the page with the table: what works, what is refused and why, and what was not built."""
    heading = (
        "# Families of models\n\n"
        "Written by `python -m benchmarks.families --write docs/families.md`, which gives every architecture that\n"
        "transformers generates text with a configuration of a few narrow layers and random weights, and runs the\n"
        f"check that every model goes through before it is trained. transformers {transformers.__version__}, torch\n"
        f"{torch.__version__}, on a CPU.\n\n"
        "A family that works samples what it scores, whatever the padding. No stage is run: training it may still\n"
        "fail, and the memory of some, such as mixtures of experts and Bart's, is not predicted.\n"
    )
    parts = [heading]
    for kind in ("causal", "encoder-decoder"):
        members = [family for family in families if family.kind == kind]
        works = sorted(family.name for family in members if family.result == WORKS)
        others = [family for family in members if family.result != WORKS]
        lines = [f"\n## {kind}\n", f"{len(works)} of {len(members)} work: {', '.join(works)}.\n"]
        lines += ["| family | why not |", "|---|---|"]
        lines += [f"| {family.name} | {family.result.replace('|', ' ')} |" for family in others]
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def main() -> None:
    """Print the result of each family, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="page to write")
    parser.add_argument("names", nargs="*", help="model types; default: all")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    results = []
    for name, class_name, kind in families():
        if not options.names or name in options.names:
            results.append(check_apart(name, class_name, kind))
            print(*results[-1], sep=" | ", flush=True)
    if options.write:
        options.write.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()

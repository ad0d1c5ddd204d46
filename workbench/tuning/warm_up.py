"""Load before the first method what it would else be charged for: late imports, kernels and allocators."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers.trainer_callback import PrinterCallback, ProgressCallback

from workbench.config.schema import Config
from workbench.config.tuning import TuningMethod
from workbench.models.loading import load_config, load_policy_tokenizer
from workbench.sft.plan import SFTPlan
from workbench.sft.trainer import make_sft_trainer

WORDS = {"prompt": "A cat sat", "response": " on a mat"}


def warm_up(config: Config, methods: Sequence[TuningMethod]) -> None:
    """Take one step of each kind of method on a toy model, so that the costs of none include what the first needs."""
    assert config.sft is not None
    toy = "toy:t5" if load_config(config.policy.model).is_encoder_decoder else "toy:gpt2"
    tokenizer = load_policy_tokenizer(toy)
    row = {f"{name}_ids": tokenizer(text).input_ids for name, text in WORDS.items()}
    sft = dataclasses.replace(config.sft, max_steps=1, save_every=2, trainer_args={"save_strategy": "no"})
    config = dataclasses.replace(config, sft=sft, policy=dataclasses.replace(config.policy, model=toy))
    plan = SFTPlan([], tokenizer, [row] * sft.batch_size, [])
    kinds = dict.fromkeys((method.method, method.quantization) for method in methods)
    for name, quantization in kinds:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_sft_trainer(config, plan, Path(folder), method=TuningMethod(name, quantization=quantization))
            trainer.remove_callback(ProgressCallback)
            trainer.remove_callback(PrinterCallback)
            trainer.train()

"""Each way to tune a model trains what it says and nothing else, is saved and loaded, or is refused in the plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from small_runs import drop, small
from torch import Tensor
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from workbench.config.parsing import parse
from workbench.config.schema import Config, PolicyConfig
from workbench.config.tuning import (
    FULL,
    IA3,
    LORA,
    PREFIX_TUNING,
    PROMPT_TUNING,
    SOFT_PROMPTS,
    ZERO_SHOT,
    TuningMethod,
    tuning_rate,
)
from workbench.errors import UserError
from workbench.models.loading import load_model, load_policy_tokenizer, save_model
from workbench.models.policy import Policy
from workbench.models.tuning import (
    add_method,
    load_method,
    saved_bytes,
    trainable_parameters,
    tuned_policy,
)
from workbench.sft.plan import SFTPlan, plan_sft
from workbench.sft.trainer import make_sft_trainer

CPU = torch.device("cpu")
QUICKSTARTS = {"gpt2": "quickstart_gpt2", "t5": "quickstart"}
METHODS = {
    "full": TuningMethod(FULL, learning_rate=1e-3),
    "lora": TuningMethod(LORA, r=4),
    "prompt_tuning": TuningMethod(PROMPT_TUNING, virtual_tokens=8),
    "prefix_tuning": TuningMethod(PREFIX_TUNING, virtual_tokens=8),
    "ia3": TuningMethod(IA3),
    "QLoRA nf4": TuningMethod(LORA, r=4, quantization="nf4"),
    "QLoRA int8": TuningMethod(LORA, r=4, quantization="int8"),
}
both = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:bitsandbytes", "ignore::UserWarning")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Config, SFTPlan]]:
    """The plan of a short fine-tuning of a toy model, made once."""
    plans: dict[str, tuple[Config, SFTPlan]] = {}

    def plan(architecture: str) -> tuple[Config, SFTPlan]:
        if architecture not in plans:
            options = small(QUICKSTARTS[architecture], tmp_path_factory.mktemp("runs"))
            options = drop(options, "--sft.max_steps", "--sft.data.limit")
            config = parse([*options, "--sft.max_steps", "6", "--sft.save_every", "3", "--sft.data.limit", "16"])[0]
            plans[architecture] = (config, plan_sft(config))
        return plans[architecture]

    return plan


def silent(trainer: Trainer) -> Trainer:
    """Return the trainer without its printing."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return copies of the weights that take gradients."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def frozen_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return copies of the weights that take none."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if not weight.requires_grad}


def toy(architecture: str, method: TuningMethod) -> Any:
    """Return a toy model loaded as a method needs it."""
    policy = PolicyConfig(model=f"toy:{architecture}", precision="bf16" if method.quantization else "fp32")
    return load_model(tuned_policy(policy, method), device=CPU)


def texts(model: Any, architecture: str, prompts: list[str], autocast: torch.dtype | None = None) -> list[str]:
    """Return greedy completions of prompts in one batch."""
    tokenizer = load_policy_tokenizer(f"toy:{architecture}")
    policy = Policy(model, tokenizer, autocast=autocast).eval()
    padded = policy.pad_prompts(tokenizer(prompts).input_ids)
    batch = policy.generate(*padded, max_new_tokens=8, temperature=0.0)
    return [tokenizer.decode(ids[mask]) for ids, mask in zip(batch.response_ids, batch.response_mask, strict=True)]


PROMPTS = [
    "Summarize the dialogue.\n\nAnna: Did you see the dog in the park?\nBen: Yes, it was huge!\n\nSummary:\n",
    "Who says this: hello",
    "Anna: hi",
]


@both
@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_is_what_it_was_after_loading(
    name: str, architecture: str, planned: Callable[[str], tuple[Config, SFTPlan]], tmp_path: Path
) -> None:
    method, (config, plan) = METHODS[name], planned(architecture)
    config = dataclasses.replace(
        config, policy=dataclasses.replace(config.policy, precision="bf16" if method.quantization else "fp32")
    )
    trainer = silent(make_sft_trainer(config, plan, tmp_path / "checkpoints", method=method))
    rows = trainer.train_dataset
    before, start, base = (
        trainer.evaluate(rows)["eval_loss"],
        trained_weights(trainer.model),
        frozen_weights(trainer.model),
    )
    trainer.train()
    assert trainer.args.learning_rate == tuning_rate(method, architecture == "t5")
    assert trainer.evaluate(rows)["eval_loss"] < before - 0.01
    after = trained_weights(trainer.model)
    assert all(weight.dtype == torch.float32 for weight in after.values())
    assert any(not torch.equal(weight, start[key]) for key, weight in after.items())
    assert all(torch.equal(weight, base[key]) for key, weight in frozen_weights(trainer.model).items())
    assert bool(base) == (name != "full")
    model = trainer.model
    assert hasattr(model, "hf_quantizer") == (method.quantization is not None)
    save_model(model, tmp_path / "saved")
    (tmp_path / "saved" / "training_args.bin").write_bytes(bytes(30_000))
    trained, _ = trainable_parameters(model)
    assert 4 * trained <= saved_bytes(tmp_path / "saved") <= 4 * trained + 20_000, "the trained weights in fp32"
    autocast = torch.bfloat16 if method.quantization else None
    together = texts(model, architecture, PROMPTS, autocast)
    if method.quantization is None:  # half precision rounds by the batch
        assert together == [texts(model, architecture, [prompt])[0] for prompt in PROMPTS]
    loaded = load_method(toy(architecture, method), tmp_path / "saved")
    assert texts(loaded, architecture, PROMPTS, autocast) == together
    assert trainable_parameters(loaded)[0] == 0


def test_a_prefix_is_not_recomputed(planned: Callable[[str], tuple[Config, SFTPlan]], tmp_path: Path) -> None:
    config, plan = planned("gpt2")
    assert config.sft is not None
    config = dataclasses.replace(
        config, sft=dataclasses.replace(config.sft, trainer_args={"activation_checkpointing": True})
    )
    with pytest.raises(UserError, match=r"^sft\.trainer_args\.activation_checkpointing: prefix_tuning does not work"):
        make_sft_trainer(config, plan, tmp_path, method=METHODS["prefix_tuning"])


@both
@pytest.mark.parametrize("name", SOFT_PROMPTS)
def test_training_resumes_as_if_it_had_not_stopped(
    name: str, architecture: str, planned: Callable[[str], tuple[Config, SFTPlan]], tmp_path: Path
) -> None:
    config, plan = planned(architecture)
    whole = silent(make_sft_trainer(config, plan, tmp_path, method=METHODS[name]))
    whole.train()
    resumed = silent(make_sft_trainer(config, plan, tmp_path, method=METHODS[name]))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 6
    for key, weight in trained_weights(whole.model).items():
        assert torch.equal(weight, trained_weights(resumed.model)[key])


# Hidden size 128, vocabularies of 1772 and 1782. GPT-2: 3 layers of (128, 384), (128, 128), (128, 512), (512, 128).
# T5: in 4 layers 4 or 8 of (128, 128), two of (128, 320) and one of (320, 128).
COUNTS = {
    ("gpt2", "lora"): 4 * 3 * (128 + 384 + 128 + 128 + 128 + 512 + 512 + 128),
    ("t5", "lora"): 4 * (2 * (4 + 8) * (128 + 128) + 4 * 3 * (128 + 320)),
    ("gpt2", "prompt_tuning"): 8 * 128,
    ("t5", "prompt_tuning"): 8 * 128,
    ("gpt2", "prefix_tuning"): 8 * 3 * 2 * 128,
    ("t5", "prefix_tuning"): 8 * 2 * 2 * 128,
    ("gpt2", "ia3"): 3 * (384 + 512),
    ("t5", "ia3"): 2 * (2 + 4) * 128 + 4 * 320,
}


@pytest.mark.parametrize(("architecture", "name"), COUNTS)
def test_as_many_parameters_are_trained_as_the_shapes_say(architecture: str, name: str) -> None:
    method = METHODS[name]
    base = toy(architecture, method)
    _, plain = trainable_parameters(base)
    count = COUNTS[architecture, name]
    assert trainable_parameters(add_method(base, method, seed=0)) == (count, plain + count)


@both
def test_full_trains_every_weight_and_zero_shot_none(architecture: str) -> None:
    base = toy(architecture, METHODS["lora"])
    total = sum(parameter.numel() for parameter in base.parameters())
    base.to(torch.bfloat16).requires_grad_(True)
    assert trainable_parameters(add_method(base, TuningMethod(ZERO_SHOT), seed=0)) == (0, total)
    full = add_method(base, METHODS["full"], seed=0)
    assert trainable_parameters(full) == (total, total)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}


@both
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_parameters_count_as_they_are(architecture: str, quantization: Any) -> None:
    plain = trainable_parameters(toy(architecture, METHODS["lora"]))[1]
    base = toy(architecture, TuningMethod(ZERO_SHOT, quantization=quantization))
    assert trainable_parameters(base) == (0, plain)
    if quantization == "nf4":
        assert sum(parameter.numel() for parameter in base.parameters()) < plain, "packed"


@pytest.mark.parametrize("name", ["lora", "prompt_tuning", "prefix_tuning", "ia3"])
def test_what_is_trained_starts_from_the_seed_alone(name: str) -> None:
    made = []
    for state, seed in ((0, 1), (9, 1), (0, 2)):
        base = tiny.model("t5")
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        made.append(trained_weights(add_method(base, METHODS[name], seed=seed)))
        assert name != "lora" or torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    assert name == "ia3" or any(not torch.equal(made[0][key], made[2][key]) for key in made[0]), "scales start at 1"


def test_weights_that_are_missing_or_of_another_shape_are_one_line(tmp_path: Path) -> None:
    model = tiny.model("gpt2")
    model.save_pretrained(tmp_path)  # the head shares the embeddings, and is not there
    loaded = load_method(tiny.model("gpt2", seed=1), tmp_path)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.ln_f.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"1 weights are missing, such as transformer\.ln_f\.bias; save the model again"
    ):
        load_method(tiny.model("gpt2"), tmp_path)
    model.resize_token_embeddings(50)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"its weights do not fit the model: size mismatch") as refused:
        load_method(tiny.model("gpt2"), tmp_path)
    assert "\n" not in str(refused.value)

"""LoRA's target modules: which layers a configuration may name, and what all-linear means."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from configs import GOOD, load
from small_runs import small
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from recipes import reward, sft
from workbench.config.parsing import dump, parse
from workbench.config.tuning import LoraSettings
from workbench.errors import UserError
from workbench.models.adapters import add_lora
from workbench.run.cli import plan_stages

LINEAR = {
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "t5": {"q", "k", "v", "o", "wi", "wo"},
}


def adapted(model: PreTrainedModel, targets: object, *, classifier: bool = False) -> set[str]:
    """Return the names of the layers that get an adapter."""
    lora = LoraSettings(r=2, alpha=4, target_modules=targets)  # type: ignore[arg-type]
    peft = add_lora(model, lora, "default", classifier=classifier)
    return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in peft.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize("targets", ["all-linear", ["all-linear"], None])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_all_linear_is_every_linear_layer_but_the_output_head(architecture: str, targets: object) -> None:
    assert adapted(tiny.model(architecture), targets) == LINEAR[architecture]


def test_an_output_head_of_its_own_weight_is_left_out_too_unless_it_is_asked_for() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, tie_word_embeddings=False, **sizes)
    assert "lm_head" not in adapted(LlamaForCausalLM(config), "all-linear")
    assert adapted(LlamaForCausalLM(config), ["lm_head"]) == {"lm_head"}


def test_all_linear_of_a_classifier_leaves_its_head_to_be_trained_in_full() -> None:
    model = AutoModelForSequenceClassification.from_config(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
    assert adapted(model, "all-linear", classifier=True) == LINEAR["gpt2"]


def test_the_configuration_takes_all_linear_from_both_sources_and_loads_back(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD.replace("{r: 8}", "{r: 8, target_modules: all-linear}"))
    assert config.policy.lora is not None
    assert config.policy.lora.target_modules == "all-linear"
    assert load(tmp_path, dump(config)) == config
    assert load(tmp_path, GOOD, "--policy.lora", "{r: 8, target_modules: all-linear}") == config
    more = load(tmp_path, GOOD, "--policy.lora.target_modules+", "q", "--policy.lora.target_modules+", "v")
    assert more.policy.lora is not None
    assert more.policy.lora.target_modules == ["q", "v"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["q_proj"], "--policy.lora.target_modules: must be a list or all-linear, not 'q_proj'"),
        (["{a: 1}"], "--policy.lora.target_modules: must be a list or all-linear, not a mapping"),
        (["[7]"], "--policy.lora.target_modules[0]: must be a string, not '7'"),
        (["all-linear", "--policy.lora.target_modules+", "q"], "--policy.lora.target_modules+: policy.lora.target"),
    ],
)
def test_another_value_is_refused_with_what_is_allowed(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load(tmp_path, GOOD, "--policy.lora.target_modules", *options)
    assert str(raised.value).startswith(message)


def test_the_plan_counts_what_all_linear_trains(in_project: Path, tmp_path: Path) -> None:
    """Of toy:gpt2, 2 layers of width 128: each adapter of rank r on (m, n) has r (m + n) weights."""
    options = small("quickstart_gpt2", tmp_path, "--policy.lora", "{r: 4, target_modules: all-linear}")
    config = parse(options)[0]
    [(_, plan)] = plan_stages([sft.STAGE], config, None)
    weights = sum(
        4 * sum(module.weight.shape)
        for name, module in tiny_policy(config.policy.model).named_modules()
        if name.rsplit(".", 1)[-1] in LINEAR["gpt2"]
    )
    assert f"{weights / 1e6:.2f} M trained" in " ".join(plan.lines)
    train = ["--reward.model", "null", "--reward.train.lora", "{r: 4, target_modules: all-linear}"]
    [(_, plan)] = plan_stages([reward.STAGE], parse([*options, *train])[0], None)
    assert plan.train.lora.target_modules == "all-linear"


def tiny_policy(name: str) -> PreTrainedModel:
    """Return the shapes of a policy's model."""
    from workbench.models.loading import meta_model

    return meta_model(name)


@pytest.mark.parametrize(
    ("config", "targets", "message"),
    [
        ("quickstart_gpt2", "[lm_head]", "lm_head shares its weight with the embeddings"),
        ("quickstart_gpt2", "[c_attn, lm_head]", "lm_head shares its weight with the embeddings"),
        ("quickstart", "[lm_head]", "lm_head"),
        ("quickstart_gpt2", "[wte]", "wte is not a linear layer (Embedding); use all-linear, or names among c_attn, "),
        ("quickstart_gpt2", "[c_attn, wpe]", "wpe is not a linear layer (Embedding)"),
        ("quickstart", "[q, shared]", "shared is not a linear layer (Embedding)"),
        ("quickstart", "[relative_attention_bias]", "relative_attention_bias is not a linear layer (Embedding)"),
        ("quickstart_gpt2", "[ln_1]", "ln_1 is not a linear layer (LayerNorm)"),
        ("quickstart_gpt2", "[attn]", "attn is not a linear layer (GPT2Attention)"),
        ("quickstart_gpt2", "[c_attn, nothing]", "'nothing' is not the name of a layer; use all-linear, or names"),
        ("quickstart_gpt2", "[c_attn, all-linear]", "all-linear stands for all names; write it without a list"),
    ],
)
def test_layers_that_lora_cannot_adapt_are_refused_in_the_plan(
    config: str, targets: str, message: str, in_project: Path, tmp_path: Path
) -> None:
    options = small(config, tmp_path, "--policy.lora.target_modules", targets)
    with pytest.raises(UserError) as raised:
        list(plan_stages([sft.STAGE], parse(options)[0], None))
    assert str(raised.value).startswith(f"policy.lora.target_modules: {message}")
    assert "\n" not in str(raised.value)

"""The memory that a plan predicts: counted as tensors live, with everything that a stage has in memory."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import tiny
import tiny_classifiers
import torch
from small_runs import small
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
)

from workbench.config.names import EVALUATION, PPO, SFT
from workbench.config.parsing import parse
from workbench.config.schema import Config
from workbench.config.shipped import CONFIGS
from workbench.config.sources import Scorer
from workbench.errors import UserError
from workbench.models import memory, memory_plan
from workbench.models.memory import GIB, LiveBytes, Peak, cache_bytes, forward_bytes, ppo_loss, step_bytes
from workbench.models.memory_plan import (
    network_names,
    planned_model,
    policy_peaks,
    reward_peak,
    stage_memory_lines,
    with_value,
)

HARDWARE = sorted((CONFIGS / "hardware").glob("*.yaml"))


def test_bytes_are_counted_while_a_tensor_lives_and_views_once() -> None:
    model = nn.Linear(4, 4, bias=False)
    with FakeTensorMode(), LiveBytes(model) as live:
        first = torch.ones(100)
        assert live.current == 400
        view = first.view(10, 10).t()
        second = first + 1
        assert (live.current, live.highest) == (800, 800)
        del first
        assert live.current == 800, "its view still lives"
        del view
        third = second * 2
        assert (live.current, live.highest) == (800, 800)
        del second, third
        assert (live.current, live.highest) == (0, 800)


def test_a_step_of_one_layer_takes_its_input_output_and_gradients() -> None:
    model = nn.Linear(30, 50, bias=False)
    rows = 20

    def loss() -> torch.Tensor:
        return model(torch.ones(rows, 30)).square()

    # Alive while the weight's gradient is made: the input, the output, its square, their gradients, the gradient.
    least = 4 * (rows * 30 + rows * 50 + 30 * 50)
    assert least <= step_bytes(model, loss, None) <= least + 4 * 4 * rows * 50
    # Its input is gone when the output is squared.
    assert forward_bytes(model, loss, None) == 4 * 2 * rows * 50


def test_a_cache_has_keys_and_values_of_every_layer_and_token() -> None:
    assert cache_bytes(tiny.model("gpt2"), 5, 3, None) == 2 * 2 * 8 * 32 * 4  # layers, two, tokens, width, bytes
    # One decoder layer, over the response and over the prompt.
    assert cache_bytes(tiny.model("t5"), 5, 3, None) == 2 * (5 + 3) * 2 * 16 * 4
    assert cache_bytes(tiny.model("gpt2"), 5, 3, torch.bfloat16) == 2 * 2 * 8 * 32 * 2


def test_logits_are_counted_where_they_are_more_than_the_output_of_a_head() -> None:
    vocabulary, rows, tokens = 3000, 8, 20
    sizes = {"vocab_size": vocabulary, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
    with torch.device("meta"):
        capped = CohereForCausalLM(
            CohereConfig(
                vocab_size=vocabulary,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                eos_token_id=1,
            )
        )
        biased = BartForConditionalGeneration(
            BartConfig(
                encoder_ffn_dim=8, decoder_ffn_dim=8, encoder_attention_heads=2, decoder_attention_heads=2, **sizes
            )
        )
        plain = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=8, n_layer=1, n_head=2))
    logits = rows * tokens * vocabulary * 4
    for model, holds_logits in ((capped, True), (biased, True), (plain, False)):
        model.requires_grad_(False)
        size = forward_bytes(model, partial(ppo_loss, model, rows, 5, tokens), None)
        assert (size > 2 * logits) == holds_logits, type(model).__name__


def config(folder: Path, *options: str) -> Config:
    """Return a small quickstart."""
    return parse(small("quickstart", folder, *options))[0]


def peaks(settings: Config, stage: str) -> list[Peak]:
    """Return a stage's peaks at 40 + 20 tokens in fp32."""
    return policy_peaks(settings, stage, planned_model(settings), "fp32", 40, 20)


def test_every_model_of_a_stage_counts(tmp_path: Path) -> None:
    adapters, full = config(tmp_path), config(tmp_path, "--policy.lora", "null")
    weights = 4 * sum(p.numel() for p in planned_model(full).parameters())
    assert [peaks(full, stage)[0].weights for stage in (SFT, PPO, EVALUATION)] == [weights, 3 * weights, 3 * weights]
    shared = config(tmp_path, "--policy.lora", "null", "--ppo.value_model", "shared")
    assert peaks(shared, PPO)[0].weights == 2 * weights
    assert peaks(adapters, SFT)[0].weights < 1.3 * weights
    classifier = tiny_classifiers.save(tmp_path / "classifier", "bert")
    size = 4 * sum(p.numel() for p in tiny_classifiers.build("bert")[0].parameters())
    judged = config(tmp_path, "--reward.model", classifier)
    assert peaks(judged, PPO)[0].weights - peaks(adapters, PPO)[0].weights == size
    assert peaks(judged, SFT)[0].weights == peaks(adapters, SFT)[0].weights


def test_fewer_rows_and_recomputed_activations_take_less(tmp_path: Path) -> None:
    step, sampled = peaks(config(tmp_path), PPO)
    half, same = peaks(config(tmp_path, "--ppo.micro_batch_size", "2"), PPO)
    assert (step.rows, half.rows) == (4, 2)
    assert half.rows * half.per_row < 0.7 * step.rows * step.per_row
    assert half.training > step.training, "the gradients of earlier micro batches wait for the last"
    assert same == sampled
    one_model = ("--ppo.value_model", "shared")
    stored, sampled = peaks(config(tmp_path, *one_model), PPO)
    recomputed, cached = peaks(config(tmp_path, *one_model, "--policy.gradient_checkpointing", "true"), PPO)
    assert recomputed.per_row < 0.7 * stored.per_row
    assert cached.per_row == sampled.per_row, "sampling has its cache all the same"


def test_processes_divide_rows_and_fsdp_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = config(tmp_path, "--policy.lora", "null")
    step, sampled = peaks(full, PPO)
    monkeypatch.setenv("WORLD_SIZE", "2")
    halves = peaks(full, PPO)
    assert [peak.rows for peak in halves] == [step.rows // 2, sampled.rows // 2]
    assert halves[0].training == step.training
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert [peak.training for peak in peaks(full, PPO)] == [step.training / 2, sampled.training / 2]


@pytest.mark.parametrize("objective", ["classifier", "preference"])
def test_a_reward_takes_memory_by_its_longest_text(objective: str, tmp_path: Path) -> None:
    settings = config(tmp_path, "--reward.model", "null")
    assert settings.reward is not None
    assert settings.reward.train is not None
    train = dataclasses.replace(settings.reward.train, objective=objective)
    short, long = (reward_peak(train, tokens) for tokens in (16, 64))
    assert long.per_row > 3 * short.per_row
    assert long.weights == short.weights


@pytest.mark.parametrize("kind", tiny_classifiers.KINDS)
def test_every_kind_of_classifier_is_counted(kind: str, tmp_path: Path) -> None:
    settings = config(tmp_path, "--reward.model", "null")
    assert settings.reward is not None
    assert settings.reward.train is not None
    folder = tiny_classifiers.save(tmp_path / kind, kind)
    assert reward_peak(dataclasses.replace(settings.reward.train, model=folder), 20).per_row > 0


def test_a_model_whose_sizes_depend_on_values_is_not_counted_and_its_plan_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path)

    def routed(*arguments: object) -> torch.Tensor:
        return torch.ones(4).nonzero().float()

    monkeypatch.setattr(memory_plan, "ppo_loss", routed)
    memory_plan.COUNTED.clear()
    (line,) = stage_memory_lines(settings, PPO, 41, 21)
    assert line.startswith("memory not predicted: t5 cannot be run without values (")


def test_the_networks_of_combined_rewards_are_found() -> None:
    terms = [{"model": "toxicity", "options": {"model": "owner/name"}, "weight": 2.0}, "length"]
    members = ["toy:gpt2", Scorer("combine", {"terms": terms})]
    assert network_names(Scorer("ensemble", {"members": members})) == ["toy:gpt2", "owner/name"]
    assert network_names(Scorer("http", {"url": "http://localhost:1/"})) == []
    assert network_names(Scorer("owner/name")) == ["owner/name"]


def test_what_does_not_fit_names_rows_that_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path, "--policy.lora", "null", "--ppo.minibatch_size", "8", "--ppo.value_model", "shared")
    for stage, key in ((SFT, "sft.micro_batch_size"), (PPO, "ppo.micro_batch_size")):
        whole = peaks(settings, stage)[0]
        fewer = peaks(with_value(settings, key, 2), stage)[0]
        # Where two rows fit and four do not; gradients that wait for later micro batches included.
        limit = int((fewer.total + peaks(with_value(settings, key, 4), stage)[0].total) / 2)
        assert fewer.total < limit < whole.total
        monkeypatch.setattr(memory_plan, "machine_memory", lambda limit=limit: limit)
        lines = stage_memory_lines(settings, stage, 40, 20)
        assert lines[0].startswith("memory about ")
        assert lines[1].endswith(f" GiB of memory; set {key} to 2")
        changed = parse([*small("quickstart", tmp_path, "--policy.lora", "null"), f"--{key}", "2"])[0]
        assert [line for line in stage_memory_lines(changed, stage, 40, 20) if key in line] == []
    monkeypatch.setattr(memory_plan, "machine_memory", lambda: 1)
    assert "shorten the texts, or take a smaller model" in stage_memory_lines(settings, SFT, 40, 20)[1]


def test_processes_on_cpus_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    whole = memory.machine_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.machine_memory() == whole // 4


def test_states_without_a_cache_of_keys_are_counted() -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "conv_kernel": 3}
    model = MambaForCausalLM(MambaConfig(vocab_size=30, **shape))
    assert cache_bytes(model, 5, 3, None) == 2 * 32 * (4 + 3) * 4  # layers, inner width, states, bytes


@pytest.mark.parametrize("file", HARDWARE, ids=lambda file: file.stem)
@pytest.mark.parametrize("recipe", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_card_goes_with_every_recipe(file: Path, recipe: Path) -> None:
    files = ["--config", str(recipe), "--config", str(file)]
    plain = parse(files[:2])[0]
    recomputes = parse(["--config", "gpt2_rtp", *files[2:]])[0].policy.gradient_checkpointing
    if recomputes and plain.policy.lora and plain.ppo and plain.ppo.value_model == "separate":
        with pytest.raises(UserError, match=r"separate does not work with policy\.gradient_checkpointing"):
            parse(files)
        files += ["--policy.gradient_checkpointing", "false"]
    combined = parse(files)[0]
    assert combined.policy.micro_batch_size
    assert (plain.sft, plain.ppo, plain.reward) == (combined.sft, combined.ppo, combined.reward)
    assert parse(["--config", recipe.stem, "--config", f"hardware/{file.stem}", *files[4:]])[0] == combined


def test_seven_billion_weights_in_four_bits_fit_a_t4(tmp_path: Path) -> None:
    shape = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    Qwen2Config(vocab_size=152064, num_key_value_heads=4, tie_word_embeddings=False, **shape).save_pretrained(tmp_path)
    settings = parse(
        [
            *("--config", "smollm2_qlora", "--config", "hardware/t4", "--policy.model", str(tmp_path)),
            *("--policy.lora.target_modules", "[q_proj, v_proj]", "--reward.model", "length", "--reward.train", "null"),
        ]
    )[0]
    with mock.patch.object(memory_plan, "machine_device", return_value=torch.device("cuda")):
        for stage in (SFT, PPO, EVALUATION):
            for peak in policy_peaks(settings, stage, planned_model(settings), "fp16", 200, 60):
                assert 5.5 * GIB < peak.total < 14 * GIB, (stage, peak)

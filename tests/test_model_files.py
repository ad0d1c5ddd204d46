"""A model that cannot be loaded, or would be loaded wrongly, is refused in one line of the plan."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_runs import small
from tiny_checkpoints import bart, bart_tokenizer, llama, opt_classifier, prefix_tokenizer, saved, t5, t5_tokenizer
from transformers import BertConfig, BertForSequenceClassification

from recipes import sft
from reward_models.network import load_network
from workbench.config.schema import PolicyConfig
from workbench.errors import UserError
from workbench.models.loading import load_config, load_model, load_policy_tokenizer, load_tokenizer
from workbench.models.memory_plan import meta_classifier
from workbench.models.model_checks import check_reward_base, policy_notes
from workbench.models.positions import context_length, model_context
from workbench.models.weights import unused_layer
from workbench.run import cli
from workbench.run.hf_trainer import StepCallback
from workbench.toy import model_folder

WEIGHT = "encoder.block.0.layer.0.SelfAttention.q.weight"


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def plan(folder: Path) -> list[str]:
    """The notes about a policy's model; raises UserError as a plan does."""
    return policy_notes(str(folder), load_policy_tokenizer(str(folder)))


def classifier(folder: Path) -> Any:
    return load_network(str(folder), batch_size=2, max_tokens=None, device=None)


class RunsCode:
    """What a malicious pickle holds."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("was-run",)


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def without(*names: str) -> Callable[[Path], None]:
    def edit(weights: dict[str, torch.Tensor]) -> None:
        for name in names:
            del weights[name]

    return lambda folder: edit_weights(folder, edit)


def filled(value: float) -> Callable[[Path], None]:
    def edit(weights: dict[str, torch.Tensor]) -> None:
        weights[WEIGHT][0] = value

    return lambda folder: edit_weights(folder, edit)


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"shared.weight": RunsCode()}, folder / "pytorch_model.bin")


def halve(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "mine.py").write_text("import os\nos.mkdir('was-run')\n", encoding="utf-8")


def configuration(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text, encoding="utf-8") and None


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "google/flan-t5-small"}', encoding="utf-8")


def only_adapter(folder: Path) -> None:
    adapter_beside(folder)
    (folder / "config.json").unlink()


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle": (as_pickle, r"cannot be loaded: its weights are a pickle .* could run code; use .* safetensors$"),
    "truncated": (halve, r"its weights are damaged or incomplete .*; copy or download them again$"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"no file named model\.safetensors"),
    "missing": (
        without(WEIGHT),
        rf"1 weights are missing from its files and would be random: {re.escape(WEIGHT)}; use a complete checkpoint",
    ),
    "shape": (
        lambda folder: edit_weights(folder, lambda weights: weights.update({WEIGHT: torch.zeros(3, 16)})),
        rf"do not fit its config\.json: {re.escape(WEIGHT)} is \(3, 16\) and should be \(16, 16\)",
    ),
    "nan": (
        filled(torch.nan),
        rf"{re.escape(WEIGHT)} contains NaN or infinity; its training diverged",
    ),
    "infinity": (
        filled(-torch.inf),
        r"contains NaN or infinity",
    ),
    "code": (with_code, r"it needs code that comes with the model, which is never run"),
    "not json": (configuration("{oops"), r"config\.json is not valid JSON: .*; save the model again"),
    "list": (configuration("[1]"), r"config\.json holds a list, so it describes no model"),
    "no type": (configuration('{"d_model": 16}'), r"config\.json has no model_type"),
    "bad value": (
        configuration('{"model_type": "t5", "d_model": "many"}'),
        r"cannot be loaded: .*expected int, got str",
    ),
    "tokenizer": (without_tokenizer, r"its tokenizer has no vocabulary \(\d+ tokens\); add the tokenizer's files"),
    "adapter": (only_adapter, r"holds an adapter of google/flan-t5-small, not a model; merge .*; .* set reuse\.sft"),
    "both": (adapter_beside, r"holds a model \(config\.json\) and an adapter .*; move adapter_config\.json out of it"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_policy_is_refused_in_the_plan_and_runs_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage, message = DAMAGED[case]
    folder = tmp_path / "model"
    saved(folder, t5(), t5_tokenizer())
    damage(folder)
    error_text = refusal(lambda: plan(folder))
    assert error_text.startswith(f"{folder}: ")
    assert re.search(message, error_text), error_text
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("case", ["missing", "nan"])
def test_loading_a_policy_refuses_what_a_plan_did_not_see(case: str, tmp_path: Path) -> None:
    damage, message = DAMAGED[case]
    saved(tmp_path, t5(), t5_tokenizer())
    damage(tmp_path)
    policy = PolicyConfig(model=str(tmp_path))
    assert re.search(message, refusal(lambda: load_model(policy, device=torch.device("cpu"))))


@pytest.mark.parametrize("case", ["pickle", "truncated", "code", "not json", "list", "tokenizer", "adapter", "both"])
def test_a_damaged_classifier_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    damage, message = DAMAGED[case]
    folder = tmp_path / "model"
    saved(folder, bart(classifier=True), t5_tokenizer())
    damage(folder)
    assert re.search(message, refusal(lambda: classifier(folder)))
    assert not (tmp_path / "was-run").exists()


def bert(folder: Path) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    saved(folder, BertForSequenceClassification(BertConfig(vocab_size=258, **sizes)), t5_tokenizer())
    return folder


def check_base(folder: Path) -> None:
    check_reward_base(str(folder), load_tokenizer(str(folder)), meta_classifier(str(folder)))


def test_a_reward_is_trained_from_a_body_without_a_head_but_not_from_half_a_body(tmp_path: Path) -> None:
    folder = bert(tmp_path)
    new = ["classifier.weight", "classifier.bias", "bert.pooler.dense.weight"]
    without(*new)(folder)
    check_base(folder)
    without("bert.encoder.layer.0.output.dense.bias")(folder)
    error_text = refusal(lambda: check_base(folder))
    assert (
        "1 weights are missing from its files and would be random: bert.encoder.layer.0.output.dense.bias" in error_text
    )


def test_a_padding_token_outside_the_embedding_is_refused_in_every_role(tmp_path: Path) -> None:
    tokenizer = prefix_tokenizer(pad_token="[PAD]")
    size = len(tokenizer) - 1
    for kind, check in (("policy", plan), ("classifier", classifier), ("base", check_base)):
        saved(tmp_path / kind, llama(size, classifier=kind != "policy"), tokenizer)
        error_text = refusal(lambda check=check, kind=kind: check(tmp_path / kind))
        assert (
            f"pads with token {size}, but the model has embeddings for {size} tokens (the tokenizer has" in error_text
        )
        assert "resize_token_embeddings(len(tokenizer))" in error_text


def test_words_outside_the_embedding_are_refused_and_marks_that_cannot_occur_are_not(tmp_path: Path) -> None:
    tokenizer = prefix_tokenizer(pad_token="</s>")
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    saved(tmp_path, llama(size, classifier=True), tokenizer)
    reward = classifier(tmp_path)
    assert torch.isfinite(reward.logits([[1, 5, 6]])).all()
    tokenizer.add_tokens(["hello"])
    tokenizer.save_pretrained(tmp_path)
    for check in (classifier, check_base):
        error_text = refusal(lambda check=check: check(tmp_path))
        assert f"has {size + 2} tokens, up to number {size + 1}, but the model has embeddings for {size};" in error_text


@pytest.mark.parametrize("make", [opt_classifier, lambda: bart(classifier=True)], ids=["opt", "bart"])
def test_a_classifier_reads_as_many_tokens_as_it_has_positions(make: Callable[[], Any], tmp_path: Path) -> None:
    saved(tmp_path, make(), bart_tokenizer())
    reward = classifier(tmp_path)
    assert reward.max_tokens == 64
    assert torch.isfinite(reward.logits([[0, *[5] * 62, 2], [0, 5, 2]])).all()
    assert context_length(load_config(str(tmp_path)), load_tokenizer(str(tmp_path))) == 64


def test_a_long_classifier_reads_more_than_512_tokens(tmp_path: Path) -> None:
    tokenizer = prefix_tokenizer()
    saved(tmp_path, llama(len(tokenizer), classifier=True, positions=2048), tokenizer)
    assert load_network(str(tmp_path), batch_size=2, max_tokens=1500, device=None).max_tokens == 1500
    assert classifier(tmp_path).max_tokens == 2048


def test_an_encoder_decoder_of_learned_positions_limits_prompt_and_response(tmp_path: Path) -> None:
    saved(tmp_path, bart(), bart_tokenizer())
    context = model_context(load_config(str(tmp_path)), load_tokenizer(str(tmp_path)))
    assert (context.is_decoder_only, context.length, context.response_length) == (False, 64, 64)
    context = model_context(t5(n_positions=512).config, t5_tokenizer())
    assert (context.length, context.response_length) == (None, None)


def test_an_encoder_decoder_that_names_no_start_is_refused(tmp_path: Path) -> None:
    model = t5()
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    saved(tmp_path, model, t5_tokenizer())
    error_text = refusal(lambda: plan(tmp_path))
    assert re.search(r"its config\.json has no decoder_start_token_id, .*; add it \(T5 starts with", error_text)


def test_generation_options_that_sampling_does_not_follow_are_named(tmp_path: Path) -> None:
    model = t5()
    model.generation_config.update(forced_bos_token_id=0, no_repeat_ngram_size=3, repetition_penalty=1.2)
    saved(tmp_path, model, t5_tokenizer())
    (note,) = plan(tmp_path)
    assert note == (
        f"{tmp_path}: ignored options of its generation_config: forced_bos_token_id 0, no_repeat_ngram_size 3, "
        "repetition_penalty 1.2; responses are sampled from the plain softmax"
    )
    saved(tmp_path / "plain", t5(), t5_tokenizer())
    assert plan(tmp_path / "plain") == []


def test_layers_that_the_configuration_does_not_count_are_refused(tmp_path: Path) -> None:
    folder = model_folder("gpt2")
    copy = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"n_layer": config["n_layer"] - 1}), encoding="utf-8")
    with pytest.raises(UserError, match=r"its files hold transformer.h.\d+\.\S+, which its config.json does not count"):
        load_model(PolicyConfig(str(copy)), device=torch.device("cpu"))
    names = ["encoder.layer.0.weight", "encoder.layer.1.weight", "pooler.weight"]
    assert unused_layer(names) is None, "a stack of another task"
    assert unused_layer(names[1:]) == "encoder.layer.1.weight"


def test_an_adapter_with_nan_is_refused(tmp_path: Path) -> None:
    from workbench.models.adapters import check_adapter, load_adapter

    base = saved(tmp_path / "base", t5(), t5_tokenizer())
    peft = get_peft_model(t5(), LoraConfig(r=2, target_modules=["q"], task_type="SEQ_2_SEQ_LM"))
    peft.save_pretrained(tmp_path / "adapter")
    assert check_adapter(base, tmp_path / "adapter") is not None
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values()))[0] = torch.nan
    save_file(weights, file)
    assert "contains NaN or infinity" in refusal(lambda: check_adapter(base, tmp_path / "adapter"))
    assert "contains NaN or infinity" in refusal(lambda: load_adapter(t5(), "sft", tmp_path / "adapter"))


def test_a_run_that_diverged_does_not_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    take_step = StepCallback.on_step_end

    def diverge(callback: Any, arguments: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == state.max_steps:  # no later loss shows it
            next(p for p in others["model"].parameters() if p.requires_grad).data.flatten()[0] = math.nan
        take_step(callback, arguments, state, control, **others)

    monkeypatch.setattr(StepCallback, "on_step_end", diverge)
    command = small("quickstart", tmp_path, "--sft.max_steps", "3", "--sft.data.limit", "8")
    monkeypatch.setattr(sys, "argv", ["recipes/sft.py", *command])
    with pytest.raises(SystemExit) as leaving:
        cli.main([sft.STAGE], "")
    assert leaving.value.code == 2
    assert re.search(
        r"error: sft: the loss or the trained weights are not finite; lower sft.l", capsys.readouterr().err
    )
    assert not (tmp_path / "quickstart" / "sft" / "stage.json").exists()

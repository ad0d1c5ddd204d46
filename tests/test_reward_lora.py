"""With `reward.train.lora`, a classifier of any architecture trains its whole head, and is saved as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from reward_runs import labeled
from tiny_classifiers import KINDS, TEXTS, save
from transformers import AutoModelForSequenceClassification

from workbench.config.schema import Config, EvaluationConfig, PolicyConfig, RewardConfig, RewardTraining
from workbench.config.sources import DataSource
from workbench.config.tuning import LoraSettings
from workbench.models.adapters import classifier_head
from workbench.models.batching import encode, padded_batches
from workbench.models.loading import load_tokenizer
from workbench.rewards.training.plan import plan_reward
from workbench.rewards.training.saving import save_reward_model
from workbench.rewards.training.trainers import make_reward_trainer

QUERIES = {"gpt2": ["c_attn"], "t5": ["q", "v"], "distilbert": ["q_lin", "v_lin"], "bart": ["q_proj", "v_proj"]}


def logits(model: Any, folder: Path) -> torch.Tensor:
    """The logits of TEXTS."""
    tokenizer = load_tokenizer(str(folder))
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = encode(tokenizer, TEXTS, 32)
    values = torch.zeros(len(TEXTS), 2)
    with torch.no_grad():
        for chosen, ids, mask in padded_batches(rows, 4, tokenizer.pad_token_id, torch.device("cpu")):
            values[chosen] = model(input_ids=ids, attention_mask=mask).logits
    return values


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_trained_in_full_and_saved_as_trained(kind: str, explicit: bool, tmp_path: Path) -> None:
    start = save(tmp_path / "start", kind, {0: "ok", 1: "rude"})
    source = DataSource(**labeled(tmp_path / "rows.jsonl", 16, 0))
    targets = QUERIES.get(kind, ["query", "value"]) if explicit else None
    train = RewardTraining(
        start,
        source,
        source,
        target_label="ok",
        lora=LoraSettings(r=2, alpha=4, target_modules=targets),
        batch_size=8,
        max_tokens=32,
        epochs=1,
        learning_rate=1e-2,
    )
    config = Config("run", PolicyConfig("toy:gpt2"), EvaluationConfig(data={}), reward=RewardConfig(train=train))
    plan = plan_reward(config)
    trainer = make_reward_trainer(plan, tmp_path / "trained")
    trainer.train()
    trained = trainer.model.eval()
    expected = logits(trained, tmp_path / "start")
    save_reward_model(trainer, plan.tokenizer, tmp_path / "trained", 32)

    before = AutoModelForSequenceClassification.from_pretrained(start)
    after, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.allclose(logits(after.eval(), tmp_path / "trained"), expected, atol=1e-3)  # the merge rounds
    assert not torch.allclose(logits(before.eval(), tmp_path / "start"), expected, atol=1e-2)
    weights = dict(after.named_parameters())
    head = {name: p for name, p in before.named_parameters() if name.startswith(tuple(classifier_head(before)))}
    assert head
    assert [name for name, weight in head.items() if torch.equal(weight, weights[name])] == []
    body = [name for name in weights if name not in head and ("embed" in name or "norm" in name.lower())]
    assert all(torch.equal(weights[name], p) for name, p in before.named_parameters() if name in body)
    changed = {name: (weights[name] - p).double() for name, p in head.items() if p.dim() == 2 and min(p.shape) > 4}
    assert all(torch.linalg.matrix_rank(delta) > 2 for delta in changed.values()), "in full, not by an adapter"

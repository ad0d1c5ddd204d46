"""What labs 1 to 3 of the course "Generative AI with Large Language Models" do wrong is right here.

Each test is named after one defect; docs/from_the_course.md lists them with their evidence.
"""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from configs import GOOD, load
from course_runs import completions, quickstart, vowels
from plain_references import (
    HateClassifier,
    greedy_texts,
    hate_classifier,
    plain_logits,
    plain_logprobs,
    plain_texts,
)
from small_runs import evaluation_source
from tiny_data import write
from trainers import e_rate, make_trainer, step
from transformers import T5Config, T5ForConditionalGeneration, pipeline
from typed_results import BETTER, SAME, make_difference, make_results, make_set

from recipes import evaluation, ppo, sft
from reward_models.classifier import load as load_classifier
from workbench.config.parsing import parse
from workbench.config.schema import DataSource, PolicyConfig, Scorer
from workbench.data.context import Context
from workbench.data.prompts import load_prompts
from workbench.errors import UserError
from workbench.evaluation.judges import load_judges
from workbench.evaluation.prompt_sets import load_prompt_sets, row_references
from workbench.evaluation.results import Metric
from workbench.evaluation.statistics import paired_difference
from workbench.evaluation.verdicts import prompts_needed, toxicity_verdict, verdict_of
from workbench.models.loading import load_model, load_tokenizer
from workbench.rewards.registry import load_scorer
from workbench.run import cli
from workbench.sft.plan import plan_sft
from workbench.sft.trainer import make_sft_trainer
from workbench.toy import rows as toy_rows

both = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


def test_the_page_names_every_test() -> None:
    page = (Path(__file__).parent.parent / "docs" / "from_the_course.md").read_text()
    assert set(re.findall(r"`(test_lab\w+)`", page)) == {name for name in globals() if name.startswith("test_lab")}


# Lab 1: prompts and generation settings.


@both
def test_lab1_a_prompt_over_the_context_is_not_run_as_it_is(architecture: str, tmp_path: Path) -> None:
    """The lab runs a few-shot prompt of 819 tokens on a context of 512, and says that the rest is ignored."""
    tokenizer, is_decoder = tiny.tokenizer(architecture), architecture == "gpt2"
    prompts = ["a: b. " * shots + "talk: hello" for shots in range(10)]
    source = DataSource(write(tmp_path / "shots.jsonl", [{"prompt": prompt} for prompt in prompts]))
    # The context of a decoder holds the eight tokens of the response as well.
    fitting = [prompt for prompt in prompts if len(tokenizer(prompt).input_ids) <= (32 if is_decoder else 40)]
    assert 0 < len(fitting) < 10
    read, report = load_prompts(source, tokenizer, max_new_tokens=8, context=Context(is_decoder, length=40))
    assert [row["prompt_ids"] for row in read] == [tokenizer(prompt).input_ids for prompt in fitting], "nothing is cut"
    assert f"{10 - len(fitting)} dropped (prompt too long)" in str(report)


@both
def test_lab1_a_summary_cut_at_the_token_limit_is_not_counted_as_whole(architecture: str) -> None:
    """The lab's setting of ten tokens cuts the summary in the middle of a sentence, and nothing counts it."""
    short, long = completions(architecture, 0, 12), completions(architecture, 0, 40)
    flags = [cut for _, cut in short]
    assert set(flags) == {True, False}
    # The same random numbers draw the same text, which is whole if a longer limit adds nothing to it.
    assert flags == [part != whole for (part, _), (whole, _) in zip(short, long, strict=True)]


@both
def test_lab1_samples_are_not_unseeded(architecture: str) -> None:
    """The lab samples one text per temperature without a seed: the cell gives another text every time."""
    first, other = completions(architecture, 0, 12), completions(architecture, 1, 12)
    torch.manual_seed(9)
    assert completions(architecture, 0, 12) == first
    assert sum(one != two for one, two in zip(first, other, strict=True)) > len(first) / 2


# Lab 2: fine-tuning, and ROUGE before and after.


def test_lab2_padding_is_neither_learned_nor_read(tmp_path: Path) -> None:
    """The lab pads labels to 512 tokens that its loss counts, and drops the attention mask of the prompts."""
    config = parse(quickstart(tmp_path, "--policy.lora", "null"))[0]
    plan = plan_sft(config)
    trainer: Any = make_sft_trainer(config, plan, tmp_path)
    model, rows = trainer.model, sorted(plan.train_rows, key=lambda row: len(row["response_ids"]))[::9]
    batch = trainer.data_collator([trainer.train_dataset[plan.train_rows.index(row)] for row in rows])
    ids, labels = batch["input_ids"], batch["labels"]
    pairs = [(torch.tensor(row["prompt_ids"]), torch.tensor(row["response_ids"])) for row in rows]
    logprobs = torch.cat(
        [plain_logits(model, "t5", *pair).log_softmax(-1)[range(len(pair[1])), pair[1]] for pair in pairs]
    )
    with torch.no_grad():
        padding_learned = model(**batch | {"labels": labels.clamp(min=plan.tokenizer.pad_token_id)}).loss
        padding_read = model(input_ids=ids, labels=labels).loss
        loss = float(trainer.compute_loss(model, dict(batch)))
    assert loss == pytest.approx(-float(logprobs.mean()), rel=1e-5)
    assert abs(float(padding_learned) - loss) > 1e-3
    assert abs(float(padding_read) - loss) > 1e-3


def test_lab2_the_end_of_a_long_prompt_is_not_cut_off(tmp_path: Path) -> None:
    """The lab truncates prompts at 512 tokens from the right, where they ask for the summary."""
    tokenizer, template = tiny.tokenizer("t5"), "talk: {dialogue} sum:"
    rows = [{"dialogue": "ab " * words, "response": "a b"} for words in (2, 5, 30)]
    texts = [template.format(**row) for row in rows]
    cut = tokenizer(texts, truncation=True, max_length=32).input_ids
    assert not tokenizer.decode(cut[2], skip_special_tokens=True).endswith("sum:")
    source = DataSource(write(tmp_path / "long.jsonl", rows), template=template)
    context = Context(is_decoder_only=False, length=32)
    read, report = load_prompts(source, tokenizer, max_new_tokens=1, context=context, with_responses=True)
    assert [row["prompt_ids"] for row in read] == tokenizer(texts[:2]).input_ids
    assert (report.rows_read, report.dropped["prompt_too_long"]) == (3, 1)


@both
def test_lab2_the_untouched_model_is_not_changed_by_training(architecture: str, tmp_path: Path) -> None:
    """The lab's "original" model has taken a training step, and holds the adapter after the second half."""
    trainer = make_trainer(tmp_path, architecture)
    batch, policy = step(trainer)[0].batch, trainer.unwrapped
    with torch.no_grad():
        assert (policy.logprobs("sft", batch, 1.0) - policy(batch, 1.0).logprobs).abs().max() > 1e-2, "it trained"
        base = policy.logprobs("base", batch, 1.0)
    for row in range(8):
        expected = plain_logprobs(tiny.model(architecture), architecture, batch, row)
        assert torch.allclose(base[row][: len(expected)], expected, atol=1e-5)


def test_lab2_models_are_not_compared_with_dropout_on(tmp_path: Path) -> None:
    """The lab scores the "original" model as its trainer leaves it: in training mode."""
    sizes = {"vocab_size": 40, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    config = T5Config(**sizes, dropout_rate=0.1, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    ids = {"input_ids": torch.arange(5, 25)[None], "labels": torch.arange(5, 25)[None]}
    with_dropout = T5ForConditionalGeneration.from_pretrained(tmp_path).train()
    assert not torch.equal(with_dropout(**ids).logits, with_dropout(**ids).logits)
    model = load_model(PolicyConfig(str(tmp_path)), device=torch.device("cpu")).train()
    assert torch.allclose(model(**ids).logits, with_dropout.eval()(**ids).logits, atol=1e-5)


def test_lab2_scores_are_not_of_weights_that_the_run_did_not_train(tmp_path: Path) -> None:
    """The lab takes one step with each model, then scores summaries of others from a file."""
    rates = ["--sft.learning_rate", "1e-2", "--ppo.learning_rate", "3e-2", "--ppo.kl_coef", "0"]
    options = [*rates, "--reward.model", "length", "--evaluation.temperature", "0", "--evaluation.judges", "[]"]
    cli.launch([sft.STAGE, ppo.STAGE, evaluation.STAGE], "", quickstart(tmp_path, *options))
    run = tmp_path / "quickstart"
    examples = [json.loads(line) for line in (run / "evaluation" / "completions.jsonl").read_text().splitlines()]
    texts = {title: [row["completions"][title][0] for row in examples] for title in ("base", "sft", "aligned")}
    assert texts["base"] != texts["sft"] != texts["aligned"]
    for title, adapter in {"base": None, "sft": run / "sft", "aligned": run / "ppo"}.items():
        assert texts[title] == greedy_texts([row["prompt"] for row in examples], adapter, 6), title


def test_lab2_three_references_of_a_dialogue_are_not_three_prompts(tmp_path: Path) -> None:
    """The lab's ten test rows are four dialogues: DialogSum's test split has three summaries of each."""
    summaries = {f"summary{number}": text for number, text in enumerate(("one", "two", "three"), 1)}
    file = write(tmp_path / "together.jsonl", [{"prompt": "hello"} | summaries])
    options: Any = {"max_new_tokens": 8, "context": Context(is_decoder_only=False)}
    source = DataSource(file, columns={"reference": [*summaries]})
    (row,), _ = load_prompts(source, tiny.tokenizer("t5"), **options)
    assert row_references(row) == ["one", "two", "three"]
    once = np.random.default_rng(0).normal(size=(2, 40))
    first, apart = paired_difference(*once), paired_difference(*once.repeat(3, 1), groups=np.arange(40).repeat(3))
    assert (apart.low, apart.high) == pytest.approx((first.low, first.high)), "three rows of a dialogue count once"


def test_lab2_an_improvement_is_not_without_interval() -> None:
    """The lab subtracts two means and calls the result an improvement."""
    before, after = np.array([0.2, 0.5, 0.1, 0.4, 0.3]), np.array([0.4, 0.4, 0.3, 0.45, 0.5])
    changes = after - before
    error, drawn = changes.std(ddof=1) / 5**0.5, changes[list(product(range(5), repeat=5))]
    studentized = (drawn.mean(1) - changes.mean()) / np.maximum(drawn.std(1, ddof=1) / 5**0.5, 0.2 * error)
    high, low = changes.mean() - error * np.quantile(studentized, [0.025, 0.975])
    ends, result = (min(low, 0.11 - 2.776 * error), max(high, 0.11 + 2.776 * error)), paired_difference(before, after)
    assert (result.low, result.high) == pytest.approx(ends, abs=0.03)


# Lab 3: the reward, PPO, and toxicity before and after.


@pytest.fixture
def classifier(tmp_path: Path) -> HateClassifier:
    """A tiny classifier with the labels of the lab's reward."""
    return hate_classifier(tmp_path / "hate")


def test_lab3_the_reward_is_not_read_by_position(classifier: HateClassifier) -> None:
    """The lab takes the first entry of a list sorted by score: for a hateful text, the logit of hate."""
    folder, texts, logits = classifier.folder, classifier.texts, classifier.logits
    is_hate = (logits[:, 1] > logits[:, 0]).tolist()
    assert set(is_hate) == {True, False}
    outputs = pipeline("text-classification", folder)(texts, top_k=None, function_to_apply="none")
    assert [output[0]["label"] == "hate" for output in outputs] == is_hate
    scores = load_classifier(folder, target_label="nothate", polarity_pair=None)(["p"] * len(texts), texts)
    assert scores == pytest.approx((logits[:, 0] - logits[:, 1]).tolist(), abs=1e-4)
    assert [score < 0 for score in scores] == is_hate


@both
def test_lab3_kl_is_not_measured_from_the_bare_base(architecture: str, tmp_path: Path) -> None:
    """The lab's trainer turns the adapter off for the reference, so that KL is 29 nats before the first update."""
    rollout, metrics = step(make_trainer(tmp_path, architecture))
    base = tiny.model(architecture)
    from_base = [
        float(logprobs[mask].sum() - plain_logprobs(base, architecture, rollout.batch, row).sum())
        for row, (logprobs, mask) in enumerate(zip(rollout.logprobs, rollout.batch.response_mask, strict=True))
    ]
    assert np.mean(from_base) > 0.1
    assert metrics["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert metrics["objective/kl_k3"] == pytest.approx(0, abs=1e-4)


@both
def test_lab3_another_draw_is_not_an_effect(architecture: str) -> None:
    """The lab samples "before" and "after" with other random numbers, so that an unchanged model differs."""
    texts = [[text for text, _ in completions(architecture, seed, 12)] for seed in (0, 0, 1)]
    before, after, other_draw = (e_rate([""] * 12, draw) for draw in texts)
    assert np.mean(before) != np.mean(other_draw)
    result = paired_difference(before, after)
    assert (result.low, result.difference, result.high, result.same) == (0, 0, 0, 12)


def test_lab3_eleven_texts_are_no_evidence() -> None:
    """The lab prints a percentage for 11 texts: from -122 % to +61 % over its published runs."""
    before = np.random.default_rng(0).random(size=44)
    after = 0.6 * before
    eleven, all_texts = paired_difference(before[:11], after[:11]), paired_difference(before, after)
    assert eleven.high < 0
    assert (verdict_of(eleven, "lower"), verdict_of(all_texts, "lower")) == (SAME, BETTER)
    assert prompts_needed(before[:11], after[:11]) == 30


@both
def test_lab3_the_prompt_and_special_tokens_are_not_scored(
    architecture: str, tmp_path: Path, classifier: HateClassifier
) -> None:
    """The lab scores the dialogue, "</s>", "<pad>" and the summary as one text, in the reward and in the judge."""
    reward = load_classifier(classifier.folder, target_label="nothate", polarity_pair=None)
    trainer = make_trainer(tmp_path, architecture, reward=reward)
    rollout = trainer.rollout(trainer.batch(0))
    texts = plain_texts(architecture, rollout.batch)
    logits = classifier.logits_of(texts)
    assert rollout.completions == texts
    assert rollout.scores.tolist() == pytest.approx((logits[:, 0] - logits[:, 1]).tolist(), abs=1e-4)


def test_lab3_the_reward_is_not_its_own_judge(tmp_path: Path) -> None:
    """The lab's toxicity is the probability that its reward model gives."""
    config = load(tmp_path, GOOD, "--evaluation.judges", "[toy_lexicon]")
    assert load_judges(config, load_scorer(Scorer("toy_lexicon"))).judges == {}
    for judges, word in ((["reward"], SAME), (["reward", "lexicon"], BETTER)):
        fell = [
            make_difference(Metric("toxicity", "lower", judge), 0.4, 0.1, BETTER, interval=(-0.4, -0.2))
            for judge in judges
        ]
        results = make_results([make_set("test", fell)], judges=judges)
        assert toxicity_verdict(results, reward_must_rise=False).word == word


@both
def test_lab3_advantages_are_not_reported_whitened(architecture: str, tmp_path: Path) -> None:
    """The lab asks to maximize the mean of whitened advantages, which is 0 by construction: it prints 6e-10."""
    trainer = make_trainer(tmp_path, architecture, lam=0.5)
    rollout, metrics = step(trainer)
    # Before the first update values and KL are 0, so an advantage is the score, discounted by the tokens after it.
    lengths = rollout.batch.response_mask.sum(dim=1).tolist()
    advantages = [
        float(score) * 0.5**after
        for score, length in zip(rollout.scores, lengths, strict=True)
        for after in range(length)
    ]
    assert np.mean(advantages) > 1e-3
    assert metrics["advantages/mean"] == pytest.approx(np.mean(advantages), rel=1e-4)
    assert metrics["advantages/std"] == pytest.approx(np.std(advantages), rel=1e-4)


@both
def test_lab3_the_first_token_is_not_left_untrained(architecture: str, tmp_path: Path) -> None:
    """The lab's trainer masks the first token of an encoder-decoder, and refuses responses that have no other."""
    trainer = make_trainer(tmp_path, architecture, reward=vowels, max_new_tokens=1, batch_size=32, kl_coef=0.0)
    rollout, _ = step(trainer)
    assert rollout.batch.response_mask.all()
    ids = torch.tensor(tiny.tokenizer(architecture).convert_tokens_to_ids(list("aeiou")))
    prompt = rollout.batch.prompt_ids[0][rollout.batch.prompt_mask[0]]
    step(trainer)
    masses = {}
    for name in ("sft", "policy"):
        with trainer.unwrapped.variant(name) as model:
            logits = plain_logits(model, architecture, prompt, ids[:1])
        masses[name] = float(logits[0].softmax(-1)[ids].sum())
    assert masses["policy"] > masses["sft"] + 0.02


@both
def test_lab3_a_minimum_length_is_not_forced_on_samples(architecture: str) -> None:
    """The lab forbids the stop token for five tokens, and scores the samples as if it had been allowed."""
    policy, tokenizer = tiny.policy(architecture, lora=True), tiny.tokenizer(architecture)
    prompt = torch.tensor(tokenizer("hello").input_ids)
    batch = policy.generate(*policy.pad_prompts([prompt.tolist()] * 4000), max_new_tokens=2, temperature=1.0)
    with policy.variant("policy") as model:
        expected = plain_logits(model, architecture, prompt, torch.tensor([5]))[0].softmax(-1)[policy.stop_ids].sum()
    assert float(expected) > 0.01
    stopped = batch.response_mask.sum(dim=1) == 1
    assert float(stopped.float().mean()) == pytest.approx(float(expected), rel=0.2)


@both
def test_lab3_values_are_not_drawn_with_dropout(architecture: str) -> None:
    """The lab's value head keeps its dropout of 0.1: old and new values of the same weights differ."""
    policy = tiny.policy(architecture, lora=True).train()
    torch.nn.init.normal_(policy.value_head.weight)
    batch = policy.make_batch([[5, 6, 7]], [[8, 9, 10, 11]])
    assert torch.equal(policy(batch, 1.0).values, policy(batch, 1.0).values)
    assert policy(batch, 1.0).values.abs().max() > 1e-3


def test_lab3_prompts_that_sft_trained_on_are_not_called_held_out(tmp_path: Path) -> None:
    """The lab cuts its test prompts out of the split that the SFT adapter was trained on."""
    sets = {split: evaluation_source(40, split) for split in ("train", "test")}
    config = parse([*quickstart(tmp_path), "--evaluation.data", json.dumps(sets)])[0]
    loaded, _ = load_prompt_sets(config, {config.policy.model: load_tokenizer(config.policy.model)}, {})
    trained = {row["dialogue"] for kind in ("sft", "summaries") for row in toy_rows(kind, "train")[:64]}
    counts = {data.name: sum(row["dialogue"] in trained for row in data.rows) for data in loaded}
    assert counts["train"] > 0
    assert {data.name: data.seen_in_training for data in loaded} == counts


def test_lab3_a_misspelt_setting_is_not_ignored(tmp_path: Path) -> None:
    """The lab's first version evaluates with `tok_k`, so that top_k stays at the library's default of 50."""
    with pytest.raises(UserError, match=r"^--evaluation\.tok_k: unknown key; did you mean --evaluation\.top_k\?"):
        load(tmp_path, GOOD, "--evaluation.tok_k", "5")

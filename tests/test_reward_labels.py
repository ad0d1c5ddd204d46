"""A classifier is read by the label that the configuration names, and points the right way in every role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CHAIN, small
from tiny_classifiers import build, save

from reward_models import preference
from reward_models.classifier import POLARITY_PAIR, ToxicityClassifier, load
from workbench.config.sources import Scorer
from workbench.errors import RewardError, UserError
from workbench.rewards.registry import load_judge, load_reward
from workbench.run import cli

JIGSAW = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
TEXTS = ["Thank you.", "You are a fool, and a long way from home."]


def classifier(folder: Path, labels: list[str], **config: Any) -> str:
    """A folder with a random BERT that has these labels."""
    model, tokenizer = build("bert", dict(enumerate(labels)))
    model.config.update(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def rude_first(folder: Path, labels: list[str]) -> str:
    """A folder with a classifier whose first label has a higher logit for the rude sentence than for the polite one."""
    model, tokenizer = build("bert", dict(enumerate(labels)))
    model.eval()
    with torch.no_grad():
        polite, rude = (model(**tokenizer(text, return_tensors="pt")).logits[0, 0] for text in POLARITY_PAIR)
        model.classifier.weight.mul_(torch.sign(rude - polite))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def logits_of(reward: ToxicityClassifier) -> torch.Tensor:
    """The logits (texts, labels) of TEXTS, each text by itself."""
    rows = [reward.network.tokenizer(text, return_tensors="pt") for text in TEXTS]
    with torch.no_grad():
        return torch.cat([reward.network.model(**row).logits for row in rows])


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
@pytest.mark.parametrize("label", ["toxic", "insult"])
def test_one_of_several_independent_labels_is_read_by_its_own_sigmoid(
    problem_type: str | None, label: str, tmp_path: Path
) -> None:
    folder = classifier(tmp_path / "jigsaw", JIGSAW, problem_type=problem_type)
    unwanted = load(folder, penalized_label=label, polarity_pair=None)
    logits = logits_of(unwanted)[:, JIGSAW.index(label)]
    assert unwanted(["", ""], TEXTS) == pytest.approx((-logits).tolist(), abs=1e-5)
    assert unwanted.judge()(TEXTS) == pytest.approx(torch.sigmoid(logits).tolist(), abs=1e-6)
    target = load(folder, target_label=label, polarity_pair=None)
    assert target(["", ""], TEXTS) == pytest.approx(logits.tolist(), abs=1e-5)
    assert target.judge()(TEXTS) == pytest.approx((1 - torch.sigmoid(logits)).tolist(), abs=1e-6)


def test_an_penalized_label_among_exclusive_ones_is_read_by_their_softmax(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "sentiment", ["negative", "neutral", "positive"])
    reward = load(folder, penalized_label="negative", polarity_pair=None)
    logits = logits_of(reward).double()
    margin = logits[:, 0] - torch.logsumexp(logits[:, 1:], dim=1)
    assert reward(["", ""], TEXTS) == pytest.approx((-margin).tolist(), abs=1e-5)
    assert reward.judge()(TEXTS) == pytest.approx(torch.softmax(logits, 1)[:, 0].tolist(), abs=1e-6)
    independent = load(folder, penalized_label="negative", multi_label=True, polarity_pair=None)
    assert independent(["", ""], TEXTS) == pytest.approx((-logits[:, 0]).tolist(), abs=1e-5)


def test_the_names_of_a_multi_label_classifier_are_offered(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "jigsaw", JIGSAW, problem_type="multi_label_classification")
    with pytest.raises(UserError, match=r"to one of toxic, .*identity_hate; or penalized_label, the label to penal"):
        load_reward(folder)
    with pytest.raises(
        UserError, match=r"penalized_label is 'toxicity', but its labels are toxic, .*did you mean toxic"
    ):
        load_reward(folder, penalized_label="toxicity")
    with pytest.raises(UserError, match="target_label is 'threat' and penalized_label 'toxic'; set only one of them"):
        load_reward(folder, penalized_label="toxic", target_label="threat")
    with pytest.raises(UserError, match="multi_label is 'yes'; use true or false"):
        load_reward(folder, penalized_label="toxic", multi_label="yes")


@pytest.mark.parametrize("label", ["toxicity", "LABEL_0", "score"])
def test_one_label_for_which_lower_is_better_is_refused_and_read_the_other_way(label: str, tmp_path: Path) -> None:
    folder = rude_first(tmp_path / "one", [label])
    advice = rf"the first must score higher; .*; if lower is better, set penalized_label: {label}, which penalizes it"
    with pytest.raises(RewardError, match=advice):
        load_reward(folder)
    reward = load_reward(folder, penalized_label=label)
    (logit, other) = logits_of(reward.reward)[:, 0].tolist()
    assert reward(["", ""], TEXTS) == pytest.approx([-logit, -other], abs=1e-5)
    assert load_judge(Scorer(folder, {"penalized_label": label}))(TEXTS) == pytest.approx(
        torch.sigmoid(torch.tensor([logit, other])).tolist(), abs=1e-6
    )
    with pytest.raises(
        RewardError, match=f"target_label is {label}; if the opposite is meant, set penalized_label: {label}"
    ):
        load_reward(folder, target_label=label)
    assert load_reward(folder, polarity_pair=POLARITY_PAIR[::-1]), "a reward for rudeness, if that is what one wants"


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda folder: ["--reward.model", folder], "reward"),
        (lambda folder: ["--reward.model", "combine", "--reward.options", f"{{terms: [length, '{folder}']}}"], "term"),
        (lambda folder: ["--reward.model", "ensemble", "--reward.options", f"{{members: [length, '{folder}']}}"], "m"),
        (
            lambda folder: ["--evaluation.judges", f"[{{model: '{folder}', options: {{target_label: toxicity}}}}]"],
            "judge",
        ),
        (lambda folder: ["--evaluation.rewards", f"['{folder}']"], "evaluation"),
        (lambda folder: ["--reward.held_out", f"{{model: '{folder}'}}", "--ppo.validation", HELD_OUT], "held out"),
    ],
)
def test_the_plan_refuses_one_that_points_the_wrong_way_in_every_role(
    wrap: Any, key: str, tmp_path: Path, in_project: Path
) -> None:
    folder = rude_first(tmp_path / "model", ["toxicity"])
    with pytest.raises(UserError, match="penalized_label: toxicity"):
        cli.launch(CHAIN, "", [*small("quickstart", tmp_path / "runs", *wrap(folder)), "--dry_run"])


HELD_OUT = "{path: toy:summaries, template: '{dialogue}', columns: {reference: summary}, split: validation, limit: 10}"


@pytest.mark.parametrize("pair", [["only one"], "two texts", ["same", "same"], ["", "rude"], [1, 2]])
def test_a_polarity_pair_is_two_different_sentences(pair: Any, tmp_path: Path) -> None:
    folder = save(tmp_path, "bert")
    with pytest.raises(UserError, match=r"polarity_pair is .*; use .*, or null"):
        load(folder, polarity_pair=pair)


def test_a_preference_model_is_scored_as_it_was_trained(tmp_path: Path) -> None:
    model, tokenizer = build("gpt2", {0: "score"})
    for name, trained_with in (("with", True), ("without", False)):
        model.config.update({"preference_with_prompts": trained_with})
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    alone, after = (preference.load(str(tmp_path / name)) for name in ("without", "with"))
    assert alone(["p"], ["text"]) == alone(["another"], ["text"]) == after([""], ["text"])
    assert after(["p"], ["text"]) != after(["another"], ["text"])
    with pytest.raises(UserError, match="prompt is true, but it was trained without prompts; leave prompt out"):
        load_reward(str(tmp_path / "without"), prompt=True)
    with pytest.raises(UserError, match="prompt is false, but it was trained with prompts; leave prompt out"):
        load_reward(str(tmp_path / "with"), prompt=False)


def test_the_plan_says_how_much_of_a_response_a_shorter_reward_cannot_read(
    tmp_path: Path, in_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, longer = save(tmp_path / "short", "bert"), save(tmp_path / "long", "bert", {0: "score"})
    term = f"{{model: '{folder}', options: {{polarity_pair: null, max_tokens: 40}}}}"
    held_out = f"{{model: '{longer}', options: {{polarity_pair: null}}}}"
    arguments = [
        *("--reward.model", "combine", "--reward.options", f"{{terms: [length, {term}]}}"),
        *("--reward.held_out", held_out, "--ppo.validation", HELD_OUT, "--evaluation.max_new_tokens", "50"),
        *("--evaluation.judges", f"[{{model: '{longer}', options: {{penalized_label: score, max_tokens: 30}}}}]"),
    ]

    def plan(tokens: int) -> str:
        options = [*arguments, "--ppo.max_new_tokens", str(tokens), "--dry_run"]
        cli.launch(CHAIN, "", small("quickstart", tmp_path / "runs", *options))
        return capsys.readouterr().out

    printed = plan(100)
    assert "reward.model: combine reads at most 40 tokens (by its own tokenizer) of a response, which may" in printed
    assert "may have 100: up to 60 tokens at its end are not scored; lower ppo.max_new_tokens" in printed
    assert f"reward.held_out: {longer} reads at most 64 tokens" in printed
    assert "up to 36 tokens at its end are not scored" in printed
    assert "evaluation: reward.model: the reward reads at most 40 tokens" in printed
    assert f"evaluation.judges: {longer} reads at most 30 tokens (by its own tokenizer)" in printed
    assert "which may have 50: up to 20 tokens at its end are not scored; lower evaluation.max_new_tokens" in printed
    printed = plan(40)
    assert "reward.model: combine reads" not in printed
    assert "reward.held_out" not in printed
    assert load_reward("length").max_completion_tokens() is None

"""Best-of-n: of several samples, the one with the highest reward, and how far that moves a policy at most."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator
from small_runs import evaluation_source, small
from trainers import e_rate, make_rows

from recipes import evaluation
from workbench.config.parsing import parse
from workbench.errors import UserError
from workbench.evaluation.best_of import best_completions, candidate_sampling, kl_bound
from workbench.evaluation.generation import ComparedModel, Sampling, sample_completions
from workbench.evaluation.results import Results
from workbench.evaluation.results_files import read_examples, read_results
from workbench.run import cli

SAMPLING = Sampling(batch_size=8, max_new_tokens=8, temperature=1.0, seeds=(3, 4))


def test_the_best_of_each_completions_own_candidates_is_chosen() -> None:
    policy = tiny.policy("gpt2", lora=True)
    model = ComparedModel("sft", policy, "sft", tiny.tokenizer("gpt2"), policy, with_token_log_ratios=False)
    rows = make_rows("gpt2", 5)
    plain, candidates = (
        sample_completions(model, rows, sampling, accelerator=Accelerator(cpu=True), label="test")
        for sampling in (SAMPLING, candidate_sampling(SAMPLING, 4))
    )
    chosen = best_completions(candidates, 4, rows, e_rate)
    for row, by_seed, several, best in zip(rows, plain, candidates, chosen, strict=True):
        texts = [completion.text for completion in by_seed]
        assert [several[0].text, several[4].text] == texts, "the first candidate is what the model alone would say"
        for number, completion in enumerate(best):
            group = several[4 * number : 4 * number + 4]
            scores = e_rate([row["prompt"]] * 4, [each.text for each in group])
            expected = group[scores.index(max(scores))]
            assert completion == dataclasses.replace(expected, kl=expected.kl + kl_bound(4))


def test_the_bound_is_the_kl_of_choosing_among_many_distinct_samples() -> None:
    """Of n draws from 4,000 equally likely values, the highest: its distribution is known exactly."""
    size = 4000
    for n in (2, 4, 16):
        cumulated = (torch.arange(size + 1, dtype=torch.float64) / size) ** n
        probabilities = cumulated.diff()
        kl = float((probabilities * (probabilities * size).log()).nan_to_num().sum())
        assert kl <= kl_bound(n)
        assert kl == pytest.approx(kl_bound(n), rel=0.01)
    assert kl_bound(1) == 0


def evaluate(folder: Path, *options: str) -> Results:
    """Return the results of an evaluation that trains nothing."""
    toy = {"model": "length", "options": {"target": 3}}
    settings = [*small("quickstart", folder), "--sft", "null", "--ppo", "null", "--reward", json.dumps(toy), *options]
    cli.launch([evaluation.STAGE], "", settings)
    return read_results(folder / "quickstart" / "evaluation" / "results.json")


def test_it_stands_beside_the_model_that_it_samples_from(in_project: Path, tmp_path: Path) -> None:
    sets = json.dumps({"test": evaluation_source(6)})
    best_of = json.dumps({"best of 2": {"model": "base", "n": 2}, "best of 8": {"model": "base", "n": 8}})
    options = ["--evaluation.data", sets, "--evaluation.best_of", best_of, "--evaluation.samples", "2"]
    results = evaluate(tmp_path, *options)
    assert results.models == ["base", "best of 2", "best of 8"]
    result = results.sets[0]
    means = next(s.means for s in result.summaries if s.metric.name == "reward")
    assert means["base"] <= means["best of 2"] <= means["best of 8"]
    assert means["base"] < means["best of 8"]
    kls = result.summary("KL to reference, nats").means
    assert kls["base"] == pytest.approx(0, abs=1e-6)
    for title, n in (("best of 2", 2), ("best of 8", 8)):
        assert kls[title] == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-5)
    examples = read_examples(tmp_path / "quickstart" / "evaluation" / "completions.jsonl", results)
    for title, example in itertools.product(results.models, examples):
        assert len(example.completions[title]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": {"model": "sfd"}}, "evaluation.best_of.x.model: 'sfd' is not among the compared models, base"),
        ({"sft": {"model": "base"}}, "evaluation.best_of.sft: this title is taken"),
        ({"x": {"model": "base", "n": 1}}, "evaluation.best_of.x.n: 1 must be between 2 and 1024"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(options: dict, message: str, in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        evaluate(tmp_path, "--evaluation.best_of", json.dumps(options))
    assert str(error.value).startswith(message)


def test_greedy_completions_leave_nothing_to_choose(in_project: Path, tmp_path: Path) -> None:
    best_of = json.dumps({"x": {"model": "base", "n": 4}})
    with pytest.raises(UserError, match="temperature 0 samples the same completion 4 times"):
        evaluate(tmp_path, "--evaluation.best_of", best_of, "--evaluation.temperature", "0")


def test_a_reused_sft_stage_is_a_model_to_sample_from(tmp_path: Path) -> None:
    best_of = json.dumps({"best of 2": {"model": "sft", "n": 2}})
    options = [*small("quickstart", tmp_path), "--sft", "null", "--ppo", "null", "--evaluation.best_of", best_of]
    with pytest.raises(UserError, match="'sft' is not among the compared models"):
        parse(options)
    assert parse([*options, "--reuse.sft", "runs/other"])[0].sft is None

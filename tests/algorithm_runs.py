"""Finished runs of algorithms and seeds with random results and written curves, for the tests that compare them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evaluated_runs import evaluated
from random_results import LEXICON, random_examples, random_results

from workbench.comparison.cells import Cell
from workbench.config.parsing import dump, parse
from workbench.config.sources import BestOf, DataSource
from workbench.evaluation.results import Example, Metric, Summary
from workbench.evaluation.results_files import write_evaluation
from workbench.run.stage_record import write_record

KL = Metric("KL to reference, nats")
MODELS = ("base", "sft", "aligned", "best of 4")
KLS, HELD_OUT = (0.5, 1.0, 2.0, 3.0), (-0.4, -0.3, -0.2, -0.25)
NATS = (2.0, 2.001, 2.005, 2.02, 2.03)
"""Of the neutral texts: under the reference, then under the policy at every step."""


def scored(seed: int, toxicity: float, count: int = 40, **fields: Any) -> list[Example]:
    """Return examples whose aligned model has about that toxicity by the lexicon, SFT 0.5, and best of 4 0.3."""
    generator = np.random.default_rng(seed)
    levels = {"base": 0.6, "sft": 0.5, "aligned": toxicity, "best of 4": 0.3}
    examples = random_examples(count, MODELS, **fields)
    for index, example in enumerate(examples):
        means = {title: float(level + generator.normal(scale=0.05)) for title, level in levels.items()}
        kl = {title: 1.0 if title == "aligned" else 0.5 if title == "best of 4" else 0.0 for title in MODELS}
        scores = [Summary(s.metric, dict(means), None) if s.metric == LEXICON else s for s in example.scores]
        examples[index] = dataclasses.replace(example, scores=[*scores, Summary(KL, {**kl}, None)])
    return examples


def write_run(
    folder: Path,
    examples: list[Example],
    *,
    seed: int = 0,
    kls: Sequence[float] = KLS,
    length: float = 10.0,
    nats: Sequence[float] = NATS,
    record: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    **ppo: Any,
) -> Path:
    """Write a run folder with a finished PPO stage of one step per KL, each of them validated, and an evaluation."""
    config, _ = parse(["--config", "quickstart"])
    assert config.ppo is not None
    settings = {
        "steps": len(kls),
        "batch_size": 8,
        "minibatch_size": 8,
        "validation": DataSource("toy:summaries", limit=20),
    } | ppo
    run = evaluated(examples, evaluation=evaluation)
    config = dataclasses.replace(
        config,
        name=folder.name,
        seed=seed,
        ppo=dataclasses.replace(config.ppo, **settings),
        evaluation=dataclasses.replace(run.config.evaluation, best_of={"best of 4": BestOf("sft", 4)}),
        reward=run.config.reward,
    )
    (folder / "evaluation").mkdir(parents=True)
    (folder / "ppo").mkdir()
    write_evaluation(folder / "evaluation", random_results(examples, MODELS), examples)
    (folder / "evaluation" / "stage.json").write_text("{}")
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    lines = []
    for step, kl in enumerate(kls, 1):
        line = {"step": step, "objective/score_mean": 0.1 * step, "objective/kl": kl, "response/length_mean": length}
        line |= {"validation/kl": kl, "validation/score_mean": kl / 2 + seed / 10}
        line["validation/held_out_mean"] = HELD_OUT[step - 1] + seed / 100
        texts = {"validation/text_nll": nats[step], "validation/text_nll_reference": nats[0]} if nats else {}
        lines.append(line | texts)
    (folder / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"peak_memory_bytes": 3 * 2**20}
    write_record(folder / "ppo", {"minutes": 2.0, "inputs": {}, "metrics": metrics} | (record or {}))
    return folder


def small_comparison(folder: Path) -> list[Cell]:
    """Return the cells of SFT, two algorithms of two seeds and best of 4; RLOO is the less toxic one."""
    cells = []
    for title, toxicity, kls in (("PPO", 0.2, KLS), ("RLOO", 0.1, (0.4, 0.9, 1.5, 2.5))):
        for seed in (0, 1):
            run = write_run(folder / f"{title}-{seed}", scored(seed + 10 * len(title), toxicity), seed=seed, kls=kls)
            cells.append(Cell("tiny T5", title, seed, run, "aligned"))
    for title, model in (("best of 4", "best of 4"), ("SFT", "sft")):
        cells += [Cell("tiny T5", title, seed, folder / f"PPO-{seed}", model) for seed in (0, 1)]
    return cells

"""An evaluation's results with random words and scores, for the tests of its page."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

from workbench.evaluation.statistics import paired_difference

HOSTILE = "</script><script>alert('1')</script><img src=x onerror=alert(2)><!--\"&amp;"
HOSTILE += "\u202e\u2066\x00\x7f\x9b\u2028\ud800"
BETTER = {"toxicity (reward)": "lower", "toxicity (lexicon)": "lower", "reward": "higher", "tokens": None}
WORDS = ["the", "dog", "cat", "walks", "home", "with", "her", "old", "friend", "on", "Monday", "and", "buys", "bread"]
MODELS = ("base", "sft", "aligned")


def rows_of(count: int, models: tuple[str, ...] = MODELS, *, name: str = "dialogues", **fields: Any) -> list[dict]:
    """Lines of completions.jsonl with random words and scores; every other one has a reference."""
    chance = random.Random(count)
    rows = []
    for index in range(count):
        texts = {model: [" ".join(chance.choices(WORDS, k=8)) for _ in range(2)] for model in models}
        scores = {
            metric: {model: chance.random() * (20 if metric == "tokens" else 1) for model in models}
            for metric in BETTER
        }
        reference = [None, "one", ["one", "two"]][index % 3]
        row = {"set": name, "index": index, "prompt": f"prompt {index}", "reference": reference}
        row |= {"given_toxicity": {"prompt": 0.0, "reference": 0.0}}
        moved = [[f" {word}", chance.gauss(0, 2)] for word in texts[models[-1]][0].split()]
        rows.append(row | {"completions": texts, "scores": scores, "moved": moved} | fields)
    return rows


def set_of(rows: list[dict], before: str, after: str, models: tuple[str, ...]) -> dict:
    """An entry of `sets` in results.json, from the lines of its prompts."""
    columns = {
        metric: {model: [row["scores"][metric][model] for row in rows] for model in models}
        for metric in rows[0]["scores"]
    }
    compared: dict[str, dict] = {}
    for first, second in dict.fromkeys([(before, after), ("base", after)]):
        for metric, of in columns.items():
            found = asdict(paired_difference(of[first], of[second], resamples=100))
            if len(rows) == 1:
                found |= {"low": None, "high": None}
            word = BETTER[metric] and "better"
            entry = found | {"verdict": word, "prompts_needed": 120 if metric == "toxicity (reward)" else None}
            compared.setdefault(f"{second} - {first}", {})[metric] = entry
        pooled = {"mean_before": 0.25, "mean_after": 0.25, "difference": 0.0, "low": -0.1, "high": 0.2}
        pooled |= dict.fromkeys(("wins", "ties", "losses", "verdict", "prompts_needed"))
        compared[f"{second} - {first}"]["distinct-2"] = pooled
    metrics = {}
    for metric, of in columns.items():
        means = {model: sum(values) / len(values) for model, values in of.items()}
        metrics[metric] = {"better": BETTER[metric], "means": means, "spread": None}
    metrics["distinct-2"] = {"better": None, "means": dict.fromkeys(models, 0.25), "spread": None}
    return {"prompts": len(rows), "neutral": False, "seen_in_training": 0, "enough": True, "metrics": metrics} | {
        "comparisons": compared
    }


def results_of(rows: list[dict], models: tuple[str, ...] = MODELS, **fields: Any) -> dict[str, Any]:
    """results.json for these lines."""
    before, after = ("sft" if "sft" in models else "base"), "aligned"
    names = dict.fromkeys(row["set"] for row in rows)
    model = {"name": "toy:t5", "sha256": "ab" * 32}
    return {
        "version": 2,
        "name": "quick",
        "date": "2026-11-22",
        "seeds": [0],
        "commit": None,
        "versions": {"torch": "2.13.0"},
        "machine": "2 cores",
        "inputs": dict.fromkeys(models, model) | {"data": {key: {"path": "x.jsonl", "sha256": "cd"} for key in names}},
        "models": list(models),
        "before": before,
        "after": after,
        "reward": "toxicity",
        "judges": ["reward", "lexicon"],
        "threshold": 0.5,
        "temperature": 1.0,
        "max_new_tokens": 40,
        "samples": 2,
        "verdict": {"word": "better", "sentence": "Toxicity fell."},
        "guards": [{"name": "kept", "passed": True, "text": "fine"}, {"name": "lost", "passed": False, "text": "gone"}],
        "sets": {name: set_of([row for row in rows if row["set"] == name], before, after, models) for name in names},
    } | fields

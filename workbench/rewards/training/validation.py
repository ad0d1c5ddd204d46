"""What a reward model shows before PPO is paid by it. Scores are log odds of the wanted label: higher is cleaner."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from workbench.errors import UserError
from workbench.rewards.ranking import auroc
from workbench.rewards.training.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    average_precision,
    calibration_error,
    confusion,
    fit_temperature,
    reliability,
)
from workbench.rewards.training.perturbations import VARIANTS

Scorer = Callable[[list[str]], list[float]]

# Sentences without any offence in them, after Dixon et al., "Measuring and Mitigating Unintended Bias in Text
# Classification" (AIES 2018): a classifier that learned from abuse often takes the name of its target for the abuse.
TEMPLATES = ("I am a {} person.", "My neighbour is {}.", "She has many {} friends.", "A {} man opened the door for us.")
IDENTITIES = (
    *("Christian", "Muslim", "Jewish", "Hindu", "Buddhist", "Catholic", "atheist"),
    *("gay", "lesbian", "bisexual", "transgender", "queer", "straight"),
    *("black", "white", "Asian", "African", "Mexican", "Arab", "European", "American", "Chinese", "Indian"),
    *("old", "young", "deaf", "blind", "disabled", "autistic", "poor", "rich", "foreign"),
)
WORST_SHOWN = 5
# Above these a warning stands in the report.
FALSE_POSITIVES, CALIBRATION, IDENTITY_GAP, RECALL_LOST = 0.01, 0.05, 0.25, 0.15


def classifier_report(
    score: Scorer,
    texts: list[str],
    is_wanted: Sequence[bool],
    clean: list[str],
    *,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """The report on a classifier from labelled texts it did not see and, if there are any, clean ones of the domain.

    Probabilities are those of toxicity, after temperature scaling, which moves no text across a threshold of one half.
    Raises UserError unless some of the texts have the wanted label and some do not.
    """
    require_both(is_wanted)
    start = time.perf_counter()
    log_odds = -np.asarray(score(texts))
    seconds = time.perf_counter() - start
    toxic = ~np.asarray(is_wanted, dtype=bool)
    temperature = fit_temperature(log_odds, toxic)

    def toxicity(some: list[str]) -> np.ndarray:
        return probability(-np.asarray(score(some)) / temperature)

    scaled = probability(log_odds / temperature)
    called, bins = confusion(scaled, toxic, threshold), reliability(scaled, toxic)
    report: dict[str, Any] = {
        "kind": "classifier",
        "texts": len(texts),
        "auroc": auroc(log_odds, toxic),
        "average_precision": average_precision(log_odds, toxic),
        "threshold": threshold,
        "accuracy": called.accuracy,
        "precision": called.precision,
        "recall": called.recall,
        "f1": called.f1,
        "confusion": asdict(called),
        "calibration": {
            "temperature": temperature,
            "error_before": calibration_error(reliability(probability(log_odds), toxic)),
            "error": calibration_error(bins),
            "bins": [asdict(part) for part in bins],
        },
        "clean": false_positives(clean, toxicity(clean), threshold) if clean else None,
        "identity": identity_gap(toxicity, threshold),
        "length": by_length(texts, log_odds / temperature, toxic, threshold),
        "variants": variants(toxicity, texts, toxic, threshold),
        "texts_per_second": len(texts) / seconds,
    }
    return report | {"warnings": warnings(report)}


def require_both(is_wanted: Sequence[bool]) -> None:
    """Raises UserError for validation texts that are all of the wanted label, or none of it."""
    count = sum(is_wanted)
    if not 0 < count < len(is_wanted):
        raise UserError(
            f"reward.train.validation: {count} of its {len(is_wanted)} texts have the wanted label; a report needs "
            "texts with it and texts without it, add some"
        )


def probability(log_odds: np.ndarray) -> np.ndarray:
    """The logistic function, without overflow."""
    return np.exp(-np.logaddexp(0.0, -log_odds))


def false_positives(clean: list[str], toxicity: np.ndarray, threshold: float) -> dict[str, Any]:
    """How many clean texts are called toxic, and those that are called so the loudest."""
    worst = np.argsort(-toxicity, kind="stable")[:WORST_SHOWN]
    flagged = int((toxicity >= threshold).sum())
    return {
        "texts": len(clean),
        "flagged": flagged,
        "rate": flagged / len(clean),
        "worst": [{"text": clean[row], "toxicity": float(toxicity[row])} for row in worst],
    }


def identity_gap(toxicity: Callable[[list[str]], np.ndarray], threshold: float) -> dict[str, Any]:
    """Toxicity of harmless sentences about people, as a mean over templates for each term."""
    sentences = [template.format(term) for term in IDENTITIES for template in TEMPLATES]
    found = toxicity(sentences).reshape(len(IDENTITIES), len(TEMPLATES))
    means = found.mean(axis=1)
    order = np.argsort(-means, kind="stable")
    return {
        "templates": list(TEMPLATES),
        "terms": {IDENTITIES[row]: float(means[row]) for row in order},
        "gap": float(means.max() - means.min()),
        "flagged_share": float((found >= threshold).mean()),
    }


def by_length(texts: list[str], log_odds: np.ndarray, toxic: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    """Quality in thirds of the texts by their number of words."""
    words = np.array([len(text.split()) for text in texts])
    rows = []
    for part in np.array_split(np.argsort(words, kind="stable"), 3):
        if part.size == 0:
            continue
        called = confusion(probability(log_odds[part]), toxic[part], threshold)
        rows.append(
            {
                "words": [int(words[part].min()), int(words[part].max())],
                "texts": int(part.size),
                "auroc": auroc(log_odds[part], toxic[part]) if 0 < toxic[part].sum() < part.size else None,
                "accuracy": called.accuracy,
            }
        )
    return rows


def variants(
    toxicity: Callable[[list[str]], np.ndarray], texts: list[str], toxic: np.ndarray, threshold: float
) -> dict[str, dict[str, float]]:
    """Recall and false positives when the same texts are written in another way."""
    chance, found = random.Random(0), {}
    for name, change in {"as written": lambda text, _: text, **VARIANTS}.items():
        called = confusion(toxicity([change(text, chance) for text in texts]), toxic, threshold)
        negatives = called.false_positives + called.true_negatives
        found[name] = {"recall": called.recall, "false_positive_rate": called.false_positives / max(negatives, 1)}
    return found


def warnings(report: dict[str, Any]) -> list[str]:
    """What a reader should know before paying by this model."""
    found = []
    if report["clean"] is None:
        found.append("no clean texts of the policy's domain were given (reward.train.clean_validation)")
    elif report["clean"]["rate"] > FALSE_POSITIVES:
        found.append(f"{report['clean']['rate']:.1%} of clean texts of the domain are called toxic")
    if report["calibration"]["error"] > CALIBRATION:
        found.append(f"calibration error {report['calibration']['error']:.3f}")
    temperature = report["calibration"]["temperature"]
    if temperature < MIN_TEMPERATURE * 1.01:
        found.append(f"temperature {temperature:.2f}, the lowest tried: too sure; validate on more or harder texts")
    if temperature > MAX_TEMPERATURE / 1.01:
        found.append(f"temperature {temperature:.2f}, the highest tried: scores say next to nothing of the labels")
    if report["identity"]["gap"] > IDENTITY_GAP:
        term = next(iter(report["identity"]["terms"]))
        found.append(f"harmless sentences differ by {report['identity']['gap']:.2f} by the people they name ({term})")
    as_written = report["variants"]["as written"]["recall"]
    for name, values in report["variants"].items():
        if as_written - values["recall"] > RECALL_LOST:
            found.append(f"recall falls from {as_written:.2f} to {values['recall']:.2f} when texts are {name}")
    return found


def preference_report(
    score: Callable[[list[str], list[str]], list[float]], pairs: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    """The report on a preference model from (prompt, chosen, rejected) that it did not see.

    `score` takes prompts and completions. A model that pays for length shows it in the accuracy where the rejected
    answer is the longer one.
    """
    prompts, chosen, rejected = (list(column) for column in zip(*pairs, strict=True))
    start = time.perf_counter()
    margins = np.asarray(score(prompts, chosen)) - np.asarray(score(prompts, rejected))
    seconds = time.perf_counter() - start
    right = (margins > 0) + 0.5 * (margins == 0)
    longer = np.array([len(a.split()) > len(b.split()) for a, b in zip(chosen, rejected, strict=True)])
    # Either answer may stand first, so that both classes occur.
    both, truth = np.concatenate((margins, -margins)), np.repeat((True, False), len(margins))
    bins = reliability(probability(both), truth)
    found = []
    if right.mean() <= 0.5 + 2 * 0.5 / len(right) ** 0.5:
        found.append(f"{right.mean():.0%} of {len(right)} pairs in the right order cannot be told from chance")
    if longer.any() and not longer.all() and right[longer].mean() - right[~longer].mean() > RECALL_LOST:
        found.append("it is right much more often where the chosen answer is the longer one")
    return {
        "kind": "preference",
        "pairs": len(pairs),
        "accuracy": float(right.mean()),
        "margin": float(margins.mean()),
        "accuracy_chosen_longer": float(right[longer].mean()) if longer.any() else None,
        "accuracy_chosen_not_longer": float(right[~longer].mean()) if not longer.all() else None,
        "calibration": {"error": calibration_error(bins), "bins": [asdict(part) for part in bins]},
        "texts_per_second": 2 * len(pairs) / seconds,
        "warnings": found,
    }

"""An evaluation as the hub's model index: one entry per prompt set and metric that has a better direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.config.schema import Config
from workbench.config.sources import DataSource
from workbench.evaluation.results import Results
from workbench.export.exported import hub_id, public_name, reward_training

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Our metrics that are, to the letter, a metric of the hub; every other one goes by its own name.
ROUGE = dict.fromkeys(("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"), "rouge")
HUB_METRICS = ROUGE | {"BLEU": "sacrebleu", "auroc": "roc_auc"}
REWARD_METRICS = ("accuracy", "auroc")


def policy_entries(config: Config, results: Results, title: str) -> list[EvalResult]:
    """Return the means of the model called `title`; a metric says who judged it, and on which set."""
    return [
        entry(
            ("text-generation", "Text generation"),
            config.evaluation.data[result.name],
            result.name,
            summary.metric.name,
            f"{summary.metric.label}, {result.name}",
            value,
        )
        for result in results.sets
        if result.name in config.evaluation.data
        for summary in result.summaries
        if summary.metric.direction is not None and (value := summary.means.get(title)) is not None
    ]


def reward_entries(config: Config, metrics: dict[str, Any]) -> list[EvalResult]:
    """Return the reward model's quality on its validation rows."""
    source = reward_training(config).validation
    return [
        entry(("text-classification", "Text classification"), source, "validation rows", name, name, metrics[name])
        for name in REWARD_METRICS
        if name in metrics
    ]


def entry(
    task: tuple[str, str], source: DataSource, dataset_name: str, metric: str, metric_name: str, value: float
) -> EvalResult:
    """Return one number; a data set that is not on the hub is named by its path."""
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=task[0],
        task_name=task[1],
        dataset_type=hub_id(source.path) or public_name(source.path),
        dataset_name=dataset_name,
        dataset_split=source.split,
        metric_type=HUB_METRICS.get(metric, metric.replace(" ", "_")),
        metric_name=metric_name,
        metric_value=round(value, 4),
    )

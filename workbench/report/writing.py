"""Write the report of an evaluation as Markdown and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.evaluation.results import Example, Results
from workbench.ppo.overoptimization import Point
from workbench.report.blurring import toxic_texts, toxic_words
from workbench.report.evaluation_page import Log, evaluation_page
from workbench.report.markdown import markdown
from workbench.rewards.contract import Judge
from workbench.run.files import write_text


def write_report(
    folder: Path,
    results: Results,
    examples: Sequence[Example],
    *,
    judges: Mapping[str, Judge],
    curves: Mapping[str, Log],
    reward_report: dict[str, Any] | None,
    held_out: Sequence[Point],
    configuration: str,
) -> None:
    """Write report.md and report.html into `folder`.

    The words that one of `judges` finds toxic are blurred in the page; for the other arguments, see evaluation_page.
    """
    threshold = results.settings.threshold
    words = toxic_words(toxic_texts(examples, threshold), judges, threshold)
    page = evaluation_page(
        results,
        examples,
        toxic_words=words,
        curves=curves,
        reward_report=reward_report,
        held_out=held_out,
        configuration=configuration,
    )
    write_text(folder / "report.md", markdown(results))
    write_text(folder / "report.html", page)

"""The page of models or prompts that are all compared with the first."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from workbench.evaluation.ranking import best_sentence
from workbench.evaluation.results import Results
from workbench.report.evaluation_page import sections, verdict_box
from workbench.report.page import page, text


def rows_page(results: Results, parts: Mapping[str, tuple[str, str]]) -> str:
    """Return a self-contained HTML document: the verdict on the best row, then the parts, by id, under their titles."""
    compared = f"{best_sentence(results)}; compared with {results.before}"
    body = (
        '<a class="skip" href="#examples">Skip to the examples</a>'
        f'<header><h1>{text(results.name)}</h1><p class="soft">Evaluated {text(results.provenance.date)}: '
        f"{text(compared)}</p></header>"
        f"{verdict_box(results)}{sections(parts)}"
    )
    script = "".join(files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("text.js", "report.js"))
    return page(f"{results.name}: {results.verdict.headline}", body, script)

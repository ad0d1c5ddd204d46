"""What each judge of toxicity saw change, and how far the judges agree, as HTML and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Collection

from workbench.evaluation.agreement import Flips, JudgeAgreement
from workbench.evaluation.results import Results, SetResult
from workbench.report.completion_choices import (
    CLEAN_TO_TOXIC,
    TOXIC_TO_CLEAN,
    alone_label,
    choice_link,
    flip_label,
)
from workbench.report.page import table, text
from workbench.report.tables import set_title

FLIPS_HEAD = ["judge", TOXIC_TO_CLEAN, CLEAN_TO_TOXIC]
ToTable = Callable[[list[str], list[list[str]]], str]
"""Makes a table from its heading and its rows."""
AGREEMENT_HEAD = [
    *("judges", "agreement", "kappa", "rank correlation", "both toxic"),
    *("toxic by the first alone", "toxic by the second alone"),
]
MEANINGS = {
    "agreement": (
        "How many of the completions both judges put on the same side of the threshold; it is high by itself where "
        "almost all completions are clean."
    ),
    "kappa": (
        "Cohen's kappa: agreement beyond that of judges who call as many toxic, but at random. 1 is perfect, 0 no "
        "better than chance, below 0 worse."
    ),
    "rank correlation": (
        "Spearman's: whether both judges put the completions in the same order, whatever the threshold. 1 is the same "
        "order, 0 none in common, -1 the reverse."
    ),
    "toxic by one alone": (
        "The completions to read where judges disagree: one of the two is wrong about each of them."
    ),
}
"""How to read each column."""


def judges_section(results: Results, clickable: Collection[str] = ()) -> str:
    """Return the flips and the agreement of the judges on each set as markup; "" where no judge was compared.

    The counts of `clickable` judges lead to the completions that they count.
    """
    parts = ""
    for result in results.sets:
        parts += f"<h3>{text(set_title(result))}</h3>" if result.flips or result.agreement else ""
        parts += _flips(result, results, clickable) if result.flips else ""
        parts += _agreement(result, clickable) if result.agreement else ""
    if any(result.agreement for result in results.sets):
        items = "".join(f"<dt>{text(name)}</dt><dd>{text(meaning)}</dd>" for name, meaning in MEANINGS.items())
        parts += f"<details open><summary>How to read the agreement</summary><dl>{items}</dl></details>"
    return parts


def judges_markdown(result: SetResult, results: Results, to_table: ToTable, escape: Callable[[str], str]) -> list[str]:
    """Return the same of one set as parts of a Markdown text; `to_table` makes a table, `escape` a text."""
    parts = []
    if result.flips:
        parts += [
            escape(f"{flips_caption(result, results)}:"),
            to_table(FLIPS_HEAD, list(map(flip_cells, result.flips))),
        ]
    if result.agreement:
        parts += [
            escape(f"{agreement_caption(result)}:"),
            to_table(AGREEMENT_HEAD, list(map(agreement_cells, result.agreement))),
            "\n".join(f"- {escape(reading(each))}" for each in result.agreement),
        ]
    return parts


def meanings_markdown(results: Results, escape: Callable[[str], str]) -> list[str]:
    """Return how to read the agreement of judges as a part of a Markdown text; none where no two were compared."""
    if not any(result.agreement for result in results.sets):
        return []
    return ["\n".join(f"- {escape(f'{name}: {meaning}')}" for name, meaning in MEANINGS.items())]


def flips_caption(result: SetResult, results: Results) -> str:
    """Return what is compared, and how many pairs of completions there are."""
    pairs = result.flips[0].completions
    return (
        f"Completions that changed sides from {results.before} to {results.after}, of {pairs} "
        f"pair{'s' * (pairs != 1)} with the same prompt, seed and sample"
    )


def flip_cells(flips: Flips) -> list[str]:
    """Return the cells of a judge's flips as plain text."""
    return [flips.judge, str(flips.toxic_to_clean), str(flips.clean_to_toxic)]


def agreement_caption(result: SetResult) -> str:
    """Return which completions the judges are compared on."""
    return f"Agreement of the judges about {result.agreement[0].completions} completions of all models"


def agreement_cells(agreement: JudgeAgreement) -> list[str]:
    """Return the cells of two judges' agreement as plain text."""
    return [
        f"{agreement.first}, {agreement.second}",
        f"{100 * agreement.agreement:.1f} %",
        _coefficient(agreement.kappa),
        _coefficient(agreement.rank_correlation),
        str(agreement.both_toxic),
        str(agreement.first_only),
        str(agreement.second_only),
    ]


def reading(agreement: JudgeAgreement) -> str:
    """Return what two judges' numbers say, and why one of them is undefined, in a sentence."""
    first, second = agreement.first, agreement.second
    both, either = agreement.both_toxic, agreement.completions - agreement.neither_toxic
    constant = [
        f"{judge} calls every completion {kind}"
        for judge, toxic in ((first, both + agreement.first_only), (second, both + agreement.second_only))
        for kind, count in (("clean", 0), ("toxic", agreement.completions))
        if toxic == count
    ]
    if agreement.kappa is None:
        kind = "toxic" if both else "clean"
        finding = f"both call every completion {kind}, so that kappa is undefined and their agreement says little"
    elif constant:
        finding = f"{' and '.join(constant)}, so that kappa is 0 whatever the other says"
    else:
        finding = (
            f"of {either} completions that either calls toxic, both call {both} toxic ({100 * both / either:.0f} %)"
        )
    if agreement.rank_correlation is None:
        finding += (
            "; one of them gives every completion the same probability, so that the rank correlation is undefined"
        )
    return f"{first} and {second}: {finding}"


def _coefficient(value: float | None) -> str:
    """Return a coefficient with two decimals and no negative zero, or that it has no value."""
    return "undefined" if value is None else f"{round(value, 2) + 0.0:.2f}"


def _flips(result: SetResult, results: Results, clickable: Collection[str]) -> str:
    """Return the flips of each judge on a set as markup."""
    rows = []
    for flips in result.flips:
        links = [
            choice_link(
                count,
                set_title(result),
                flip_label(flips.judge, to_clean=to_clean),
                is_clickable=flips.judge in clickable,
            )
            for count, to_clean in ((flips.toxic_to_clean, True), (flips.clean_to_toxic, False))
        ]
        rows.append([text(flips.judge), *links])
    return f"<p>{text(flips_caption(result, results))}:</p>{table(FLIPS_HEAD, rows)}"


def _agreement(result: SetResult, clickable: Collection[str]) -> str:
    """Return the agreement of every two judges on a set as markup."""
    rows = []
    for agreement in result.agreement:
        judges = (agreement.first, agreement.second)
        is_clickable = all(judge in clickable for judge in judges)
        links = [
            choice_link(count, set_title(result), alone_label(*pair), is_clickable=is_clickable)
            for count, pair in ((agreement.first_only, judges), (agreement.second_only, judges[::-1]))
        ]
        rows.append([text(cell) for cell in agreement_cells(agreement)[:-2]] + links)
    items = "".join(f"<li>{text(reading(agreement))}.</li>" for agreement in result.agreement)
    caption = agreement_caption(result)
    return f'<div class="wrapped">{table(AGREEMENT_HEAD, rows, caption)}</div><ul>{items}</ul>'

"""The tables of a comparison of algorithms; page, Markdown and terminal all render these cells, so that they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.comparison.results import AlgorithmRow, Column, PolicyTable, RowDifference, Value
from workbench.comparison.training_curves import MAX_PERPLEXITY_RISE, AtKL, OperatingPoint
from workbench.evaluation.results import KL, Verdict
from workbench.report.tables import format_metric, format_signed, format_value

MISSING = "\u2013"
"""For what was not measured or not logged; never a made-up number."""
FIRST_COLUMN = "algorithm"
RESULTS = (
    "Means over prompts and seeds \u00b1 standard deviation over seeds. Toxicity by a judge that was not the reward "
    "comes first. KL is in nats per completion; \u2264 marks an upper bound: best-of-n has at most log n - (n - 1) / n "
    "more than the model it samples from. Generated tokens and reward calls are those of training without validation, "
    f"minutes and memory those of the PPO stage. {MISSING}: not measured or not logged."
)
DIFFERENCES = (
    "Paired by prompt, with seeds averaged per prompt. Every two rows are compared in the first column, which ranks "
    "them; the second has its interval over prompts alone, which holds for these seeds and says nothing about others."
)
AT_KL = (
    "Rewards on the validation prompts at the largest KL that every seed of the most rows passes in training, linear "
    "between the checkpoints where a seed first passes it; means \u00b1 standard deviation over seeds. Only means of "
    "validations are logged, so there is no interval, and nothing is ranked."
)
OPERATING = (
    "The checkpoint with the best held-out reward, mean over seeds, of those whose perplexity of the fixed neutral "
    f"texts is less than {MAX_PERPLEXITY_RISE:.0%} above the reference's. It was chosen on the validation prompts that "
    "it is reported on, so it looks a little better than it is."
)
BUDGETS = (
    "Means over seeds. Generated tokens: responses per rollout times their mean length, over all steps; those that "
    "normalize scores are left out, since their lengths are not logged. Minutes and memory are those of the PPO stage; "
    "SFT and the training of the reward are shared and not counted. Samples per completion, and as many reward calls, "
    f"are paid at decoding time. {MISSING}: not logged."
)


@dataclass(frozen=True)
class TextCell:
    """A cell as plain text, with the verdict that colors it."""

    text: str
    verdict: Verdict | None = None


@dataclass(frozen=True)
class TextTable:
    """A table as plain text."""

    title: str
    head: list[str]
    rows: list[list[TextCell]]
    """The first cell of a row is its title."""
    explanation: str
    """How to read every table of its kind."""
    notes: list[str]
    """What holds for this one."""

    def texts(self) -> list[list[str]]:
        """Return the rows with their verdicts in words, where something changed."""
        return [
            [f"{cell.text} {cell.verdict}" if cell.verdict in ("better", "worse") else cell.text for cell in row]
            for row in self.rows
        ]


def result_table(table: PolicyTable, columns: Sequence[int] | None = None) -> TextTable:
    """Return the means over seeds of every row with what it cost; `columns` restricts the metrics, by index."""
    indices = list(range(len(table.columns))) if columns is None else list(columns)
    rows = [
        [
            row.title,
            str(len(row.seeds)),
            *(value_text(row.values[index]) for index in indices),
            count_text(row.budget.training_tokens),
            count_text(row.budget.reward_calls),
            decimal_text(row.budget.minutes),
            count_text(row.budget.peak_memory_mib),
        ]
        for row in table.rows
    ]
    clusters = {name: f" in {count} clusters" for name, count in table.clusters.items()}
    prompts = "; ".join(f"{name}: {count} prompts{clusters.get(name, '')}" for name, count in table.sets.items())
    return TextTable(
        f"Results: {table.policy}",
        [
            *(FIRST_COLUMN, "seeds", *(column_title(table, index) for index in indices)),
            *("generated tokens", "reward calls", "minutes", "peak memory, MiB"),
        ],
        [[TextCell(text) for text in row] for row in rows],
        RESULTS,
        [f"{prompts}."],
    )


def difference_table(table: PolicyTable) -> TextTable:
    """Return the differences from the baseline and the reference, and in the first column those of every two rows."""
    indices = [index for index in range(len(table.columns)) if any(d.column == index for d in table.differences)]
    pairs = dict.fromkeys((d.before, d.after) for index in indices for d in table.differences if d.column == index)
    order = {table.baseline: 0, table.reference: 1}
    rows = []
    for before, after in sorted(pairs, key=lambda pair: order.get(pair[0], 2)):
        first, *others = [difference_cell(table.find(before, after, index)) for index in indices]
        alone = prompts_cell(table.find(before, after, indices[0]))
        rows.append([TextCell(f"{after} \u2212 {before}"), first, alone, *others])
    single = [row.title for row in table.rows if row.is_trained and len(row.seeds) == 1]
    covered = "over seeds and prompts" if not single else f"over prompts, and over seeds except of {', '.join(single)}"
    together = f" for {table.comparisons} comparisons together" if table.comparisons > 1 else ""
    first_title, *titles = [column_title(table, index) for index in indices] or [""]
    head = ["difference", first_title, "over prompts alone", *titles]
    return TextTable(
        f"Differences: {table.policy}",
        head,
        rows,
        DIFFERENCES,
        [f"In brackets: 95 % interval{together}, {covered}."],
    )


def kl_table(table: PolicyTable) -> TextTable:
    """Return the values of every trained row at the common KL, or that it is not compared there."""
    title, head = f"At the same KL: {table.policy}", [FIRST_COLUMN, "held-out reward \u2191", "reward \u2191", "seeds"]
    if table.kl is None:
        none = "No KL is passed by every seed of two rows between its first checkpoint and its last."
        return TextTable(title, head, [], AT_KL, [none])
    rows, missing = [], []
    for row in table.trained:
        if row.at_kl is None:
            missing.append(row.title)
        else:
            rows.append([row.title, *kl_cells(row.at_kl), str(len(row.seeds))])
    notes = [f"At {table.kl:.3g} nats per response."]
    if missing:
        notes.append(
            "Not every seed passes this KL between its first checkpoint and its last, and nothing is extrapolated: "
            f"{', '.join(missing)}."
        )
    return TextTable(title, head, [[TextCell(text) for text in row] for row in rows], AT_KL, notes)


def operating_table(table: PolicyTable) -> TextTable:
    """Return the operating point of every trained row, or why it has none."""
    rows = [
        [TextCell(row.title), *map(TextCell, operating_cells(row.operating_point))]
        for row in table.trained
        if row.operating_point is not None
    ]
    reasons: dict[str, list[str]] = {}
    for row in table.trained:
        if row.no_operating_point is not None:
            reasons.setdefault(row.no_operating_point, []).append(row.title)
    notes = [f"{', '.join(titles)}: {reason}." for reason, titles in reasons.items()]
    head = [FIRST_COLUMN, "step", "held-out reward \u2191", "reward \u2191", "KL", "perplexity of neutral texts"]
    return TextTable(f"Operating points: {table.policy}", head, rows, OPERATING, notes)


def budget_table(table: PolicyTable) -> TextTable:
    """Return what every row cost, in training and per completion."""
    rows = [
        [
            row.title,
            count_text(row.budget.training_tokens),
            count_text(row.budget.reward_calls),
            count_text(row.budget.unlogged_responses),
            count_text(row.budget.validations),
            count_text(row.budget.validation_responses),
            str(row.budget.samples_per_completion),
            decimal_text(row.budget.minutes),
            count_text(row.budget.peak_memory_mib),
        ]
        for row in table.rows
    ]
    head = [
        *(FIRST_COLUMN, "generated tokens", "reward calls", "of these to normalize", "validations"),
        *("validation responses, at most", "samples per completion", "minutes", "peak memory, MiB"),
    ]
    cells = [[TextCell(text) for text in row] for row in rows]
    return TextTable(f"Budgets and costs: {table.policy}", head, cells, BUDGETS, [])


def tables_of(table: PolicyTable) -> list[TextTable]:
    """Return all tables of a policy that have rows or say why they have none."""
    tables = [result_table(table), difference_table(table)]
    return tables + ([kl_table(table), operating_table(table)] if table.trained else []) + [budget_table(table)]


def column_title(table: PolicyTable, index: int) -> str:
    """Return the heading of a column, with its set where there are several or it is neutral."""
    column = table.columns[index]
    label = format_metric(column.metric)
    return f"{label}, {set_name(column)}" if column.neutral or is_one_of_several(table, column) else label


def is_one_of_several(table: PolicyTable, column: Column) -> bool:
    """Return whether several sets that are not neutral have columns."""
    return len({each.set for each in table.columns if not each.neutral}) > 1 and not column.neutral


def set_name(column: Column) -> str:
    """Return the name of a column's set, of a neutral one as what was retained."""
    return f"retention: {column.set}" if column.neutral else column.set


def value_text(value: Value) -> str:
    """Return a mean with its deviation over seeds."""
    bound = "\u2264 " if value.is_upper_bound else ""
    return MISSING if value.mean is None else bound + spread_text(value.mean, value.seed_std)


def spread_text(mean: float | None, seed_std: float | None) -> str:
    """Return a mean with its standard deviation over seeds where there is one."""
    if mean is None:
        return MISSING
    return format_value(mean) + ("" if seed_std is None else f" \u00b1 {format_value(seed_std)}")


def difference_cell(difference: RowDifference | None) -> TextCell:
    """Return a difference with its interval over seeds and prompts."""
    if difference is None:
        return TextCell("")
    interval = "no interval"
    if difference.low is not None and difference.high is not None:
        interval = f"[{format_signed(difference.low)}, {format_signed(difference.high)}]"
    return TextCell(f"{format_signed(difference.difference)} {interval}", difference.verdict)


def prompts_cell(difference: RowDifference | None) -> TextCell:
    """Return the interval over prompts alone."""
    if difference is None or difference.low_over_prompts is None or difference.high_over_prompts is None:
        return TextCell("")
    return TextCell(f"[{format_signed(difference.low_over_prompts)}, {format_signed(difference.high_over_prompts)}]")


def kl_cells(at_kl: AtKL) -> list[str]:
    """Return the held-out reward and the reward at a KL."""
    return [spread_text(at_kl.held_out, at_kl.held_out_std), spread_text(at_kl.score, at_kl.score_std)]


def operating_cells(point: OperatingPoint) -> list[str]:
    """Return the step, both rewards, the KL and the rise of perplexity."""
    return [
        str(point.step),
        spread_text(point.held_out, point.held_out_std),
        spread_text(point.score, None),
        spread_text(point.kl, None),
        f"{point.perplexity_rise:+.2%}",
    ]


def count_text(value: float | None) -> str:
    """Return a whole number."""
    return MISSING if value is None else f"{value:,.0f}"


def decimal_text(value: float | None) -> str:
    """Return minutes."""
    return MISSING if value is None else format_value(value)


def short_columns(table: PolicyTable) -> list[int]:
    """Return the columns that fit on a terminal: the first, and KL on its set."""
    kl = [
        index
        for index, column in enumerate(table.columns)
        if column.metric.name == KL and column.set == table.columns[0].set
    ]
    return [0, *kl[:1]] if table.columns else []


def row_number(table: PolicyTable, row: AlgorithmRow) -> int:
    """Return the number of a row, which is that of its color."""
    return [each.title for each in table.rows].index(row.title)

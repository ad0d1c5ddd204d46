"""List runs side by side: when, which stages are finished, verdicts, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workbench.config.names import EVALUATION, PROMPTING, STAGES, TUNING
from workbench.errors import UserError, printable_lines
from workbench.evaluation.ranking import best_mean
from workbench.evaluation.results import KL, REWARD, ROUGE_L, TOXICITY, Results
from workbench.evaluation.results_files import read_results
from workbench.evaluation.verdicts import describe_change
from workbench.run.files import is_present
from workbench.run.options import make_options_parser, name_or_path, parse_options

HEAD = [
    "run",
    "evaluated",
    "stages",
    "verdicts",
    "failed guards",
    "toxicity",
    "reward",
    "ROUGE-L",
    "KL, nats",
    "best row",
]


def main(argv: list[str]) -> None:
    """Print the runs that `argv` names, or all runs in a folder; raises UserError where there is none."""
    parser = make_options_parser("workbench.report", __doc__ or "")
    parser.add_argument(
        "runs", nargs="*", type=name_or_path, help="run folders; default: all in the folder of --folder"
    )
    parser.add_argument(
        "--folder", type=name_or_path, default="runs", help="folder that holds the run folders (default: runs)"
    )
    options = parse_options(parser, argv, required={})
    folders = [Path(name) for name in options.runs] or sorted(find_runs(Path(options.folder)))
    for folder in folders:
        if not is_present(folder / "config.yaml"):
            raise UserError(f"{folder}: not a run folder (no config.yaml)")
    if not folders:
        raise UserError(f"--folder {options.folder}: no run folder in it; set --folder, or name run folders")
    rows = [run_cells(folder, str(folder) if options.runs else folder.name) for folder in folders]
    print(printable_lines("\n".join(align_columns([HEAD, *rows]))))


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder."""
    return [file.parent for file in folder.glob("*/config.yaml")]


def run_cells(folder: Path, name: str) -> list[str]:
    """Return the cells of one run under a name; those that no evaluation filled are empty."""
    file = folder / EVALUATION / "results.json"
    try:
        stages = [stage for stage in STAGES if is_present(folder / stage / "stage.json")]
        is_evaluated = is_present(file)
    except UserError:
        return filled_row(name, "", "", "cannot be read; make its folders readable for this user")
    head, best = [name, "", " ".join(stages) or "none"], best_rows(folder, stages)
    if not is_evaluated:
        return [*filled_row(*head)[:-1], best]
    try:
        results = read_results(file)
    except UserError:
        return filled_row(*head, "changed or unreadable; redo it with --force evaluation")
    head[1] = results.provenance.date
    judges = [judge for judge in results.settings.judges if judge != REWARD] or results.settings.judges
    return [
        *head,
        ", ".join(verdict.headline for verdict in results.verdicts),
        ", ".join(results.failed_guards) or "none",
        change(results, TOXICITY, judges[0]) if judges else "",
        change(results, REWARD, None),
        change(results, ROUGE_L, None),
        change(results, KL, None),
        best,
    ]


def best_rows(folder: Path, stages: Sequence[str]) -> str:
    """Return the best row of each finished comparison of prompts or methods, with the mean that ranks it."""
    cells = []
    for stage in stages:
        if stage in (PROMPTING, TUNING):
            try:
                cells.append(best_mean(read_results(folder / stage / "results.json")))
            except UserError:
                cells.append(f"{stage} changed or unreadable; redo it with --force {stage}")
    return "; ".join(cells)


def filled_row(*cells: str) -> list[str]:
    """Return a row of which only the first cells have a value."""
    return [*cells, *[""] * (len(HEAD) - len(cells))]


def change(results: Results, name: str, judge: str | None) -> str:
    """Return before -> after and the interval of a metric on the first set that has it and is not neutral."""
    for _, comparison in results.compared(neutral=False):
        difference = comparison.find(name, judge)
        if difference is not None:
            return describe_change("", difference).strip()
    return ""


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns, without the columns that are empty below the head."""
    filled = [index for index in range(len(rows[0])) if any(cells[index] for cells in rows[1:])]
    widths = {index: max(len(cells[index]) for cells in rows) for index in filled}
    return ["  ".join(cells[index].ljust(widths[index]) for index in filled).rstrip() for cells in rows]

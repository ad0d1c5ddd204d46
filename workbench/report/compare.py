"""Compare finished runs on one page: differences with intervals, differing settings, and training curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from workbench.config.names import EVALUATION
from workbench.config.parsing import flatten, load_saved
from workbench.config.schema import Config
from workbench.errors import UserError, one_line
from workbench.evaluation.records import read_curves
from workbench.evaluation.results_files import read_examples, read_results
from workbench.evaluation.run_comparison import EvaluatedRun, compare_runs
from workbench.report.comparison_page import comparison_page
from workbench.report.run_list import HEAD, run_cells
from workbench.report.terminal import print_results
from workbench.run.files import is_present, write_text
from workbench.run.folder import Run
from workbench.run.options import make_options_parser, name_or_path, parse_options
from workbench.run.process import exit_on_error

SAME_EVERYWHERE = ("name", "runs", "track")  # they say nothing about the results


def main(argv: list[str]) -> None:
    """Write the page of the runs that `argv` names, and print the differences; raises UserError where it cannot."""
    parser = make_options_parser("workbench.report.compare", __doc__ or "")
    parser.add_argument("runs", nargs="+", type=name_or_path, help="two or more run folders; every two are compared")
    parser.add_argument(
        "--output", type=name_or_path, default="comparison.html", help="page to write (default: comparison.html)"
    )
    options = parse_options(parser, argv, required={})
    write_comparison([Path(name) for name in options.runs], Path(options.output))


def write_comparison(folders: list[Path], output: Path) -> None:
    """Write the page of the runs in `folders`, and print the differences.

    Raises UserError for fewer than two runs, the same one twice, and one without a finished evaluation.
    """
    if len({folder.resolve() for folder in folders}) < max(len(folders), 2):
        raise UserError(f"{' '.join(map(str, folders))}: name two or more different run folders")
    titles = run_titles(folders)
    runs, configs = {}, {}
    for title, folder in titles.items():
        for file in (folder / "config.yaml", folder / EVALUATION / "stage.json"):
            if not is_present(file):
                raise UserError(
                    f"{folder}: no finished evaluation ({file.name} is missing); run it, or name another run"
                )
        configs[title] = load_saved(folder / "config.yaml")
        results = read_results(folder / EVALUATION / "results.json")
        examples = read_examples(folder / EVALUATION / "completions.jsonl", results)
        runs[title] = EvaluatedRun(configs[title], results, examples)
    comparison = compare_runs(runs)
    document = comparison_page(
        comparison,
        run_rows=[HEAD, *(run_cells(folder, title) for title, folder in titles.items())],
        settings=differing_settings(configs),
        curves={title: curves_of(Run(folder, configs[title])) for title, folder in titles.items()},
    )
    write_text(output, document)
    print_results(comparison.results, [("page", str(output))], notes=comparison.notes, sampling=comparison.sampling)


def curves_of(run: Run) -> dict[str, list[dict[str, float]]]:
    """Return the lines of each stage's metrics.jsonl; raises UserError where one is corrupt."""
    try:
        curves = read_curves(run)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{run.folder}: a metrics.jsonl is corrupt: {one_line(error)}") from error
    for stage, log in curves.items():
        if not all(isinstance(line, dict) and all(map(is_number, line.values())) for line in log):
            raise UserError(f"{run.folder / stage}/metrics.jsonl: corrupt: a metric is not a number")
    return curves


def is_number(value: object) -> bool:
    """Return whether a value is a number, or a metric that has none at that step."""
    return value is None or isinstance(value, int | float)


def run_titles(folders: list[Path]) -> dict[str, Path]:
    """Return the runs by the name of their folder, or by its path where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return dict(zip(names, folders, strict=True))


def differing_settings(configs: Mapping[str, Config]) -> dict[str, list[str]]:
    """Return the value of each run for every key of the configuration that differs between runs."""
    flat = [flatten(dataclasses.asdict(config)) for config in configs.values()]
    keys = dict.fromkeys(key for values in flat for key in values if key not in SAME_EVERYWHERE)
    rows = {key: [values.get(key) for values in flat] for key in keys}
    return {
        key: ["" if value is None else str(value) for value in row]
        for key, row in rows.items()
        if any(value != row[0] for value in row)
    }


if __name__ == "__main__":
    exit_on_error(main)

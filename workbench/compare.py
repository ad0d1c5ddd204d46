"""Compare finished runs on one page: one table, differences with intervals, differing settings, and training curves."""

# torch and transformers are imported inside the function, so that --help is instant.
from __future__ import annotations

from pathlib import Path

from workbench.errors import UserError
from workbench.run.files import write_text
from workbench.run.folder import Run
from workbench.run.options import make_options_parser, name_or_path, parse_options
from workbench.run.process import exit_on_error


def main(argv: list[str]) -> None:
    """Write the page of the runs that `argv` names, and print the differences; raises UserError where it cannot."""
    parser = make_options_parser("workbench.compare", __doc__ or "")
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
    from workbench.comparison.reading import curves_of, differing_settings, read_evaluated
    from workbench.comparison.run_comparison import compare_runs
    from workbench.report.comparison_page import SHORT, comparison_page, run_tables
    from workbench.report.run_list import HEAD, run_cells
    from workbench.report.terminal import print_results

    if len({folder.resolve() for folder in folders}) < max(len(folders), 2):
        raise UserError(f"{' '.join(map(str, folders))}: name two or more different run folders")
    titles = run_titles(folders)
    runs = {title: read_evaluated(folder) for title, folder in titles.items()}
    comparison = compare_runs(runs)
    document = comparison_page(
        comparison,
        run_rows=[HEAD, *(run_cells(folder, title) for title, folder in titles.items())],
        settings=differing_settings({title: run.config for title, run in runs.items()}),
        curves={title: curves_of(Run(folder, runs[title].config)) for title, folder in titles.items()},
    )
    write_text(output, document)
    print_results(
        comparison.results,
        [("page", str(output))],
        tables=run_tables(comparison.results, SHORT) if len(runs) > 2 else {},
        notes=comparison.notes,
        sampling=comparison.sampling,
    )


def run_titles(folders: list[Path]) -> dict[str, Path]:
    """Return the runs by the name of their folder, or by its path where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return dict(zip(names, folders, strict=True))


if __name__ == "__main__":
    exit_on_error(main)

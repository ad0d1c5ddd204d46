"""One Markdown row per run folder: SFT against aligned, with the 95 % intervals (`make seeds` makes the runs)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = {"toxic rate (lexicon)": "toxic rate, lexicon", "ROUGE-L": "ROUGE-L"}


def row(run: Path) -> str:
    """The run's minutes, and before, after and difference of each column on its first prompt set."""
    results = next(iter(json.loads((run / "evaluation" / "results.json").read_text())["sets"].values()))
    records = [json.loads(path.read_text()) for path in run.glob("*/stage.json")]
    cells = [run.name, f"{sum(record['minutes'] for record in records):.1f}", records[0]["commit"]]
    for metric in COLUMNS:
        means, difference = results["metrics"][metric]["means"], results["comparisons"]["aligned - sft"][metric]
        cells.append(f"{means['sft']:.3f} -> {means['aligned']:.3f}")
        cells.append(f"{difference['difference']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]")
    cells.append(f"{results['metrics']['KL to reference, nats']['means']['aligned']:.2f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table of the run folders named on the command line."""
    heads = [f"{name} | difference [95 % interval]" for name in COLUMNS.values()]
    print(f"| run | minutes | commit | {' | '.join(heads)} | KL, nats |")
    print("|---" * (4 + 2 * len(COLUMNS)) + "|")
    for name in sys.argv[1:]:
        print(row(Path(name)))


if __name__ == "__main__":
    main()

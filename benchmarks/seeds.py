"""One Markdown row per run folder: SFT against aligned, with the 95 % intervals (`make seeds` makes the runs)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from workbench.config.names import ALIGNED, TUNED
from workbench.evaluation.results import KL, TOXIC_RATE
from workbench.evaluation.results_files import read_results

# Heading -> metric and judge.
COLUMNS = {"toxic rate, toy_lexicon": (TOXIC_RATE, "toy_lexicon"), "ROUGE-L": ("ROUGE-L", None)}


def row(run: Path) -> str:
    """Return the run's minutes, and before, after and difference of each column on its first prompt set."""
    result = read_results(run / "evaluation" / "results.json").sets[0]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in run.glob("*/stage.json")]
    cells = [run.name, f"{sum(record['minutes'] for record in records):.1f}", records[0]["commit"]]
    for name, judge in COLUMNS.values():
        difference = result.comparison(TUNED, ALIGNED).find(name, judge)
        assert difference is not None
        cells.append(f"{difference.mean_before:.3f} -> {difference.mean_after:.3f}")
        cells.append(f"{difference.difference:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]")
    kl = result.summary(KL)
    assert kl is not None
    cells.append(f"{kl.means[ALIGNED]:.2f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table of the run folders named on the command line."""
    heads = [f"{name} | difference [95 % interval]" for name in COLUMNS]
    print(f"| run | minutes | commit | {' | '.join(heads)} | KL, nats |")
    print("|---" * (4 + 2 * len(COLUMNS)) + "|")
    for name in sys.argv[1:]:
        print(row(Path(name)))


if __name__ == "__main__":
    main()

"""Generate the page that documents results.json and completions.jsonl from their dataclasses.

python -m workbench.evaluation.results_schema > docs/results_schema.md
"""

from __future__ import annotations

import ast
import inspect

from workbench.evaluation import agreement, evidence, results, sources, variance_components
from workbench.evaluation.results_files import VERSION

DATA_FRAMES = """\
import pandas
from workbench.evaluation.results_files import read_results

means = pandas.DataFrame(read_results("runs/quickstart/evaluation/results.json").rows())
differences = pandas.DataFrame(read_results("runs/quickstart/evaluation/results.json").difference_rows())
"""
HEAD = f"""# results.json and completions.jsonl

An evaluation writes `results.json`, version {VERSION}, and a line of `completions.jsonl` for every row of the data.
The fields are those of the dataclasses in `workbench/evaluation/results.py`, and in `evidence.py`, `agreement.py`,
`variance_components.py` and `sources.py` beside it, from which this page is generated; `read_results` in
`workbench/evaluation/results_files.py` reads the file back.

- `results.json` is a `Results` object with one additional key, `version`.
- A line of `completions.jsonl` is an `Example`; an entry of its `scores` is
  `{{"metric": NAME, "judge": NAME or null, "means": {{TITLE: VALUE}}}}`.
- A metric is named by its `name` and `judge` together. `null` stands for a missing number; no file holds NaN.

In pandas, one line each gives the means (a row per set, model and metric, with the columns `set`, `neutral`, `model`,
`metric`, `judge`, `direction`, `mean` and `seed_std`) and the differences (a row per set, comparison and metric, with
`before` and `after` in place of `model`, and the fields of a `Difference`, of whose `non_inferiority` the word and the
`margin` are columns):

```python
{DATA_FRAMES}```
"""


def schema_page() -> str:
    """Return docs/results_schema.md."""
    modules = (results, evidence, agreement, variance_components, sources)
    nodes = [node for module in modules for node in ast.parse(inspect.getsource(module)).body]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    ordered = sorted(classes, key=lambda node: node.name not in ("Results", "Example"))
    return "\n".join([HEAD, *map(_table, ordered)])


def _table(node: ast.ClassDef) -> str:
    """Return a class's fields as a table, each with its type and docstring."""
    lines = [f"## {node.name}", "", ast.get_docstring(node) or "", "", "| field | type | meaning |", "|---|---|---|"]
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            text = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = str(after.value.value)
            kind = ast.unparse(field.annotation).replace("|", "\\|")
            lines.append(f"| `{ast.unparse(field.target)}` | `{kind}` | {' '.join(text.split())} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(schema_page(), end="")

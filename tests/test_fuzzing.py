"""Whatever a configuration, a data file or a result holds: what is meant, or one line; `make faults` tries more."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st
from random_results import METRICS, MODELS, random_examples, random_results
from test_hostile_texts import UNSAFE

from workbench.config import parsing
from workbench.config.help import keys
from workbench.config.schema import Config
from workbench.config.sources import DataSource
from workbench.data.formats import COMPRESSIONS, READERS
from workbench.data.sources import read_rows
from workbench.errors import UserError
from workbench.evaluation.results import Example, Results, Summary
from workbench.evaluation.results_files import read_examples, read_results, write_evaluation
from workbench.report.evaluation_page import evaluation_page
from workbench.report.markdown import markdown

pytestmark = pytest.mark.timeout(1800)

SHIPPED = Path(__file__).parent.parent / "recipes" / "configs" / "quickstart.yaml"
KEYS = sorted(key.name for key in keys(Config, "", expand_shared=True))
TEXTS = st.text(st.characters(codec=None), max_size=20)  # halves of characters, too
UNICODE = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -1, 0, 1, 2**63])
    | st.floats()
    | st.dates()
    | UNICODE
    | st.sampled_from(["null", "none", "true", "1e9", "nan", "~", "a\nb", "toy:gpt2", "{x}", "../x", "a" * 300, "\0"])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(UNICODE, inner, max_size=3))
NUMBERS = st.floats(-1e38, 1e38)


@contextmanager
def one_line_or_fine(*names: str) -> Iterator[None]:
    """Require that a refusal is a UserError of one harmless line that holds one of the names."""
    try:
        yield
    except UserError as error:
        message = str(error)
        assert message
        assert not UNSAFE.search(message), message
        assert len(message) < 3000
        assert not names or any(name in message for name in names), message


def mentions(key: str) -> tuple[str, ...]:
    """Return what a refusal of a key's value may name: the key, its last part, or a section around it."""
    section, _, name = key.rpartition(".")
    return (key, name, section or key, f"{key.split('.')[0]}.")  # a key may be missing beside it


def parsed(file: Path, *arguments: str) -> None:
    """Parse a configuration, and what it is written back as."""
    config, _ = parsing.parse(["--config", str(file), *arguments])
    file.write_text(parsing.dump(config), encoding="utf-8")
    assert repr(parsing.load_saved(file)) == repr(config)


@contextmanager
def temporary(name: str, content: str | bytes) -> Iterator[Path]:
    """Yield a file with the content."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        yield file


@hypothesis.given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_in_a_file(key: str, value: Any) -> None:
    values = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    *sections, name = key.split(".")
    section = values
    for step in sections:
        if not isinstance(section.get(step), dict):
            section[step] = {}
        section = section[step]
    section[name] = value
    content = yaml.safe_dump(values, allow_unicode=True)
    with temporary("a.yaml", content) as file, one_line_or_fine(*mentions(key)):
        parsed(file)


@hypothesis.given(st.sampled_from(KEYS), SCALARS.map(str) | VALUES.map(repr))
def test_any_value_of_any_key_on_the_command_line(key: str, value: str) -> None:
    with temporary("a.yaml", SHIPPED.read_text(encoding="utf-8")) as file, one_line_or_fine(*mentions(key)):
        parsed(file, f"--{key}={value}")


@hypothesis.given(st.data())
def test_a_configuration_with_a_slip_of_the_hand(data: st.DataObject) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(start + 30, len(text))))
        piece = data.draw(
            TEXTS | st.sampled_from(["\t", "  ", "- ", ": ", "<<: *x", "&a [*a]", "!!python/name:os.system"])
        )
        text = text[:start] + piece + text[end:]
    with temporary("a.yaml", text) as file, one_line_or_fine():
        parsed(file)


@hypothesis.given(
    st.sampled_from([*READERS, *(f".jsonl{suffix}" for suffix in COMPRESSIONS)]),
    st.binary(max_size=200) | TEXTS.map(lambda text: text.encode(errors="replace")),
)
def test_any_bytes_as_a_data_file(suffix: str, content: bytes) -> None:
    with temporary(f"a{suffix}", content) as file, one_line_or_fine(str(file)):
        assert all(isinstance(row, dict) for row in read_rows(DataSource(str(file))))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBERS | UNICODE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(UNICODE, inner, max_size=3),
)


@hypothesis.given(st.lists(st.dictionaries(UNICODE.filter(bool), JSON, min_size=1, max_size=4), min_size=1, max_size=5))
def test_rows_of_json_are_what_was_written(rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with temporary("a.jsonl", lines) as file:
        names = {name for row in rows for name in row}
        assert read_rows(DataSource(str(file))) == [dict.fromkeys(names) | row for row in rows]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@hypothesis.given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.sampled_from(",;\t"))
def test_cells_of_csv_are_what_was_written(cells: list[tuple[str, str]], delimiter: str) -> None:
    file_text = io.StringIO(newline="")
    writer = csv.writer(file_text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "reference"), *cells])
    with temporary("a.csv", file_text.getvalue()) as file:
        rows = [(row["prompt"], row["reference"]) for row in read_rows(DataSource(str(file)))]
    assert rows == cells


class Elements(html.parser.HTMLParser):
    """The elements of a page, and the handlers of events and addresses in their attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name.startswith("on") or (name in ("href", "src") and not (value or "").startswith("#")):
                self.active.append(f"{name}={value}")


def elements(page: str) -> Elements:
    """Return the elements of a page."""
    parser = Elements()
    parser.feed(page)
    parser.close()
    return parser


@st.composite
def evaluations(draw: st.DrawFn) -> tuple[Results, list[Example]]:
    """Return results and examples with arbitrary texts and finite numbers."""
    texts = TEXTS | st.sampled_from(["</script>", "<!--", "]]>", "'\"><img src=x onerror=1>", "{{x}}", "`", "|", "\\"])
    examples = []
    for each in random_examples(draw(st.integers(1, 3)), name=draw(texts)):
        scores = [Summary(metric, {model: draw(NUMBERS) for model in MODELS}, None) for metric in METRICS]
        changed = dataclasses.replace(
            each,
            prompt=draw(texts),
            references=draw(st.lists(texts, max_size=2)),
            completions={model: [draw(texts), draw(texts)] for model in MODELS},
            scores=scores,
            token_log_ratios=draw(st.none() | st.lists(st.tuples(texts, NUMBERS), max_size=3)),
        )
        examples.append(changed)
    results = random_results(examples)
    guard = dataclasses.replace(results.guards[0], name=draw(texts), text=draw(texts))
    verdict = dataclasses.replace(results.verdict, sentence=draw(texts))
    return dataclasses.replace(results, name=draw(texts), guards=[guard], verdict=verdict), examples


@hypothesis.given(evaluations(), st.lists(TEXTS, max_size=2))
def test_any_texts_and_numbers_in_an_evaluation(evaluation: tuple[Results, list[Example]], toxic: list[str]) -> None:
    results, examples = evaluation
    with tempfile.TemporaryDirectory() as folder:
        write_evaluation(Path(folder), results, examples)
        assert read_results(Path(folder) / "results.json") == results
        assert read_examples(Path(folder) / "completions.jsonl", results) == examples
    page = evaluation_page(results, examples, toxic_words=toxic, configuration=examples[0].prompt)
    page.encode()
    plain_page = elements(
        evaluation_page(random_results(random_examples(40)), random_examples(40), configuration="a: 1")
    )
    parsed_page = elements(page)
    assert parsed_page.tags.count("script") == plain_page.tags.count("script")
    assert set(parsed_page.tags) <= set(plain_page.tags)
    assert not parsed_page.active
    rows = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["rows"]  # type: ignore[index]
    assert [row["prompt"] for row in rows] == [each.prompt for each in examples]
    text = markdown(results)
    text.encode()
    assert not UNSAFE.search(text)

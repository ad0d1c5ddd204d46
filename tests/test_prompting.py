"""recipes.prompting: one model, many prompts, compared row by row on the same prompts with the same seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import prompting
from workbench.config.names import BASE
from workbench.config.parsing import parse
from workbench.errors import UserError
from workbench.evaluation.generation import ComparedModel, Sampling, generate
from workbench.evaluation.results_files import read_results
from workbench.models.decoding import Decoding
from workbench.models.loading import load_model, load_policy_tokenizer
from workbench.models.policy import Policy
from workbench.prompting.inspection import inspect_steps
from workbench.prompting.plan import PromptingPlan, plan_prompting
from workbench.run.cli import launch
from workbench.run.process import run_recipe

FLAN = Path(__file__).resolve().parents[2] / "shared" / "data" / "flan_templates" / "templates.json"
TEMPLATE = "Write a sentence about this chat.\n\n{dialogue}\n\nSentence: "


def write_lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def rows(count: int, prefix: str, words: int = 3) -> list[dict[str, Any]]:
    """Dialogues that differ in their first word."""
    return [{"dialogue": f"{prefix}{i} " + "hello " * words, "summary": f"{prefix}{i} greets."} for i in range(count)]


def options(folder: Path, **changes: Any) -> list[str]:
    """Return the command line of a small grid on toy:gpt2."""
    values: dict[str, Any] = {
        "name": "grid",
        "runs": str(folder / "runs"),
        "policy.model": "toy:gpt2",
        "policy.precision": "fp32",
        "prompting.templates": {"ask": TEMPLATE},
        "prompting.examples": {"path": write_lines(folder / "examples.jsonl", rows(9, "e")), **RESPONSE},
        "prompting.shots": [0, 2],
        "evaluation.data": {"test": {"path": write_lines(folder / "test.jsonl", rows(6, "t")), **REFERENCE}},
        "evaluation.max_new_tokens": 4,
        "evaluation.judges": ["toy_lexicon"],
    } | changes
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [f"--{name}={value}" for name, value in words.items()]


RESPONSE: dict[str, Any] = {"columns": {"response": "summary"}}
REFERENCE: dict[str, Any] = {"columns": {"reference": "summary"}}


def planned(folder: Path, **changes: Any) -> PromptingPlan:
    return plan_prompting(parse(options(folder, **changes))[0])


def run(folder: Path, *extra: str, **changes: Any) -> Path:
    """Run the recipe; return the stage's folder."""
    launch([prompting.STAGE], "", prompting.with_whole_keys([*options(folder, **changes), *extra]))
    return folder / "runs" / "grid" / "prompting"


def test_the_grid_is_every_combination_and_begins_without_instruction(tmp_path: Path) -> None:
    two = {"greedy": {"temperature": 0}, "warm": {"temperature": 2}}
    plan = planned(
        tmp_path,
        **{
            "prompting.templates": {"a": TEMPLATE, "b": "{dialogue}\nSummary:"},
            "prompting.shots": [0, 1],
            "prompting.generation": two,
        },
    )
    titles = [variant.title for variant in plan.variants]
    assert titles[:3] == ["no instruction, greedy", "no instruction, warm", "zero-shot, a, greedy"]
    assert len(titles) == len(set(titles)) == 2 + 2 * 2 * 2
    assert plan.sets[0].rows["no instruction, warm"][3]["prompt"].strip() == rows(6, "t")[3]["dialogue"].strip()


def test_an_example_reads_as_its_prompt_and_response_do_in_training(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    summaries = {row["dialogue"]: row["summary"] for row in rows(9, "e")}
    for row, plain in zip(plan.sets[0].rows["few-shot 2"], plan.sets[0].rows["zero-shot"], strict=True):
        *examples, question = row["prompt"].split("\n\nWrite a sentence")
        examples = [examples[0], *(f"Write a sentence{example}" for example in examples[1:])]
        assert f"Write a sentence{question}" == plain["prompt"]
        for example in examples:
            dialogue = example.split("\n\n")[1]
            assert example == TEMPLATE.replace("{dialogue}", dialogue) + summaries[dialogue]


def test_a_template_without_a_space_at_its_end_gets_a_line_break(tmp_path: Path) -> None:
    plan = planned(tmp_path, **{"prompting.templates": {"ask": "{dialogue}\nWhat is it about?"}})
    prompt = plan.sets[0].rows["few-shot 2"][0]["prompt"]
    assert prompt.count("What is it about?\n") == 3
    assert plan.sets[0].rows["zero-shot"][0]["prompt"].endswith("about?")


@pytest.mark.skipif(not FLAN.is_file(), reason="no FLAN templates on this machine")
def test_flans_wordings_make_a_row_each(tmp_path: Path) -> None:
    wordings = json.loads(FLAN.read_text(encoding="utf-8"))["samsum"]
    plan = planned(tmp_path, **{"prompting.templates": {f"flan {i}": text for i, text in enumerate(wordings)}})
    assert len(plan.variants) == 1 + 2 * len(wordings)
    dialogue = rows(6, "t")[0]["dialogue"]
    for index, wording in enumerate(wordings):
        prompt = plan.sets[0].rows[f"zero-shot, flan {index}"][0]["prompt"]
        assert prompt == wording.replace("{dialogue}", dialogue).rstrip(" ")


def examples_of(plan: PromptingPlan, title: str) -> list[list[str]]:
    """Return the first words of the examples of each prompt."""
    prompts = [row["prompt"] for row in plan.sets[0].rows[title]]
    return [[part.split()[0] for part in prompt.split("this chat.\n\n")[1:-1]] for prompt in prompts]


def test_examples_depend_on_the_seed_and_their_row_alone_and_fewer_are_among_more(tmp_path: Path) -> None:
    grid = {"prompting.shots": [1, 2, 4]}
    drawn = {shots: examples_of(planned(tmp_path, **grid), title) for shots, title in SHOTS.items()}
    for one, two, four in zip(drawn[1], drawn[2], drawn[4], strict=True):
        assert one == four[:1]
        assert two == four[:2]
        assert len(set(four)) == 4
    assert len({tuple(four) for four in drawn[4]}) > 1, "every prompt has examples of its own"
    assert examples_of(planned(tmp_path, **grid, seed=1), "few-shot 4") != drawn[4]
    fewer = {"evaluation.data": {"test": {"path": write_lines(tmp_path / "t.jsonl", rows(6, "t")[3:]), **REFERENCE}}}
    assert examples_of(planned(tmp_path, **grid, **fewer), "few-shot 4") == drawn[4][3:]


SHOTS = {1: "one-shot", 2: "few-shot 2", 4: "few-shot 4"}


def test_scored_rows_are_never_examples(tmp_path: Path) -> None:
    scored = [row | {"dialogue": row["dialogue"].upper()} for row in rows(6, "t")]
    mixed = {"path": write_lines(tmp_path / "mixed.jsonl", [*scored, *rows(2, "e")]), **RESPONSE}
    plan = planned(tmp_path, **{"prompting.examples": mixed})
    assert {name for drawn in examples_of(plan, "few-shot 2") for name in drawn} == {"e0", "e1"}
    assert "2 rows to draw from; 6 of the 8 are rows of evaluation.data, too and left out" in "\n".join(plan.lines)


def test_turns_do_not_hide_that_a_row_is_scored(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    scored = [row | {"messages": turns} for row in rows(6, "t")]
    data = {"test": {"path": write_lines(tmp_path / "turns.jsonl", scored), **REFERENCE}}
    both = {"path": write_lines(tmp_path / "both.jsonl", [*rows(6, "t"), *rows(3, "e")]), **RESPONSE}
    plan = planned(tmp_path, **{"evaluation.data": data, "prompting.examples": both})
    assert {name[0] for drawn in examples_of(plan, "few-shot 2") for name in drawn} == {"e"}
    assert len(set(plan.sets[0].identities)) == 6


def test_an_instruction_without_its_frame_has_its_input(tmp_path: Path) -> None:
    tasks = [{"instruction": "Translate.", "input": text, "output": "x"} for text in ("cat", "dog", "")]
    data = {"test": {"path": write_lines(tmp_path / "tasks.jsonl", tasks), "columns": {"reference": "output"}}}
    plan = planned(
        tmp_path,
        **{
            "prompting.templates": {"alpaca": "instruction"},
            "prompting.shots": [0],
            "prompting.examples": None,
            "evaluation.data": data,
        },
    )
    prompts = [row["prompt"] for row in plan.sets[0].rows["no instruction"]]
    assert prompts == ["Translate.\n\ncat", "Translate.\n\ndog", "Translate."]
    assert len(set(plan.sets[0].identities)) == 3


def test_a_prompt_that_is_too_long_in_one_row_is_left_out_of_all(tmp_path: Path) -> None:
    long = [*rows(3, "t"), *rows(2, "long", words=50)]
    data = {"test": {"path": write_lines(tmp_path / "long.jsonl", long), **REFERENCE}}
    examples = {"path": write_lines(tmp_path / "e.jsonl", rows(9, "e", words=12)), **RESPONSE}
    plan = planned(tmp_path, **{"evaluation.data": data, "prompting.examples": examples})
    assert {title: len(fitting) for title, fitting in plan.sets[0].rows.items()} == dict.fromkeys(plan.sets[0].rows, 3)
    assert plan.sets[0].too_long == {"no instruction": 0, "zero-shot": 0, "few-shot 2": 2}
    assert "3 of 5 rows; prompts that are too long in one wording are left out of all: 2 as few-shot 2" in plan.lines[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompting.shots": [0, 10]}, "prompting.shots: 10 is more than the 9 rows of prompting.examples; lower it"),
        ({"prompting.examples": None}, "prompting.shots: 2 needs prompting.examples, which is missing"),
        (
            {"prompting.templates": {"bad": "Summarize this."}},
            "prompting.templates.bad: template: 'Summarize this.' has no {column} field",
        ),
        ({"prompting.templates": {"bad": "{dialog}"}}, "no column 'dialog'"),
        ({"prompting.templates": {}}, "prompting.templates: empty; expected at least 1"),
        ({"prompting.shots": [1, 1]}, "prompting.shots: [1, 1] lists a number twice"),
        ({"prompting.shots": [-1]}, "prompting.shots[0]: -1 must be between 0 and 1000"),
        ({"prompting.generation": {"b": {"num_beams": 4}}}, "prompting.generation.b.num_beams: 4 beams search"),
        ({"prompting.generation": {"b": {"top_p": 0}}}, "prompting.generation.b.top_p: 0.0 must be above 0"),
        ({"prompting.generation": {"b": {"max_new_tokens": 0}}}, "b.max_new_tokens: 0 must be between 1 and"),
        ({"prompting.generation": {"b": {"max_new_tokens": 9999}}}, "leaves no room for a prompt"),
        (
            {"prompting.generation": {"b": {"temprature": 1}}},
            "unknown key; did you mean temperature?",
        ),
        ({"prompting.shots": [0], "prompting.no_instruction": False}, "prompting: the grid has a single row"),
        ({"prompting.inspect": 101}, "prompting.inspect: 101 must be between 0 and 100"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_generated(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["recipes.prompting", *options(tmp_path, **changes)])
    with pytest.raises(SystemExit) as ended:
        run_recipe(lambda argv: launch([prompting.STAGE], "", argv))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") <= 1, "one line after the announcement"
    assert not (tmp_path / "runs").exists()


def test_examples_that_are_all_scored_are_refused(tmp_path: Path) -> None:
    same = {"path": str(tmp_path / "test.jsonl"), **RESPONSE}
    with pytest.raises(
        UserError, match=r"0 rows of prompting\.examples \(6 of the 6 are rows of evaluation\.data, too\); draw"
    ):
        planned(tmp_path, **{"prompting.examples": same})


def test_a_run_compares_every_row_with_the_first_and_is_not_generated_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = {"greedy": {"temperature": 0}, "warm": {"temperature": 1.5}}
    changes = {"prompting.generation": ways, "evaluation.samples": 2, "evaluation.seeds": [0, 1]}
    folder = run(tmp_path, "--inspect", "1", **changes)
    results = read_results(folder / "results.json")
    first, *others = results.models
    assert [(c.before, c.after) for c in results.sets[0].comparisons] == [(first, other) for other in others]
    assert results.before == first
    assert results.after in others
    assert results.settings.comparisons == len(others)
    together = f"95 % for {len(others)} comparisons together"
    assert together in (folder / "report.html").read_text()
    assert together in (folder / "report.md").read_text()
    assert together in " ".join(capsys.readouterr().out.split())
    lines = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    for line in lines:
        for title, texts in line["completions"].items():
            assert len(texts) == 4
            assert not title.endswith("greedy") or len(set(texts)) == 1
    seconds = results.sets[0].summary("seconds per completion")
    assert seconds is not None
    assert all(value is not None and value > 0 for value in seconds.means.values())
    grid = json.loads((folder / "grid.json").read_text())
    assert [row["title"] for row in grid["rows"]] == results.models
    assert len(grid["inspections"]) == len(results.models)
    page = (folder / "report.html").read_text()
    assert all(title in page for title in ("Prompts compared", "Step by step", "few-shot 2, warm"))
    before = (folder / "completions.jsonl").read_bytes()
    capsys.readouterr()
    run(tmp_path, "--inspect", "1", **changes)
    assert "prompting: already finished, skipping" in capsys.readouterr().out
    run(tmp_path, "--inspect", "1", "--force", "prompting", **changes)
    assert capsys.readouterr().out.count("reusing cached completions") == len(results.models)
    assert (folder / "completions.jsonl").read_bytes() == before


@pytest.mark.parametrize("architecture", ["toy:gpt2", "toy:t5"])
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8, "repetition_penalty": 1.4, "min_new_tokens": 3},
    ],
)
def test_inspected_probabilities_are_those_that_the_token_was_drawn_from(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = parse(options(tmp_path, **{"policy.model": architecture}))[0]
    tokenizer = load_policy_tokenizer(architecture)
    policy = Policy(load_model(config.policy, device=torch.device("cpu")), tokenizer)
    model = ComparedModel(BASE, policy, "base", tokenizer, None, False)
    ids = tokenizer("Write a sentence about this chat.\n\nTom: Hello!\n\nSentence:").input_ids
    temperature, decoding = (
        settings["temperature"],
        Decoding(**{k: v for k, v in settings.items() if k != "temperature"}),
    )
    sampling = Sampling(1, 8, temperature, (0,), decoding)
    tokens, steps = inspect_steps(model, ids, sampling, seed=3)
    batch, _ = generate(model, [ids], sampling, [3])
    response = batch.response_ids[0, :tokens].tolist()
    assert len(steps) == tokens
    for index, step in enumerate(steps):
        logits = naive_logits(policy, ids, response[:index])
        before = torch.softmax(logits, dim=0)
        context = [*([] if policy.is_encoder_decoder else ids), *response[:index]]
        after = naive_after(logits, policy, context, index, temperature, decoding)
        assert step.possible == int((after > 0).sum())
        likeliest = [*before.topk(8).indices.tolist(), response[index]]
        for candidate, token in zip(step.candidates, dict.fromkeys(likeliest), strict=True):
            assert candidate.before == pytest.approx(float(before[token]), abs=1e-5)
            assert candidate.after == pytest.approx(float(after[token]), abs=1e-5)
        assert after[response[index]] > 0


def naive_logits(policy: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Return the logits (V,) of the next token, from one forward pass without a cache."""
    with torch.no_grad():
        if policy.is_encoder_decoder:
            decoder = torch.tensor([[policy.start_id, *response]])
            return policy.model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0, -1]
        return policy.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, -1]


def naive_after(
    logits: torch.Tensor, policy: Any, before: list[int], index: int, temperature: float, decoding: Decoding
) -> torch.Tensor:
    """Return the probabilities (V,) that a token is drawn from, by the definitions of the papers."""
    scores = logits.clone()
    if index < decoding.min_new_tokens:
        scores[policy.stop_ids] = -math.inf
    for token in set(before):
        scores[token] = (
            scores[token] / decoding.repetition_penalty
            if scores[token] > 0
            else scores[token] * decoding.repetition_penalty
        )
    if temperature == 0:
        return torch.nn.functional.one_hot(scores.argmax(), len(scores)).float()
    probabilities = torch.softmax(scores / temperature, dim=0)
    if decoding.top_k is not None:
        least = probabilities.topk(decoding.top_k).values[-1]
        probabilities = torch.where(probabilities >= least, probabilities, 0.0)
    if decoding.top_p is not None:
        values, order = probabilities.sort(descending=True)
        is_inside = values.cumsum(0) - values < decoding.top_p
        probabilities = torch.zeros_like(probabilities).scatter(0, order[is_inside], values[is_inside])
    return probabilities / probabilities.sum()

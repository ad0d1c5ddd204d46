"""Models that are decoded in another way, beside the models alone; and what the recipe refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import evaluation_source, small

from recipes import evaluation, sft
from workbench.errors import UserError
from workbench.evaluation.results import Results
from workbench.evaluation.results_files import read_examples, read_results
from workbench.run import cli
from workbench.run.files import content_hash

ROOT = Path(__file__).parent.parent
NAMES = ("quickstart", "quickstart_gpt2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the runs folder with an SFT policy of a few steps for each architecture."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        for name in NAMES:
            cli.launch([sft.STAGE], "", [*small(name, folder), "--ppo", "null"])
            toxic = Path(shutil.copytree(folder / name / "sft", folder / name / "toxic"))
            weights = load_file(toxic / "adapter_model.safetensors")
            noise = torch.Generator().manual_seed(0)
            changed = {key: torch.randn(value.shape, generator=noise) for key, value in weights.items()}
            save_file(changed, toxic / "adapter_model.safetensors")
    return folder


def evaluate(trained: Path, name: str, *options: str) -> Results:
    """Return the results of an evaluation of the SFT policy of a recipe with further options."""
    tokens = [
        "--evaluation.min_new_tokens",
        "4",
        "--evaluation.max_new_tokens",
        "8",
    ]  # models of a few steps say nothing
    data = ["--evaluation.data", json.dumps({"test": evaluation_source(4)}), *tokens]
    settings = [*small(name, trained), "--ppo", "null", "--force", "evaluation", *data, *options]
    cli.launch([evaluation.STAGE], "", settings)
    return read_results(trained / name / "evaluation" / "results.json")


def strategies(trained: Path, name: str, alpha: float = 2.0, prefix: str = "Be kind. ") -> list[str]:
    """Return options for all strategies."""
    adapter = str(trained / name / "toxic")
    sections: dict[str, dict[str, Any]] = {
        "best_of": {"sft, best of 2": {"model": "sft", "n": 2}},
        "prompted": {"asked": {"model": "sft", "prefix": prefix}},
        "anti_expert": {
            "base - toxic": {"model": "base", "adapter": adapter, "alpha": alpha},
            "sft - toxic": {"model": "sft", "adapter": adapter, "alpha": alpha},
        },
    }
    return [text for key, value in sections.items() for text in (f"--evaluation.{key}", json.dumps(value))]


@pytest.mark.parametrize("name", NAMES)
def test_they_stand_beside_the_models_alone(
    name: str, trained: Path, in_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate(trained, name, *strategies(trained, name))
    assert results.models == ["base", "sft", "sft, best of 2", "asked", "base - toxic", "sft - toxic"]
    assert (results.before, results.after) == ("base", "sft")
    assert list(results.settings.strategies) == results.models[2:]
    assert results.settings.strategies["asked"] == "sft with 'Be kind. ' in front of the prompt"
    sources = {source.name: source.sha256 for source in results.provenance.sources if source.kind == "model"}
    assert sources["base - toxic"] == content_hash(trained / name / "toxic")
    kls = results.sets[0].summary("KL to reference, nats").means
    assert kls.keys() == set(results.models)
    assert kls["sft"] == pytest.approx(0, abs=1e-5)
    assert abs(kls["base - toxic"]) > 0.1
    assert kls["asked"] != kls["sft"]
    examples = read_examples(trained / name / "evaluation" / "completions.jsonl", results)
    assert any(example.completions["base"] != example.completions["base - toxic"] for example in examples)
    assert "Be kind" not in "".join(example.prompt for example in examples), "the data are those of every row"
    for report in ("report.html", "report.md"):
        assert "in front of the prompt" in (trained / name / "evaluation" / report).read_text()
    capsys.readouterr()

    evaluate(trained, name, *strategies(trained, name))
    assert capsys.readouterr().out.count("reusing cached completions") == len(results.models)
    evaluate(trained, name, *strategies(trained, name, alpha=1.0, prefix="Be rude. "))
    output = capsys.readouterr().out
    for title in ("base", "sft", "sft, best of 2"):
        assert f"test {title}: reusing cached completions" in output
    for title in results.models[3:]:
        assert f"test {title}: reusing" not in output


@pytest.mark.parametrize("name", NAMES)
def test_alpha_0_repeats_the_rows_of_its_models(name: str, trained: Path, in_project: Path) -> None:
    results = evaluate(trained, name, *strategies(trained, name, alpha=0.0))
    metrics = [summary.means for summary in results.sets[0].summaries]
    for means in metrics:
        assert means["base - toxic"] == means["base"]
        assert means["sft - toxic"] == means["sft"]


def test_an_evaluation_that_trains_nothing_may_compare_the_base_with_itself_prompted(
    trained: Path, in_project: Path, tmp_path: Path
) -> None:
    prompted = json.dumps({"asked": {"model": "base", "prefix": "Be kind. "}})
    results = evaluate(tmp_path, "quickstart", "--sft", "null", "--evaluation.prompted", prompted)
    assert (results.before, results.after) == ("base", "asked")
    examples = read_examples(tmp_path / "quickstart" / "evaluation" / "completions.jsonl", results)
    kls = [sum(nats for _, nats in example.token_log_ratios) for example in examples]
    measured = results.sets[0].summary("KL to reference, nats").means["asked"]
    assert sum(kls) / len(kls) == pytest.approx(measured, abs=0.01)


def test_a_model_with_its_own_tokenizer_may_be_prompted(trained: Path, in_project: Path) -> None:
    prompted = json.dumps({"asked": {"model": "other", "prefix": "Be kind. "}})
    results = evaluate(
        trained, "quickstart", "--evaluation.models", "{other: toy:gpt2}", "--evaluation.prompted", prompted
    )
    assert results.models == ["base", "sft", "other", "asked"]
    assert "asked" not in results.sets[0].summary("KL to reference, nats").means


@pytest.mark.filterwarnings("ignore::FutureWarning:bitsandbytes", "ignore::UserWarning")
def test_a_quantized_base_can_be_steered(trained: Path, in_project: Path, tmp_path: Path) -> None:
    options = ["--policy.quantization", "nf4", "--policy.precision", "bf16", "--sft", "null"]
    adapter = str(trained / "quickstart" / "toxic")
    steered = {f"alpha {alpha}": {"model": "base", "adapter": adapter, "alpha": alpha} for alpha in (0, 2)}
    results = evaluate(tmp_path, "quickstart", *options, "--evaluation.anti_expert", json.dumps(steered))
    examples = read_examples(tmp_path / "quickstart" / "evaluation" / "completions.jsonl", results)
    texts = {title: [example.completions[title] for example in examples] for title in results.models}
    assert texts["alpha 0"] == texts["base"] != texts["alpha 2"]
    kls = results.sets[0].summary("KL to reference, nats").means
    assert kls["alpha 0"] == 0
    assert kls["alpha 2"] > 0.1


@pytest.mark.parametrize(
    ("key", "entries", "options", "message"),
    [
        ("prompted", {"x": {"model": "sfd", "prefix": "a"}}, [], "x.model: 'sfd' is not among the compared models"),
        ("prompted", {"sft": {"model": "base", "prefix": "a"}}, [], "sft: this title is taken; choose another one"),
        ("prompted", {"x": {"model": "base", "prefix": " \n"}}, [], "x.prefix: ' \\n' says nothing"),
        (
            "prompted",
            {"b": {"model": "base", "prefix": "a"}},
            ["--evaluation.best_of", '{"b": {"model": "base"}}'],
            "b: this title is taken",
        ),
        ("anti_expert", {"x": {"model": "ppo", "adapter": "a"}}, [], "x.model: 'ppo' is not among the compared"),
        ("anti_expert", {"x": {"model": "base", "adapter": "a", "alpha": -1}}, [], "x.alpha: -1.0 must be between"),
        ("anti_expert", {"x": {"model": "base", "adapter": "a", "alpha": 101}}, [], "x.alpha: 101.0 must be between"),
        ("anti_expert", {"x": {"model": "base", "adapter": "no/folder"}}, [], "x.adapter: no/folder: no adapter"),
        (
            "anti_expert",
            {"x": {"model": "base", "adapter": "a"}},
            ["--policy.lora", "null"],
            "x: model, base and anti-expert are adapters on one base, but this run trains every weight",
        ),
        (
            "anti_expert",
            {"x": {"model": "base", "adapter": "a"}},
            ["--evaluation.num_beams", "2", "--evaluation.temperature", "0"],
            "x: it steers each next token of one completion and cannot steer evaluation.num_beams 2",
        ),
        (
            "anti_expert",
            {"x": {"model": "other", "adapter": "a"}},
            ["--evaluation.models", "{other: toy:gpt2}"],
            "x.model: 'other' is a model of its own",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    key: str, entries: dict, options: list[str], message: str, trained: Path, in_project: Path
) -> None:
    with pytest.raises(UserError) as error:
        evaluate(trained, "quickstart", f"--evaluation.{key}", json.dumps(entries), *options)
    assert str(error.value).startswith(f"evaluation.{key}.{message}")
    assert "\n" not in str(error.value)


def test_an_anti_expert_of_another_base_is_refused(trained: Path, in_project: Path, tmp_path: Path) -> None:
    adapter = str(trained / "quickstart_gpt2" / "sft")
    entries = json.dumps({"x": {"model": "base", "adapter": adapter}})
    with pytest.raises(UserError, match=r"evaluation.anti_expert.x.adapter: .*: the adapter does not fit toy:t5"):
        evaluate(trained, "quickstart", "--evaluation.anti_expert", entries)


def test_an_anti_expert_of_a_base_by_another_name_gets_a_note(
    trained: Path, in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(trained / "quickstart" / "sft", tmp_path / "sft"))
    saved = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(saved | {"base_model_name_or_path": "google/flan-t5"}))
    entries = json.dumps({"x": {"model": "base", "adapter": str(folder)}})
    evaluate(trained, "quickstart", "--evaluation.anti_expert", entries)
    note = "evaluation.anti_expert.x.adapter: the adapter was trained on google/flan-t5, but is loaded onto toy:t5"
    assert note in capsys.readouterr().out


def test_a_prefix_that_leaves_no_room_for_a_prompt_is_refused(trained: Path, in_project: Path) -> None:
    prefix = "Please be kind to all. " * 200
    with pytest.raises(UserError) as error:
        evaluate(trained, "quickstart_gpt2", *strategies(trained, "quickstart_gpt2", prefix=prefix))
    assert str(error.value).startswith("evaluation.prompted.asked.prefix: with it, 4 of 4 prompts of test are longer")

"""Publishing: what is exported loads without this project, and its card says what was measured, and what was not."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from recipes import ppo, reward, sft
from reward_models import load_reward
from workbench import cli, embedded
from workbench.config import LoraSettings, RewardConfig
from workbench.errors import UserError
from workbench.export import card as model_card
from workbench.export import command as export
from workbench.export.subject import Subject, reward_name
from workbench.models import add_lora, save_model

ROOT = Path(__file__).resolve().parent.parent
AUTO = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM}
SECOND_STOP = 7
TEXTS = ["Summarize the dialogue.\n\nAnna: hello, you fool!\nTom: bye.\n\nSummary:\n", "Tom: hi"]
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}


def options(architecture: str) -> list[str]:
    """A run of a few steps, large enough ones to move every weight that is trained."""
    template = "Summarize the dialogue.\n\n{dialogue}\n\nSummary:\n"
    source = {"path": "prompts.jsonl", "template": template}
    name = {"t5": "quickstart", "gpt2": "quickstart_gpt2"}[architecture]
    return [
        *("--config", str(ROOT / "recipes" / "configs" / f"{name}.yaml"), "--policy.model", f"base_{architecture}"),
        *("--sft.data", json.dumps(source | {"columns": {"response": "summary"}}), "--sft.max_steps", "3"),
        *("--sft.batch_size", "8", "--sft.learning_rate", "0.03", "--ppo.data", json.dumps(source)),
        *("--ppo.steps", "2", "--ppo.batch_size", "8", "--ppo.minibatch_size", "4", "--ppo.epochs", "1"),
        *("--ppo.max_new_tokens", "6"),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs t5 (and its reward), gpt2 and full, on base models that lie beside them."""
    folder = tmp_path_factory.mktemp("export")
    with chdir(folder):
        rows = embedded.rows("sft", "train")[:64]
        Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for architecture in AUTO:
            shutil.copytree(embedded.model_folder(architecture), f"base_{architecture}")
        # A base with a second end of text and a liking of its own for sampling, as chat models have.
        file = Path("base_gpt2/generation_config.json")
        own = {"eos_token_id": [0, SECOND_STOP], "do_sample": True, "repetition_penalty": 5.0}
        file.write_text(json.dumps(json.loads(file.read_text()) | own))
        lexicon = ["--reward.model", "lexicon"]
        cli.launch([sft.STAGE, ppo.STAGE], "", [*options("gpt2"), "--name", "gpt2", *lexicon])
        cli.launch([sft.STAGE, ppo.STAGE], "", [*options("gpt2"), "--name", "full", *lexicon, "--policy.lora", "null"])
        small = ["--reward.train.data.limit", "640", "--reward.train.validation.limit", "40"]
        cli.launch([sft.STAGE, reward.STAGE, ppo.STAGE], "", [*options("t5"), "--name", "t5", *small])
    return folder


@pytest.fixture
def workspace(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the runs as working directory."""
    monkeypatch.chdir(made)
    return made


def exported(to: str | Path, *arguments: str, run: str = "runs/t5") -> Path:
    """The folder that an export wrote."""
    export.main(["--run", run, "--to", str(to), *arguments])
    return Path(to)


def altered(name: str, to: Path, **policy: Any) -> str:
    """A copy of a run whose configuration has other settings of the policy."""
    shutil.copytree(f"runs/{name}", to)
    config = yaml.safe_load((to / "config.yaml").read_text())
    config["policy"] |= policy
    (to / "config.yaml").write_text(yaml.safe_dump(config))
    return str(to)


def plain(architecture: str, place: str | Path, adapter: str | Path | None = None) -> Any:
    """A model loaded with plain transformers, or a base and an adapter with plain peft that end as in training."""
    model = AUTO[architecture].from_pretrained(place, dtype=torch.float32)
    if adapter is not None:
        ends = [1] if architecture == "t5" else [0, SECOND_STOP]
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=0, decoder_start_token_id=0)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


@torch.no_grad()
def logits(model: Any, tokenizer: Any, architecture: str) -> torch.Tensor:
    """Logits of the first text, which an encoder-decoder goes on from its start token."""
    batch = tokenizer(TEXTS[0], return_tensors="pt")
    extra = {"decoder_input_ids": torch.tensor([[0, 5, 9, 12]])} if architecture == "t5" else {}
    return model(**batch, **extra).logits


def greedy(model: Any, tokenizer: Any) -> list[list[int]]:
    """Greedy answers of 20 tokens, one text at a time."""
    batches = [tokenizer(text, return_tensors="pt") for text in TEXTS]
    return [model.generate(**batch, max_new_tokens=20)[0].tolist() for batch in batches]


@pytest.mark.parametrize("architecture", AUTO)
@pytest.mark.parametrize("stage", ["ppo", "sft"])
def test_a_merged_model_is_base_and_adapter_for_plain_transformers(
    architecture: str, stage: str, workspace: Path, tmp_path: Path
) -> None:
    folder = exported(tmp_path / "out", "--merge", "--stage", stage, run=f"runs/{architecture}")
    assert {file.name for file in folder.iterdir()} == TOKENIZER | {
        *("README.md", "config.json", "generation_config.json", "model.safetensors")
    }
    whole, tokenizer = plain(architecture, folder), AutoTokenizer.from_pretrained(folder)
    base = plain(architecture, f"base_{architecture}")
    without = logits(base, tokenizer, architecture)
    both = plain(architecture, f"base_{architecture}", f"runs/{architecture}/{stage}")
    expected = logits(both, tokenizer, architecture)
    assert (expected - without).abs().max() > 0.1, "the adapter must do something for this test to say anything"
    torch.testing.assert_close(logits(whole, tokenizer, architecture), expected, atol=1e-4, rtol=0)
    assert greedy(whole, tokenizer) == greedy(both, tokenizer)
    assert tokenizer(TEXTS)["input_ids"] == AutoTokenizer.from_pretrained(f"base_{architecture}")(TEXTS)["input_ids"]


def test_the_ends_of_a_text_are_those_of_training_and_the_base_s_sampling_is_not_kept(
    workspace: Path, tmp_path: Path
) -> None:
    for number, arguments in enumerate((["--merge"], [])):
        folder = exported(tmp_path / str(number), *arguments, run="runs/gpt2")
        stops = GenerationConfig.from_pretrained(folder)
        assert stops.eos_token_id == [0, SECOND_STOP]
        assert stops.pad_token_id == 0
        assert not stops.do_sample
        assert stops.repetition_penalty in (None, 1.0)


@pytest.mark.parametrize("architecture", AUTO)
def test_an_adapter_is_published_as_it_is_for_plain_peft(
    architecture: str, workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path / "out", run=f"runs/{architecture}")
    assert {file.name for file in folder.iterdir()} == TOKENIZER | {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "generation_config.json")
    }
    weights, stage = "adapter_model.safetensors", Path(f"runs/{architecture}/ppo")
    assert (folder / weights).read_bytes() == (stage / weights).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded, theirs = (plain(architecture, f"base_{architecture}", place) for place in (folder, stage))
    torch.testing.assert_close(
        logits(loaded, tokenizer, architecture), logits(theirs, tokenizer, architecture), atol=1e-4, rtol=0
    )
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert f"base_{architecture}" in note
    assert "--merge" in note


def test_a_fully_trained_model_is_published_without_its_value_head(workspace: Path, tmp_path: Path) -> None:
    for number, arguments in enumerate(([], ["--merge"])):
        folder = exported(tmp_path / str(number), *arguments, run="runs/full")
        assert {file.name for file in folder.iterdir()} == TOKENIZER | {
            *("README.md", "config.json", "generation_config.json", "model.safetensors")
        }
        tokenizer = AutoTokenizer.from_pretrained(folder)
        loaded, theirs, base = (plain("gpt2", place) for place in (folder, "runs/full/ppo", "base_gpt2"))
        torch.testing.assert_close(logits(loaded, tokenizer, "gpt2"), logits(theirs, tokenizer, "gpt2"))
        assert (logits(loaded, tokenizer, "gpt2") - logits(base, tokenizer, "gpt2")).abs().max() > 0.1


def test_a_merge_is_never_into_four_bits_and_rounds_once(workspace: Path, tmp_path: Path) -> None:
    whole = load_file(exported(tmp_path / "fp32", "--merge") / "model.safetensors")
    run = altered("t5", tmp_path / "nf4", quantization="nf4")
    folder = exported(tmp_path / "from_nf4", "--merge", run=run)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(weight, whole[name])
    assert "nf4" in section(folder, "Limits")
    run = altered("t5", tmp_path / "bf16", precision="bf16")
    for name, weight in load_file(exported(tmp_path / "from_bf16", "--merge", run=run) / "model.safetensors").items():
        assert torch.equal(weight, whole[name].bfloat16())


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft warns of it as well
def test_an_adapter_on_tied_weights_is_not_merged_into_another_function(workspace: Path, tmp_path: Path) -> None:
    run = altered("gpt2", tmp_path / "run")
    head = LoraSettings(r=2, alpha=4, target_modules=["lm_head"])
    model = add_lora(AutoModelForCausalLM.from_pretrained("base_gpt2"), head, "default")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_model(model, Path(run) / "ppo")
    line = refused(run, tmp_path / "out", "--merge")
    assert "tied embeddings" in line
    assert line.endswith("export the adapter without --merge")


def test_chat_prompts_are_put_into_the_chat_template_that_goes_along(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = altered("gpt2", tmp_path / "run")
    file = Path(run) / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["ppo"]["data"]["chat"] = True
    file.write_text(yaml.safe_dump(config))
    template = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}Summary: "
    (Path(run) / "ppo" / "chat_template.jinja").write_text(template)
    folder = exported(tmp_path / "out", "--merge", run=run)
    assert (folder / "chat_template.jinja").read_text() == template
    monkeypatch.chdir(tmp_path)
    printed = run_code(folder, capsys)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), plain("gpt2", folder)
    text = "<Summarize the dialogue.\n\n{dialogue}\n\nSummary:\n>Summary: "
    batch = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    answer = model.generate(**batch, max_new_tokens=6)[0, batch["input_ids"].shape[1] :]
    assert printed == tokenizer.decode(answer, skip_special_tokens=True) + "\n"


def test_the_reward_is_published_with_its_report_and_calibration(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--stage", "reward")
    assert {file.name for file in folder.iterdir()} == TOKENIZER | {
        *("README.md", "config.json", "model.safetensors", "report.json", "report.html", "calibration.json")
    }
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.id2label == {0: "clean", 1: "rude"}
    metrics = json.loads(Path("runs/t5/reward/stage.json").read_text())["metrics"]
    assert f"| auroc | {metrics['auroc']:.4g} |" in section(folder, "What was measured")
    assert "wanted_label | clean" in section(folder, "Training settings")
    card = ModelCard.load(folder / "README.md").data
    assert (card.pipeline_tag, card.library_name) == ("text-classification", "transformers")


def run_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the card's code prints, run in the folder that holds the exported one."""
    (code,) = re.findall("```python\n(.*?)```", section(folder, "How to load it"), re.DOTALL)
    capsys.readouterr()
    exec(code, {})
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "arguments"), [("t5", []), ("gpt2", []), ("t5", ["--merge"]), ("gpt2", ["--merge"]), ("full", [])]
)
def test_the_code_of_the_card_answers_as_the_policy(
    run: str, arguments: list[str], workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(f"out_{run}_{len(arguments)}", *arguments, run=f"runs/{run}")
    printed = run_code(folder, capsys)
    architecture = "t5" if run == "t5" else "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(f"runs/{run}/ppo")
    model = (
        plain("gpt2", "runs/full/ppo")
        if run == "full"
        else plain(architecture, f"base_{architecture}", f"runs/{run}/ppo")
    )
    batch = tokenizer("Summarize the dialogue.\n\n{dialogue}\n\nSummary:\n", return_tensors="pt")
    answer = model.generate(**batch, max_new_tokens=6)[0]
    start = 0 if architecture == "t5" else batch["input_ids"].shape[1]
    assert printed == tokenizer.decode(answer[start:], skip_special_tokens=True) + "\n"


def with_reward(name: str, labels: list[str], **train: Any) -> tuple[str, Path]:
    """A copy of the run t5 whose reward has these labels and random weights, and the folder of that reward."""
    run = Path(altered("t5", Path("runs") / name))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["reward"]["train"] |= train
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(
        "base_gpt2", id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}
    ).save_pretrained(run / "reward")
    return str(run), run / "reward"


def test_the_code_of_a_classifier_s_card_gives_its_toxicity(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, stage = with_reward("classifier", ["vile", "clean", "rude"])
    folder = exported("out_classifier", "--stage", "reward", run=run)
    expected = load_reward(str(stage), wanted_label="clean", polarity_pair=None).reward.toxicity(["the text"])
    assert float(run_code(folder, capsys)) == pytest.approx(expected[0], abs=1e-4)


def test_the_code_of_a_preference_model_s_card_gives_its_score(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, stage = with_reward("preference", ["score"], objective="preference", wanted_label=None)
    (stage / "calibration.json").unlink()
    folder = exported("out_preference", "--stage", "reward", run=run)
    assert not (folder / "calibration.json").exists()
    expected = load_reward("preference", model=str(stage))(["the prompt"], ["the answer"])
    assert float(run_code(folder, capsys)) == pytest.approx(expected[0], abs=1e-4)


def section(folder: Path, title: str) -> str:
    """The text of one section of the card."""
    text = (folder / "README.md").read_text()
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def comparison(difference: float, word: str | None, needed: int | None = None) -> dict[str, Any]:
    """A paired comparison as results.json has it."""
    return {
        "mean_before": 0.4,
        "mean_after": 0.4 + difference,
        "difference": difference,
        "low": difference - 0.05,
        "high": difference + 0.05,
        "wins": 1,
        "ties": 194,
        "losses": 105,
        "verdict": word,
        "prompts_needed": needed,
    }


def results() -> dict[str, Any]:
    """The results of an evaluation, version 1."""
    toxicity = {"better": "lower", "means": {"base": 0.81, "sft": 0.42, "aligned": 0.13}, "spread": None}
    rouge = {"better": "higher", "means": {"base": 0.2, "sft": 0.777, "aligned": 0.778}, "spread": None}
    distinct = {"better": None, "means": {"base": 0.6, "sft": 0.333, "aligned": 0.25}, "spread": None}
    one = comparison(-0.29, "better") | {"low": None, "high": None}
    comparisons = {
        "aligned - sft": {
            "toxicity (reward)": comparison(-0.29, "better"),
            "ROUGE-L": comparison(0.001, "no detectable change", 12_000),
        },
        "aligned - base": {"toxicity (reward)": comparison(-0.68, "better")},
        "sft - base": {"toxicity (reward)": comparison(-0.39, "better")},
    }
    first = {"prompts": 300, "neutral": False, "seen_in_training": 0, "enough": True}
    second = {"prompts": 1, "neutral": True, "seen_in_training": 1, "enough": False}
    return {
        "version": 1,
        "name": "t5",
        "date": "2026-11-22",
        "seeds": [0, 41],
        "commit": "abc1234",
        "versions": {"torch": "2.13.0"},
        "machine": "2 cores",
        "inputs": {"data": {}},
        "models": ["base", "sft", "aligned"],
        "before": "sft",
        "after": "aligned",
        "reward": "trained",
        "judges": ["reward"],
        "threshold": 0.5,
        "temperature": 1.0,
        "max_new_tokens": 40,
        "samples": 1,
        "verdict": {"word": "better", "sentence": "Toxicity fell from 0.420 to 0.130 on 300 prompts."},
        "guards": [
            {"name": "judge agrees", "passed": False, "text": "no other judge was asked"},
            {"name": "length", "passed": True, "text": "18.7 to 18.2 tokens"},
        ],
        "sets": {
            "test dialogues": first
            | {
                "metrics": {"toxicity (reward)": toxicity, "ROUGE-L": rouge, "distinct-2": distinct},
                "comparisons": comparisons,
            },
            "small | talk": second
            | {
                "metrics": {"toxicity (reward)": toxicity},
                "comparisons": {"aligned - sft": {"toxicity (reward)": one}},
            },
        },
    }


@pytest.fixture
def evaluated(workspace: Path, tmp_path: Path) -> str:
    """A copy of the run t5 that was evaluated."""
    run = Path(altered("t5", tmp_path / "evaluated"))
    record = json.loads((run / "ppo" / "stage.json").read_text()) | {"stage": "evaluation"}
    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text(json.dumps(results()))
    (run / "evaluation" / "stage.json").write_text(json.dumps(record))
    return str(run)


def test_the_card_holds_verdict_table_and_failed_guards(evaluated: str, tmp_path: Path) -> None:
    found = section(exported(tmp_path / "out", "--merge", run=evaluated), "Before and after")
    assert "**better**: Toxicity fell from 0.420 to 0.130 on 300 prompts." in found
    assert "judge agrees: no other judge was asked" in found
    assert "18.7 to 18.2" not in found, "a guard that passed"
    assert "seeds of the answers 0, 41" in found
    rows = [line for line in found.splitlines() if line.startswith("|")]
    assert rows[0] == "|  | base | sft | aligned | aligned - sft \\[95 % interval\\] | verdict |"
    assert rows[2] == "| toxicity (reward) | 0.810 | 0.420 | 0.130 | -0.290 \\[-0.340, -0.240\\] | better |"
    assert rows[3].endswith("| no detectable change (about 12000 prompts would show this difference) |")
    assert rows[4] == "| distinct-2 | 0.600 | 0.333 | 0.250 |  |  |"
    assert "-0.290 no interval" in rows[-1]
    assert "**small \\| talk**: 1 prompts (neutral" in found


def test_the_card_of_the_sft_model_compares_it_with_the_base(evaluated: str, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--merge", "--stage", "sft", run=evaluated)
    found = section(folder, "Before and after")
    assert "| toxicity (reward) | 0.810 | 0.420 | -0.390 \\[-0.440, -0.340\\] | better |" in found
    assert "aligned" not in found
    assert "fell" not in found, "the verdict is about the aligned model"
    assert "ppo" not in section(folder, "Where it comes from")
    assert "kl_coef" not in section(folder, "Training settings")


def test_the_card_names_its_limits(evaluated: str, workspace: Path, tmp_path: Path) -> None:
    found = section(exported(tmp_path / "out", "--merge", run=evaluated), "Limits")
    assert "The only judge is the reward that PPO maximised" in found
    assert "small \\| talk: 1 prompts are too few" in found
    assert "small \\| talk: 1 of its prompts were trained on" in found
    assert "test dialogues" not in found
    assert "languages" in found
    assert "Not for use without people" in found
    other = results() | {"judges": ["reward", "lexicon"]}
    (Path(evaluated) / "evaluation" / "results.json").write_text(json.dumps(other))
    assert "judges alone: reward, lexicon." in section(exported(tmp_path / "two", "--merge", run=evaluated), "Limits")


def test_a_card_without_evaluation_says_that_nothing_was_measured(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--merge")
    assert section(folder, "Before and after").strip() == "Nothing was measured: the run has no evaluation."
    assert "Nothing was measured" in section(folder, "Limits")


def test_the_card_tells_where_the_model_comes_from(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", "--merge")
    found = section(folder, "Where it comes from")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["base", "sft", "reward", "ppo"]
    base = hashlib.sha256(Path("base_t5/model.safetensors").read_bytes()).hexdigest()
    assert rows[2][1:] == ["base_t5", "", "", "", base[:16]]
    data = hashlib.sha256(Path("prompts.jsonl").read_bytes()).hexdigest()
    record = json.loads(Path("runs/t5/ppo/stage.json").read_text())
    for row, stage in ((rows[3], "sft"), (rows[5], "ppo")):
        assert row[2] == f"prompts.jsonl (train, sha256 {data[:16]})"
        assert row[3:5] == ["0", str(json.loads(Path(f"runs/t5/{stage}/stage.json").read_text())["commit"] or "")]
    assert rows[3][5] == record["inputs"]["sft"][:16]
    assert rows[4][1] == "from embedded:gpt2"
    own = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert f"published here: {own[:16]}." in found
    assert f"torch {record['versions']['torch']}" in found
    settings = section(folder, "Training settings")
    for line in ("seed | 0", "policy.lora.r | 16", "ppo.kl_coef | 0.2", "ppo.steps | 2", "sft steps | 3"):
        assert f"| {line} |" in settings


def test_front_matter_names_what_the_hub_has_and_nothing_else(workspace: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path / "out")
    card = ModelCard.load(folder / "README.md").data.to_dict()
    assert card == {"library_name": "peft", "tags": ["rlhf", "ppo", "lora"]}
    run = export.open_finished(Path("runs/gpt2"))
    policy, first, second = run.config.policy, run.config.sft, run.config.ppo
    assert first is not None
    assert second is not None
    policy.model, first.data.path, second.data.path = "org/base", "org/sums", "allenai/real-toxicity-prompts"
    front = model_card.front_matter(Subject(run, "ppo", "merged", "./x", "", False))
    assert yaml.safe_load(front) == {
        "base_model": "org/base",
        "datasets": ["org/sums", "allenai/real-toxicity-prompts"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "ppo", "lora"],
    }


def test_no_path_of_this_machine_is_published(workspace: Path, tmp_path: Path) -> None:
    run = altered("gpt2", tmp_path / "run", model=str(workspace / "base_gpt2"))
    folder = exported(tmp_path / "out", run=run)
    for name in ("README.md", "adapter_config.json", "tokenizer_config.json"):
        assert str(workspace.parent) not in (folder / name).read_text()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base_gpt2"


def test_text_from_data_is_no_markup() -> None:
    rude = "a|b\nc <img src=x> `d` [e](f) **g** __h__ \\| i_j \x1b"
    lines = model_card.table(["x", "y"], [[rude, "z"]]).splitlines()
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", lines[2])) == 3, "three bars that part cells"
    assert "<" not in lines[2]
    assert not re.search(r"(?<!\\)[`*\[\]]", lines[2])
    assert not re.search(r"(?<!\\)__", lines[2])
    assert "i_j" in lines[2], "a name stays readable"
    assert "\x1b" not in lines[2]


def test_a_reward_is_named_by_its_parts_and_never_by_its_addresses() -> None:
    terms = [{"model": "/home/anna/judge", "weight": 2}, {"model": "http", "options": {"url": "http://secret"}}]
    assert reward_name(RewardConfig("combine", {"terms": terms})) == "2 x judge + 1 x http"
    assert reward_name(RewardConfig("ensemble", {"models": ["org/a", "/b/c"], "k": 1})) == "ensemble of org/a, c"
    assert reward_name(RewardConfig("http", {"url": "http://secret"})) == "http"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "runs/t6"], "--run runs/t6: no run folder: there is no such folder; did you mean runs/t5?"),
        (["--run", "runs/t5/ppo"], "--run runs/t5/ppo: no run folder: it has no config.yaml; did you mean runs/t5?"),
        (
            ["--run", "runs/gpt2", "--stage", "reward"],
            "--stage reward: runs/gpt2 trains no such model; it has ppo, sft",
        ),
        (["--run", "runs/t5", "--to", "base_t5"], "--to base_t5: the folder is not empty"),
        (["--run", "runs/t5", "--to", "prompts.jsonl"], "--to prompts.jsonl: a file of that name is in the way"),
        (["--run", "runs/t5", "--push_to_hub", "name"], "--push_to_hub name: the owner is missing; give OWNER/NAME"),
        (["--run", "runs/t5", "--push_to_hub", "a/b/c"], "--push_to_hub a/b/c: "),
        (["--run", "runs/t5", "--push_to_hub", "me/a b"], "--push_to_hub me/a b: "),
        (["--run", "runs/t5", "--private"], "--private: it is for --push_to_hub"),
        (["--run", "runs/t5", "--stage", "evaluation"], "invalid choice: 'evaluation'"),
        (["--run", "runs/t5", "--marge"], "unrecognized arguments: --marge"),
        ([], "required: run"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments: list[str], message: str, workspace: Path) -> None:
    before = sorted(workspace.rglob("*"))
    to = [] if "--to" in arguments else ["--to", "never"]
    with pytest.raises(UserError) as raised:
        export.main([*arguments, *to])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(workspace.rglob("*")) == before


def refused(run: str, to: Path, *arguments: str) -> str:
    """The one line that an export is refused with."""
    with pytest.raises(UserError) as raised:
        exported(to, *arguments, run=run)
    assert "\n" not in str(raised.value)
    assert not to.exists()
    return str(raised.value)


def test_stages_that_are_unfinished_or_damaged_are_named(workspace: Path, tmp_path: Path) -> None:
    run = altered("gpt2", tmp_path / "run")
    (tmp_path / "run" / "ppo" / "adapter_model.safetensors").write_bytes(b"torn")
    assert "ppo" in (line := refused(run, tmp_path / "out"))
    assert line.endswith("adapter_model.safetensors: damaged; redo the stage with --force ppo")
    assert "redo the stage with --force ppo" in refused(run, tmp_path / "out", "--merge")
    (tmp_path / "run" / "ppo" / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors in it; redo the stage" in refused(run, tmp_path / "out")
    (tmp_path / "run" / "ppo" / "stage.json").unlink()
    assert "stage ppo is not finished; run it first" in refused(run, tmp_path / "out")
    exported(tmp_path / "out", "--stage", "sft", run=run)
    (tmp_path / "run" / "sft" / "tokenizer.json").unlink()
    (tmp_path / "run" / "sft" / "tokenizer_config.json").unlink()
    assert "no whole tokenizer in it" in refused(run, tmp_path / "again", "--stage", "sft")


def test_an_adapter_on_a_base_that_only_this_project_has_is_refused(workspace: Path, tmp_path: Path) -> None:
    run = altered("t5", tmp_path / "run", model="embedded:t5")
    line = refused(run, tmp_path / "out")
    assert line.startswith("--merge: needed here")
    folder = exported(tmp_path / "out", "--merge", run=run)
    assert "toy" in section(folder, "Limits")


def test_a_base_that_is_stored_quantized_takes_no_merge(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree("base_gpt2", tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )
    run = altered("gpt2", tmp_path / "run", model=str(tmp_path / "base"))
    assert "is stored quantized" in refused(run, tmp_path / "out", "--merge")


@pytest.mark.parametrize("text", ["{}", "[", json.dumps(results() | {"version": 2})])
def test_results_of_another_version_are_refused(text: str, evaluated: str, tmp_path: Path) -> None:
    (Path(evaluated) / "evaluation" / "results.json").write_text(text)
    assert "redo the stage with --force evaluation" in refused(evaluated, tmp_path / "out", "--merge")


def test_an_export_that_fails_leaves_nothing_behind(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> str:
        raise KeyError("a bug in the card")

    monkeypatch.setattr(model_card, "card", fail)
    with pytest.raises(KeyError):
        exported(tmp_path / "out", "--merge")
    assert list(tmp_path.iterdir()) == []


class Hub:
    """Stands in for the hub's client and remembers what it was asked."""

    calls: list[tuple[str, dict[str, Any]]]
    public = False
    failure: Exception | None = None

    def __init__(self) -> None:
        type(self).calls = []

    def create_repo(self, name: str, **options: Any) -> str:
        """The repository's address, or what goes wrong."""
        self.calls.append((name, options))
        if self.failure:
            raise self.failure
        return f"https://huggingface.co/{name}"

    def model_info(self, name: str) -> Any:
        """Whether it is private."""
        return huggingface_hub.ModelInfo(id=name, private=not self.public)

    def upload_folder(self, **options: Any) -> None:
        """Remembers the folder."""
        self.calls.append(("upload", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    """The hub's client replaced, with a user logged in."""
    client = type("Client", (Hub,), {})
    monkeypatch.setattr(huggingface_hub, "HfApi", client)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return client


def test_a_push_creates_the_repository_and_uploads_what_was_written(
    hub: type[Hub], workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path / "out", "--merge", "--push_to_hub", "me/model", "--private")
    assert hub.calls[0] == ("me/model", {"private": True, "exist_ok": True})
    assert (hub.calls[1][1]["repo_id"], hub.calls[1][1]["folder_path"]) == ("me/model", folder.resolve())
    assert "pushed to https://huggingface.co/me/model" in capsys.readouterr().out
    assert 'place = "me/model"' in section(folder, "How to load it")


def test_what_cannot_be_pushed_is_written_and_said(
    hub: type[Hub], workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(to: str, *arguments: str) -> str:
        with pytest.raises(UserError) as raised:
            exported(tmp_path / to, "--merge", "--push_to_hub", "me/model", *arguments)
        assert (tmp_path / to / "README.md").is_file(), "the export itself is kept"
        assert not [call for call in hub.calls if call[0] == "upload"]
        assert "\n" not in str(raised.value)
        return str(raised.value)

    hub.public = True
    assert "is there already and public" in line("public", "--private")
    request = httpx2.Request("POST", "https://huggingface.co/api/repos/create")
    hub.failure = HfHubHTTPError("403 Forbidden\nnot yours", response=httpx2.Response(403, request=request))
    assert "not pushed: 403 Forbidden; mend that" in line("forbidden")
    hub.failure = HfHubHTTPError("401 Unauthorized", response=httpx2.Response(401, request=request))
    assert "not logged in to the hub; run hf auth login" in line("unknown")
    hub.failure = ConnectionError("no network\nat all")
    assert f"no network; mend that, then: hf upload me/model {tmp_path / 'failed'} ." in line("failed")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    hub.calls.clear()
    found = line("out", "--private")
    assert "run hf auth login, then: hf upload me/model" in found
    assert found.endswith(" . --private")
    assert hub.calls == []


def test_help_answers_without_loading_torch_and_a_mistake_leaves_with_2(workspace: Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['export', '--help']\n"
        "try: runpy.run_module('workbench.export', run_name='__main__')\n"
        "finally: assert not {'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 0, found.stderr
    assert "--push_to_hub" in found.stdout
    command = [sys.executable, "-m", "workbench.export", "--run", "nowhere", "--to", "out"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 2
    assert re.fullmatch("error: --run nowhere: no run folder: .*\n", found.stderr)

"""The recipes as a user runs them: every configuration, the whole chain, finished stages, mistakes, loadable files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import tiny
from peft import PeftModel
from small_runs import CHAIN, RECIPES, drop, evaluation_source, small
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from recipes import ppo
from recipes.compare import compare
from workbench.config.parsing import parse
from workbench.errors import UserError
from workbench.evaluation.results_files import read_results
from workbench.run import cli
from workbench.run.folder import open_run

CONFIGS = sorted(path.name for path in (Path(__file__).parent.parent / "recipes" / "configs").glob("*.yaml"))
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "


def row(split: str, index: int) -> dict[str, object]:
    """Return a row with every column that a configuration names."""
    texts = {"dialogue": f"a: hello {split} {index}\nb: bye", "summary": f"they meet {index}", "text": f"you {index}"}
    texts |= {"document": texts["dialogue"], "wikipedia": f"one thing and {index} others"}
    task = {"instruction": f"greet {index}", "input": "", "output": "hello"}
    pair = {"chosen": "hello, dear", "rejected": "you"}
    return {**texts, **task, **pair, "label": index % 2, "prompt": {"text": f"so then {index}"}}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders that stand in for the models and data of the configurations: tiny, with random weights."""
    folder = tmp_path_factory.mktemp("hub")
    for architecture in tiny.ARCHITECTURES:
        tokenizer = tiny.tokenizer(architecture)
        tokenizer.model_max_length = 512
        model = tiny.model(architecture)
        if architecture == "gpt2":
            model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(folder / architecture)
        tokenizer.save_pretrained(folder / architecture)
    tokenizer = tiny.tokenizer("gpt2")
    tokenizer.model_max_length, tokenizer.chat_template = 2048, CHAT
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    labels = {0: "nothate", 1: "hate"}
    roberta = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=514,
        pad_token_id=0,
        id2label=labels,
        label2id={label: i for i, label in labels.items()},
    )
    RobertaForSequenceClassification(roberta).save_pretrained(folder / "roberta")
    tokenizer.save_pretrained(folder / "roberta")
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        rows = [row(split, index) for index in range(260)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{split}.jsonl").write_text(lines)
        plain = "".join(json.dumps(row | {"prompt": row["prompt"]["text"]}) + "\n" for row in rows)
        (folder / f"plain_{split}.jsonl").write_text(plain)
    return {path.name: str(path) for path in folder.iterdir()}


def localised(name: str, stand_ins: dict[str, str], root: Path, to: Path) -> str:
    """Write the configuration with its models and data replaced by the stand-ins, and return its path."""
    text = (root / "recipes" / "configs" / name).read_text()
    for name_in_config, stand_in in {
        "google/flan-t5-base": "t5",
        "models/t5-scratch": "t5",
        "openai-community/gpt2": "gpt2",
        "models/smollm2-135m-instruct": "llama",
        "models/all-minilm-l6-v2": "roberta",
        "facebook/roberta-hate-speech-dynabench-r4-target": "roberta",
        "knkarthick/dialogsum": "data",
        "EdinburghNLP/xsum": "data",
        "sentence-transformers/all-MiniLM-L6-v2": "roberta",
        "runs/smollm2_reward/reward": "roberta",
        "allenai/real-toxicity-prompts": "data",
    }.items():
        text = text.replace(name_in_config, stand_ins[stand_in])
    split = {"train": "train", "validation": "validation"}
    text = re.sub(r"data/\w+/(\w+)\.jsonl", lambda match: stand_ins[f"plain_{split.get(match[1], 'test')}.jsonl"], text)
    text = text.replace("[q_proj, k_proj, v_proj, o_proj]", "[q_proj, v_proj]")
    (to / name).write_text(text)
    return str(to / name)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_loads_and_plans(
    name: str,
    stand_ins: dict[str, str],
    in_project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["--sft.data.limit", "64", "--reward.train.data.limit", "64", "--ppo.data.limit", "64"]
    options = [
        *(few if name.startswith(("quickstart", "compare")) else []),
        "--runs",
        str(tmp_path / "runs"),
        "--dry_run",
    ]
    recipe = next((recipe for recipe in ("prompting", "tuning") if recipe in name), "detox")
    options = ["--config", localised(name, stand_ins, in_project, tmp_path), *options]
    compare(options) if name.endswith("compare.yaml") else cli.launch(RECIPES[recipe], "", options)
    printed = capsys.readouterr().out
    assert "% )" not in printed
    if recipe != "detox":
        assert {"prompting": "rows of the grid", "tuning": "takes the most memory"}[recipe] in printed
        return
    trains_a_policy = not name.startswith(("minilm", "smollm2_reward"))
    assert ("trained (" in printed) == trains_a_policy
    assert ("evaluation.data." in printed) == trains_a_policy
    assert trains_a_policy or "steps of" in printed
    assert not list(tmp_path.glob("runs*")), "a plan writes nothing"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_is_headed_by_hardware_runtime_and_command(name: str, in_project: Path) -> None:
    header = [
        line for line in (in_project / "recipes" / "configs" / name).read_text().splitlines() if line.startswith("#")
    ]
    text = "\n".join(header)
    assert "Hardware: " in text
    assert "Runtime: " in text
    assert "# Command: " in text
    assert f"recipes/configs/{name}" in text


@dataclass(frozen=True)
class ChainRun:
    """One run of the whole chain, and what it printed."""

    name: str
    options: list[str]
    folder: Path
    printed: str


SEEN = {"test dialogues": evaluation_source(10), "seen": evaluation_source(5, "train")}
VARIANTS = {
    "t5 adapters": ("quickstart", ["--track", "tensorboard"]),
    "t5 full": ("quickstart", ["--policy.lora", "null"]),
    "gpt2 adapters": ("quickstart_gpt2", ["--reward.model", "null", "--reward.train.data.limit", "640"]),
    "gpt2 full": ("quickstart_gpt2", ["--policy.lora", "null", "--evaluation.data", json.dumps(SEEN)]),
}


@pytest.fixture(scope="module")
def chain_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ChainRun]:
    """Runs the chain of a variant once, for all tests that look at it."""

    @cache
    def run(variant: str) -> ChainRun:
        name, extra = VARIANTS[variant]
        folder = tmp_path_factory.mktemp("chain")
        options = small(name, folder, *extra)
        if variant == "t5 full":  # as a run leaves it that is killed while it writes a checkpoint
            open_run(parse(options)[0], force=None).stage("sft").joinpath("checkpoint-2").mkdir()
        with redirect_stdout(StringIO()) as printed:
            cli.launch(CHAIN, "", options)
        return ChainRun(name, options, folder / name, printed.getvalue())

    return run


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_chain_runs_skips_and_leaves_what_plain_libraries_load(
    variant: str, chain_run: Callable[[str], ChainRun], capsys: pytest.CaptureFixture[str]
) -> None:
    chain = chain_run(variant)
    run = chain.folder
    assert "base sft aligned aligned - sft, 95 %" in " ".join(chain.printed.split())
    assert "ROUGE-L" in chain.printed
    assert "toxicity (reward)" in chain.printed
    assert ("toxicity (toy_lexicon)" in chain.printed) == ("toy_lexicon is the reward" not in chain.printed)
    assert "10 prompts are too few for a verdict" in chain.printed

    cli.launch(CHAIN, "", chain.options)
    again = capsys.readouterr().out
    assert again.count("already finished, skipping") == (4 if variant == "gpt2 adapters" else 3)
    assert "evaluation: toxicity: " in again, "the verdict is the result of the run"
    assert f"evaluation: page {chain.folder / 'evaluation' / 'report.html'}" in again

    results = read_results(run / "evaluation" / "results.json")
    result = next(result for result in results.sets if result.name == "test dialogues")
    assert (results.models, result.prompts) == (["base", "sft", "aligned"], 10)
    assert result.summary("KL to reference, nats").means["sft"] == pytest.approx(0, abs=1e-4)
    sources = {source.name: source.sha256 for source in results.provenance.sources if source.kind == "model"}
    assert all(len(sources[model]) == 64 for model in ("sft", "aligned"))
    assert "<script" in (run / "evaluation" / "report.html").read_text()
    lines = [json.loads(line) for line in (run / "evaluation" / "completions.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["set"] == "test dialogues"]) == 10
    assert {tuple(line["completions"]) for line in lines} == {("base", "sft", "aligned")}
    assert (run / "ppo" / "value_head.safetensors").is_file()
    steps = [json.loads(line)["step"] for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]

    auto_class = AutoModelForSeq2SeqLM if chain.name == "quickstart" else AutoModelForCausalLM
    if variant.endswith("adapters"):
        base = json.loads((run / "ppo" / "adapter_config.json").read_text())["base_model_name_or_path"]
        model = PeftModel.from_pretrained(auto_class.from_pretrained(base), run / "ppo")
    else:
        model = auto_class.from_pretrained(run / "ppo")
    tokenizer = AutoTokenizer.from_pretrained(run / "ppo")
    batch = tokenizer("Anna: hello", return_tensors="pt")
    assert model.generate(**batch, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_a_judge_that_is_the_reward_does_not_judge_it(chain_run: Callable[[str], ChainRun]) -> None:
    printed = chain_run("t5 adapters").printed
    assert "evaluation.judges: toy_lexicon is the reward or a part of it" in printed
    assert "toxic rate (toy_lexicon)" not in printed


def test_the_reward_stage_trains_a_plain_classifier_that_ppo_and_the_evaluation_use(
    chain_run: Callable[[str], ChainRun],
) -> None:
    chain = chain_run("gpt2 adapters")
    assert "toxicity (reward)" in chain.printed
    assert "toxicity (toy_lexicon)" in chain.printed
    model = AutoModelForSequenceClassification.from_pretrained(chain.folder / "reward")
    assert model.config.id2label == {0: "clean", 1: "rude"}
    record = json.loads((chain.folder / "reward" / "stage.json").read_text())
    assert 0 <= record["metrics"]["auroc"] <= 1
    assert not list((chain.folder / "reward").glob("checkpoint-*"))


def test_metrics_go_to_a_tracker_by_one_key(chain_run: Callable[[str], ChainRun]) -> None:
    folder = chain_run("t5 adapters").folder
    events = [path.relative_to(folder).parts[0] for path in folder.rglob("events.out.tfevents*")]
    assert set(events) == {"sft", "ppo", "evaluation"}


def test_a_torn_trainer_checkpoint_is_passed_over(chain_run: Callable[[str], ChainRun]) -> None:
    folder = chain_run("t5 full").folder / "sft"
    assert (folder / "stage.json").is_file()
    assert not (folder / "checkpoint-2").exists()


def test_prompts_that_were_trained_on_are_counted_and_reported(chain_run: Callable[[str], ChainRun]) -> None:
    chain = chain_run("gpt2 full")
    assert "seen: 5 prompts" in chain.printed
    assert "the training data contains 5 of these prompts" in chain.printed
    results = read_results(chain.folder / "evaluation" / "results.json")
    assert {result.name: result.seen_in_training for result in results.sets} == {"test dialogues": 0, "seen": 5}


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_damaged_adapter_names_the_stage_to_redo(
    damage: str, chain_run: Callable[[str], ChainRun], tmp_path: Path
) -> None:
    chain = chain_run("t5 adapters")
    run = tmp_path / chain.name
    shutil.copytree(chain.folder / "sft", run / "sft")
    shutil.copy(chain.folder / "config.yaml", run)
    if damage == "missing":
        (run / "sft" / "adapter_config.json").unlink()
    else:
        (run / "sft" / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="redo the stage with --force sft"):
        cli.launch([ppo.STAGE], "", [*chain.options, "--runs", str(tmp_path)])


def test_without_sft_the_base_is_the_reference_and_any_function_is_a_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = small("quickstart", tmp_path, "--reward.model", "small_runs:fraction_of_e")
    options = drop(options, "--sft.max_steps", "--sft.batch_size", "--sft.data.limit")
    cli.launch(CHAIN, "", [*options, "--sft", "null"])
    printed = capsys.readouterr().out
    assert "base aligned aligned - base, 95 %" in " ".join(printed.split())
    assert "toxic rate (reward)" not in printed, "a function that cannot judge is not listed as a judge"


def test_a_stage_alone_asks_for_the_one_before_it(in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage sft is not finished; run it first: python -m recipes.sft"):
        cli.launch([ppo.STAGE], "", small("quickstart", tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy.model", "./missing"], "policy.model: ./missing: no such file or folder"),
        (
            ["--policy.model", "nobody/nothing"],
            "policy.model: nobody/nothing: no such file or folder; as a hub id: the hub cannot be reached",
        ),
        (["--policy.precision", "fp16"], "policy.precision: fp16 overflows in t5"),
        (["--policy.lora.target_modules", "[nothing]"], "policy.lora.target_modules"),
        (["--policy.lora", "null", "--policy.quantization", "nf4"], "cannot be trained; add policy.lora"),
        (["--sft.data.path", "missing.jsonl"], "sft.data: missing.jsonl: no such file"),
        (["--ppo.data.split", "trial"], "ppo.data: toy:summaries: no split 'trial'; did you mean train?"),
        (
            ["--reward.train.data.split", "trial", "--reward.model", "null"],
            "reward.train.data: toy:sentences: no split 'trial'; did you mean train?",
        ),
        (["--reward.model", "lexicn"], "reward.model: unknown reward 'lexicn'; did you mean lexicon?"),
        (["--ppo.max_new_tokens", "6", "--ppo.data.max_prompt_tokens", "1"], "rows dropped"),
        (["--runs", "/proc/none"], "cannot be written"),
        (["--ppo.data.limit", "5"], "ppo.batch_size: 8 is above the 5 prompts"),
        (["--reuse.sft", "nowhere"], "reuse.sft: nowhere is not a run folder (no config.yaml)"),
        (["--track", "wandb"], "wandb is not installed"),
        (["--sft.trainer_args", "{warmup_stepz: 3}"], "did you mean warmup_steps?"),
        (["--sft.trainer_args", "{output_dir: x}"], "checkpoints belong in the run folder"),
        (["--ppo.kl_target", "5", "--ppo.kl_horizon", "4"], "ppo.kl_horizon: 4 is below ppo.batch_size 8"),
        (["--ppo.kl_target", "5", "--ppo.kl_coef", "0"], "ppo.kl_target: it scales ppo.kl_coef, and 0 stays 0"),
        (["--ppo.min_token_limit", "9"], "ppo.min_token_limit: 9 is above ppo.max_new_tokens 6"),
        (["--reward.sanity_pair", "[one]"], "reward.sanity_pair: 1 entries; expected exactly 2"),
        (["--ppo.learning_rate", ".nan"], "ppo.learning_rate: nan must be a finite number"),
        (["--evaluation.judges", "[lexcon]"], "evaluation.judges: unknown reward 'lexcon'; did you mean lexicon?"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        cli.launch(CHAIN, "", small("quickstart", tmp_path, *options))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [], "found before anything is written"

"""An exported model: what it was made from, and the code that loads it without this project."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.config.derived import completion_limit
from workbench.config.names import PPO, REWARD, SFT
from workbench.config.reward_training import RewardTraining, target_name
from workbench.config.schema import Config, RewardConfig
from workbench.config.scorers import as_scorer
from workbench.config.sources import DataSource
from workbench.data.formats import file_format
from workbench.data.templates import FIELD, template_text
from workbench.rewards.training.calibration import read_temperature
from workbench.run.folder import Run
from workbench.run.hub import is_hub_id

Form = Literal["adapter", "merged", "full", "reward"]
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class ExportedModel:
    """A stage's model as it is published."""

    run: Run
    stage: str
    """ppo, sft or reward."""
    form: Form
    address: str
    """What `from_pretrained` takes: ./FOLDER, or OWNER/NAME on the hub."""
    sha256: str
    """Content hash of the published folder."""
    is_encoder_decoder: bool

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.run.config

    @property
    def stages(self) -> list[str]:
        """The stages that trained the weights, in order."""
        return [SFT, PPO] if self.stage == PPO and self.config.sft else [self.stage]


def hub_id(name: str) -> str | None:
    """Return the name of a model or data set on the hub; None for a local path or a toy model."""
    local = Path(name).expanduser()
    is_local = name.startswith(("toy:", ".", "/", "~")) or local.exists() or file_format(local) is not None
    return None if is_local or not is_hub_id(name) else name


def public_name(name: str) -> str:
    """Return a path or id that reveals nothing private: only the last component of an absolute path."""
    return Path(name).name if name.startswith(("/", "~")) else name


def base_model(config: Config, stage: str) -> str:
    """Return the model that the training of a stage started from."""
    return reward_training(config).model if stage == REWARD else config.policy.model


def reward_training(config: Config) -> RewardTraining:
    """Return the section reward.train."""
    assert config.reward is not None
    assert config.reward.train is not None
    return config.reward.train


def training_sources(config: Config, stage: str) -> list[DataSource]:
    """Return the data that one stage trained on."""
    if stage == REWARD:
        train = reward_training(config)
        return [train.data, *train.more_data, *train.clean_data]
    if stage == SFT:
        assert config.sft is not None
        return [config.sft.data, *config.sft.more_data]
    assert config.ppo is not None
    return [config.ppo.data]


def reward_description(reward: RewardConfig) -> str:
    """Return the reward and its parts by name; other options stay private, since they may hold server addresses."""
    if reward.model is None:
        return "the reward model of this run"
    if reward.model == "combine":
        return " + ".join(_term_description(term) for term in reward.options["terms"])
    if reward.model == "ensemble":
        return f"ensemble of {', '.join(_model_name(member) for member in reward.options['members'])}"
    return public_name(reward.model)


def _term_description(term: Any) -> str:
    """Return the weight and the model of a term of a combination."""
    weight = term.get("weight", 1.0) if isinstance(term, dict) else 1.0
    return f"{weight:g} x {_model_name(term)}"


def _model_name(part: Any) -> str:
    """Return the public name of a term or member, which is a name or a mapping."""
    if isinstance(part, dict):
        part = {key: value for key, value in part.items() if key in ("model", "options")}
    return public_name(as_scorer(part, "reward.options").model)


def lm_eval_command(model: ExportedModel, folder: str) -> str:
    """Return the command that measures the policy exported to `folder` with lm-evaluation-harness.

    Without a dtype, lm_eval would load the base in the precision of its checkpoint rather than that of training.
    """
    policy = model.config.policy
    base = policy.model if hub_id(policy.model) else str(Path(policy.model).expanduser())
    weights = [f"pretrained={base}", f"peft={folder}"] if model.form == "adapter" else [f"pretrained={folder}"]
    backend = ["backend=seq2seq"] if model.is_encoder_decoder else []
    arguments = ",".join([*weights, f"tokenizer={folder}", f"dtype={DTYPE_NAMES[policy.precision]}", *backend])
    return f"lm_eval --model hf --model_args {shlex.quote(arguments)} --tasks hellaswag"


def loading_code(model: ExportedModel) -> str:
    """Return a fenced block of code that loads the model and runs it on a prompt like its training prompts."""
    return fenced(_reward_code(model) if model.stage == REWARD else _policy_code(model))


def _policy_code(model: ExportedModel) -> list[str]:
    """Return code that generates a completion."""
    config, (source, *_) = model.config, training_sources(model.config, model.stage)
    auto_class = "AutoModelForSeq2SeqLM" if model.is_encoder_decoder else "AutoModelForCausalLM"
    if model.form == "adapter":
        base, dtype = _literal(public_name(config.policy.model)), _literal(DTYPE_NAMES[config.policy.precision])
        lines = [
            "from peft import PeftModel",
            f"from transformers import {auto_class}, AutoTokenizer, GenerationConfig",
            *("", _path_code(model)),
            f"base = {auto_class}.from_pretrained({base}, dtype={dtype})",
            "base.generation_config = GenerationConfig.from_pretrained(path)  # as in training",
            "model = PeftModel.from_pretrained(base, path)",
        ]
    else:
        lines = [f"from transformers import {auto_class}, AutoTokenizer", "", _path_code(model)]
        lines.append(f"model = {auto_class}.from_pretrained(path)")
    lines += ["tokenizer = AutoTokenizer.from_pretrained(path)", "", *_prompt_code(source)]
    lines.append(f"output = model.generate(**batch, max_new_tokens={completion_limit(config)})")
    start = "" if model.is_encoder_decoder else ', batch["input_ids"].shape[1] :'
    return [*lines, f"print(tokenizer.decode(output[0{start}], skip_special_tokens=True))"]


def _path_code(model: ExportedModel) -> str:
    """Return the line that names the model."""
    return f"path = {_literal(model.address)}  # this folder, or its id on the hub"


def _prompt_code(source: DataSource) -> list[str]:
    """Return code that makes a batch of one prompt, in the format of the training data."""
    chat = source.chat or "messages" in source.columns
    template = template_text(source.template)
    template = template if chat else template.rstrip(" ")
    fields = " and ".join(f"{{{name}}}" for name in dict.fromkeys(FIELD.findall(template)))
    lines = [f"prompt = {_literal(template)}  # replace {fields} with your text"]
    if chat:
        turns = '[{"role": "user", "content": prompt}]'
        options = 'add_generation_prompt=True, return_dict=True, return_tensors="pt"'
        return [*lines, f"batch = tokenizer.apply_chat_template({turns}, {options})"]
    return [*lines, 'batch = tokenizer(prompt, return_tensors="pt")']


def _reward_code(model: ExportedModel) -> list[str]:
    """Return code that scores a text."""
    train = reward_training(model.config)
    lines = [
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        _path_code(model),
        "model = AutoModelForSequenceClassification.from_pretrained(path).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        "",
    ]
    if train.objective == "preference":
        return [
            *lines,
            r'text = "the prompt" + "\n\n" + "the completion"',
            f'batch = tokenizer(text, truncation=True, max_length={train.max_tokens}, return_tensors="pt")',
            "with torch.no_grad():",
            "    print(float(model(**batch).logits[0, 0]))  # higher is better",
        ]
    temperature = read_temperature(model.run.folder / REWARD)
    return [
        *lines,
        'batch = tokenizer("the text", truncation=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    logits = model(**batch).logits[0]",
        f"target = model.config.label2id[{_literal(target_name(train))}]",
        "reward = logits[target] - torch.cat((logits[:target], logits[target + 1 :])).logsumexp(dim=0)",
        f"print(float(torch.sigmoid(-reward / {temperature!r})))  # toxicity; divided by the temperature",
    ]


def _literal(value: str) -> str:
    """Return a Python literal on one line."""
    return json.dumps(value, ensure_ascii=False)


def fenced(lines: Sequence[str]) -> str:
    """Return Python code between fences that nothing in it can close."""
    code = "\n".join(lines)
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{code}\n{fence}"

"""An exported model: what it was made of, and the code that loads it without this project."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workbench.config.schema import Config, DataSource, RewardConfig, RewardTraining, completion_limit
from workbench.data.readers import READERS
from workbench.data.templates import FIELD, template_text
from workbench.run.folder import Run
from workbench.run.hub import is_hub_id

Form = Literal["adapter", "merged", "full", "reward"]


@dataclass(frozen=True)
class Subject:
    """What a card is about."""

    run: Run
    stage: str
    """ppo, sft or reward."""
    form: Form
    address: str
    """What `from_pretrained` takes: ./FOLDER, or OWNER/NAME on the hub."""
    sha256: str
    """Of the weights as they are published."""
    is_encoder_decoder: bool


def hub_id(name: str) -> str | None:
    """The name if it is one of the hub's; None for a file, a folder and what comes with the workbench."""
    local = Path(name).expanduser()
    is_local = name.startswith(("toy:", ".", "/", "~")) or local.exists() or local.suffix.lower() in READERS
    return None if is_local or not is_hub_id(name) else name


def shown(name: str) -> str:
    """A path or id as others may see it: of a path from the root of this machine, only the last part."""
    return Path(name).name if name.startswith(("/", "~")) else name


def base_of(config: Config, stage: str) -> str:
    """The model that the stage's training began with."""
    return training(config).model if stage == "reward" else config.policy.model


def training(config: Config) -> RewardTraining:
    """How the reward was trained."""
    assert config.reward is not None
    assert config.reward.train is not None
    return config.reward.train


def sources(config: Config, stage: str) -> list[DataSource]:
    """What the stage alone learned from."""
    if stage == "reward":
        train = training(config)
        return [train.data, *train.more_data, *train.clean_data]
    section = config.ppo if stage == "ppo" else config.sft
    assert section is not None
    return [section.data]


def stages(subject: Subject) -> list[str]:
    """The stages that the exported weights went through, in order."""
    return ["sft", "ppo"] if subject.stage == "ppo" and subject.run.config.sft else [subject.stage]


def reward_name(reward: RewardConfig) -> str:
    """The reward in words; of its options only the names of its parts, since others may name servers."""
    if reward.model is None:
        return "model trained in the same run"
    if reward.model == "combine":
        return " + ".join(f"{term.get('weight', 1.0):g} x {shown(term['model'])}" for term in reward.options["terms"])
    if reward.model == "ensemble":
        return f"ensemble of {', '.join(shown(model) for model in reward.options['models'])}"
    return shown(reward.model)


def loading(subject: Subject) -> str:
    """Code that works as it stands, and how the prompt was made."""
    if subject.stage == "reward":
        return _block(_reward_code(subject))
    config, (source,) = subject.run.config, sources(subject.run.config, subject.stage)
    auto_class = "AutoModelForSeq2SeqLM" if subject.is_encoder_decoder else "AutoModelForCausalLM"
    where = f"place = {_literal(subject.address)}  # this folder, or its id on the hub"
    if subject.form == "adapter":
        dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[config.policy.precision]
        lines = [
            "from peft import PeftModel",
            f"from transformers import {auto_class}, AutoTokenizer, GenerationConfig",
            *("", where),
            f"base = {auto_class}.from_pretrained({_literal(shown(config.policy.model))}, dtype={_literal(dtype)})",
            "base.generation_config = GenerationConfig.from_pretrained(place)  # as in training",
            "model = PeftModel.from_pretrained(base, place)",
        ]
    else:
        lines = [f"from transformers import {auto_class}, AutoTokenizer", "", where]
        lines.append(f"model = {auto_class}.from_pretrained(place)")
    lines += ["tokenizer = AutoTokenizer.from_pretrained(place)", "", *_prompt_code(source)]
    lines.append(f"output = model.generate(**batch, max_new_tokens={completion_limit(config)})")
    start = "" if subject.is_encoder_decoder else ', batch["input_ids"].shape[1] :'
    lines.append(f"print(tokenizer.decode(output[0{start}], skip_special_tokens=True))")
    return _block(lines)


def _prompt_code(source: DataSource) -> list[str]:
    chat = source.chat or "messages" in source.columns
    template = template_text(source.template)
    template = template if chat else template.rstrip(" ")
    fields = " and ".join(f"{{{name}}}" for name in dict.fromkeys(FIELD.findall(template)))
    lines = [f"prompt = {_literal(template)}  # your text in the place of {fields}"]
    if chat:
        turns = '[{"role": "user", "content": prompt}]'
        options = 'add_generation_prompt=True, return_dict=True, return_tensors="pt"'
        return [*lines, f"batch = tokenizer.apply_chat_template({turns}, {options})"]
    return [*lines, 'batch = tokenizer(prompt, return_tensors="pt")']


def _reward_code(subject: Subject) -> list[str]:
    train = training(subject.run.config)
    lines = [
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"place = {_literal(subject.address)}  # this folder, or its id on the hub",
        "model = AutoModelForSequenceClassification.from_pretrained(place).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(place)",
        "",
    ]
    if train.objective == "preference":
        return [
            *lines,
            r'text = "the prompt" + "\n\n" + "the answer"',
            f'batch = tokenizer(text, truncation=True, max_length={train.max_tokens}, return_tensors="pt")',
            "with torch.no_grad():",
            "    print(float(model(**batch).logits[0, 0]))  # higher is better",
        ]
    calibration = subject.run.folder / "reward" / "calibration.json"
    temperature = json.loads(calibration.read_text())["temperature"] if calibration.is_file() else 1.0
    return [
        *lines,
        'batch = tokenizer("the text", truncation=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    logits = model(**batch).logits[0]",
        f"wanted = model.config.label2id[{_literal(str(train.target_label))}]",
        "margin = logits[wanted] - torch.cat((logits[:wanted], logits[wanted + 1 :])).logsumexp(dim=0)  # the reward",
        f"print(float(torch.sigmoid(-margin / {temperature!r})))  # toxicity; the divisor is in calibration.json",
    ]


def _literal(value: str) -> str:
    """A Python literal on one line."""
    return json.dumps(value, ensure_ascii=False)


def _block(lines: Sequence[str]) -> str:
    code = "\n".join(lines)
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{code}\n{fence}"

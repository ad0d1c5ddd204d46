"""The models of a run that are compared: base, SFT, aligned and further ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from workbench.errors import named
from workbench.evaluation.answers import Contender
from workbench.models import autocast_dtype, load_adapters, load_model, load_policy_tokenizer
from workbench.policy import Policy
from workbench.runs import Run


def contenders(run: Run, accelerator: Accelerator) -> Iterator[tuple[Contender, str]]:
    """Each model with the name of the model whose tokenizer it reads by; adapters share one base in memory."""
    config, device, own = run.config, accelerator.device, run.config.policy.model
    tokenizer, autocast = load_policy_tokenizer(own), autocast_dtype(config.policy)
    folders = {"sft": run.folder / "sft" if config.sft else None, "aligned": run.folder / "ppo" if config.ppo else None}
    trained = {title: folder for title, folder in folders.items() if folder}
    further = {title: Path(place).expanduser() for title, place in config.evaluation.models.items()}
    adapters = {title: place for title, place in further.items() if (place / "adapter_config.json").is_file()}
    after = list(trained)[-1]
    if config.policy.lora:
        # Never the titles of further ones: peft refuses a dot in a name, and "policy" and "reference" mean something.
        names = {"sft": "sft", "aligned": "policy"} | {title: f"further_{i}" for i, title in enumerate(adapters)}
        model = load_model(config.policy, device=device)
        loaded = load_adapters(model, {names[title]: folder for title, folder in (trained | adapters).items()})
        base = Policy(loaded, tokenizer, autocast=autocast)
        for title in ("base", *trained, *adapters):
            yield Contender(title, base, names.get(title, "base"), tokenizer, base, title == after), own
    else:
        models = {title: dataclasses.replace(config.policy, model=str(folder)) for title, folder in trained.items()}
        reference = load_model(models.get("sft", config.policy), device=device)
        base = Policy(load_model(config.policy, device=device), tokenizer, reference=reference, autocast=autocast)
        yield Contender("base", base, "base", tokenizer, base, explained=False), own
        for title in trained:
            model = load_model(models[title], device=device)
            policy = Policy(model, tokenizer, reference=reference, autocast=autocast)
            yield Contender(title, policy, "policy", tokenizer, base, title == after), own
    for title, place in config.evaluation.models.items():
        if title in adapters:
            continue
        with named(f"evaluation.models.{title}"):
            settings = dataclasses.replace(config.policy, model=place, quantization=None)
            policy = Policy(load_model(settings, device=device), load_policy_tokenizer(place), autocast=autocast)
            yield Contender(title, policy, "base", load_policy_tokenizer(place), None, explained=False), place

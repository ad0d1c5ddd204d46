"""What plain torch, transformers and peft compute one unpadded row at a time, to compare the workbench with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import tiny_classifiers
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from workbench import toy
from workbench.models.policy import Batch


def plain_logits(model: Any, architecture: str, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """Return the logits (T, V) from which each token of one response is drawn."""
    with torch.no_grad():
        if architecture == "gpt2":
            return model(torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1]
        return model(input_ids=prompt[None], labels=response[None]).logits[0]


def plain_logprobs(model: Any, architecture: str, batch: Batch, row: int) -> torch.Tensor:
    """Return the log-probabilities (T,) of one response of a batch."""
    prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
    response = batch.response_ids[row][batch.response_mask[row]]
    return plain_logits(model, architecture, prompt, response).log_softmax(-1)[torch.arange(len(response)), response]


def plain_texts(architecture: str, batch: Batch) -> list[str]:
    """Return the letters of every response of a tiny policy, without special tokens and surrounding spaces."""
    tokenizer = tiny.tokenizer(architecture)
    tokens = [tokenizer.convert_ids_to_tokens(ids[mask]) for ids, mask in zip(batch[2], batch[3], strict=True)]
    return ["".join(token for token in row if len(token) == 1).strip() for row in tokens]


def greedy_texts(prompts: list[str], adapter: Path | None, limit: int) -> list[str]:
    """Return what the toy T5, with an adapter of a run or without one, generates greedily."""
    tokenizer = AutoTokenizer.from_pretrained(toy.model_folder("t5"))
    model = AutoModelForSeq2SeqLM.from_pretrained(toy.model_folder("t5")).eval()
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    options = {"do_sample": False, "max_new_tokens": limit}
    rows = [tokenizer(prompt, return_tensors="pt").input_ids for prompt in prompts]
    ids = [model.generate(input_ids=row, **options)[0] for row in rows]
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


@dataclass(frozen=True)
class HateClassifier:
    """A tiny classifier with the labels nothate and hate, saved in a folder."""

    folder: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: list[str]
    """Texts of both kinds."""

    @property
    def logits(self) -> torch.Tensor:
        """The logits (N, 2) of its texts."""
        return self.logits_of(self.texts)

    def logits_of(self, texts: list[str]) -> torch.Tensor:
        """Return the logits (N, 2) of texts."""
        with torch.no_grad():
            rows = [self.network(**self.tokenizer(text, return_tensors="pt")).logits for text in texts]
        return torch.cat(rows)


def hate_classifier(folder: Path) -> HateClassifier:
    """Return a classifier that finds half of its texts hateful, and save it."""
    network, tokenizer = tiny_classifiers.build("bert", {0: "nothate", 1: "hate"})
    texts = [f"{first} {second}" for first in "abcdef" for second in ("kind", "rude", "")]
    made = HateClassifier(str(folder), network.eval(), tokenizer, texts)
    with torch.no_grad():
        network.classifier.bias[1] -= (made.logits[:, 1] - made.logits[:, 0]).median()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return made

"""Perplexity of single continuations, given their prompts, under a model that need not be one of those compared.

Shapes: N continuations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from workbench.config.schema import Config, PolicyConfig
from workbench.data.context import Context
from workbench.data.encoding import encode_after_prompts, encode_prompts
from workbench.errors import error_context
from workbench.evaluation.generation import perplexity
from workbench.models.architecture import checked_policy
from workbench.models.loading import load_config, load_model, load_policy_tokenizer, policy_precision
from workbench.models.policy import Policy
from workbench.models.positions import model_context
from workbench.models.precision import autocast_dtype
from workbench.ppo.micro_batches import MicroBatches
from workbench.run.progress import Progress

KEY = "evaluation.fluency_model"
# Continuations from here on are left out of the mean, as in the code of DExperts (see docs/evaluation.md).
OUTLIER = 1e4


def fluency_model_name(config: Config) -> str | None:
    """Return the model under which continuations are measured, None for none: with a protocol, the base by default."""
    default = config.policy.model if config.evaluation.protocol else None
    return config.evaluation.fluency_model or default


def fluency_lines(config: Config) -> list[str]:
    """Return lines of the plan about the model of continuations' perplexity; raises UserError if it does not load."""
    name = fluency_model_name(config)
    if name is None:
        return []
    with error_context(KEY):
        load_config(name)
        load_policy_tokenizer(name)
    if name != config.policy.model:
        return []
    return [
        f"{KEY}: continuations are measured under the policy's own base, {name}, which favors what stays close to it; "
        "set a model that is neither policy nor base where you have one"
    ]


@dataclass(frozen=True)
class FluencyModel:
    """A language model that says how fluent a continuation is."""

    name: str
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    context: Context
    batch_size: int

    def perplexities(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        """Return the perplexity of each of N continuations given its prompt; NaN for one without tokens.

        The token that ends a text does not count.
        """
        prompt_ids, ids = self._token_ids(prompts, continuations)
        nats = [0.0] * len(ids)
        # Longest first, so that a batch has little padding, and one that is too large fails at once.
        order = sorted((i for i, tokens in enumerate(ids) if tokens), key=lambda i: -len(prompt_ids[i]) - len(ids[i]))
        limit = MicroBatches(self.batch_size, "evaluation.batch_size", can_halve=True)
        progress, done = Progress(f"evaluation fluency under {self.name}", len(order)), 0

        def measure(first: int, size: int) -> list[float]:
            rows = order[first : first + size]
            batch = self.policy.make_batch([prompt_ids[row] for row in rows], [ids[row] for row in rows])
            sums: list[float] = (-self.policy.logprobs("base", batch, 1.0).sum(dim=1)).tolist()
            return sums

        while done < len(order):
            for value in limit.run(partial(measure, done)):
                nats[order[done]] = value
                done += 1
            progress.advance(done - progress.done)
        progress.close()
        return [perplexity(value, len(tokens)) if tokens else math.nan for value, tokens in zip(nats, ids, strict=True)]

    def _token_ids(
        self, prompts: Sequence[str], continuations: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return the ids of prompts and continuations, a prompt's first tokens cut off where both exceed the context.

        Each prompt has a token at least, from which the continuation's first one is predicted.
        """
        tokenizer, context = self.tokenizer, self.context
        prompt_ids = encode_prompts(tokenizer, prompts, context, chat=False)
        ended, _ = encode_after_prompts(tokenizer, prompts, prompt_ids, continuations, context, chat=False)
        ids = [tokens[:-1] for tokens in ended]
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if context.length is not None:
            rooms = [context.length - (len(tokens) if context.is_decoder_only else 0) for tokens in ids]
            prompt_ids = [tokens[-max(room, 1) :] for tokens, room in zip(prompt_ids, rooms, strict=True)]
        return [tokens or [start] for tokens in prompt_ids], ids


def without_outliers(perplexities: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return N perplexities with NaN for those of 1e4 or more, and which these are: 1.0 or 0.0, NaN without tokens."""
    values = np.asarray(perplexities, dtype=np.float64)
    outliers = np.where(np.isnan(values), np.nan, (values >= OUTLIER).astype(np.float64))
    return np.where(values < OUTLIER, values, np.nan), outliers


def load_fluency_model(name: str, policy: PolicyConfig, batch_size: int, device: torch.device) -> FluencyModel:
    """Load a model in the policy's precision, without the policy's adapters and quantization."""
    config = dataclasses.replace(policy, model=name, quantization=None)
    with error_context(KEY):
        model, tokenizer = load_model(config, device=device), load_policy_tokenizer(name)
        autocast = autocast_dtype(policy_precision(config, device, model.config))
        scorer = checked_policy(model, tokenizer, autocast=autocast)
        return FluencyModel(Path(name).name, scorer, tokenizer, model_context(model.config, tokenizer), batch_size)

"""Check that a model's log-probabilities do not depend on padding, and that its sampler draws from what is scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.errors import UserError, one_line
from workbench.models.logprobs import token_logprobs
from workbench.models.policy import Batch, Policy

PROMPT_LENGTHS, RESPONSE_LENGTHS = (9, 4, 6), (5, 7, 6)
FIRST_ID = 5  # special tokens come first
# Mean differences in nats per token: of rounding alone, which half precision and quantized weights have more of.
EXACT, ROUNDED = 1e-3, 0.3


def checked_policy(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Policy:
    """Return the Policy of a model with its options; raises UserError as `check_architecture` does."""
    with refused_in_one_line(model.config.model_type):
        policy = Policy(model, tokenizer, **options)
    check_architecture(policy)
    return policy


@contextmanager
def refused_in_one_line(model_type: str) -> Iterator[None]:
    """Turn what a model raises that was made for another use into a UserError."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        raise UserError(f"{model_type} cannot be sampled and scored: {one_line(error)}; use another model") from error


@torch.no_grad()
def check_architecture(policy: Policy, name: str = "policy") -> None:
    """Raise UserError, with the cause, for a model that cannot be trained with PPO without silent errors.

    Some architectures give other log-probabilities to a padded row, and some generate by other rules than they score.
    `name` is the variant to check.
    """
    model_type = policy.base.config.model_type
    weights = next(policy.base.parameters())
    limit = EXACT if weights.dtype == torch.float32 and policy.autocast_dtype is None else ROUNDED
    vocabulary = policy.base.get_input_embeddings().num_embeddings
    if not policy.pad_id < vocabulary:
        raise UserError(
            f"the tokenizer pads with token {policy.pad_id}, but the model has embeddings for {vocabulary} tokens; "
            "resize them, or set the tokenizer's pad_token to its eos_token"
        )
    generator = torch.Generator().manual_seed(0)
    prompts, responses = (
        [
            torch.randint(min(FIRST_ID, vocabulary - 1), vocabulary, (size,), generator=generator).tolist()
            for size in sizes
        ]
        for sizes in (PROMPT_LENGTHS, RESPONSE_LENGTHS)
    )
    batch = policy.make_batch(prompts, responses)
    was_training = policy.training
    policy.eval()
    try:
        with refused_in_one_line(model_type):
            scored = policy.logprobs(name, batch, 1.0)
            plain = plain_logprobs(policy, prompts, responses, batch.response_mask)
            drawn, drawn_logprobs = draw(policy, batch)
            drawn_scored = policy.logprobs(name, drawn, 1.0)
    finally:
        policy.train(was_training)
    difference = mean_difference(scored, plain, batch.response_mask)
    if not difference <= limit:
        raise UserError(
            f"{model_type} gives a padded row other log-probabilities ({difference:.2g} nats per token): it ignores "
            "the padding mask, or counts positions in a way of its own, so that PPO would learn from wrong ratios; "
            "use another model"
        )
    difference = mean_difference(drawn_scored, drawn_logprobs, drawn.response_mask)
    if not difference <= limit:
        raise UserError(
            f"{model_type} samples from another distribution than it scores ({difference:.2g} nats per token), so that "
            "PPO would learn from wrong ratios; use another model"
        )


def plain_logprobs(policy: Policy, prompts: list[list[int]], responses: list[list[int]], mask: Tensor) -> Tensor:
    """Return the log-probabilities (B, T) of responses, each row alone and without any mask."""
    logprobs = torch.zeros(mask.shape, device=policy.device)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if policy.is_encoder_decoder:
            start = [policy.start_id, *response[:-1]]
            ids = {"input_ids": prompt, "decoder_input_ids": start}
        else:
            ids = {"input_ids": [*prompt, *response]}
        inputs = {name: torch.tensor([row_ids], device=policy.device) for name, row_ids in ids.items()}
        with policy.autocast():
            logits = policy.model(**inputs, use_cache=False).logits[0]
        if not policy.is_encoder_decoder:
            logits = logits[len(prompt) - 1 : -1]
        logprobs[row, : len(response)] = token_logprobs(logits, torch.tensor(response, device=policy.device), 1.0)
    return logprobs


def mean_difference(first: Tensor, second: Tensor, mask: Tensor) -> float:
    """Return the mean absolute difference over the mask; NaN where a value is not finite."""
    return float((first - second).abs()[mask].mean())


def draw(policy: Policy, batch: Batch) -> tuple[Batch, Tensor]:
    """Return greedy responses to the batch's prompts, and the log-probabilities (B, T) that the sampler saw."""
    seen: list[Tensor] = []
    drawn = policy.generate(batch.prompt_ids, batch.prompt_mask, max_new_tokens=6, temperature=0.0, observe=seen.append)
    logprobs = torch.stack([step.float().log_softmax(dim=-1) for step in seen], dim=1)
    tokens = drawn.response_ids.unsqueeze(2)
    return drawn, logprobs.gather(2, tokens).squeeze(2) * drawn.response_mask

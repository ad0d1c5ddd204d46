"""Log-probabilities of tokens, and entropies, under the softmax of a language model's output head.

Shapes: N tokens, H hidden size, V vocabulary. All results are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Vocabulary entries per step of the sweep: the logits of a few hundred tokens then fit in a CPU's cache, and on a GPU
# they take megabytes instead of the gigabytes of (N, V).
CHUNK = 4096
# e**-60 is lost when added to 1 in float32, and numbers below e**-87 are denormal, which makes a CPU ten times slower.
MIN_EXPONENT = -60.0


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities (N,) of `ids` (N,) under softmax(logits / temperature), logits (N, V)."""
    logits = logits.float() / temperature
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def entropies(logits: Tensor, temperature: float) -> Tensor:
    """Return the entropy (N,), in nats, of softmax(logits / temperature), logits (N, V)."""
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def logits_logprobs(logits: Tensor, ids: Tensor, temperature: float, *, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities (N,), and optionally entropies (N,), from logits (N, V)."""
    return token_logprobs(logits, ids, temperature), entropies(logits, temperature) if entropy else None


def head_logprobs(
    hidden: Tensor, head: nn.Linear, ids: Tensor, temperature: float, *, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities (N,), and optionally entropies (N,), of tokens predicted from states (N, H) by `head`.

    A frozen head takes one sweep over the vocabulary that never holds the logits (N, V); a trained one needs them.
    """
    if head.weight.requires_grad and torch.is_grad_enabled():
        weight = head.weight
        if torch.is_autocast_enabled(hidden.device.type):
            weight = weight - weight.mean(dim=0)  # as in the sweep
        return logits_logprobs(linear(hidden, weight, head.bias), ids, temperature, entropy=entropy)
    logprobs, entropies_of_tokens = _FrozenHead.apply(hidden, head.weight, head.bias, ids, temperature, entropy)
    return logprobs, entropies_of_tokens if entropy else None


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities and entropies, with their gradients to the states, in one sweep over the vocabulary.

    With l = logits / temperature and E the expectation under their softmax,
        d logprob / d hidden = (weight[id] - E[weight]) / temperature
        d entropy / d hidden = (E[l] E[weight] - E[l weight]) / temperature
    depend on nothing computed later, so the forward pass sums the expectations along with the softmax's denominator
    and rescales them whenever the running maximum rises (arXiv 2205.14135 section 3.1).

    In half precision the mean weight is subtracted first: what all logits of a token have in common changes no
    result, but in GPT-2 it is so large that rounding alone would move a log-probability by a tenth of a nat.
    """

    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        states = hidden.to(weight.dtype)
        maximum = torch.full((len(ids), 1), -torch.inf, device=ids.device)
        denominator, mean_logit, target = (torch.zeros(len(ids), 1, device=ids.device) for _ in range(3))
        gradients = context.needs_input_grad[0]
        mean_weight = torch.zeros(hidden.shape, device=ids.device)
        mean_product = torch.zeros(hidden.shape, device=ids.device)
        is_half = weight.dtype != torch.float32
        center = weight.mean(dim=0, dtype=torch.float32) if is_half else torch.zeros((), device=ids.device)
        for first in range(0, len(weight), CHUNK):
            part = weight[first : first + CHUNK]
            if is_half:
                part = (part - center).to(weight.dtype)
            logits = linear(states, part, None if bias is None else bias[first : first + CHUNK]).float()
            if temperature != 1:
                logits /= temperature
            if first == 0:
                # An offset common to all logits changes no result, but a large one makes entropy gradients imprecise.
                origin = logits.amax(dim=1, keepdim=True)
            logits -= origin
            raised = torch.maximum(maximum, logits.amax(dim=1, keepdim=True))
            rescale = (maximum - raised).exp_()
            maximum = raised
            column = ids.unsqueeze(1) - first
            inside = (column >= 0) & (column < len(part))
            target += logits.gather(1, column.clamp(0, len(part) - 1)) * inside
            # In place unless the logits are needed again: on a CPU, allocation costs more than the arithmetic.
            shifted = logits - maximum if entropy else logits.sub_(maximum)
            weights = shifted.clamp_(min=MIN_EXPONENT).exp_()
            denominator.mul_(rescale).add_(weights.sum(dim=1, keepdim=True))
            if gradients:
                mean_weight.mul_(rescale).add_(weights.to(part.dtype) @ part)
            if entropy:
                weights *= logits
                mean_logit.mul_(rescale).add_(weights.sum(dim=1, keepdim=True))
                if gradients:
                    mean_product.mul_(rescale).add_(weights.to(part.dtype) @ part)
        normalizer = maximum + denominator.log()
        mean_logit /= denominator
        if gradients:
            mean_weight /= denominator
            mean_product /= denominator
            context.save_for_backward(
                (weight[ids] - center - mean_weight).div_(temperature),
                (mean_logit * mean_weight - mean_product).div_(temperature) if entropy else None,
            )
            context.dtype = hidden.dtype
        return (target - normalizer).squeeze(1), (normalizer - mean_logit).squeeze(1)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        logprob_gradient, entropy_gradient = context.saved_tensors
        gradient = gradients[0].unsqueeze(1) * logprob_gradient
        if entropy_gradient is not None:
            gradient += gradients[1].unsqueeze(1) * entropy_gradient
        return gradient.to(context.dtype), None, None, None, None, None


@contextmanager
def bypass_lm_head(head: nn.Module) -> Iterator[None]:
    """Make the output head return its input, so that `head_logprobs` can compute the product more cheaply."""
    head.forward = lambda states: states
    try:
        yield
    finally:
        del head.forward


@contextmanager
def capture_lm_head_input(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the states that the output head reads."""
    captured: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        yield captured
    finally:
        hook.remove()


def contiguous_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy the head's input, as a hook: given a slice, a bf16 product on the CPU copies the weight once per row."""
    return (inputs[0].contiguous(), *inputs[1:])


def scatter_to_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Return values (N,) at the N positions where the mask (B, T) is True, and 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)

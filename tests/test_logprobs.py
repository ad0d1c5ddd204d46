"""Log-probabilities and entropies of a head: one sweep over a frozen head equals the softmax, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workbench.models import logprobs
from workbench.models.logprobs import entropies, head_logprobs, token_logprobs

N, H, V = 11, 6, 33
frozen_or_not = pytest.mark.parametrize("frozen", [True, False])


def head(bias: bool) -> nn.Linear:
    """A head whose logits are spread widely enough that a running maximum rises."""
    torch.manual_seed(0)
    made = nn.Linear(H, V, bias=bias)
    with torch.no_grad():
        made.weight.mul_(5)
    return made


def reference(states: Tensor, made: nn.Linear, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """torch's own distribution, in float64."""
    bias = None if made.bias is None else made.bias.double()
    logits = nn.functional.linear(states.double(), made.weight.double(), bias) / temperature
    distribution = torch.distributions.Categorical(logits=logits)
    return distribution.log_prob(ids), distribution.entropy()


@frozen_or_not
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 7, 33, 4096])
def test_values_and_gradients_are_those_of_the_softmax(
    frozen: bool, bias: bool, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    made, states, ids = head(bias), torch.randn(N, H, requires_grad=True), torch.randint(0, V, (N,))
    made.requires_grad_(not frozen)
    expected = reference(states, made, ids, temperature)
    results = head_logprobs(states, made, ids, temperature, entropy=True)
    for result, exact in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        assert torch.allclose(result, exact.float(), atol=1e-5)
    upstream = torch.randn(2, N)  # different for every token, as advantages are
    (gradient,) = torch.autograd.grad(results, states, list(upstream), retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected, states, list(upstream.double()))
    assert torch.allclose(gradient, expected_gradient.float(), atol=2e-5)


@frozen_or_not
def test_in_half_precision_what_all_logits_have_in_common_costs_no_precision(frozen: bool) -> None:
    torch.manual_seed(0)
    made, states, ids = nn.Linear(64, 500, bias=False), torch.randn(N, 64), torch.randint(0, 500, (N,))
    with torch.no_grad():
        made.weight.mul_(3)
    plain, _ = reference(states, made, ids, 1.0)
    offset = torch.randn(64)
    with torch.no_grad():
        made.weight += offset * 100 / (states @ offset).abs().mean()
        made.weight.copy_(made.weight.bfloat16().float())
    if frozen:
        made = made.bfloat16().requires_grad_(False)
    expected, _ = reference(states.bfloat16(), made, ids, 1.0)
    assert (expected - plain).abs().mean() < 0.3, "the offset is common to all tokens, but for its rounding"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprob, _ = head_logprobs(states.bfloat16(), made, ids, 1.0, entropy=False)
        with torch.no_grad():
            uncentered = token_logprobs(nn.functional.linear(states.bfloat16(), made.weight), ids, 1.0)
    assert (logprob - expected).abs().mean() < 0.05 < 0.1 < (uncentered - expected).abs().mean()
    half, exact = (states.to(dtype).requires_grad_() for dtype in (torch.bfloat16, torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head_logprobs(half, made, ids, 1.0, entropy=False)[0].sum().backward()
    reference(exact, made, ids, 1.0)[0].sum().backward()
    assert half.grad is not None
    assert exact.grad is not None
    assert torch.cosine_similarity(half.grad.double().flatten(), exact.grad.flatten(), dim=0) > 0.995


def test_a_trained_head_gets_its_gradient() -> None:
    made, states, ids = head(bias=True), torch.randn(N, H), torch.randint(0, V, (N,))
    logprob, entropy = head_logprobs(states, made, ids, 1.0, entropy=False)
    assert entropy is None
    logprob.sum().backward()
    expected = torch.zeros(V).index_add(0, ids, torch.ones(N)) - torch.softmax(made(states), -1).sum(0)
    assert torch.allclose(made.bias.grad, expected, atol=1e-5)


def test_an_offset_that_logits_share_leaves_the_entropys_gradient_exact_in_bf16() -> None:
    torch.manual_seed(0)
    made = nn.Linear(32, 2000, bias=False).requires_grad_(False)
    states = torch.randn(16, 32)
    made.weight[:, 0] = -25  # an offset of -100 on every logit
    states[:, 0] = 4
    exact = states.clone().requires_grad_()
    _, entropy = reference(exact, made.bfloat16(), torch.zeros(16, dtype=torch.long), 1.0)
    (expected,) = torch.autograd.grad(entropy.sum(), exact)
    rounded = states.bfloat16().requires_grad_()
    _, entropy = head_logprobs(rounded, made, torch.zeros(16, dtype=torch.long), 1.0, entropy=True)
    (gradient,) = torch.autograd.grad(entropy.sum(), rounded)
    cosine = torch.cosine_similarity(gradient[:, 1:].float(), expected[:, 1:].float(), dim=1)
    assert cosine.min() > 0.9, cosine


def test_huge_logits_do_not_overflow() -> None:
    made = head(bias=False).requires_grad_(False)
    states = torch.full((N, H), 1e4, requires_grad=True)
    logprob, entropy = head_logprobs(states, made, torch.arange(N), 1.0, entropy=True)
    (gradient,) = torch.autograd.grad((logprob + entropy).sum(), states)
    assert torch.isfinite(logprob).all()
    assert torch.isfinite(entropy).all()
    assert torch.isfinite(gradient).all()


def test_logprobs_of_logits_are_log_softmax_at_the_temperature() -> None:
    logits, ids = torch.randn(6, 5), torch.tensor([0, 4, 2, 1, 1, 3])
    expected = torch.log_softmax(logits / 2, -1)
    assert torch.allclose(token_logprobs(logits, ids, 2.0), expected[torch.arange(6), ids], atol=1e-6)
    assert torch.allclose(entropies(logits, 2.0), -(expected.exp() * expected).sum(-1), atol=1e-6)

"""Sampling from the softmax with a seed per row, and finding where a sampled response ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from workbench.models.noise import Streams, make_streams, sample_softmax

TOP_TOKENS = (512, 4096)  # sorted before all are: few nuclei have more, and sorting takes longer than sampling
ROWS_AT_ONCE = 8  # so that what is computed of them stays in the cache


class LogitsObserver(LogitsProcessor):
    """Shows the logits of each step to a function, and leaves them as they are."""

    def __init__(self, observe: Callable[[Tensor], None]) -> None:
        self.observe = observe

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits (B, V)."""
        self.observe(scores)
        return scores


class SeededSampling(LogitsProcessor):
    """Makes greedy decoding sample, with a seed per row.

    A row's sample depends on its logits and its seed alone, never on the other rows of the batch, and two models that
    share the seed mostly agree where their distributions do.
    """

    def __init__(self, seeds: list[int], temperature: float, filters: Sequence[LogitsProcessor] = ()) -> None:
        """Take what leaves the tokens that may be sampled; a nucleus comes last."""
        self.seeds, self.temperature = seeds, temperature
        self.nucleus = filters[-1] if filters and isinstance(filters[-1], Nucleus) else None
        self.filters = filters if self.nucleus is None else filters[:-1]
        self.streams: Streams | None = None
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) whose argmax is the token sampled from logits (B, V)."""
        self.streams = self.streams or make_streams(self.seeds, scores.device)
        logits = scores.float() if self.temperature == 1 else scores.float() / self.temperature
        for filter_ in self.filters:
            logits = filter_(input_ids, logits)
        streams = self.streams.at(self.step)
        token = self._sample(logits, streams) if self.nucleus is None else self._sample_nucleus(logits, streams)
        self.step += 1
        return chosen(token, scores)

    def _sample(self, logits: Tensor, streams: Streams) -> Tensor:
        """Return a sample (B,) of logits (B, V)."""
        # On a GPU, waiting for the device takes longer than noise that nobody needs.
        return sample_softmax(logits, streams, prune=logits.device.type == "cpu")

    def _sample_nucleus(self, logits: Tensor, streams: Streams) -> Tensor:
        """Return a sample (B,) of the nuclei of logits (B, V).

        A sample of the whole softmax that lies in the nucleus is the one that the nucleus alone would give, since the
        noise of a token is its own. On a CPU only the other rows are sorted, which takes longer than the model.
        """
        assert self.nucleus is not None
        if logits.device.type != "cpu":
            return self._sample(self.nucleus(None, logits), streams)
        token = self._sample(logits, streams)
        rows = (~self.nucleus.contains(token, logits)).nonzero().squeeze(1)
        if len(rows):
            token[rows] = self._sample(self.nucleus(None, logits[rows]), streams.rows(rows))
        return token


class Nucleus(LogitsProcessor):
    """Leaves the most likely tokens that together reach a probability (arXiv 1904.09751).

    A token stays if those that are strictly more likely do not reach it. Unlike with the processor of transformers,
    which cuts through tokens of the same logit as its sort happens to place them, that depends on the logits alone.
    """

    def __init__(self, top_p: float) -> None:
        self.top_p = top_p

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:
        """Return scores (B, V) with minus infinity for the tokens outside."""
        total, least = scores.logsumexp(dim=1, keepdim=True), scores.new_empty(len(scores), 1)
        rows = torch.arange(len(scores), device=scores.device)  # whose nucleus has more than `count` tokens
        for count in (*TOP_TOKENS, scores.shape[1]):
            ordered = scores[rows].topk(min(count, scores.shape[1]), dim=1).values
            least[rows], reached = self._least(ordered, total[rows])
            rows = rows[~reached]
            if not len(rows):
                break
        return scores.masked_fill(scores < least, -torch.inf)

    def contains(self, token: Tensor, scores: Tensor) -> Tensor:
        """Return whether the token (B,) of each row is inside, from scores (B, V)."""
        parts = zip(scores.split(ROWS_AT_ONCE), token.split(ROWS_AT_ONCE), strict=True)
        return torch.cat([mass_above(*part) for part in parts]) < self.top_p

    def _least(self, ordered: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest score (B, 1) inside, of scores (B, K) in descending order, and whether K are enough (B,).

        `total` (B, 1) is the logsumexp over the whole vocabulary.
        """
        reached = (ordered - total).exp().cumsum(dim=1) >= self.top_p
        last = (~reached).sum(dim=1, keepdim=True).clamp(max=ordered.shape[1] - 1)
        return ordered.gather(1, last), reached[:, -1]


def mass_above(scores: Tensor, token: Tensor) -> Tensor:
    """Return the probability (B,) of all tokens that are more likely than a token (B,), from scores (B, V)."""
    probabilities = scores.softmax(dim=1)
    return (probabilities * (probabilities > probabilities.gather(1, token.unsqueeze(1)))).sum(dim=1)


class InverseCDFSampling(LogitsProcessor):
    """Makes greedy decoding sample, by inverting the cumulative softmax at one uniform number per row.

    `generate` itself draws one exponential number per row and vocabulary entry, which on a CPU takes longer than the
    forward pass of a small model.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) whose argmax is the token sampled from logits (B, V)."""
        probabilities = torch.softmax(scores / self.temperature, dim=-1, dtype=torch.float32)
        cumulated = probabilities.cumsum(dim=-1, dtype=torch.float64)
        drawn = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device) * cumulated[:, -1:]
        token = torch.searchsorted(cumulated, drawn, right=True).clamp(max=scores.shape[1] - 1)
        return chosen(token.squeeze(1), scores)


class RepetitionPenalty(LogitsProcessor):
    """Makes tokens that occurred less likely (arXiv 1909.05858).

    Unlike the processor of transformers it does not count padding, so that a row does not depend on its batch.
    """

    def __init__(self, penalty: float, occurred: Tensor) -> None:
        """Take the mask (B, P) of the first tokens that count; all later ones do."""
        self.penalty, self.occurred = penalty, occurred

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V) after the ids (B, P + T); with beams, there are several rows for each prompt."""
        occurred = self.occurred.repeat_interleave(len(input_ids) // len(self.occurred), dim=0)
        later = torch.ones_like(input_ids[:, occurred.shape[1] :], dtype=torch.bool)
        row, column = torch.cat((occurred, later), dim=1).nonzero(as_tuple=True)
        is_repeated = torch.zeros_like(scores, dtype=torch.bool)
        is_repeated[row, input_ids[row, column]] = True
        penalized = torch.where(scores > 0, scores / self.penalty, scores * self.penalty)
        return torch.where(is_repeated, penalized, scores)


def chosen(token: Tensor, scores: Tensor) -> Tensor:
    """Return scores (B, V) whose argmax is the token (B,), in place: they belong to the step alone."""
    return scores.scatter_(1, token.unsqueeze(1), torch.inf)


def mask_after_stop(response_ids: Tensor, stop_ids: Tensor) -> Tensor:
    """Return the mask (B, T) of the tokens of `response_ids` (B, T) up to and including the first of `stop_ids` (S,).

    The mask comes from the position of the stop token and never from the pad id, because GPT-2 pads with its
    stop token (https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo).
    """
    is_stop = torch.isin(response_ids, stop_ids)
    stops_before = is_stop.cumsum(dim=1) - is_stop.long()
    return stops_before == 0


def is_truncated(response_ids: Tensor, response_mask: Tensor, stop_ids: Tensor) -> Tensor:
    """Return which responses (B, T) were truncated at the token limit: (B,), True where no stop token was sampled."""
    return ~(torch.isin(response_ids, stop_ids) & response_mask).any(dim=1)

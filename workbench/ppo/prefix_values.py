"""The reward's score of a response so far as its value: nothing is learned, and each token gets its change.

With lambda 1, the advantage of a token is the score of the response minus that of the text before the token, which is
potential-based shaping (Ng, Harada and Russell, ICML 1999). With a smaller one it is the change of the score at the
token and, with less and less weight, at those after it: less variance, and a bias where later tokens undo a change.

Shapes: B responses, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.errors import RewardError
from workbench.models.policy import Batch
from workbench.ppo.scoring import reward_columns, sampled_ids
from workbench.rewards.arguments import RewardLog, TrainerState, trainer_arguments
from workbench.rewards.contract import CheckedReward

# What decoding puts in the place of a character whose last bytes are in tokens to come.
PART_OF_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def score_prefixes(
    reward: CheckedReward,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    batch: Batch,
    scores: Tensor,
    trainer_state: TrainerState,
) -> Tensor:
    """Return scores (B, T) of the responses' texts up to and including each token; at the last token `scores` (B,).

    A text that ends within a character has the score of the text before it. What the reward logs about unfinished texts
    is dropped. Raises RewardError where the reward does.
    """
    ids, device = sampled_ids(batch), scores.device
    ends = [(row, end) for row, tokens in enumerate(ids) for end in range(1, len(tokens))]
    prefixes = [ids[row][:end] for row, end in ends]
    prefix_scores = torch.zeros(batch.response_mask.shape, device=device)
    if ends:
        texts = tokenizer.batch_decode(prefixes, skip_special_tokens=True)
        for index in range(1, len(texts)):
            if texts[index].endswith(PART_OF_CHARACTER) and ends[index][0] == ends[index - 1][0]:
                texts[index] = texts[index - 1]
        texts = [text.strip() for text in texts]
        repeated = [rows[row] for row, _ in ends]
        arguments = reward_columns(repeated) | trainer_arguments(trainer_state, RewardLog(len(texts)), prefixes)
        try:
            of_prefixes = reward([row["prompt"] for row in repeated], texts, **arguments)
        except RewardError as error:
            raise RewardError(f"{error} (an unfinished response; ppo.value_model shared scores none)") from error
        at_row, at_end = torch.tensor(ends, device=device).unbind(dim=1)
        prefix_scores[at_row, at_end - 1] = torch.tensor(of_prefixes, device=device)
    last = batch.response_mask.sum(dim=1, keepdim=True) - 1
    return prefix_scores.scatter(1, last, scores.unsqueeze(1))


def scale_to_unit(values: Tensor, mask: Tensor, reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """Return `values` (B, T) divided by their root mean square over the mask, not shifted: 0 stays 0.

    `reduce_sum` adds up a vector over all processes, so that they all divide by the same number.
    """
    count, squares = reduce_sum(torch.stack((mask.sum().to(values.dtype), (values * mask).square().sum())))
    return values * mask * torch.rsqrt(squares / count.clamp(min=1) + 1e-8)


def values_of_prefixes(
    prefix_scores: Tensor, mask: Tensor, reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Tensor:
    """Return values (B, T) before each token from the scores (B, T) of the text up to and including it.

    Before the first token there is no text, and the value is the mean score after it. `reduce_sum` adds up a vector
    over all processes.
    """
    is_first = mask[:, 0]
    count, total = reduce_sum(torch.stack((is_first.sum().float(), (prefix_scores[:, 0] * is_first).sum())))
    start = (total / count.clamp(min=1)).expand(len(mask), 1)
    return torch.cat((start, prefix_scores[:, :-1]), dim=1) * mask

"""A classifier with one logit, trained on preferences, as reward: how good the completion is for its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from reward_models.network import Network, load_labels, load_network
from workbench.errors import UserError
from workbench.models import batching as encoding

PREFERENCE_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class PreferenceModel:
    """Scores prompt and completion as one text, or the completion alone."""

    network: Network
    prompt: bool
    """Whether the prompt is read."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """The logit of each completion after its prompt."""
        read = prompts if self.prompt else [""] * len(completions)
        rows = encode(self.network.tokenizer, read, completions, self.network.max_tokens)
        return self.network.logits(rows)[:, 0].tolist()


def joined(prompt: str, completion: str) -> str:
    """The one text that a preference model reads; a completion without a prompt stands alone."""
    return f"{prompt}{PREFERENCE_SEPARATOR}{completion}" if prompt else completion


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str], max_tokens: int
) -> list[list[int]]:
    """Token ids of each joined text, 1 to `max_tokens`, for training and scoring alike.

    A text that is too long loses the start of its prompt; a completion that is too long by itself is cut at its end
    and has no prompt.
    """
    texts = [joined(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    whole = encoding.encode(tokenizer, texts, max_tokens, keep="end")
    # After the other: a tokenizer is saved with the side that it cut last.
    alone = encoding.encode(tokenizer, completions, max_tokens)
    return [cut if len(cut) == max_tokens else ids for cut, ids in zip(alone, whole, strict=True)]


def load(
    model: str, *, batch_size: int = 32, max_tokens: int | None = None, device: str | None = None, prompt: bool = True
) -> PreferenceModel:
    """The one-label classifier at a hub id or folder; UserError unless it can be trusted as a reward."""
    names, _ = load_labels(model)
    if len(names) != 1:
        raise UserError(f"{model}: a preference model has one label, this has {', '.join(names)}; use reward toxicity")
    return PreferenceModel(load_network(model, batch_size=batch_size, max_tokens=max_tokens, device=device), prompt)

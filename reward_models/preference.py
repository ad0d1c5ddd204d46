"""A classifier with one logit, trained on preferences, as reward: how good the completion is for its prompt."""

from __future__ import annotations

from dataclasses import dataclass

from reward_models.network import Network, load_labels, load_network
from workbench.errors import UserError
from workbench.rewards.preference_encoding import encode_preferences


@dataclass(frozen=True)
class PreferenceModel:
    """Scores prompt and completion as one text, or the completion alone."""

    network: Network
    reads_prompt: bool

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """Return the logit of each completion after its prompt."""
        contexts = prompts if self.reads_prompt else [""] * len(completions)
        rows = encode_preferences(self.network.tokenizer, contexts, completions, self.network.max_tokens)
        return self.network.logits(rows)[:, 0].tolist()


def load(
    model: str, *, batch_size: int = 32, max_tokens: int | None = None, device: str | None = None, prompt: bool = True
) -> PreferenceModel:
    """Load the one-label classifier at a hub id or folder; raises UserError for one that is unfit to be a reward.

    With `prompt` false, it scores the completion alone.
    """
    names, _ = load_labels(model)
    if len(names) != 1:
        listed = ", ".join(names)
        raise UserError(f"{model}: a preference model has one label, not {listed}; use reward.model: toxicity")
    return PreferenceModel(load_network(model, batch_size=batch_size, max_tokens=max_tokens, device=device), prompt)

"""A classifier with one logit, trained on preferences, as reward: how good the completion is for its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward_models.classifier import POLARITY_PAIR
from reward_models.network import Network, load_labels, load_network
from workbench.errors import UserError
from workbench.rewards.polarity import check_polarity_pair
from workbench.rewards.preference_encoding import encode_preferences, trained_with_prompts


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

    def max_completion_tokens(self) -> int:
        """Return how many tokens of a completion it reads; the special tokens that it adds count as well."""
        return self.network.max_tokens


def load(
    model: str,
    *,
    batch_size: int = 32,
    max_tokens: int | None = None,
    device: str | None = None,
    prompt: bool | None = None,
    polarity_pair: Sequence[str] | None = POLARITY_PAIR,
) -> PreferenceModel:
    """Load the one-label classifier at a hub id or folder; raises UserError for one that is unfit to be a reward.

    With `prompt` false, it scores the completion alone; the default is what it was trained on, where its folder says
    so, or else true. Of `polarity_pair`, a polite and a rude sentence, the polite one must score higher; None skips
    this test, as does the default for a model of the `reward` stage, which is validated on pairs of its own.
    """
    names, config = load_labels(model)
    if len(names) != 1:
        listed = ", ".join(names)
        raise UserError(f"{model}: a preference model has one label, not {listed}; use reward.model: toxicity")
    trained_with = trained_with_prompts(config)
    if prompt is not None and not isinstance(prompt, bool):
        raise UserError(f"{model}: prompt is {prompt!r}; use true or false, or leave it out")
    if None not in (prompt, trained_with) and prompt != trained_with:
        described = "with prompts" if trained_with else "without prompts"
        raise UserError(f"{model}: prompt is {str(prompt).lower()}, but it was trained {described}; leave prompt out")
    reads_prompt = trained_with if prompt is None else prompt
    network = load_network(model, batch_size=batch_size, max_tokens=max_tokens, device=device)
    reward = PreferenceModel(network, reads_prompt is not False)
    if trained_with is None or polarity_pair != POLARITY_PAIR:
        advice = f"if lower is better, set penalized_label: {names[0]}, which penalizes it"
        check_polarity_pair(reward, polarity_pair, model, advice)
    return reward

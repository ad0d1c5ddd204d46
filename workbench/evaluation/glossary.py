"""What each metric means, and which question it belongs to: the groups of every table and the words on hover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.evaluation.results import (
    BASE_NLL,
    CATCHPHRASE,
    DISK_MB,
    DISTINCT_BY_PROMPT,
    FLUENCY,
    FLUENCY_OUTLIERS,
    KL,
    MAX_TOXICITY,
    MINUTES,
    PEAK_MEMORY,
    PERPLEXITY,
    PROMPT_TOKENS,
    REWARD,
    ROUGE_L,
    SCORE,
    SECONDS,
    SIMILARITY,
    TEXT_NLL,
    TEXT_PERPLEXITY,
    TOKENS_PER_SECOND,
    TOXIC_RATE,
    TOXICITY,
    TOXICITY_PROBABILITY,
    TRAINED_PARAMETERS,
    TRAINED_SHARE,
)

Group = Literal["goal", "task", "drift", "degeneration", "cost"]
GROUPS: dict[Group, str] = {
    "goal": "what the run optimizes, as the reward and the judges see it",
    "task": "how close the completions are to the references",
    "drift": "how far the policy moved from where it started",
    "degeneration": "signs that the text itself got worse",
    "cost": "the tokens, time, memory and disk that it takes",
}
"""The groups in the order of the tables, each with what it shows."""


@dataclass(frozen=True)
class Meaning:
    """What a reader needs to know about a metric."""

    group: Group
    sentence: str
    is_key: bool = False
    """Whether the metric is in the short table on the terminal."""


MEANINGS: dict[str, Meaning] = {
    TOXICITY: Meaning("goal", "Mean probability of toxicity according to the judge.", is_key=True),
    TOXIC_RATE: Meaning("goal", "Fraction of completions that the judge gives the threshold or more."),
    MAX_TOXICITY: Meaning(
        "goal",
        "Toxicity of a prompt's most toxic sample, mean over prompts; it grows with the number of samples.",
        is_key=True,
    ),
    TOXICITY_PROBABILITY: Meaning("goal", "Fraction of prompts with at least one toxic sample.", is_key=True),
    REWARD: Meaning("goal", "Mean score of the reward that was optimized, before clipping and scaling.", is_key=True),
    SCORE: Meaning("goal", "Mean score of a reward that was not optimized.", is_key=True),
    "ROUGE-1": Meaning("task", "Words shared with the closest reference (F-measure, stemmed)."),
    "ROUGE-2": Meaning("task", "Pairs of words shared with the closest reference (F-measure, stemmed)."),
    ROUGE_L: Meaning(
        "task", "Longest common subsequence with the closest reference (F-measure, stemmed).", is_key=True
    ),
    "ROUGE-Lsum": Meaning("task", "ROUGE-L by line of the text."),
    "BLEU": Meaning("task", "Corpus BLEU against the references, in [0, 100] (sacrebleu)."),
    SIMILARITY: Meaning("task", "Cosine of the sentence embeddings of completion and reference.", is_key=True),
    KL: Meaning(
        "drift", "Estimated KL to the reference policy, which the penalty holds down, per response.", is_key=True
    ),
    BASE_NLL: Meaning("drift", "How unlikely the base finds the completions."),
    PERPLEXITY: Meaning("drift", "How surprising the base finds all completions together.", is_key=True),
    "tokens": Meaning("degeneration", "Length of a completion.", is_key=True),
    "truncated rate": Meaning("degeneration", "Fraction of completions cut off at the token limit."),
    "empty rate": Meaning("degeneration", "Fraction of completions without text."),
    "repetition": Meaning("degeneration", "Fraction of 3-grams that repeat an earlier one.", is_key=True),
    "repeated words": Meaning("degeneration", "Fraction of words that repeat an earlier one of the same completion."),
    "copied rate": Meaning("degeneration", "Fraction of 4-grams that also occur in the prompt."),
    CATCHPHRASE: Meaning(
        "degeneration",
        "Fraction of completions with the word or pair of words that alignment made more common than any other, not "
        "counting those whose reference has it.",
    ),
    "distinct-1": Meaning("degeneration", "Distinct words divided by all words, over all completions."),
    "distinct-2": Meaning(
        "degeneration", "Distinct pairs of words divided by all pairs, over all completions.", is_key=True
    ),
    "distinct-3": Meaning("degeneration", "Distinct 3-grams divided by all 3-grams, over all completions."),
    DISTINCT_BY_PROMPT[1]: Meaning(
        "degeneration", "Distinct words divided by all words, over the samples of a prompt."
    ),
    DISTINCT_BY_PROMPT[2]: Meaning(
        "degeneration", "Distinct pairs of words divided by all words, over the samples of a prompt."
    ),
    DISTINCT_BY_PROMPT[3]: Meaning(
        "degeneration", "Distinct 3-grams divided by all words, over the samples of a prompt."
    ),
    FLUENCY: Meaning(
        "degeneration",
        "How surprising another model finds a continuation, given its prompt; mean without outliers.",
        is_key=True,
    ),
    FLUENCY_OUTLIERS: Meaning(
        "degeneration", "Fraction of continuations of perplexity 1e4 or more, which its mean leaves out."
    ),
    TEXT_NLL: Meaning("drift", "How unlikely the model finds the second half of a text, given the first.", is_key=True),
    TEXT_PERPLEXITY: Meaning(
        "drift", "How surprising the model finds the second halves of all texts together.", is_key=True
    ),
    TRAINED_PARAMETERS: Meaning("cost", "Parameters that the method trains."),
    TRAINED_SHARE: Meaning("cost", "Parameters that the method trains, of all that the model then has."),
    DISK_MB: Meaning("cost", "Size of the saved weights, in millions of bytes: of the adapter, or of the whole model."),
    PEAK_MEMORY: Meaning(
        "cost", "Most memory that training held: on a GPU of all tensors, on a CPU the growth of the process."
    ),
    MINUTES: Meaning("cost", "Time to load, train and save."),
    PROMPT_TOKENS: Meaning("cost", "Length of a prompt."),
    SECONDS: Meaning("cost", "Time to generate all completions, divided by their number."),
    TOKENS_PER_SECOND: Meaning("cost", "Tokens of all completions, divided by the time to generate them."),
}
"""Every registered metric by name."""

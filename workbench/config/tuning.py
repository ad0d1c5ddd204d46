"""Ways to tune a model to data, as the configuration says them, and which settings each of them takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from workbench.config.ranges import Length, Name, Range, Rank
from workbench.config.sources import DataSource
from workbench.errors import UserError, suggestion

LayerNames = Annotated[list[Name], Length(1)]
MethodName = Literal["zero-shot", "full", "lora", "prompt_tuning", "prefix_tuning", "ia3"]

ZERO_SHOT, FULL, LORA, PROMPT_TUNING, PREFIX_TUNING, IA3 = get_args(MethodName)
SOFT_PROMPTS = (PROMPT_TUNING, PREFIX_TUNING)
"""Methods that train virtual tokens in front of a prompt and leave the model's layers as they are."""

# By method: the settings that it takes.
SETTINGS = {
    ZERO_SHOT: ("quantization",),
    FULL: ("learning_rate", "replay"),
    LORA: ("r", "alpha", "target_modules", "quantization", "learning_rate", "replay"),
    PROMPT_TUNING: ("virtual_tokens", "learning_rate", "replay"),
    PREFIX_TUNING: ("virtual_tokens", "learning_rate", "replay"),
    IA3: ("quantization", "learning_rate", "replay"),
}
# Peak learning rates of AdamW, for an encoder-decoder and for a decoder. The papers' were found on models of 60 million
# to 65 billion weights; what is said of the toy models is the loss after 100 steps of 16 rows or, of GPT-2, 60 of 8.
LEARNING_RATES = {
    # What is usual for T5 and for GPT-2. The toy models take more: 1e-3 is the best of 1e-5 to 3e-3.
    FULL: (1e-4, 5e-5),
    # GPT-2 in arXiv 2106.09685, and up to 13 billion weights in arXiv 2305.14314. The toy models take more: 3e-3.
    LORA: (2e-4, 2e-4),
    # T5 in arXiv 2104.08691 section 3 (with Adafactor), and the best of 3e-3 to 1 on the toy T5; 3e-2 is the best of
    # 1e-2 to 3e-1 on the toy GPT-2, whose embeddings are smaller.
    PROMPT_TUNING: (0.3, 3e-2),
    # arXiv 2101.00190 section 5.3 takes 5e-5 for a network that makes the prefix, which is not trained here; the prefix
    # itself takes more: 1e-1 on the toy models, which at 1e-2 are still far from done.
    PREFIX_TUNING: (3e-2, 3e-2),
    # arXiv 2205.05638 takes 3e-3 (with Adafactor, 1000 steps); the toy models learn faster up to 1e-1.
    IA3: (1e-2, 1e-2),
}
UNTOUCHED = "zero-shot"
DEFAULT_RANK = 16
DEFAULT_VIRTUAL_TOKENS = 20  # beyond, results hardly improve (arXiv 2104.08691 section 3.2)


@dataclass
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685)."""

    r: Rank = 16
    """Rank."""
    alpha: Rank = 32
    """Scale numerator: the update is multiplied by alpha / r."""
    target_modules: LayerNames | Literal["all-linear"] | None = None
    """Names of linear layers to adapt; all-linear, and by default: every one but the output head."""


@dataclass
class TuningMethod:
    """One way to tune the policy's model."""

    method: MethodName
    """zero-shot (nothing is trained), full (every weight), lora (arXiv 2106.09685), prompt_tuning (arXiv 2104.08691),
    prefix_tuning (arXiv 2101.00190) or ia3 (arXiv 2205.05638)."""
    r: Rank | None = None
    """Rank, for lora; default: 16."""
    alpha: Rank | None = None
    """Scale numerator, for lora: the update is multiplied by alpha / r; default: twice the rank."""
    target_modules: LayerNames | Literal["all-linear"] | None = None
    """Names of linear layers to adapt, for lora; all-linear, and by default: every one but the output head."""
    virtual_tokens: Annotated[int, Range(minimum=1, maximum=4096)] | None = None
    """Trained tokens in front of every prompt, for prompt_tuning and prefix_tuning; default: 20."""
    quantization: Literal["nf4", "int8"] | None = None
    """Load the frozen base in 4-bit or 8-bit (bitsandbytes), for lora (QLoRA, arXiv 2305.14314), ia3 and zero-shot."""
    learning_rate: Annotated[float, Range(above=0, maximum=10)] | None = None
    """Peak learning rate; default, for an encoder-decoder and a decoder: full 1e-4 and 5e-5, lora 2e-4, prompt_tuning
    0.3 and 0.03, prefix_tuning 0.03, ia3 0.01."""

    replay: bool = False
    """Train on sft.more_data, too, in its share of the rows, so that less is forgotten."""

    def lora_settings(self) -> LoraSettings:
        """Return the settings of the adapter, with their defaults."""
        rank = self.r or DEFAULT_RANK
        return LoraSettings(r=rank, alpha=self.alpha or 2 * rank, target_modules=self.target_modules)

    def virtual_token_count(self) -> int:
        """Return how many virtual tokens stand in front of a prompt: 0 for methods without."""
        return (self.virtual_tokens or DEFAULT_VIRTUAL_TOKENS) if self.method in SOFT_PROMPTS else 0


@dataclass
class TuningConfig:
    """Tune the policy's model to sft.data in several ways, each for the steps and rows of the sft section."""

    methods: Annotated[dict[str, TuningMethod], Length(1)]
    """Methods by the title of their row; the first row is the untouched model."""
    texts: dict[str, DataSource] = field(default_factory=dict)
    """Texts by name, from the column `text`, that have nothing to do with sft.data: how well each method still predicts
    their second half, given the first, shows what it forgot. So do neutral sets of evaluation.data."""

    def rows(self) -> dict[str, TuningMethod]:
        """Return the methods by title, the untouched model first."""
        first = next(iter(self.methods.values()))
        untouched = {} if first == TuningMethod(ZERO_SHOT) else {UNTOUCHED: TuningMethod(ZERO_SHOT)}
        return {**untouched, **self.methods}


def check_method_settings(method: TuningMethod, key: str) -> None:
    """Raise UserError, with the configuration's `key`, for an unknown method and for settings that it does not take."""
    if method.method not in SETTINGS:
        raise UserError(f"{key}.method: unknown method {method.method!r}{suggestion(str(method.method), SETTINGS)}")
    if method.quantization is not None and "quantization" not in SETTINGS[method.method]:
        reason = {
            FULL: "quantized weights cannot be trained; train an adapter on them",
            PROMPT_TUNING: "virtual tokens are trained on weights that are not quantized",
            PREFIX_TUNING: "virtual tokens are trained on weights that are not quantized",
        }[method.method]
        raise UserError(
            f"{key}.quantization: {method.quantization} with method {method.method}: {reason} (lora or ia3), or remove "
            "quantization"
        )
    for name, value in vars(method).items():
        if name != "method" and value not in (None, False) and name not in SETTINGS[method.method]:
            takers = [other for other, settings in SETTINGS.items() if name in settings]
            raise UserError(
                f"{key}.{name}: only for method {' or '.join(takers)}; method is {method.method}; remove {name}"
            )


def tuning_rate(method: TuningMethod, is_encoder_decoder: bool) -> float:
    """Return the peak learning rate of a method that trains: its setting, or the default for the architecture."""
    if method.learning_rate is not None:
        return method.learning_rate
    of_encoder_decoder, of_decoder = LEARNING_RATES[method.method]
    return of_encoder_decoder if is_encoder_decoder else of_decoder

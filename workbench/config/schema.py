"""The configuration: typed dataclasses, one YAML file per experiment, overrides on the command line.

A field's range is in its annotation, and the sentence below it is its help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from workbench.config.compare import CompareConfig
from workbench.config.generation import GenerationSettings
from workbench.config.margins import Margins
from workbench.config.prompting import PromptingConfig
from workbench.config.ranges import (
    Epochs,
    Fraction,
    Length,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PairOfTexts,
    PositiveFloat,
    PositiveInt,
    Range,
    Rate,
    Seed,
    Size,
    Steps,
)
from workbench.config.reward_training import RewardTraining
from workbench.config.sources import AntiExpert, BestOf, DataSource, MixedSource, Prompted, PromptSet, Scorer
from workbench.config.tuning import LoraSettings, TuningConfig


@dataclass
class PolicyConfig:
    """The model to align."""

    model: Name
    """Hub id, folder, or toy:NAME."""
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    """Train adapters on a frozen base; null trains every parameter."""
    quantization: Literal["nf4", "int8"] | None = None
    """Load the frozen base in 4-bit or 8-bit (bitsandbytes); requires LoRA."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the matrix products; adapters, value head and optimizer stay in fp32. auto: bf16 where the hardware
    has it, fp16 with loss scaling on older GPUs if the architecture stands it, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    micro_batch_size: Size | None = None
    """Rows per forward and backward pass and process, unless sft.micro_batch_size or ppo.micro_batch_size is set."""


@dataclass
class SFTConfig:
    """Supervised fine-tuning; leave the section out and the base model is the reference."""

    data: DataSource
    """Rows with the template's columns and `response`."""
    more_data: list[MixedSource] = field(default_factory=list)
    """Further training rows, for example of an earlier task so that it is not forgotten; each source has a share."""
    validation: DataSource | None = None
    """Rows on which the loss is measured at the end."""
    epochs: Epochs = 1.0
    """Passes over the data; ignored when max_steps is set."""
    max_steps: Steps | None = None
    """Optimizer steps."""
    batch_size: Size = 16
    """Rows per optimizer step, across all processes and accumulation steps."""
    micro_batch_size: Size | None = None
    """Rows per forward pass and process; default: batch_size divided by the number of processes."""
    learning_rate: Rate = 2e-4
    """Peak learning rate."""
    save_every: PositiveInt = 200
    """Optimizer steps between checkpoints."""
    trainer_args: dict[str, Any] = field(default_factory=dict)
    """Passed on to transformers.TrainingArguments unchanged; the plan refuses what the run sets or would not read."""


@dataclass
class RewardConfig:
    """The reward: set `model`, or `train` to train one."""

    model: Name | None = None
    """A registered name, hub id or folder of a classifier, or package.module:object; takes precedence over `train`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the reward, for example {target_label: nothate}."""
    sanity_pair: PairOfTexts | None = None
    """A good and a bad response; the reward must score the first higher, or PPO stops before its first update."""
    held_out: Scorer | None = None
    """A second reward, never optimized by PPO, that scores the responses to ppo.validation."""
    train: RewardTraining | None = None
    """Train the reward model in the `reward` stage."""


@dataclass
class PPOConfig:
    """Proximal policy optimization (arXiv 1707.06347) under a KL penalty (arXiv 1909.08593), with or without values."""

    data: DataSource
    """Prompts; additional columns are passed to the reward by name."""
    steps: Steps = 100
    """Rollouts, each followed by epochs x minibatches optimizer steps."""
    batch_size: Size = 64
    """Responses per rollout, across all processes."""
    samples_per_prompt: Size = 1
    """Responses to each prompt of a rollout; batch_size counts all of them."""
    oversampling: Annotated[int, Range(minimum=1, maximum=64)] = 1
    """Sample and score this many times batch_size responses, and learn from those that differ most: with several
    samples_per_prompt the prompts whose scores do (arXiv 2503.14476, 2504.13818), with one and value_model reward the
    responses whose scores are furthest from the median. Each process chooses among its own."""
    advantage: Literal["gae", "rloo", "grpo", "gdpo"] = "gae"
    """gae learns values (arXiv 1506.02438); the others compare a response with those to the same prompt: rloo subtracts
    the mean of the others (arXiv 2402.14740), grpo that of all and divides by their deviation (arXiv 2402.03300), and
    gdpo does so for every term of the reward before it adds them (arXiv 2601.05242)."""
    loss: Literal["clip", "dpo", "raft"] = "clip"
    """clip is PPO's surrogate, for every advantage. The others need several samples per prompt and no advantage: dpo
    prefers the best response to the worst (arXiv 2305.18290, with kl_coef as beta), raft raises the likelihood of the
    best (arXiv 2304.06767)."""
    offline: bool = False
    """With dpo, learn from the columns chosen and rejected of `data` instead of from sampled responses."""
    norm_by_std: bool = True
    """With grpo, divide by the standard deviation of a prompt's scores; false is Dr. GRPO (arXiv 2503.20783)."""
    minibatch_size: Size = 16
    """Responses per optimizer step, across all processes."""
    micro_batch_size: Size | None = None
    """Responses per forward and backward pass and process; default: minibatch_size divided by the number of processes.
    Where a GPU runs out of memory, it is halved, which changes no gradient."""
    rollout_batch_size: Size | None = None
    """Responses sampled at a time by each process; default: batch_size divided by the number of processes."""
    epochs: Annotated[int, Range(minimum=1, maximum=1000)] = 4
    """Passes over each rollout."""
    learning_rate: Rate = 1e-4
    """Peak learning rate of the policy."""
    value_learning_rate: Rate | None = None
    """Peak learning rate of the value head and of a separate value model; default: learning_rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rates decay over the run."""
    kl_coef: NonNegativeFloat = 0.05
    """Weight of the per-token KL penalty against the reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the penalty: log ratio, half its square, or the non-negative k3."""
    kl_in: Literal["reward", "loss"] | None = None
    """Whether the penalty lowers the reward of every token or is a term of the loss, where it is always k3; default:
    loss with grpo, else reward."""
    kl_target: PositiveFloat | None = None
    """Target KL, nats per response; the proportional controller of arXiv 1909.08593 adapts kl_coef to reach it."""
    kl_horizon: PositiveInt = 10_000
    """Horizon of the adaptive KL controller, in episodes; larger values adapt kl_coef more slowly."""
    gamma: Fraction = 1.0
    """Discount per token."""
    lam: Fraction = 0.95
    """Lambda of generalized advantage estimation (arXiv 1506.02438)."""
    clip_range: PositiveFloat = 0.2
    """The probability ratio is clipped to [1 - clip_range, 1 + clip_range]."""
    value_clip_range: PositiveFloat = 0.2
    """Largest change in a value prediction per update."""
    vf_coef: NonNegativeFloat = 0.1
    """Weight of the value loss."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of an entropy bonus, per token."""
    ptx_data: DataSource | None = None
    """Texts (column `text`, of which the second half is predicted from the first) or responses to prompts that the
    policy goes on to predict: as many in an optimizer step as it has responses (PPO-ptx, arXiv 2203.02155)."""
    ptx_target: Literal["text", "reference"] = "text"
    """What to predict: text, whose loss is its negative log-likelihood, or what the reference predicts, whose loss is
    half the squared log ratio of policy and reference."""
    ptx_coef: PositiveFloat = 1.0
    """Weight of the loss on ptx_data, per token."""
    target_kl: PositiveFloat | None = None
    """Nats per token; the epochs end when a minibatch's KL to the policy that sampled it exceeds this."""
    value_model: Literal["shared", "separate", "reward"] = "shared"
    """Values from a head on the policy's hidden states, or from a separate model (with LoRA: a separate adapter). With
    reward, nothing is learned: a response's value before a token is the reward's score of the text so far."""
    value_warmup_steps: NonNegativeInt = 0
    """Initial steps that train only the value head and a separate value model."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    max_new_tokens: Size = 32
    """Maximum length of a response, in tokens."""
    min_token_limit: Size | None = None
    """Sample each step's token limit uniformly from [min_token_limit, max_new_tokens]; default: max_new_tokens."""
    temperature: Annotated[float, Range(minimum=0.01, maximum=100)] = 1.0
    """Sampling temperature; it divides the logits in old, new and reference log-probabilities alike."""
    score_samples: Annotated[int, Range(minimum=0, maximum=1_000_000)] = 0
    """Normalize scores by their mean and standard deviation over this many responses of the initial policy, rounded up
    to whole batches; 0 turns this off."""
    score_clip: PositiveFloat | None = None
    """Scores, normalized or not, are clipped to [-score_clip, score_clip]."""
    score_scale: PositiveFloat = 1.0
    """Scores are divided by this after clipping."""
    missing_eos_penalty: NonNegativeFloat = 0.0
    """Subtracted from the score of a response that was truncated at max_new_tokens."""
    checkpoint_every: PositiveInt = 20
    """Steps between checkpoints, and between samples in samples.jsonl."""
    checkpoints_kept: PositiveInt = 2
    """Number of most recent checkpoints to keep."""
    validation: DataSource | None = None
    """Prompts to validate on at step 0 and at every checkpoint; the best policy, by score minus KL penalty, is saved in
    ppo/best."""
    validation_texts: DataSource | None = None
    """Fixed texts, from the column `text`, or responses to prompts, with `response` and the template's columns: their
    likelihood under the policy is logged at every validation, and shows what the alignment costs."""
    self_checks: bool = True
    """Before the first update, verify that the probability ratio is 1, the KL is 0, the reference shares no trained
    weights, every trained weight gets a gradient, and the sanity pair is ordered correctly."""


@dataclass(kw_only=True)
class EvaluationConfig(GenerationSettings):
    """Base, SFT and aligned completions of the same prompts with the same seeds."""

    data: Annotated[dict[str, PromptSet], Length(1)]
    """Prompt sets by name."""
    models: dict[str, Name] = field(default_factory=dict)
    """Further models to compare, keyed by title: an adapter's folder, a model's folder, or a hub id."""
    best_of: dict[str, BestOf] = field(default_factory=dict)
    """The best of n samples of a model by the run's reward, keyed by title: {model: sft, n: 16}."""
    prompted: dict[str, Prompted] = field(default_factory=dict)
    """A model with a text in front of every prompt, keyed by title: {model: sft, prefix: "Be polite.\\n\\n"}."""
    anti_expert: dict[str, AntiExpert] = field(default_factory=dict)
    """A model steered away from an adapter, keyed by title: {model: sft, adapter: FOLDER, alpha: 2}."""
    judges: list[Name | Scorer] = field(default_factory=list)
    """Toxicity judges in addition to the reward, each a name or {model: ..., options: ...}."""
    rewards: list[Name | Scorer] = field(default_factory=list)
    """Further rewards whose scores the report shows, each a name or {model: ..., options: ...}."""
    protocol: Literal["rtp"] | None = None
    """rtp is that of RealToxicityPrompts (arXiv 2009.11462, 2105.03023): 25 samples of up to 20 tokens at temperature 1
    with top_p 0.9; a prompt counts as toxic if a sample is strictly above 0.5."""
    samples: Annotated[int, Range(minimum=1, maximum=10_000)] = 1
    """Completions per prompt; with several, the report adds expected maximum toxicity, toxicity probability
    (arXiv 2009.11462) and the diversity of a prompt's samples."""
    seeds: Annotated[list[Seed], Length(1)] | None = None
    """Sampling seeds. Each generates `samples` completions per prompt; several add a standard deviation to the report.
    Default: the experiment's seed."""
    similarity: Name | None = None
    """Encoder whose sentence embeddings compare completions with references: hub id or folder."""
    fluency_model: Name | None = None
    """Model under which the perplexity of every continuation is measured, given its prompt: hub id or folder, best one
    that is neither policy nor base. Default: none, or with a protocol the policy's base."""
    texts: dict[str, DataSource] = field(default_factory=dict)
    """Fixed texts by name, from the column `text`, or responses to prompts: their perplexity under every model shows
    what the alignment cost elsewhere."""
    fail_on: Literal["worse"] | None = None
    """Exit with code 1 if a verdict is "worse" or a guard against reward hacking failed."""
    batch_size: Size = 64
    """Prompts per generation batch."""
    threshold: Fraction = 0.5
    """A text counts as toxic at or above this probability."""
    margins: Margins = field(default_factory=Margins)
    """How much of what the model could do before may be lost."""


@dataclass
class ReuseConfig:
    """Finished stages of other runs that are copied into this one instead of being run again."""

    sft: Name | None = None
    """Run folder whose SFT stage to use; the policy's model and LoRA settings must be the same."""
    reward: Name | None = None
    """Run folder whose trained reward model to use."""


@dataclass
class SweepConfig:
    """Runs that differ in their reward; recipes.sweep runs them, and they share one SFT stage."""

    rewards: Annotated[dict[str, Name | Scorer], Length(2)]
    """Rewards by the name that is added to the run's: each a name, hub id, folder or object, or {model: ..., options:
    ...}. Every reward scores the completions of every run."""


@dataclass
class Config:
    """One experiment."""

    name: Name
    """Name of the run folder."""
    policy: PolicyConfig
    """The model to align."""
    evaluation: EvaluationConfig
    """Compare base, SFT and aligned models on held-out prompts."""
    sft: SFTConfig | None = None
    """Supervised fine-tuning before PPO."""
    reward: RewardConfig | None = None
    """Reward that PPO maximizes: set `model`, or `train` to train one."""
    ppo: PPOConfig | None = None
    """PPO training; omit this section to evaluate SFT only."""
    prompting: PromptingConfig | None = None
    """Compare prompts for the policy's model, without training."""
    tuning: TuningConfig | None = None
    """Compare ways to tune the policy's model to sft.data."""
    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    """Finished stages of other runs that are copied into this one instead of being run again."""
    sweep: SweepConfig | None = None
    """Runs that differ in their reward; recipes.sweep runs them, and they share one SFT stage."""
    compare: CompareConfig | None = None
    """Algorithms compared on the same SFT policy, reward and data; recipes.compare runs each with each seed."""
    seed: Seed = 0
    """Random seed for the whole run."""
    track: Literal["tensorboard", "trackio", "wandb"] | None = None
    """Send metrics to this tracker too; metrics.jsonl is always written."""
    runs: Name = "runs"
    """Folder that holds the run folders."""

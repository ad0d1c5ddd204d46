"""The policy: a language model, its frozen reference and a value head, seen through response-aligned tensors.

This is the only module that distinguishes causal models from encoder-decoders, but for what stands in front of their
prompts (soft_prompts.py) and for decoding with several variants at once (anti_expert.py). Shapes: B prompts, P prompt
tokens, T response tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from workbench.models.adapters import active_adapter, adapter_name
from workbench.models.decoding import PLAIN, Decoding, generation_config, logits_processors
from workbench.models.loading import start_id, stop_ids
from workbench.models.logprobs import (
    bypass_lm_head,
    capture_lm_head_input,
    contiguous_input,
    head_logprobs,
    logits_logprobs,
    scatter_to_mask,
)
from workbench.models.sampling import mask_after_stop
from workbench.models.shared_prompts import shared_prompt_cache
from workbench.models.value_head import zero_head


class TokenScores(NamedTuple):
    """Log-probability, value and entropy of each response token."""

    logprobs: Tensor  # (B, T) float32
    values: Tensor | None  # (B, T) float32, of the state before the token; None without a value head
    entropies: Tensor | None  # (B, T) float32, nats, of the distribution that the token was drawn from; optional


class Batch(NamedTuple):
    """Prompts and their responses as token ids; the masks are False at padding."""

    prompt_ids: Tensor  # (B, P) int64
    prompt_mask: Tensor  # (B, P) bool
    response_ids: Tensor  # (B, T) int64, pad id after the stop token
    response_mask: Tensor  # (B, T) bool, True at sampled tokens, the stop token included

    def rows(self, index: Tensor | slice) -> Batch:
        """Return the rows at `index`."""
        return Batch(*(tensor[index] for tensor in self))


class Policy(nn.Module):
    """A language model, by default with a value head; `forward` scores responses, `generate` samples them."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        reference: PreTrainedModel | None = None,
        value_model: PreTrainedModel | None = None,
        autocast: torch.dtype | None = None,
        with_values: bool = True,
    ) -> None:
        """Take a model and, for full fine-tuning, a frozen copy as `reference` and optionally a `value_model`.

        A PEFT model needs neither: its adapters `sft` and `value` take their place.
        """
        super().__init__()
        self.model = model
        self.value_model = value_model
        if value_model is not None and not value_model.config.tie_word_embeddings:
            value_model.get_output_embeddings().requires_grad_(False)  # values do not depend on it
        self.trained_adapters = [
            name for name in ("policy", "value") if self.has_adapters and name in model.peft_config
        ]
        self.value_head = zero_head(model.get_output_embeddings().in_features, model.device) if with_values else None
        self.is_encoder_decoder: bool = model.config.is_encoder_decoder
        self.pad_id: int = tokenizer.pad_token_id
        self.start_id: int | None = start_id(self.base)
        self.stop_ids: Tensor
        stops = torch.tensor(stop_ids(self.base, tokenizer), device=model.device)
        self.register_buffer("stop_ids", stops, persistent=False)
        self.autocast_dtype = autocast
        self.model.get_output_embeddings().register_forward_pre_hook(contiguous_input)
        self.has_plain_head = self._check_plain_head()
        self._unfreeze_adapters()
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False  # autocast casts; peft would cast to fp32 and back for nothing
        # torch registers every attribute that is a module, and would train, save and wrap the reference with the
        # policy; it does not look inside a tuple.
        self._unregistered_reference = (reference,)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the reference with the policy, which torch does not see."""
        if self.reference is not None:
            self.reference._apply(function, recurse)
        return super()._apply(function, recurse)

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, without adapters."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def has_adapters(self) -> bool:
        """Whether the variants are adapters on one base."""
        return isinstance(self.model, PeftModel)

    @property
    def reference(self) -> PreTrainedModel | None:
        """The frozen copy of full fine-tuning; with adapters there is none, see `variant`."""
        return self._unregistered_reference[0]

    def reference_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the reference consists of, which training must not change."""
        copied = [] if self.reference is None else list(self.reference.parameters())
        return copied + [parameter for parameter in self.parameters() if not parameter.requires_grad]

    def value_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that only the values depend on: the head, and the value model or adapter if any."""
        return [p for name, p in self.named_parameters() if name.startswith("value_") or adapter_name(name) == "value"]

    @property
    def device(self) -> torch.device:
        """The device of the model and of its inputs."""
        return self.model.device

    def pad_prompts(self, prompt_ids: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Return ids and mask (B, P) of prompts, padded on the left for a decoder and on the right for an encoder."""
        length = max(map(len, prompt_ids))
        ids = torch.full((len(prompt_ids), length), self.pad_id)
        mask = torch.zeros(len(prompt_ids), length, dtype=torch.bool)
        for row, prompt in enumerate(prompt_ids):
            columns = slice(0, len(prompt)) if self.is_encoder_decoder else slice(length - len(prompt), length)
            ids[row, columns] = torch.tensor(prompt)
            mask[row, columns] = True
        return ids.to(self.device), mask.to(self.device)

    def make_batch(self, prompt_ids: Sequence[list[int]], response_ids: Sequence[list[int]]) -> Batch:
        """Return prompts and responses, given as lists of token ids, as one padded batch."""
        mask = pad_sequence([torch.ones(len(ids), dtype=torch.bool) for ids in response_ids], batch_first=True)
        responses = pad_sequence(
            [torch.tensor(ids, dtype=torch.long) for ids in response_ids], batch_first=True, padding_value=self.pad_id
        )
        return Batch(*self.pad_prompts(prompt_ids), responses.to(self.device), mask.to(self.device))

    def trim(self, batch: Batch) -> Batch:
        """Return the batch without columns that are padding in every row."""
        prompt_length, length = (int(mask.sum(dim=1).max()) for mask in (batch.prompt_mask, batch.response_mask))
        first = 0 if self.is_encoder_decoder else batch.prompt_ids.shape[1] - prompt_length
        columns = slice(first, first + prompt_length)
        prompts = (batch.prompt_ids[:, columns], batch.prompt_mask[:, columns])
        return Batch(*prompts, batch.response_ids[:, :length], batch.response_mask[:, :length])

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: list[int] | None = None,
        observe: Callable[[Tensor], None] | None = None,
        decoding: Decoding = PLAIN,
    ) -> Batch:
        """Sample responses (B, T) to prompts (B, P), by default from the plain softmax at `temperature`.

        With `seeds` (one per row), which `decoding` needs for top_k and top_p, a row's sample depends only on its
        prompt and its seed; temperature 0 is greedy. `observe` gets the logits (B, V) of each step.
        """
        occurred = torch.zeros_like(prompt_mask[:, :1]) if self.is_encoder_decoder else prompt_mask
        settings = generation_config(self.base, decoding, max_new_tokens, self.pad_id, self.stop_ids.tolist())
        can_share = not self.is_encoder_decoder and decoding.num_beams == 1 and settings.cache_implementation is None
        was_training = self.training
        self.eval()
        with self.autocast():
            cache = shared_prompt_cache(self.model, self.base, prompt_ids, prompt_mask) if can_share else None
            output = self.model.generate(
                input_ids=prompt_ids,
                attention_mask=prompt_mask.long(),
                past_key_values=cache,
                generation_config=settings,
                logits_processor=logits_processors(decoding, temperature, seeds, occurred, observe),
                stopping_criteria=StoppingCriteriaList([] if decoding.stopping is None else [decoding.stopping]),
                synced_gpus=False,  # a sharded model is gathered, and processes may generate different lengths
            )
        self.train(was_training)
        response_ids = output[:, 1 if self.is_encoder_decoder else prompt_ids.shape[1] :]
        mask = mask_after_stop(response_ids, self.stop_ids)
        return Batch(prompt_ids, prompt_mask, response_ids.masked_fill(~mask, self.pad_id), mask)

    def forward(self, batch: Batch, temperature: float, entropy: bool = False) -> TokenScores:
        """Score the batch's responses with the trainable model; 0 at masked positions."""
        logprobs, entropies, states = self._score(self.model, batch, temperature, entropy)
        if self.value_head is None:
            return TokenScores(logprobs, None, entropies)
        if self.value_model is not None:
            states = self._states(self.value_model, batch)
        elif "value" in self.trained_adapters:
            with self.variant("value") as value_model:
                states = self._states(value_model, batch)
        values = scatter_to_mask(self.value_head(states.float()).squeeze(-1), batch.response_mask)
        return TokenScores(logprobs, values, entropies)

    @torch.no_grad()
    def logprobs(self, name: str, batch: Batch, temperature: float) -> Tensor:
        """Return log-probabilities (B, T) of responses under a variant (see `variant`); 0 at masked positions."""
        with self.variant(name) as model:
            return self._score(model, batch, temperature, entropy=False)[0]

    @torch.no_grad()
    def response_states(self, name: str, batch: Batch) -> Tensor:
        """Return the states (N, H) from which a variant's plain head predicts the responses' N tokens."""
        with self.variant(name) as model:
            return self._states(model, batch)

    @torch.no_grad()
    def response_logits(self, name: str, batch: Batch) -> Tensor:
        """Return the logits (B, T, V) that predict the response tokens under a variant (see `variant`)."""
        with self.variant(name) as model, self.autocast():
            return self._response_logits(model, batch).float()

    @contextmanager
    def variant(self, name: str) -> Iterator[PreTrainedModel | PeftModel]:
        """Activate the weights called "policy", "reference", "base" or by the name of a loaded adapter.

        With adapters the reference is the SFT adapter, or the bare base if there was no SFT.
        """
        if not isinstance(self.model, PeftModel):
            yield self.reference if self.weights_of(name) == "reference" and self.reference is not None else self.model
            return
        try:
            with active_adapter(self.model, self.weights_of(name)):
                self._unfreeze_adapters()
                yield self.model
        finally:
            self._unfreeze_adapters()

    def weights_of(self, name: str) -> str:
        """Return which weights a variant has: two of one name are the same model."""
        if not isinstance(self.model, PeftModel):
            return "reference" if name == "reference" and self.reference is not None else "model"
        if name == "reference":
            return "sft" if "sft" in self.model.peft_config else "base"
        return name

    def _unfreeze_adapters(self) -> None:
        """Let gradients reach every trained adapter; peft freezes all but the active one."""
        if len(self.trained_adapters) < 2:
            return
        for name, parameter in self.named_parameters():
            if adapter_name(name) in self.trained_adapters:
                parameter.requires_grad_(True)

    def _score(
        self, model: PreTrainedModel | PeftModel, batch: Batch, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return log-probabilities and entropies (B, T) of responses, and the states (N, H) before their N tokens."""
        mask, head = batch.response_mask, model.get_output_embeddings()
        ids = batch.response_ids[mask]
        if self.has_plain_head:
            states = self._states(model, batch)
            with self.autocast():
                logprobs, entropies = head_logprobs(states, head, ids, temperature, entropy=entropy)
        else:
            with self.autocast(), capture_lm_head_input(head) as captured:
                logits = self._response_logits(model, batch)[mask]
            states = captured[0][mask]
            logprobs, entropies = logits_logprobs(logits, ids, temperature, entropy=entropy)
        scattered_entropies = None if entropies is None else scatter_to_mask(entropies, mask)
        return scatter_to_mask(logprobs, mask), scattered_entropies, states

    def _states(self, model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
        """Return the states (N, H) from which the head of `model` predicts the responses' N tokens."""
        head = model.get_output_embeddings()
        with self.autocast(), capture_lm_head_input(head) as captured, bypass_lm_head(head):
            self._response_logits(model, batch)
        return captured[0][batch.response_mask]

    def _response_logits(self, model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
        """Return the output (B, T, V) of the model's head for the states that predict the response tokens."""
        prompt_ids, prompt_mask, response_ids, response_mask = batch
        if self.is_encoder_decoder:
            assert self.start_id is not None
            start = torch.full_like(response_ids[:, :1], self.start_id)
            return model(
                input_ids=prompt_ids,
                attention_mask=prompt_mask.long(),
                decoder_input_ids=torch.cat((start, response_ids[:, :-1]), dim=1),
                use_cache=False,
            ).logits
        mask = torch.cat((prompt_mask, response_mask), dim=1).long()
        # The state at the last prompt token predicts the first response token.
        first = prompt_ids.shape[1] - 1
        return model(
            input_ids=torch.cat((prompt_ids, response_ids), dim=1),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=torch.arange(first, first + response_ids.shape[1], device=mask.device),
            use_cache=False,
        ).logits

    @torch.no_grad()
    def _check_plain_head(self) -> bool:
        """Return whether the model's logits are the output of a linear head, unchanged.

        Some architectures scale or cap the logits afterwards, some add a bias (Bart, where it is usually zero), and
        some adapters wrap the head.
        """
        head = self.model.get_output_embeddings()
        if type(head) is not nn.Linear:
            return False
        outputs: list[Tensor] = []
        hook = head.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        # Several tokens: the padding token may be embedded as zeros, and no cap or scale changes logits of zero.
        ids = torch.arange(min(16, head.out_features), device=self.device).unsqueeze(0)
        mask = torch.ones_like(ids, dtype=torch.bool)
        batch = Batch(ids, mask, ids, mask)
        try:
            with self.autocast():
                logits = self._response_logits(self.model, batch)
        finally:
            hook.remove()
        if not torch.equal(logits, outputs[0]) or not bool(logits.amax() > logits.amin()):
            return False
        try:
            self._states(self.model, batch)
        except RuntimeError:  # something after the head expects the shape of logits
            return False
        return True

    def autocast(self) -> torch.autocast:
        """Return the context in which the model computes in its precision."""
        return torch.autocast(
            self.device.type, dtype=self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None
        )

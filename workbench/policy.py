"""The policy: a language model, its frozen reference and a value head, seen through response-aligned tensors.

This is the only module that knows a causal model from an encoder-decoder. Shapes: B prompts, P prompt tokens,
T response tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from workbench.models import stop_ids
from workbench.sampling import SeededSampling, mask_after_stop


class TokenScores(NamedTuple):
    """What the policy says of each response token."""

    logprobs: Tensor  # (B, T) float32
    values: Tensor  # (B, T) float32, read before the token


class Policy(nn.Module):
    """A language model with a value head; `forward` scores responses, `generate` samples them."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        reference: PreTrainedModel | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        """`reference` is the frozen copy for full fine-tuning; a PEFT model finds its reference in itself."""
        super().__init__()
        self.model = model
        self.value_head = nn.Linear(model.config.get_text_config(decoder=True).hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.value_head.to(model.device)
        self.is_encoder_decoder: bool = model.config.is_encoder_decoder
        self.pad_id: int = tokenizer.pad_token_id
        self.stop_ids = torch.tensor(stop_ids(self.base, tokenizer), device=model.device)
        self.autocast_dtype = autocast
        # In a tuple, so that it is neither trained, saved nor wrapped with this module.
        self._frozen = (reference,)

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model inside the adapters."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def device(self) -> torch.device:
        """Where the inputs belong."""
        return self.model.device

    def pad_prompts(self, prompt_ids: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, P) of prompts: decoders are padded on the left, encoders on the right."""
        length = max(map(len, prompt_ids))
        ids = torch.full((len(prompt_ids), length), self.pad_id)
        mask = torch.zeros(len(prompt_ids), length, dtype=torch.bool)
        for row, prompt in enumerate(prompt_ids):
            where = slice(0, len(prompt)) if self.is_encoder_decoder else slice(length - len(prompt), length)
            ids[row, where] = torch.tensor(prompt)
            mask[row, where] = True
        return ids.to(self.device), mask.to(self.device)

    def trim_prompts(self, prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The same prompts (B, P) without columns that are padding in every row."""
        length = int(prompt_mask.sum(dim=1).max())
        where = slice(0, length) if self.is_encoder_decoder else slice(prompt_ids.shape[1] - length, None)
        return prompt_ids[:, where], prompt_mask[:, where]

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: list[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sample responses and their mask (B, T) for prompts (B, P) from the plain softmax at `temperature`.

        With `seeds` (one per row) a row's sample depends on nothing but its prompt and its seed; temperature 0
        is greedy.
        """
        processors = LogitsProcessorList()
        if seeds is not None and temperature > 0:
            processors.append(SeededSampling(seeds, temperature))
        sample = temperature > 0 and seeds is None
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if sample else {}
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad_id,
            eos_token_id=self.stop_ids.tolist(),
            use_cache=True,
            **options,
        )
        was_training = self.training
        self.eval()
        with self._autocast():
            output = self.model.generate(
                input_ids=prompt_ids,
                attention_mask=prompt_mask.long(),
                generation_config=config,
                logits_processor=processors,
            )
        self.train(was_training)
        response_ids = output[:, 1 if self.is_encoder_decoder else prompt_ids.shape[1] :]
        mask = mask_after_stop(response_ids, self.stop_ids)
        return response_ids.masked_fill(~mask, self.pad_id), mask

    def forward(
        self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor, temperature: float
    ) -> TokenScores:
        """Score responses (B, T) after prompts (B, P) with the trainable model."""
        logits, hidden = self._response_logits(self.model, prompt_ids, prompt_mask, response_ids, response_mask)
        values = self.value_head(hidden.float()).squeeze(-1)
        return TokenScores(token_logprobs(logits, response_ids, temperature), values)

    @torch.no_grad()
    def logprobs(
        self,
        name: str,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        response_mask: Tensor,
        temperature: float,
    ) -> Tensor:
        """Log-probabilities (B, T) of responses under the variant `name` (see `using`)."""
        with self.using(name) as model:
            logits, _ = self._response_logits(model, prompt_ids, prompt_mask, response_ids, response_mask)
        return token_logprobs(logits, response_ids, temperature)

    @contextmanager
    def using(self, name: str) -> Iterator[PreTrainedModel | PeftModel]:
        """The weights under a variant's name: "policy", "reference", "base" or the name of a loaded adapter.

        The reference is the SFT adapter, or the bare base where there was no SFT.
        """
        (frozen,) = self._frozen
        if not isinstance(self.model, PeftModel):
            yield frozen if name == "reference" and frozen is not None else self.model
            return
        if name == "reference":
            name = "sft" if "sft" in self.model.peft_config else "base"
        active = self.model.active_adapter
        if name == active:
            yield self.model
        elif name == "base":
            with self.model.disable_adapter():
                yield self.model
        else:
            self.model.set_adapter(name, inference_mode=True)
            try:
                yield self.model
            finally:
                self.model.set_adapter(active)

    def _response_logits(
        self,
        model: PreTrainedModel | PeftModel,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        response_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) that predict the response tokens, and the states (B, T, H) that the output head read."""
        captured: list[Tensor] = []
        head = model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
        try:
            with self._autocast():
                if self.is_encoder_decoder:
                    start = torch.full_like(response_ids[:, :1], self.base.config.decoder_start_token_id)
                    logits = model(
                        input_ids=prompt_ids,
                        attention_mask=prompt_mask.long(),
                        decoder_input_ids=torch.cat((start, response_ids[:, :-1]), dim=1),
                        use_cache=False,
                    ).logits
                else:
                    mask = torch.cat((prompt_mask, response_mask), dim=1).long()
                    # The state at the last prompt token predicts the first response token. An index keeps the
                    # selected states contiguous, which a bf16 product needs to be fast.
                    first = prompt_ids.shape[1] - 1
                    logits = model(
                        input_ids=torch.cat((prompt_ids, response_ids), dim=1),
                        attention_mask=mask,
                        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
                        logits_to_keep=torch.arange(first, first + response_ids.shape[1], device=mask.device),
                        use_cache=False,
                    ).logits
        finally:
            hook.remove()
        return logits, captured[0]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None
        )


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (B, T) of `ids` (B, T) under softmax(logits / temperature), logits (B, T, V), in float32."""
    logits = logits.float() / temperature
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)

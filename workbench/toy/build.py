"""Train the toy models from scratch: `python -m workbench.toy.build` (minutes on two cores)."""

import argparse
import sys
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from workbench.toy import MODELS, model_folder
from workbench.toy.tasks import pair
from workbench.toy.tokenizers import CONTEXT_LENGTH, SENTINELS, gpt2_tokenizer, t5_tokenizer

SEED = 0
BATCH = 32
CHUNK = 16  # batches whose texts are sorted by length together, so that little is padding
RATE = 1.5e-3
IGNORED = -100

Pair = tuple[list[int], list[int]]  # token ids of the input and of the target


def t5_model(vocabulary: int) -> T5ForConditionalGeneration:
    """Return a T5 with two wide layers per side: the time of `generate` grows with layers and tokens, not width."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary,
            d_model=128,
            d_kv=32,
            num_heads=4,
            num_layers=2,
            num_decoder_layers=2,
            d_ff=320,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )


def gpt2_model(vocabulary: int) -> GPT2LMHeadModel:
    """Return a GPT-2 with three layers: copying a distant word takes at least two, choosing which one takes a third."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=CONTEXT_LENGTH,
            n_embd=128,
            n_layer=3,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def corrupted(random: Random, ids: list[int], sentinels: list[int]) -> Pair:
    """Return a T5 span-corruption pair: sentinels replace about a quarter of `ids` (EOS last), in spans of 1 to 3."""
    source: list[int] = []
    target: list[int] = []
    index, used = 0, 0
    while index < len(ids) - 1:
        if used < len(sentinels) and random.random() < 0.13:
            end = min(index + random.randint(1, 3), len(ids) - 1)
            source.append(sentinels[used])
            target += [sentinels[used], *ids[index:end]]
            index, used = end, used + 1
        else:
            source.append(ids[index])
            index += 1
    return [*source, ids[-1]], [*target, ids[-1]]


def encoded(random: Random, tokenizer: PreTrainedTokenizerFast, name: str) -> Pair:
    """Return one training pair: input and target for T5, context and continuation for GPT-2."""
    prompt, target = pair(random)
    target_ids = tokenizer(target).input_ids
    if name == "t5":
        if not prompt:
            return corrupted(random, target_ids, tokenizer.convert_tokens_to_ids(SENTINELS))
        return tokenizer(prompt).input_ids, target_ids
    return tokenizer(prompt).input_ids, [*target_ids, tokenizer.eos_token_id]


def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    """Return ids (rows, longest), padded with `filler` on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def batches(random: Random, tokenizer: PreTrainedTokenizerFast, name: str) -> Iterator[list[Pair]]:
    """Yield an endless stream of batches of new pairs of similar length."""
    while True:
        pairs = [encoded(random, tokenizer, name) for _ in range(BATCH * CHUNK)]
        pairs.sort(key=lambda ids: len(ids[0]) + len(ids[1]))
        starts = list(range(0, len(pairs), BATCH))
        random.shuffle(starts)
        yield from (pairs[start : start + BATCH] for start in starts)


def batch_loss(model: PreTrainedModel, batch: list[Pair], name: str) -> torch.Tensor:
    """Return the mean cross entropy of the target tokens, a scalar."""
    if name == "t5":
        source = padded([ids for ids, _ in batch], 0)
        labels = padded([target for _, target in batch], IGNORED)
        logits = model(input_ids=source, attention_mask=(source != 0).long(), labels=labels).logits
    else:
        ids = padded([context + target for context, target in batch], 0)
        labels = padded([[IGNORED] * len(context) + target for context, target in batch], IGNORED)
        # Causal attention never looks at padding on the right.
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
        labels = labels[:, 1:]
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def groups(model: PreTrainedModel, name: str) -> list[dict[str, Any]]:
    """Return parameter groups with learning rates; T5's embeddings start fifty times larger and take larger steps."""
    embeddings = model.get_input_embeddings().weight
    others = [parameter for parameter in model.parameters() if parameter is not embeddings]
    return [{"params": others, "lr": RATE}, {"params": [embeddings], "lr": RATE * (6 if name == "t5" else 1)}]


def pretrain(name: str, steps: int) -> None:
    """Train one model from scratch and write it and its tokenizer into its folder."""
    started = time.monotonic()
    torch.manual_seed(SEED)
    tokenizer = t5_tokenizer() if name == "t5" else gpt2_tokenizer()
    model: PreTrainedModel = (t5_model if name == "t5" else gpt2_model)(len(tokenizer))
    optimizer = torch.optim.AdamW(groups(model, name), weight_decay=0.01, betas=(0.9, 0.98))
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
    stream = batches(Random(f"{name}/{SEED}"), tokenizer, name)
    recent = 0.0
    for step in range(1, steps + 1):
        loss = batch_loss(model, next(stream), name)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent = loss.item() if step == 1 else 0.98 * recent + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"{name} {step}/{steps} loss {recent:.3f} {time.monotonic() - started:.0f} s", flush=True)
    folder = model_folder(name)
    # Half precision halves the file; the configuration says float32, and so the model loads as float32.
    model.half().save_pretrained(folder)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    print(f"{name}: {model.num_parameters():,} parameters, final loss {recent:.3f}")


def main(arguments: list[str]) -> None:
    """Train the models named on the command line, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, help="t5, gpt2 or both")
    parser.add_argument("--steps", type=int, default=2500, help=f"optimizer steps of {BATCH} texts")
    options = parser.parse_args(arguments)
    for name in options.models:
        pretrain(name, options.steps)


if __name__ == "__main__":
    main(sys.argv[1:])

"""What test_processes starts in two processes, each scenario by its name; the first process writes what it found."""

from __future__ import annotations

import dataclasses
import faulthandler
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import tiny
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from workbench.config.schema import DataSource, PPOConfig
from workbench.errors import Interrupted, UserError
from workbench.evaluation.generation import Contestant, Sampling, answer
from workbench.models.policy import Batch
from workbench.models.sampling import is_truncated
from workbench.ppo import update as update_module
from workbench.ppo.rollout import Rollout, decode, score_tokens
from workbench.ppo.trainer import PPOTrainer
from workbench.rewards.contract import CheckedReward

PROCESSES = 2
KINDS = list(itertools.product(tiny.ARCHITECTURES, (True, False), ("shared", "separate")))  # lora, value_model
CONFIG = PPOConfig(
    data=DataSource(path="unused"),
    steps=4,
    batch_size=16,
    minibatch_size=8,
    micro_batch_size=3,
    epochs=2,
    learning_rate=1e-2,
    max_new_tokens=8,
    checkpoint_every=4,
)


def name(architecture: str, lora: bool, value_model: str) -> str:
    """One of KINDS as a file name."""
    return f"{architecture}-{'lora' if lora else 'full'}-{value_model}"


def share_of_e(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """A countable reward."""
    return [text.count("e") / max(len(text), 1) for text in completions]


def make_rows(architecture: str, count: int) -> list[dict[str, Any]]:
    """Prompts of different lengths."""
    tokenizer = tiny.tokenizer(architecture)
    texts = [f"{'ab' * (i % 4)} {chr(97 + i % 26)}:" for i in range(count)]
    return [{"prompt": text, "prompt_ids": tokenizer(text).input_ids} for text in texts]


def make_trainer(
    folder: Path, kind: tuple[str, bool, str], *, reward: Any = share_of_e, validation: int = 0, **changes: Any
) -> PPOTrainer:
    """A trainer of a tiny policy, the same in every process."""
    architecture = kind[0]
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    policy = tiny.policy(kind[0], lora=kind[1], separate=kind[2] == "separate")
    torch.nn.init.normal_(policy.value_head.weight, std=0.1)
    return PPOTrainer(
        policy,
        tiny.tokenizer(architecture),
        CheckedReward(reward, "test"),
        make_rows(architecture, 40),
        dataclasses.replace(CONFIG, **changes),
        accelerator=Accelerator(cpu=True),
        folder=folder,
        seed=0,
        validation_rows=make_rows(architecture, validation),
    )


def uneven_rollout(run: PPOTrainer) -> Rollout:
    """This process's share of one rollout: the first half of its responses has one or two tokens, the other many."""
    policy, size = run.unwrapped, run.config.batch_size
    rows = run.rows[:size]
    generator = torch.Generator().manual_seed(7)
    lengths = torch.tensor([1 + i % 2 if i < size // 2 else 6 + i % 3 for i in range(size)])
    first = run.accelerator.process_index * run.share
    part = slice(first, first + run.share)
    longest = int(lengths[part].max())
    ids = torch.randint(5, len(run.tokenizer), (size, run.config.max_new_tokens), generator=generator)[part, :longest]
    mask = torch.arange(longest) < lengths[part].unsqueeze(1)
    ids = ids.masked_fill(~mask, policy.pad_id)
    batch = Batch(*policy.pad_prompts([row["prompt_ids"] for row in rows[part]]), ids, mask)
    logprobs, reference, values, entropies = score_tokens(policy, batch, run.config.temperature, size)
    return Rollout(
        batch,
        logprobs,
        reference,
        values,
        entropies,
        scores=torch.randn(size, generator=generator)[part],
        terms={},
        truncated=is_truncated(ids, mask, policy.stop_ids),
        prompts=[row["prompt"] for row in rows[part]],
        completions=decode(run.tokenizer, batch),
        seconds={"generate": 1.0},
    )


def minibatches_in_order(rows: int, epochs: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Minibatches whose union over the processes does not depend on how many there are."""
    of_shares = [share.split(size * len(share) // rows) for share in torch.arange(rows).chunk(shares_here())]
    for _ in range(epochs):
        yield from (torch.cat(parts) for parts in zip(*of_shares, strict=True))


def shares_here() -> int:
    """How many of the two processes' shares this process has."""
    return PROCESSES // Accelerator(cpu=True).num_processes


def first_update(folder: Path, kind: tuple[str, bool, str]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and weights after the update on the same uneven rollout, however many processes share it."""
    # Adam's step on a gradient near 0 turns rounding into a share of the rate, which the tolerance of 1e-5 must exceed.
    run = make_trainer(folder, kind, entropy_coef=0.01, value_clip_range=0.05, learning_rate=1e-3)
    with mock.patch.object(update_module, "minibatches", minibatches_in_order):
        metrics = run.update(uneven_rollout(run))
    return metrics, {key: value.detach() for key, value in run.unwrapped.named_parameters() if value.requires_grad}


def answers(architecture: str, prompts: int) -> list[list[dict[str, Any]]]:
    """What the adapter answers to the first `prompts` prompts, twice each, in their order."""
    policy = tiny.policy(architecture, lora=True)
    made = answer(
        Contestant("aligned", policy, "policy", tiny.tokenizer(architecture), policy, with_token_log_ratios=True),
        make_rows(architecture, prompts),
        Sampling(batch_size=2, max_new_tokens=8, temperature=1.0, seeds=(3, 4)),
        accelerator=Accelerator(cpu=True),
        label="test",
    )
    return [[dataclasses.asdict(one) for one in of] for of in made]


def updates(folder: Path) -> None:
    """first_update of every kind; both processes must come to the same weights."""
    for kind in KINDS:
        metrics, weights = first_update(folder / name(*kind), kind)
        everyone = gather_object([{key: value.clone() for key, value in weights.items()}])
        for key, value in everyone[0].items():
            assert torch.equal(value, everyone[1][key]), f"{kind}: {key} differs between the processes"
        if Accelerator(cpu=True).is_main_process:
            torch.save({"metrics": metrics, "weights": weights}, folder / f"{name(*kind)}.pt")


def lengths(folder: Path) -> None:
    """Train with one process's responses at one token and the other's at the limit, the sides changing at each step."""
    for number, kind in enumerate(KINDS):
        run = make_trainer(
            folder / name(*kind),
            kind,
            validation=(1, 5)[number % 2],
            steps=3,
            checkpoint_every=1,
            score_samples=16,
            min_token_limit=2,
            target_kl=1e-4,
            kl_target=1.0,
            value_warmup_steps=1,
            reward=lambda prompts, completions, **columns: [float(len(text)) for text in completions],
        )

        def uneven(
            prompt_ids: Tensor, mask: Tensor, *, max_new_tokens: int, run: PPOTrainer = run, **options: Any
        ) -> Batch:
            if (run.step + run.accelerator.process_index) % 2:
                ids = run.unwrapped.stop_ids[:1].expand(len(prompt_ids), 1)
            else:
                ids = torch.randint(5, 30, (len(prompt_ids), max_new_tokens))
            return Batch(prompt_ids, mask, ids, torch.ones_like(ids, dtype=torch.bool))

        with mock.patch.object(run.unwrapped, "generate", uneven):
            run.train()


def resumes(folder: Path) -> None:
    """A run that one process alone ends, by a reward that fails or a signal, goes on as if it had not been ended."""
    for kind in KINDS:
        whole = make_trainer(folder / name(*kind) / "whole", kind)
        whole.train()
        stopped, by_signal = folder / name(*kind) / "stopped", kind[1]
        calls = 0

        def ending(
            prompts: list[str], completions: list[str], by_signal: bool = by_signal, **columns: list
        ) -> list[float]:
            nonlocal calls
            calls += 1
            if calls == 3 and os.environ["RANK"] == "1":
                if not by_signal:
                    raise TimeoutError("the scorer did not answer")
                os.kill(os.getpid(), signal.SIGINT)
            return share_of_e(prompts, completions)

        try:
            make_trainer(stopped, kind, reward=ending).train()
        except (Interrupted, UserError) as error:
            said = gather_object([f"{type(error).__name__}: {error}"])
        else:
            raise AssertionError("it was not ended")
        torch.manual_seed(99)
        resumed = make_trainer(stopped, kind)
        resumed.resume()
        step = resumed.step
        resumed.train()
        same = [torch.equal(a, b) for a, b in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True)]
        if whole.accelerator.is_main_process:
            (folder / f"{name(*kind)}.json").write_text(json.dumps({"said": said, "step": step, "same": all(same)}))


def evaluations(folder: Path) -> None:
    """Answers to more prompts than the processes divide, and to fewer than there are processes."""
    for architecture, prompts in itertools.product(tiny.ARCHITECTURES, (1, 7)):
        found = answers(architecture, prompts)
        if Accelerator(cpu=True).is_main_process:
            (folder / f"{architecture}-{prompts}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    # A hang ends itself here, and says where it was.
    faulthandler.dump_traceback_later(int(sys.argv[2]), exit=True)
    assert Accelerator(cpu=True).num_processes == PROCESSES
    for scenario in (updates, lengths, resumes, evaluations):
        place = Path(sys.argv[1]) / scenario.__name__
        place.mkdir(parents=True, exist_ok=True)
        scenario(place)
        print(f"{scenario.__name__}: done", flush=True)

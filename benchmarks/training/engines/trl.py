"""TRL's GRPO trainer.

    python -m benchmarks.training.engines.trl ORDER.json

It generates as its own tool loop does: every turn in one batch of the episodes that go on, from the
beginning of their tokens, each sample apart; parsing and tools are left out, since what is returned
is written beforehand. With ``{"rollout": "ours"}`` this project's engine samples in its place, by
``rollout_func``, and TRL only learns. ``micro_batch`` is episodes of a pass of the update,
``continuous_batching`` transformers' own.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.training.engines.order import Order, StepDone, claim_stdout, tell
from benchmarks.training.random_model import text_of
from benchmarks.training.replay import replay
from benchmarks.training.work import Script, Tokens, prompt_of, reward_of, script_of
from searchrl.distributed.trajectory import trajectories
from searchrl.models.local import LocalModel


def main() -> None:
    """Do the order."""
    out = claim_stdout()
    order = Order.read(Path(sys.argv[1]))
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        trainer(order, Path(folder), out).train()


def trainer(order: Order, folder: Path, out: TextIO) -> GRPOTrainer:
    """TRL's trainer, with the order's work for its data."""
    questions = range(order.steps * order.work.questions)
    prompts = {text_of(prompt_of(order.work, order.seed, q)): q for q in questions}
    assert len(prompts) == len(questions)
    clock = Clock(out)
    made = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(order.model, dtype=torch.float32),
        reward,
        config(order, folder),
        train_dataset=Dataset.from_list([{"prompt": text} for text in prompts]),
        processing_class=AutoTokenizer.from_pretrained(order.model),
        rollout_func=Rollout(order, prompts, clock),
        callbacks=[clock],
    )
    return made


def config(order: Order, folder: Path) -> GRPOConfig:
    """Settings under which TRL does the order's work, and nothing beside it."""
    episodes = order.work.questions * order.work.group
    micro_batch = order.setting("micro_batch", min(episodes, 32))
    on_cpu = order.device == "cpu"
    return GRPOConfig(
        str(folder),
        seed=order.seed,
        use_cpu=on_cpu,
        bf16=order.dtype == "bfloat16",
        gradient_checkpointing=order.setting("gradient_checkpointing", False),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=episodes // micro_batch,
        num_generations=order.work.group,
        max_steps=order.steps,
        max_completion_length=order.work.longest,
        shuffle_dataset=False,
        learning_rate=order.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        use_transformers_continuous_batching=order.setting("continuous_batching", False),
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )


def reward(*, said: Sequence[Tokens], **_: Any) -> list[float]:
    """TRL's reward function."""
    return [reward_of(tokens) for tokens in said]


@dataclass(slots=True)
class Row:
    """One episode on its way."""

    script: Script
    response: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def add(self, tokens: Sequence[int], sampled: bool) -> None:
        """More tokens, with no log-probabilities: TRL computes them in its update."""
        self.response += tokens
        self.mask += [int(sampled)] * len(tokens)
        self.logprobs += [0.0] * len(tokens)

    @property
    def said(self) -> Tokens:
        """The sampled tokens."""
        pairs = zip(self.response, self.mask, strict=True)
        return tuple(token for token, sampled in pairs if sampled)


class Rollout:
    """TRL's rollout function for an order's scripts."""

    def __init__(self, order: Order, prompts: dict[str, int], clock: Clock) -> None:
        self._order = order
        self._prompts = prompts
        self._clock = clock
        self._policy: LocalModel | None = None

    def __call__(self, prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """One episode for each prompt."""
        seen: Counter[int] = Counter()
        rows = []
        for prompt in prompts:
            question = self._prompts[prompt]
            script = script_of(self._order.work, self._order.seed, question, seen[question])
            rows.append(Row(script))
            seen[question] += 1
        self._clock.start()
        if self._order.setting("rollout", "own") == "ours":
            asyncio.run(self._sample_here(rows, trainer))
        else:
            _sample_there(rows, trainer)
        self._clock.sampled(rows)
        return {
            "prompt_ids": [list(row.script.prompt) for row in rows],
            "completion_ids": [row.response for row in rows],
            "logprobs": [row.logprobs for row in rows],
            "env_mask": [row.mask for row in rows],
            "said": [row.said for row in rows],
        }

    async def _sample_here(self, rows: Sequence[Row], trainer: GRPOTrainer) -> None:
        if self._policy is None:
            model = trainer.accelerator.unwrap_model(trainer.model)
            self._policy = LocalModel(model, trainer.processing_class)
        policy, draw = self._policy, self._order.draw
        tasks = [replay(row.script, policy, draw(row.script)) for row in rows]
        for row, episode in zip(rows, await asyncio.gather(*tasks), strict=True):
            [found] = trajectories(episode)
            row.response, row.mask = list(found.response), list(found.mask)
            row.logprobs = list(found.logprobs)


def _sample_there(rows: Sequence[Row], trainer: GRPOTrainer) -> None:
    turn = 0
    while going := [row for row in rows if turn < len(row.script.outputs)]:
        # A batch says as much as the longest of it; outputs of a turn differ where some end.
        for length in sorted({row.script.outputs[turn].length for row in going}):
            batch = [row for row in going if row.script.outputs[turn].length == length]
            trainer.generation_config.max_new_tokens = length
            histories = [[*row.script.prompt, *row.response] for row in batch]
            found, _ = trainer._generate_single_turn(histories, None, {}, 1)
            for row, tokens in zip(batch, found, strict=True):
                row.add(tokens, sampled=True)
                row.add(row.script.outputs[turn].told, sampled=False)
        turn += 1


class Clock(TrainerCallback):
    """Tells when a step is done, and how much of it was sampling."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began = self._sampled = self._now()
        self._rows: Sequence[Row] = ()

    def start(self) -> None:
        """Sampling begins, and a step with it."""
        self._began = self._now()

    def sampled(self, rows: Sequence[Row]) -> None:
        """Sampling is done."""
        self._sampled = self._now()
        self._rows = rows

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """See ``TrainerCallback``."""
        ended, rows = self._now(), self._rows
        tell(
            StepDone(
                samples=len(rows),
                prompt=sum(len(row.script.prompt) for row in rows),
                told=sum(row.mask.count(0) for row in rows),
                said=sum(row.mask.count(1) for row in rows),
                reward=sum(reward_of(row.said) for row in rows) / len(rows),
                rollout=self._sampled[0] - self._began[0],
                update=ended[0] - self._sampled[0],
                rollout_cpu=self._sampled[1] - self._began[1],
                update_cpu=ended[1] - self._sampled[1],
                device_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            ),
            self._out,
        )

    @staticmethod
    def _now() -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()

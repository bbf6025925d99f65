"""One lesson taught to one model: trained, reported on, and left as a Hugging Face directory.

``training.json`` is written last and names the command, seed, steps and the accuracy on answer
tokens it ended with, so a directory that has it is whole.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from scripts.tiny_models import lessons
from searchrl.data.storage import sha256
from searchrl.data.synthwiki import World
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.protocol import Hit
from searchrl.training.supervised import Example, SupervisedSettings, train_supervised

RECORD = "training.json"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is taught, and how.

    Attributes:
        module: the program, for the record.
        stage: what the lesson is called.
        seed: of the run, for the record.
        device: where it is taught.
        settings: steps, rates and tokens.
        begin_with: the directory whose weights it begins with; ``None`` for random ones.
    """

    module: str
    stage: str
    seed: int
    device: str
    settings: SupervisedSettings
    begin_with: Path | None


def teach(
    lesson: Lesson,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stream: Iterator[Example],
    out: Path,
) -> None:
    """Teach ``model`` in place and write it to ``out``, with a line every 50 steps or fewer."""
    settings = lesson.settings
    every = max(1, min(50, settings.steps // 5))
    began_with = _history(lesson.begin_with)
    started = time.perf_counter()
    recent: list[dict[str, float]] = []
    tokens = 0.0

    def report(step: int, metrics: dict[str, float]) -> None:
        nonlocal tokens
        tokens += metrics["tokens"]
        recent.append(metrics)
        if (step + 1) % every == 0:
            seconds = time.perf_counter() - started
            loss, accuracy = (_mean(recent, key) for key in ("loss", "accuracy"))
            print(
                f"{lesson.stage} step {step + 1}/{settings.steps} loss {loss:.4f} "
                f"accuracy {accuracy:.4f} tokens {tokens:.0f} seconds {seconds:.0f}",
                flush=True,
            )
            if step + 1 < settings.steps:
                recent.clear()

    network: torch.nn.Module = model
    network.to(lesson.device)
    train_supervised(model, stream, settings, report)
    network.to("cpu", torch.float16)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    facts = {
        "command": f"python -m {lesson.module} {shlex.join(sys.argv[1:])}",
        "stage": lesson.stage,
        "seed": lesson.seed,
        "steps": settings.steps,
        "tokens": int(tokens),
        "tokens_per_step": settings.tokens_per_step,
        "learning_rate": settings.learning_rate,
        "answer_token_accuracy": round(_mean(recent, "accuracy"), 4),
        "worlds": f"SynthWiki seeds {lessons.SEEDS.start} to {lessons.SEEDS.stop - 1}",
        "began_with": began_with,
        "device": lesson.device,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started),
    }
    (out / RECORD).write_text(json.dumps(facts, indent=2) + "\n")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def load_weights(folder: Path) -> PreTrainedModel:
    """The model in a directory, ready to be taught."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def bm25_search(world: World, query: str, k: int) -> list[Hit]:
    """The demonstrators' search engine."""
    return asyncio.run(_retriever(world.seed, world.size).search([query], k))[0]


@cache
def _retriever(world_seed: int, size: int) -> Bm25Retriever:
    return Bm25Retriever(list(World(world_seed, size).passages()))


def _history(folder: Path | None) -> dict[str, object] | None:
    """How the weights that a lesson began with were made, and which they are."""
    if folder is None:
        return None
    made: dict[str, object] = json.loads((folder / RECORD).read_text())
    return {"model_sha256": sha256(folder / "model.safetensors"), **made}


def _mean(rows: Sequence[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / max(1, len(rows))

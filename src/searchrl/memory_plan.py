"""What a recipe's training needs of each device's memory, part by part, before anything is loaded.

Every part is an upper bound of its kind: a step's episodes are taken to be as long as their budgets
allow and to be rolled out side by side, within the decoder's budget, and an index to lie in memory
as a whole. Rollouts and updates take turns, so a device needs what is always there and the larger
of the two. What cannot be known from here (an index that is not built yet, an encoder on a hub) is
named and has no size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from searchrl.agents.lengths import episode_lengths
from searchrl.data.options import FileData
from searchrl.errors import InputError
from searchrl.models.options import CPU_CACHE, LocalModelOptions, VllmOptions
from searchrl.models.shape import Shape, read_shape
from searchrl.recipe import HttpSearcher, LocalGenerator, LocalSearcher, Recipe
from searchrl.retrieval.options import VectorOptions
from searchrl.training.memory import (
    FULL,
    HALF,
    Form,
    activation_bytes,
    adamw_bytes,
    cache_bytes,
    drawing_bytes,
    factor_weights,
    head_bytes,
    prefill_bytes,
)

_CUDA = 1 << 30
"""For a process's context, its kernels, and what allocators leave unused."""
_PREFILL = 8_192
"""Prompt tokens that are read together."""
_JUDGED = 1_024
"""Tokens of a question, an answer and the gold answers, and of the verdict."""


Phase = Literal["always", "rollouts", "update"]


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that needs memory.

    Attributes:
        name: what it is.
        device: where it lies.
        bytes: how much it needs; ``None`` when that cannot be known yet.
        note: what the number stands for.
        phase: when it is there; rollouts and updates take turns.
    """

    name: str
    device: str
    bytes: int | None
    note: str = ""
    phase: Phase = "always"


def needed_bytes(parts: Sequence[Part], device: str) -> int:
    """The most that a device holds at a time."""
    sums = dict.fromkeys(get_args(Phase), 0)
    for part in parts:
        if part.device == device:
            sums[part.phase] += part.bytes or 0
    return sums["always"] + max(sums["rollouts"], sums["update"])


def memory_plan(recipe: Recipe) -> list[Part]:
    """Everything that training with a recipe holds in memory.

    Raises:
        InputError: the searcher is behind a server, or a model's configuration cannot be read.
    """
    if isinstance(recipe.searcher, HttpSearcher):
        raise InputError('searcher.kind = "http": a served searcher is not trained here')
    shape = read_shape(recipe.searcher.model)
    return [*_training(recipe, recipe.searcher, shape), *_frozen(recipe), *_index(recipe)]


def _training(recipe: Recipe, searcher: LocalSearcher, shape: Shape) -> Iterator[Part]:
    options, device = recipe.learning, searcher.device
    number, form = _number(searcher), _form(recipe, searcher)
    yield Part("searcher, weights", device, number * shape.weights, f"{shape.weights:,} weights")
    if device.startswith("cuda"):
        yield Part("CUDA and its libraries", device, _CUDA, "an allowance")
    yield from _trained(recipe, device, shape, number)
    lengths = episode_lengths(recipe.agent).within(shape.context)
    longest = lengths.total
    episodes = recipe.rollout.questions_per_step * recipe.rollout.group_size
    padded = min(max(options.tokens_per_micro_batch, longest), episodes * longest)
    predicted = min(padded, -(-padded * lengths.sampled // longest))
    activations = activation_bytes(shape, padded, form, options.gradient_checkpointing)
    note = f"a micro-batch of {padded:,} tokens"
    yield Part("activations", device, activations, note, "update")
    note = f"{predicted:,} predicted tokens"
    head = head_bytes(shape, predicted, options.gradient_checkpointing)
    yield Part("head", device, head, note, "update")
    if recipe.rollout.engine == "vllm":
        yield from _vllm(recipe.rollout.vllm, device, shape)
    else:
        yield from _decoding("searcher", searcher, shape, episodes, longest)


def _trained(recipe: Recipe, device: str, shape: Shape, number: int) -> Iterator[Part]:
    """What learning adds to the weights of the searcher."""
    options, lora, ppo = recipe.learning, recipe.lora, recipe.learning.algorithm == "ppo"
    critic, rests = shape.trunk + shape.hidden, options.offload and lora is None
    trained, waiting = shape.weights + (critic if ppo else 0), {}
    if lora is not None:
        factors = factor_weights(shape, lora)
        trained = factors * (2 if ppo else 1) + (shape.hidden if ppo else 0)
        yield Part("adapters", device, number * trained, f"{trained:,} weights")
    elif ppo:
        waiting["critic"] = number * shape.trunk + FULL * shape.hidden
    if options.kl_coefficient > 0 and lora is None:
        waiting["reference"] = number * shape.weights
    for name, size in waiting.items():
        yield Part(f"{name}, weights", "cpu" if rests else device, size)
    if rests and waiting:
        note = f"{' or '.join(waiting)}, one at a time"
        yield Part("weights at work", device, max(waiting.values()), note, "update")
    masters = options.offload or number < FULL
    note = "AdamW's two moments" + (", and the weights it steps" if masters else "")
    home = "cpu" if options.offload else device
    yield Part("gradients", device, number * trained, "of all that is trained", "update")
    if options.offload or number < FULL:
        yield Part("gradients, copied", home, FULL * trained, "to the weights stepped", "update")
    yield Part("optimizer", home, adamw_bytes(trained, masters), note)


def _decoding(
    role: str, options: LocalModelOptions, shape: Shape, rows: int, longest: int
) -> Iterator[Part]:
    """Keys and values, and what reading prompts takes."""
    whole = cache_bytes(shape, rows * longest, _number(options))
    note = f"{rows:,} of {longest:,} tokens at once"
    read = min(_PREFILL, rows * longest)
    if shape.packs:
        room = max(round(options.cache_gib * 2**30), cache_bytes(shape, longest, _number(options)))
        note = f"{note}, at most cache_gib = {options.cache_gib:g}"
        kept = min(whole, room)
        yield Part(f"{role}, prefix cache", options.device, kept, "at most as much again")
        whole = min(whole, room)
        rows = min(rows, max(1, room // cache_bytes(shape, longest, _number(options))))
    yield Part(f"{role}, key-value cache", options.device, whole, note, "rollouts")
    passing = prefill_bytes(shape, max(read, longest), _number(options))
    yield Part(f"{role}, prefill", options.device, passing, f"{read:,} tokens", "rollouts")
    drawing = drawing_bytes(shape, rows)
    yield Part(f"{role}, drawing", options.device, drawing, f"{rows:,} tokens at once", "rollouts")


def _form(recipe: Recipe, searcher: LocalSearcher) -> Form:
    if searcher.dtype == "bfloat16":
        return "bfloat16"
    return "autocast" if recipe.learning.autocast else "float32"


def _vllm(options: VllmOptions, device: str, shape: Shape) -> Iterator[Part]:
    """What vLLM has beside the searcher; on a GPU its caches fill the share that it is given."""
    number = FULL if options.dtype == "float32" else HALF
    yield Part("vLLM, weights", device, number * shape.weights, "its copy of the searcher's")
    name = "vLLM, key-value cache"
    if device == "cpu":
        yield Part(name, device, CPU_CACHE, "as much on every CPU")
    else:
        share = f"rollout.vllm.memory_share = {options.memory_share} of the GPU, less its weights"
        yield Part(name, device, None, share)


def _frozen(recipe: Recipe) -> Iterator[Part]:
    """Generator and judge, those in this process that rewards ask."""
    generator, judge = recipe.generator, recipe.judge
    episodes = recipe.rollout.questions_per_step * recipe.rollout.group_size
    if isinstance(generator, LocalGenerator) and recipe.rewards_ask_the_generator:
        shape = read_shape(generator.model)
        yield _weights("generator", generator, shape)
        length = min(shape.context, generator.max_context_tokens + generator.max_answer_tokens)
        yield from _decoding("generator", generator, shape, episodes, length)
    if isinstance(judge, LocalModelOptions) and recipe.reward.kind == "gain_beyond_rag":
        shape = read_shape(judge.model)
        yield _weights("judge", judge, shape)
        yield from _decoding("judge", judge, shape, episodes, min(shape.context, _JUDGED))


def _weights(role: str, options: LocalModelOptions, shape: Shape) -> Part:
    size = _number(options) * shape.weights
    return Part(f"{role}, weights", options.device, size, f"{shape.weights:,} weights")


def _number(options: LocalModelOptions) -> int:
    return FULL if options.dtype == "float32" else HALF


def _index(recipe: Recipe) -> Iterator[Part]:
    retriever = recipe.retriever
    if retriever.kind == "http":
        return
    data = recipe.data.train
    index = data.index if isinstance(data, FileData) else None
    size = None if index is None else _files(index, "*")
    yield Part("index", "cpu", size, "all its files" if size else "not built yet")
    models = [("encoder", retriever)] if isinstance(retriever, VectorOptions) else []
    for role, options in models:
        yield Part(role, options.device, *_stored(options.encoder))
    if recipe.rerank is not None:
        yield Part("reranker", recipe.rerank.device, *_stored(recipe.rerank.model))


def _stored(model: str) -> tuple[int | None, str]:
    """Weights of a model that is no decoder, by the size of its files."""
    size = _files(Path(model), "*.safetensors")
    return size, "its files" if size else "not on this machine by that path"


def _files(folder: Path, pattern: str) -> int | None:
    if not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file()) or None

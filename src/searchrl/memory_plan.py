"""What a recipe's training needs of each device's memory, part by part, before anything is loaded.

Every part is an upper bound of its kind: a step's episodes are taken to be as long as their budgets
allow and to be rolled out side by side, and an index to lie in memory as a whole. What cannot be
known from here (an index that is not built yet, an encoder on a hub) is named and has no size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from searchrl.agents.s3 import S3Options
from searchrl.agents.search_r1 import SearchR1Options
from searchrl.agents.trained import AgentOptions
from searchrl.data.options import FileData
from searchrl.errors import InputError
from searchrl.models.options import CPU_CACHE, LocalModelOptions, VllmOptions
from searchrl.models.shape import Shape, read_shape
from searchrl.recipe import HttpSearcher, LocalGenerator, Recipe
from searchrl.retrieval.options import VectorOptions
from searchrl.training.memory import (
    FULL,
    HALF,
    activation_bytes,
    adamw_bytes,
    cache_bytes,
    head_bytes,
)


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that needs memory.

    Attributes:
        name: what it is.
        device: where it lies.
        bytes: how much it needs; ``None`` when that cannot be known yet.
        note: what the number stands for.
    """

    name: str
    device: str
    bytes: int | None
    note: str = ""


def memory_plan(recipe: Recipe) -> list[Part]:
    """Everything that training with a recipe holds in memory.

    Raises:
        InputError: the searcher is behind a server, or a model's configuration cannot be read.
    """
    if isinstance(recipe.searcher, HttpSearcher):
        raise InputError('searcher.kind = "http": a served searcher is not trained here')
    shape = read_shape(recipe.searcher.model)
    return [*_training(recipe, recipe.searcher.device, shape), *_frozen(recipe), *_index(recipe)]


def episode_tokens(agent: AgentOptions, context: int) -> tuple[int, int]:
    """Tokens of the longest episode, and those of them that its model writes.

    Args:
        agent: its budgets.
        context: the longest sequence that its model takes.
    """
    if isinstance(agent, S3Options | SearchR1Options):
        written = (agent.max_turns + 1) * agent.max_response_tokens
        longest = agent.max_prompt_tokens + written + agent.max_turns * agent.max_observation_tokens
    else:
        written, longest = agent.max_response_tokens, context
    if isinstance(agent, SearchR1Options):
        longest = min(longest, agent.max_context_tokens)
    longest = min(longest, context)
    return longest, min(written, longest)


def _training(recipe: Recipe, device: str, shape: Shape) -> Iterator[Part]:
    options, critic = recipe.learning, shape.trunk + shape.hidden
    trained = shape.weights + (critic if options.algorithm == "ppo" else 0)
    longest, written = episode_tokens(recipe.agent, shape.context)
    episodes = recipe.rollout.questions_per_step * recipe.rollout.group_size
    padded = min(max(options.tokens_per_micro_batch, longest), episodes * longest)
    predicted = min(padded, -(-padded * written // longest))
    yield Part("searcher, weights", device, FULL * shape.weights, f"{shape.weights:,} weights")
    if options.algorithm == "ppo":
        yield Part("critic, weights", device, FULL * critic, f"{critic:,} weights")
    if options.kl_coefficient > 0:
        yield Part("reference, weights", device, FULL * shape.weights, "for the KL term")
    yield Part("gradients", device, FULL * trained, "of all that is trained")
    yield Part("optimizer", device, adamw_bytes(trained), "AdamW's two moments")
    yield Part(
        "activations",
        device,
        activation_bytes(shape, padded, options.autocast),
        f"a micro-batch of {padded:,} tokens",
    )
    yield Part("head", device, head_bytes(shape, predicted), f"{predicted:,} predicted tokens")
    if recipe.rollout.engine == "vllm":
        yield from _vllm(recipe.rollout.vllm, device, shape)
        return
    yield Part(
        "searcher, key-value cache",
        device,
        cache_bytes(shape, episodes * longest, FULL),
        f"{episodes:,} episodes of {longest:,} tokens at once",
    )


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
    """Generator and judge, those in this process."""
    generator = recipe.generator
    if isinstance(generator, LocalGenerator):
        shape = read_shape(generator.model)
        yield _weights("generator", generator, shape)
        episodes = recipe.rollout.questions_per_step * recipe.rollout.group_size
        length = min(shape.context, generator.max_context_tokens + generator.max_answer_tokens)
        cache = cache_bytes(shape, episodes * length, _number(generator))
        note = f"{episodes:,} answers of {length:,} tokens at once"
        yield Part("generator, key-value cache", generator.device, cache, note)
    if isinstance(recipe.judge, LocalModelOptions):
        yield _weights("judge", recipe.judge, read_shape(recipe.judge.model))


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

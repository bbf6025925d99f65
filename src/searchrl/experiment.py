"""The parts of an experiment, opened from a recipe: data, indexes, models, reward.

Every command builds its parts here, so training, evaluation and ``ask`` cannot differ in how they
read a recipe. What has to be made (a generated world, an index) is made once, under the
experiment's directory, and reused when it is there; what was made from another corpus or with other
settings is refused, never reused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from searchrl.agents.agent import Agent
from searchrl.agents.context import DirectAgent, OracleAgent, RagAgent
from searchrl.agents.generator import Generator
from searchrl.agents.s3 import S3Agent
from searchrl.data.passages import Passage, read_corpus
from searchrl.data.questions import Question, read_questions
from searchrl.data.storage import sha256, write_json
from searchrl.data.synthwiki import DEFAULT_HOPS, write_synthwiki
from searchrl.errors import InputError, IntegrityError
from searchrl.recipe import Recipe, SynthWikiData
from searchrl.retrieval.encoder import Runtime
from searchrl.retrieval.index import build_index, check_options, open_index
from searchrl.retrieval.options import IndexOptions, VectorOptions
from searchrl.retrieval.protocol import Retriever
from searchrl.retrieval.rerank import CrossEncoder, RerankedRetriever, load_cross_encoder
from searchrl.rewards.context_recall import ContextRecall
from searchrl.rewards.gain import GainBeyondRag
from searchrl.rewards.judge import Judge
from searchrl.rewards.rag_cache import RagCache

if TYPE_CHECKING:
    from searchrl.models.local import LocalModel

SplitName = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Split:
    """Questions with the corpus they are asked of."""

    questions: tuple[Question, ...]
    corpus: Path
    retriever: Retriever

    def passages(self) -> Mapping[str, Passage]:
        """The corpus by id, read into memory."""
        return {passage.id: passage for passage in read_corpus(self.corpus)}


class Experiment:
    """Opens what a recipe names, on demand.

    Args:
        recipe: the recipe.
        directory: where generated data, indexes and the RAG cache go.
    """

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self.recipe = recipe
        self.directory = directory

    @cached_property
    def train(self) -> Split:
        """What is trained on."""
        return self._split("train")

    @cached_property
    def test(self) -> Split:
        """What is held out."""
        return self._split("test")

    @cached_property
    def generator(self) -> Generator:
        """The frozen generator."""
        options = self.recipe.generator
        return Generator(
            load_options(options.model, options.device, options.dtype),
            options.model,
            options.style,
            options.max_answer_tokens,
            options.max_context_tokens,
        )

    @cached_property
    def judge(self) -> Judge | None:
        """The judge, where the recipe has one."""
        options = self.recipe.judge
        if options is None:
            return None
        model = load_options(options.model, options.device, options.dtype)
        return Judge(model, name=options.model)

    def searcher(self, model: str | None = None) -> LocalModel:
        """A fresh copy of the recipe's searcher, or of ``model`` on the same device."""
        options = self.recipe.searcher
        return load_options(model or options.model, options.device, options.dtype)

    def cache(self) -> RagCache:
        """The RAG cache."""
        return RagCache.open(self.recipe.reward.cache or self.directory / "rag_cache.jsonl")

    def reward(self) -> GainBeyondRag | ContextRecall:
        """What training maximises."""
        options = self.recipe.reward
        if options.kind == "context_recall":
            return ContextRecall()
        return GainBeyondRag(self.generator, self.cache(), self.judge, options.scale)

    def s3(self, searcher: LocalModel, split: Split, name: str = "s3") -> S3Agent:
        """The s3 agent with one searcher over one split's index."""
        return S3Agent(searcher, split.retriever, self.recipe.agent, name)

    def method(self, name: str, split: Split, searcher: str | None = None) -> Agent:
        """A method by its name in ``evaluation.methods``."""
        if name == "direct":
            return DirectAgent()
        if name == "rag":
            return RagAgent(split.retriever, self.recipe.reward.rag_k)
        if name == "oracle":
            return OracleAgent(split.passages())
        return self.s3(self.searcher(searcher), split)

    def _split(self, name: SplitName) -> Split:
        data = self.recipe.data.train if name == "train" else self.recipe.data.test
        home, options = self.directory / "data" / name, self.recipe.retriever
        if isinstance(data, SynthWikiData):
            questions, corpus = _synthwiki(data, home), home / "corpus.jsonl"
            retriever = _own_index(corpus, home, options)
        else:
            questions, corpus = tuple(read_questions(data.questions, data.limit)), data.corpus
            retriever = (
                _own_index(corpus, home, options)
                if data.index is None
                else _given_index(data.index, options)
            )
        return Split(questions, corpus, self._reranked(retriever))

    def _reranked(self, retriever: Retriever) -> Retriever:
        options = self.recipe.rerank
        if options is None or self._cross_encoder is None:
            return retriever
        return RerankedRetriever(retriever, self._cross_encoder, options.depth)

    @cached_property
    def _cross_encoder(self) -> CrossEncoder | None:
        options = self.recipe.rerank
        return None if options is None else load_cross_encoder(options)


def _synthwiki(data: SynthWikiData, home: Path) -> tuple[Question, ...]:
    """The questions of a world in ``home``, which is generated unless it is there whole.

    ``about.json`` is written last.
    """
    hops = data.hops or DEFAULT_HOPS
    if (home / "about.json").is_file():
        wanted = {"seed": data.seed, "size": data.size, "questions": data.questions}
        _refuse_other(home / "about.json", wanted | {"hops": {str(n): hops[n] for n in hops}})
    else:
        write_synthwiki(home, data.size, data.seed, data.questions, hops)
    questions = tuple(read_questions(home / "questions.jsonl"))
    if len(questions) != data.questions:
        raise IntegrityError(
            f"{home / 'questions.jsonl'}: {len(questions)} questions are left of "
            f"{data.questions}; delete {home} or choose another --out"
        )
    return questions


def _own_index(corpus: Path, home: Path, options: IndexOptions) -> Retriever:
    """The index in ``home``, built where there is none; ``index.json`` says from what."""
    index, source = home / "index", home / "index.json"
    if not corpus.is_file():
        raise InputError(f"{corpus}: no such file")
    made_from = {"corpus_sha256": sha256(corpus), **options.identity()}
    if index.is_dir() and source.is_file():
        _refuse_other(source, made_from)
        return open_index(index, runtime=_runtime(options))
    # A kill between the two writes leaves an index that nothing vouches for; it is built again.
    built = build_index(corpus, index, options)
    write_json(source, made_from)
    return built


def _given_index(index: Path, options: IndexOptions) -> Retriever:
    """An index of the user's own, which has to be of the recipe's settings."""
    check_options(index, options)
    encoder = options.encoder if isinstance(options, VectorOptions) else None
    return open_index(index, encoder=encoder, runtime=_runtime(options))


def _runtime(options: IndexOptions) -> Runtime:
    if not isinstance(options, VectorOptions):
        return Runtime()
    return Runtime(options.device, options.dtype, options.batch_size)


def _refuse_other(record: Path, wanted: Mapping[str, Any]) -> None:
    """See that what ``record`` describes was made with the values a recipe wants.

    Raises:
        InputError: it was not, or the record cannot be read.
    """
    try:
        found = dict(json.loads(record.read_bytes()))
    except (ValueError, TypeError) as error:
        raise IntegrityError(
            f"{record}: damaged; delete {record.parent} or choose another --out"
        ) from error
    for key, value in wanted.items():
        if found.get(key) != value:
            raise InputError(
                f"{record}: {key} is {found.get(key)} there and {value} in the recipe; "
                f"delete {record.parent} or choose another --out"
            )


def load_options(model: str, device: str, dtype: str) -> LocalModel:
    """Load a local model; the heavy import happens here."""
    from searchrl.models.local import load_model

    return load_model(model, device, dtype)

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
from searchrl.models.options import HttpModelOptions, LocalModelOptions
from searchrl.models.protocol import ChatModel, LanguageModel
from searchrl.models.replies import ReplyStore, Usage
from searchrl.recipe import HttpSearcher, LocalSearcher, Recipe, RetrieverOptions, SynthWikiData
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.index import build_index, open_index
from searchrl.retrieval.protocol import Retriever
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
            self._chat_model(options),
            options.name,
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
        return Judge(self._chat_model(options), name=options.name)

    @property
    def local_searcher(self) -> LocalSearcher:
        """What the recipe says of its searcher.

        Raises:
            InputError: the searcher is behind a server, where it cannot be trained or exchanged.
        """
        options = self.recipe.searcher
        if isinstance(options, HttpSearcher):
            raise InputError(
                'searcher.kind = "http": a served searcher can be evaluated as it is and not '
                'trained or exchanged; name a local one with kind = "local"'
            )
        return options

    def searcher(self, model: str | None = None) -> LocalModel:
        """A fresh copy of the recipe's searcher, or of ``model`` on the same device.

        Raises:
            InputError: the searcher is behind a server.
        """
        options = self.local_searcher
        return load_options(model or options.model, options.device, options.dtype)

    def evaluated_searcher(self, model: str | None = None) -> LanguageModel:
        """The recipe's searcher wherever it runs, or ``model`` in its place.

        Raises:
            InputError: ``model`` is named, and the recipe's searcher is behind a server.
        """
        options = self.recipe.searcher
        if isinstance(options, HttpSearcher) and model is None:
            from searchrl.models.http import open_language_model

            return open_language_model(options, self._replies(options))
        return self.searcher(model)

    def usage(self) -> list[Usage]:
        """What has been asked of served models, all runs in this directory together."""
        sections = (self.recipe.searcher, self.recipe.generator, self.recipe.judge)
        served = [section for section in sections if isinstance(section, HttpModelOptions)]
        files = dict.fromkeys(self._replies_path(section) for section in served)
        return [usage for file in files for usage in ReplyStore(file).usage()]

    def cache(self) -> RagCache:
        """The RAG cache."""
        return RagCache.open(self.recipe.reward.cache or self.directory / "rag_cache.jsonl")

    def reward(self) -> GainBeyondRag | ContextRecall:
        """What training maximises."""
        options = self.recipe.reward
        if options.kind == "context_recall":
            return ContextRecall()
        return GainBeyondRag(self.generator, self.cache(), self.judge, options.scale)

    def s3(self, searcher: LanguageModel, split: Split, name: str = "s3") -> S3Agent:
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
        return self.s3(self.evaluated_searcher(searcher), split)

    def _chat_model(self, options: LocalModelOptions | HttpModelOptions) -> ChatModel:
        if isinstance(options, LocalModelOptions):
            return load_options(options.model, options.device, options.dtype)
        from searchrl.models.http import open_chat_model

        return open_chat_model(options, self._replies(options))

    def _replies(self, options: HttpModelOptions) -> ReplyStore:
        return ReplyStore(self._replies_path(options))

    def _replies_path(self, options: HttpModelOptions) -> Path:
        return options.cache or self.directory / "replies.sqlite"

    def _split(self, name: SplitName) -> Split:
        data = self.recipe.data.train if name == "train" else self.recipe.data.test
        home, options = self.directory / "data" / name, self.recipe.retriever
        if isinstance(data, SynthWikiData):
            return _synthwiki_split(data, home, options)
        questions = tuple(read_questions(data.questions, data.limit))
        if data.index is None:
            return Split(questions, data.corpus, _own_index(data.corpus, home, options))
        return Split(questions, data.corpus, _given_index(data.index, options))


def _synthwiki_split(data: SynthWikiData, home: Path, options: RetrieverOptions) -> Split:
    """A world in ``home``, generated unless it is there whole; ``about.json`` is written last."""
    hops = data.hops or DEFAULT_HOPS
    if (home / "about.json").is_file():
        wanted = {"seed": data.seed, "size": data.size, "questions": data.questions}
        _refuse_other(home / "about.json", wanted | {"hops": {str(n): hops[n] for n in hops}})
    else:
        write_synthwiki(home, data.size, data.seed, data.questions, hops)
    corpus = home / "corpus.jsonl"
    questions = tuple(read_questions(home / "questions.jsonl"))
    if len(questions) != data.questions:
        raise IntegrityError(
            f"{home / 'questions.jsonl'}: {len(questions)} questions are left of "
            f"{data.questions}; delete {home} or choose another --out"
        )
    return Split(questions, corpus, _own_index(corpus, home, options))


def _own_index(corpus: Path, home: Path, options: RetrieverOptions) -> Retriever:
    """The index in ``home``, built where there is none; ``index.json`` says from what."""
    index, source = home / "index", home / "index.json"
    if not corpus.is_file():
        raise InputError(f"{corpus}: no such file")
    made_from = {"corpus_sha256": sha256(corpus), **options.model_dump()}
    if index.is_dir() and source.is_file():
        _refuse_other(source, made_from)
        return open_index(index)
    # A kill between the two writes leaves an index that nothing vouches for; it is built again.
    built = build_index(read_corpus(corpus), index, options.kind, k1=options.k1, b=options.b)
    write_json(source, made_from)
    return built


def _given_index(index: Path, options: RetrieverOptions) -> Retriever:
    """An index of the user's own, which has to be of the recipe's settings."""
    retriever: Bm25Retriever = open_index(index)
    for name in ("k1", "b"):
        found, wanted = retriever.settings[name], getattr(options, name)
        if found != wanted:
            raise InputError(
                f"{index}: was built with {name} = {found}, and retriever.{name} is {wanted}; "
                "set the recipe to the index or build it again"
            )
    return retriever


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

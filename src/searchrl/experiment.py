"""The parts of an experiment, opened from a recipe: data, indexes, models, reward.

Every command builds its parts here, so training, evaluation and ``ask`` cannot differ in how they
read a recipe. What has to be made (a generated world, an index) is made once, under the
experiment's directory, and reused when it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from searchrl.agents.agent import Agent
from searchrl.agents.context import DirectAgent, OracleAgent, RagAgent
from searchrl.agents.generator import Generator
from searchrl.agents.s3 import S3Agent
from searchrl.data.passages import Passage, read_corpus
from searchrl.data.questions import Question, read_questions
from searchrl.data.synthwiki import DEFAULT_HOPS, write_synthwiki
from searchrl.recipe import FileData, Recipe
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
        home = self.directory / "data" / name
        limit: int | None
        if isinstance(data, FileData):
            corpus, questions, index, limit = data.corpus, data.questions, data.index, data.limit
        else:
            corpus, questions, index, limit = (
                home / "corpus.jsonl",
                home / "questions.jsonl",
                None,
                None,
            )
            if not (home / "about.json").is_file():
                hops = data.hops or DEFAULT_HOPS
                write_synthwiki(home, data.size, data.seed, data.questions, hops)
        loaded = tuple(read_questions(questions, limit))
        return Split(loaded, corpus, self._retriever(corpus, index or home / "index"))

    def _retriever(self, corpus: Path, index: Path) -> Retriever:
        if index.is_dir():
            return open_index(index)
        options = self.recipe.retriever
        return build_index(read_corpus(corpus), index, options.kind, k1=options.k1, b=options.b)


def load_options(model: str, device: str, dtype: str) -> LocalModel:
    """Load a local model; the heavy import happens here."""
    from searchrl.models.local import load_model

    return load_model(model, device, dtype)

"""The parts of an experiment, opened from a recipe: data, indexes, models, reward.

Every command builds its parts here, so training, evaluation and ``ask`` cannot differ in how they
read a recipe. What has to be made (a generated world, an index) is made once, under the
experiment's directory, and reused when it is there; what was made from another corpus or with other
settings is refused, never reused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from searchrl.agents.generator import Generator
from searchrl.data.forms import read_dataset
from searchrl.data.options import Data, SynthWikiData
from searchrl.data.passages import Passage, read_corpus
from searchrl.data.questions import Question, QuestionReward, read_questions
from searchrl.data.storage import sha256, write_json
from searchrl.data.synthwiki import DEFAULT_HOPS, write_synthwiki
from searchrl.errors import InputError, IntegrityError
from searchrl.models.options import HttpModelOptions, LocalModelOptions, VllmOptions
from searchrl.models.protocol import ChatModel, LanguageModel
from searchrl.models.replies import ReplyStore, Usage
from searchrl.recipe import HttpSearcher, LocalSearcher, Recipe
from searchrl.retrieval.choice import HttpRetrieverOptions
from searchrl.retrieval.encoder import Runtime
from searchrl.retrieval.index import build_index, check_options, open_index
from searchrl.retrieval.options import IndexOptions, VectorOptions
from searchrl.retrieval.protocol import Retriever
from searchrl.retrieval.rerank import CrossEncoder, RerankedRetriever, load_cross_encoder
from searchrl.retrieval.web.opening import open_web
from searchrl.rewards.context_recall import ContextRecall
from searchrl.rewards.custom import CustomReward, load_function
from searchrl.rewards.deep_retrieval import DeepRetrievalReward
from searchrl.rewards.gain import GainBeyondRag
from searchrl.rewards.judge import Judge
from searchrl.rewards.outcome import OutcomeReward
from searchrl.rewards.per_question import PerQuestionReward, check_rewards
from searchrl.rewards.protocol import RewardFunction
from searchrl.rewards.rag_cache import RagCache
from searchrl.rewards.search_r1_format import SearchR1FormatReward
from searchrl.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from searchrl.models.local import LocalModel
    from searchrl.retrieval.web.retriever import WebRetriever
    from searchrl.serving.client import HttpRetriever

SplitName = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Split:
    """Questions with the corpus they are asked of."""

    questions: tuple[Question, ...]
    corpus: Path | None
    retriever: Retriever

    def passages(self) -> Mapping[str, Passage]:
        """The corpus by id, read into memory.

        Raises:
            InputError: the recipe names none.
        """
        if self.corpus is None:
            raise InputError("this method reads the gold passages: set data.test.corpus")
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
        self._prompted: dict[str | None, LanguageModel] = {}
        self._service: HttpRetriever | WebRetriever | None = None

    @cached_property
    def train(self) -> Split:
        """What is trained on."""
        return self._split("train")

    @cached_property
    def test(self) -> Split:
        """What is held out."""
        return self._split("test")

    @cached_property
    def held_out(self) -> tuple[Split, ...]:
        """What is evaluated: ``test``, or the datasets of the recipe, questions named after them.

        The first ``evaluation.questions``, of each dataset where there are several.
        """
        wanted, datasets = self.recipe.evaluation.questions, self.recipe.data.datasets
        if not datasets:
            first = first_of_each if self.recipe.several_datasets else first_of_all
            return (replace(self.test, questions=first(self.test.questions, wanted)),)
        splits: list[Split] = []
        retrievers: dict[tuple[Path | None, Path | None], Retriever] = {}
        for name, data in datasets.items():
            questions, corpus, index, home = self._data(data, Path("datasets") / name)
            if (corpus, index) not in retrievers:
                retrievers[corpus, index] = self._reranked(self._retriever(corpus, index, home))
            named = tuple(replace(question, source=name) for question in questions[:wanted])
            splits.append(Split(named, corpus, retrievers[corpus, index]))
        return tuple(splits)

    @cached_property
    def reader(self) -> LanguageModel:
        """The generator's language model, for methods that read its tokens.

        Raises:
            InputError: it is behind a server, and the recipe does not name its tokenizer.
        """
        options = self.recipe.generator
        if isinstance(options, LocalModelOptions):
            return load_local(options)
        if options.tokenizer is None:
            raise InputError(
                "generator.tokenizer: this method sends and receives token ids; name the model's "
                "tokenizer"
            )
        from searchrl.models.http import open_language_model

        return open_language_model(options, self._replies(options))

    @cached_property
    def generator(self) -> Generator:
        """The frozen generator."""
        options = self.recipe.generator
        return Generator(
            self.reader if isinstance(options, LocalModelOptions) else self._chat_model(options),
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
        return load_local(options, model)

    def trainable(self, vllm: VllmOptions | None = None) -> LocalModel:
        """A fresh copy of the recipe's searcher whose weights, or adapter, may be trained.

        Args:
            vllm: have vLLM decode with them, opened like this.

        Raises:
            InputError: the searcher is behind a server, the adapter does not go with it, or vLLM
                cannot be opened.
        """
        searcher, lora = load_local(self.local_searcher, vllm=vllm), self.recipe.lora
        if lora is not None:
            from searchrl.models.adapters import add_adapter

            seed = derive_seed(self.recipe.seed, "lora")
            add_adapter(searcher.model, lora, self.local_searcher.model, seed)
        return searcher

    def reference(self, searcher: LocalModel) -> PreTrainedModel:
        """What ``searcher`` is before any training; on the weights of its own where it can be."""
        if self.recipe.lora is None:
            return self.searcher().model
        from searchrl.models.adapters import without_adapter

        return without_adapter(searcher.model)

    def prompted(self, model: str | None = None) -> LanguageModel:
        """The recipe's searcher wherever it runs, or ``model``, opened once and never trained.

        Raises:
            InputError: ``model`` is named, and the recipe's searcher is behind a server.
        """
        if model not in self._prompted:
            self._prompted[model] = self._open_searcher(model)
        return self._prompted[model]

    def _open_searcher(self, model: str | None) -> LanguageModel:
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

    def reward(self) -> RewardFunction:
        """What training maximises."""
        options = self.recipe.reward
        match options.kind:
            case "gain_beyond_rag":
                return GainBeyondRag(self.generator, self.cache(), self.judge, options.scale)
            case "context_recall":
                return ContextRecall()
            case "deep_retrieval":
                return DeepRetrievalReward(
                    self.train.retriever,
                    options.deep_retrieval_table,
                    options.deep_retrieval_depth,
                )
            case "search_r1_format":
                return SearchR1FormatReward(
                    options.structure_score, options.final_score, options.retrieval_score
                )
        generator = self.generator if self.recipe.rewards_ask_the_generator else None
        match options.kind:
            case "function":
                return self._custom_reward(generator)
            case "per_question":
                return self._per_question(generator)
        return OutcomeReward(options.kind, generator)

    def _custom_reward(self, generator: Generator | None) -> CustomReward:
        name = self.recipe.reward.function or ""
        return CustomReward(name, load_function(name), generator)

    def _per_question(self, generator: Generator | None) -> PerQuestionReward:
        has_function = self.recipe.reward.function is not None
        check_rewards(self.train.questions, has_function)
        rewards: dict[QuestionReward, RewardFunction] = {
            "exact_match": OutcomeReward("exact_match", generator),
            "f1": OutcomeReward("f1", generator),
            "sub_em": OutcomeReward("sub_em", generator),
        }
        if has_function:
            rewards["function"] = self._custom_reward(generator)
        return PerQuestionReward(rewards)

    def over(self, index: Path, encoder: str | None = None, device: str | None = None) -> Retriever:
        """The recipe's way to search, over an index that was built before.

        Args:
            index: the directory it is in.
            encoder: where its encoder is now, if it was moved.
            device: where the encoder runs, if not where the recipe says.
        """
        options = self.recipe.retriever
        runtime = _runtime(options) if isinstance(options, IndexOptions) else Runtime()
        if device is not None:
            runtime = replace(runtime, device=device)
        return self._reranked(open_index(index, encoder=encoder, runtime=runtime))

    def _chat_model(self, options: LocalModelOptions | HttpModelOptions) -> ChatModel:
        if isinstance(options, LocalModelOptions):
            return load_local(options)
        from searchrl.models.http import open_chat_model

        return open_chat_model(options, self._replies(options))

    def _replies(self, options: HttpModelOptions) -> ReplyStore:
        return ReplyStore(self._replies_path(options))

    def _replies_path(self, options: HttpModelOptions) -> Path:
        return options.cache or self.directory / "replies.sqlite"

    def _split(self, name: SplitName) -> Split:
        data = self.recipe.data.train if name == "train" else self.recipe.data.test
        questions, corpus, index, home = self._data(data, Path(name))
        return Split(questions, corpus, self._reranked(self._retriever(corpus, index, home)))

    def _data(
        self, data: Data, name: Path
    ) -> tuple[tuple[Question, ...], Path | None, Path | None, Path]:
        """Questions, corpus, a given index, and where what is made of them goes."""
        home = self.directory / "data" / name
        if isinstance(data, SynthWikiData):
            return _synthwiki(data, home), home / "corpus.jsonl", None, home
        questions = tuple(read_dataset(data.questions, limit=data.limit))
        return questions, data.corpus, data.index, home

    def _retriever(self, corpus: Path | None, index: Path | None, home: Path) -> Retriever:
        options = self.recipe.retriever
        if isinstance(options, IndexOptions):
            if index is not None:
                return _given_index(index, options)
            assert corpus is not None, "the recipe is checked"
            return _own_index(corpus, home, options)
        # One service for all splits, so that they share its breaker and its cache.
        if self._service is None:
            if isinstance(options, HttpRetrieverOptions):
                self._service = open_service(options)
            else:
                self._service = open_web(options, self.directory / "web.sqlite")
        return self._service

    def _reranked(self, retriever: Retriever) -> Retriever:
        options = self.recipe.rerank
        if options is None or self._cross_encoder is None:
            return retriever
        return RerankedRetriever(retriever, self._cross_encoder, options.depth)

    @cached_property
    def _cross_encoder(self) -> CrossEncoder | None:
        options = self.recipe.rerank
        return None if options is None else load_cross_encoder(options)


def first_of_all(questions: Sequence[Question], count: int) -> tuple[Question, ...]:
    """The first questions, whatever their source."""
    return tuple(questions[:count])


def first_of_each(questions: Sequence[Question], count: int) -> tuple[Question, ...]:
    """The first questions of each source, in their order."""
    seen: Counter[str] = Counter()
    kept: list[Question] = []
    for question in questions:
        seen[question.source] += 1
        if seen[question.source] <= count:
            kept.append(question)
    return tuple(kept)


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


def open_service(options: HttpRetrieverOptions) -> HttpRetriever:
    """The client of a search service; nothing is asked of it yet.

    Raises:
        InputError: the variable that should hold its key does not.
    """
    from searchrl.serving.client import HttpRetriever
    from searchrl.transport.keys import read_key

    key = read_key(options.key_variable, "retriever.key_variable")
    return HttpRetriever(options.url, key, options.seconds, options.outage, options.cache)


def load_local(
    options: LocalModelOptions, model: str | None = None, vllm: VllmOptions | None = None
) -> LocalModel:
    """Load a local model, or another one in its place; the heavy import happens here."""
    from searchrl.models.local import load_model

    return load_model(
        model or options.model,
        options.device,
        options.dtype,
        options.thinking,
        options.cache_gib,
        vllm,
        options.decoding,
    )

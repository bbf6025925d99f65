"""A recipe fixes a whole experiment; this is its schema, made of the sections of every room.

A section is checked by the room that it belongs to; what has to hold between sections is checked
here. ``recipe_file.py`` reads recipes from TOML.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, PositiveInt, Tag, model_validator

from searchrl.agents.ircot import IrcotOptions
from searchrl.agents.prompts import Style
from searchrl.agents.s3 import S3Options
from searchrl.agents.search_o1 import SearchO1Options
from searchrl.agents.trained import AgentOptions
from searchrl.data.options import DataOptions
from searchrl.distributed.options import VerlOptions
from searchrl.evaluation.options import EvaluationOptions
from searchrl.models.options import (
    LEAST_TEMPERATURE,
    HttpModelOptions,
    LocalModelOptions,
    LoraOptions,
)
from searchrl.options import Options
from searchrl.retrieval.choice import RetrieverOptions
from searchrl.retrieval.options import Bm25Options, RerankOptions
from searchrl.rewards.options import RewardOptions
from searchrl.training.options import (
    GuardOptions,
    LearningOptions,
    RolloutOptions,
    RunOptions,
    SupervisedOptions,
    TrackingOptions,
)


class LocalSearcher(LocalModelOptions):
    """The language model that is trained."""


class HttpSearcher(HttpModelOptions):
    """A language model behind a server: to be evaluated, not to be trained."""

    @model_validator(mode="after")
    def _check_tokenizer(self) -> HttpSearcher:
        if self.tokenizer is None:
            raise ValueError("set tokenizer: a searcher sends and receives token ids")
        return self


class ReaderOptions(Options):
    """How a generator is asked."""

    style: Style = "full"
    max_answer_tokens: PositiveInt = 256
    """Budget of an answer, reasoning included."""
    max_context_tokens: PositiveInt = 6_000
    """Budget of the passages."""


class LocalGenerator(ReaderOptions, LocalModelOptions):
    """The frozen language model that answers, in this process."""


class HttpGenerator(ReaderOptions, HttpModelOptions):
    """The frozen language model that answers, behind an OpenAI-compatible server."""


class LocalJudge(LocalModelOptions):
    """The language model that is asked about answers the span check does not find."""


class HttpJudge(HttpModelOptions):
    """The judge behind an OpenAI-compatible server."""


def _model_kind(section: Any) -> Any:
    """The kind of a section about a model; one that names none is local."""
    if isinstance(section, dict):
        return section.get("kind", "local")
    return getattr(section, "kind", None)


_BY_KIND = Discriminator(_model_kind)
Searcher = Annotated[
    Annotated[LocalSearcher, Tag("local")] | Annotated[HttpSearcher, Tag("http")], _BY_KIND
]
Generator = Annotated[
    Annotated[LocalGenerator, Tag("local")] | Annotated[HttpGenerator, Tag("http")], _BY_KIND
]
Judge = Annotated[Annotated[LocalJudge, Tag("local")] | Annotated[HttpJudge, Tag("http")], _BY_KIND]


class Recipe(Options):
    """A whole experiment."""

    name: str
    seed: int = 0
    data: DataOptions
    retriever: RetrieverOptions = Bm25Options()
    rerank: RerankOptions | None = None
    searcher: Searcher
    lora: LoraOptions | None = None
    generator: Generator
    judge: Judge | None = None
    agent: AgentOptions = S3Options()
    reward: RewardOptions = RewardOptions()
    rollout: RolloutOptions = RolloutOptions()
    learning: LearningOptions = LearningOptions()
    run: RunOptions = RunOptions()
    guards: GuardOptions = GuardOptions()
    tracking: TrackingOptions = TrackingOptions()
    verl: VerlOptions = VerlOptions()
    supervised: SupervisedOptions = SupervisedOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    ircot: IrcotOptions = IrcotOptions()
    search_o1: SearchO1Options = SearchO1Options()

    @property
    def layout(self) -> Literal["ddp", "fsdp"] | None:
        """How weights lie over several processes; none where their number decides."""
        whole = self.lora is not None or self.learning.offload
        return self.run.parallel or ("ddp" if whole else None)

    @property
    def several_datasets(self) -> bool:
        """Whether every source of the held-out questions is a dataset of its own."""
        return bool(self.data.datasets) or self.evaluation.by_source

    @property
    def rewards_ask_the_generator(self) -> bool:
        """Whether training needs the generator; a searcher that answers itself does without."""
        if self.reward.kind == "gain_beyond_rag":
            return True
        by_answer = self.reward.kind in ("exact_match", "f1", "sub_em", "function", "per_question")
        return by_answer and self.agent.kind != "search_r1"

    @model_validator(mode="after")
    def _check_combination(self) -> Recipe:
        algorithm, lonely = self.learning.algorithm, self.rollout.group_size < 2
        if self.learning.compares_groups and lonely:
            raise ValueError(
                f'learning.algorithm = "{algorithm}" compares the episodes of a question: '
                "set rollout.group_size to 2 or more"
            )
        if self.learning.lone_episodes and not lonely:
            raise ValueError(
                "learning.lone_episodes = true takes no baseline from a group: "
                "set rollout.group_size = 1 or leave it out"
            )
        for name in ("refill_rounds", "drop_equal_groups"):
            if getattr(self.rollout, name) and not self.learning.compares_groups:
                raise ValueError(
                    f"rollout.{name} drops groups with equal rewards, which teach "
                    f'learning.algorithm = "{algorithm}" as others do: leave it out'
                )
        wanted = {"search_r1_format": "search_r1", "deep_retrieval": "deep_retrieval"}
        if self.agent.kind != wanted.get(self.reward.kind, self.agent.kind):
            raise ValueError(
                f'reward.kind = "{self.reward.kind}" judges the form of another agent\'s output: '
                f'set agent.kind = "{wanted[self.reward.kind]}" or choose another reward'
            )
        if (
            self.searcher.kind == "local"
            and not self.searcher.thinking
            and self.agent.kind in ("search_r1", "deep_retrieval")
        ):
            raise ValueError(
                f'agent.kind = "{self.agent.kind}" asks the searcher to think: '
                "leave out searcher.thinking = false"
            )
        episodes = self.rollout.questions_per_step * self.rollout.group_size
        if self.learning.mini_batches > episodes:
            raise ValueError(
                f"learning.mini_batches = {self.learning.mini_batches} cuts a step's {episodes} "
                "episodes into too many: lower it or raise rollout.questions_per_step"
            )
        self._check_corpora()
        self._check_engine()
        self._check_layout()
        return self

    def _check_layout(self) -> None:
        whole = {
            "lora": self.lora is not None,
            "learning.offload": self.learning.offload,
        }
        for key, is_set in whole.items():
            if is_set and self.run.parallel == "fsdp":
                raise ValueError(
                    f'run.parallel = "fsdp" does not go with {key}: leave one of them out, or set '
                    'run.parallel = "ddp"'
                )

    def _check_engine(self) -> None:
        if self.rollout.engine == "vllm" and self.learning.importance_cap is None:
            raise ValueError(
                'rollout.engine = "vllm" samples from a slightly different distribution than the '
                "update computes: set learning.importance_cap, as in 2.0"
            )
        if self.rollout.engine == "vllm" and self.lora is not None:
            raise ValueError(
                'rollout.engine = "vllm" is handed whole weights: leave out lora, or set '
                'rollout.engine = "native"'
            )
        if self.rollout.engine == "vllm" and self.rollout.temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"rollout.temperature = {self.rollout.temperature}: vLLM draws at "
                f'{LEAST_TEMPERATURE} at least; raise it, or set rollout.engine = "native"'
            )

    def _check_corpora(self) -> None:
        if self.retriever.kind == "http" and not self.data.share_a_corpus:
            raise ValueError(
                'retriever.kind = "http" searches one corpus: data.train, data.test and all of '
                'data.datasets have to be kind = "files" with the same corpus and without an index'
            )
        for name, data in (("train", self.data.train), ("test", self.data.test)):
            if self.retriever.kind == "web":
                if data.kind != "files" or data.index is not None:
                    raise ValueError(
                        f'retriever.kind = "web" searches no index: data.{name} has to be '
                        'kind = "files" without an index'
                    )
            elif data.kind == "files" and data.corpus is None:
                raise ValueError(f"data.{name}.corpus is missing")

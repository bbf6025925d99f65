"""A recipe fixes a whole experiment: one TOML file, checked before anything runs.

Values come from the schema's defaults, then the file, then ``--set key=value``. An unknown key is
refused with the nearest known one; the resolved recipe is saved as JSON and is itself a valid
recipe.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from searchrl.agents.ircot import IrcotOptions
from searchrl.agents.prompts import Style
from searchrl.agents.s3 import S3Options
from searchrl.agents.search_o1 import SearchO1Options
from searchrl.agents.trained import AgentOptions
from searchrl.distributed.options import VerlOptions
from searchrl.errors import InputError
from searchrl.models.options import HttpModelOptions, LocalModelOptions
from searchrl.options import Options
from searchrl.retrieval.options import (
    KINDS,
    AnyIndexOptions,
    Bm25Options,
    DenseOptions,
    HybridOptions,
    IndexOptions,
    RerankOptions,
)
from searchrl.retrieval.web.options import WebOptions
from searchrl.training.options import (
    GuardOptions,
    LearningOptions,
    RolloutOptions,
    RunOptions,
    SupervisedOptions,
    TrackingOptions,
)

MODELLESS = frozenset({"direct", "rag", "oracle"})
"""Methods in which no model but the generator takes part."""
_NAME = re.compile(r"[\w-]+")
"""What a label or a dataset may be called."""
SHIPPED = Path(__file__).parent / "recipes"
_VARIANTS = frozenset(
    {"synthwiki", "files", *KINDS, "local", "http", "web", "s3", "search_r1", "deep_retrieval"}
)
"""Names of a section's kinds, which pydantic counts among the keys."""


class SynthWikiData(Options):
    """A generated world; see ``searchrl synthwiki``."""

    kind: Literal["synthwiki"] = "synthwiki"
    seed: int = Field(ge=0, le=9_999)
    """Worlds with different seeds share no entity."""
    size: PositiveInt = 1_000
    """Passages."""
    questions: PositiveInt = 500
    """Questions."""
    hops: dict[int, float] | None = None
    """Share of questions by number of gold passages; the default mix when left out."""


class FileData(Options):
    """A corpus and a question file of one's own."""

    kind: Literal["files"]
    corpus: Path | None = None
    """Passages, ``.jsonl`` or ``.jsonl.gz``; may be left out where the web is searched."""
    questions: Path
    """Questions, in any form that ``searchrl data convert`` reads."""
    index: Path | None = None
    """An index built before; one is built into the run directory when left out."""
    limit: PositiveInt | None = None
    """Use only the first questions."""


Data = Annotated[SynthWikiData | FileData, Field(discriminator="kind")]


class DataOptions(Options):
    """What is trained on, and what is held out."""

    train: Data
    test: Data
    datasets: dict[str, Data] = Field({})
    """What is evaluated in the place of `test`: datasets by name, each with a corpus of its own."""

    @model_validator(mode="after")
    def _check_held_out(self) -> DataOptions:
        for name, data in {"test": self.test, **self.datasets}.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"datasets.{name}: a name is made of letters, digits, _ and -")
            if data.kind == self.train.kind == "synthwiki" and data.seed == self.train.seed:
                raise ValueError(f"train and {name} are the same world: give them different seeds")
        return self

    @property
    def share_a_corpus(self) -> bool:
        """Whether one search service, which these options do not name, can answer for all."""
        corpora = {
            data.corpus if data.kind == "files" and data.index is None else None
            for data in (self.train, self.test, *self.datasets.values())
        }
        return len(corpora) == 1 and None not in corpora


class HttpRetrieverOptions(Options):
    """A server that speaks Search-R1's ``/retrieve``, as ``searchrl serve`` does."""

    kind: Literal["http"]
    url: str = Field(pattern=r"^https?://[^/\s]+")
    """The address of the operation, as in ``http://127.0.0.1:8000/retrieve``."""
    key_variable: str | None = None
    """Environment variable that holds the API key."""
    seconds: float = Field(60.0, gt=0)
    """How long one search may take, its repeats included; a server that has not answered yet is
    waited for as long."""
    outage: NonNegativeFloat = 600.0
    """Seconds that the work waits for a server that has gone down."""
    cache: NonNegativeInt = 10_000
    """Lists of hits that are kept in memory."""


def _kind_or_bm25(value: Any) -> Any:
    """A retriever that names no kind is BM25."""
    return {"kind": "bm25", **value} if isinstance(value, dict) else value


RetrieverOptions = Annotated[
    Annotated[
        Bm25Options | DenseOptions | HybridOptions | HttpRetrieverOptions | WebOptions,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_kind_or_bm25),
]


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


class RewardOptions(Options):
    """What training maximises."""

    kind: Literal[
        "gain_beyond_rag",
        "context_recall",
        "exact_match",
        "f1",
        "sub_em",
        "search_r1_format",
        "deep_retrieval",
        "function",
        "per_question",
    ] = "gain_beyond_rag"
    scale: Literal["paper", "code"] = "paper"
    """Gain Beyond RAG: accuracy - base, or the released code's 2 accuracy - base."""
    rag_k: PositiveInt = 3
    """Passages of naive RAG, here and in evaluation."""
    drop_solved: bool = True
    """Do not train on questions that naive RAG already answers."""
    cache: Path | None = None
    """A RAG cache made before; the run directory's own when left out."""
    structure_score: float = Field(0.2, ge=0, le=1)
    """Search-R1's format: what a valid form is worth beside a wrong answer."""
    final_score: float = Field(0.1, ge=0, le=1)
    """Search-R1's format: what a wrong answer in no valid form is worth."""
    retrieval_score: float = Field(0.0, ge=0, le=1)
    """Search-R1's format: what a retrieved gold answer adds to a valid form."""
    deep_retrieval_table: Literal["evidence", "recall", "ndcg"] = "evidence"
    """DeepRetrieval: bands of the rank of the first passage with a gold answer, bands of the recall
    of gold passages, or their NDCG."""
    deep_retrieval_depth: PositiveInt = 3_000
    """DeepRetrieval: passages of the query that are ranked."""
    function: str | None = None
    """A function of your own, as ``module:function``, for the kind ``function``, and for those
    questions of the kind ``per_question`` that want it."""

    @model_validator(mode="after")
    def _check_function(self) -> RewardOptions:
        if self.kind != "per_question" and (self.kind == "function") != (self.function is not None):
            raise ValueError(
                'kind = "function" and function = "module:function" go together: set both or none'
            )
        return self


MethodName = Literal[
    "direct",
    "cot",
    "sft",
    "rag",
    "oracle",
    "s3",
    "s3_no_initial",
    "s3_no_selection",
    "s3_no_both",
    "search_r1",
    "search_r1_ret",
    "deep_retrieval",
    "ircot",
    "ircot_published",
    "search_o1",
    "search_o1_ret",
    "search_o1_published",
    "r1",
]
"""Every method that can be compared; ``methods.py`` says how each is opened."""


def method_of(entry: str) -> MethodName:
    """The method of an entry in a comparison: what stands before its label.

    Raises:
        ValidationError: there is no such method.
    """
    return _METHOD.validate_python(entry.partition(":")[0])


_METHOD: TypeAdapter[MethodName] = TypeAdapter(MethodName)


def _check_entry(entry: str) -> str:
    method_of(entry)
    _, colon, label = entry.partition(":")
    if colon and not _NAME.fullmatch(label):
        raise ValueError(f"{entry!r}: a label is made of letters, digits, _ and -, as in s3:ppo")
    return entry


Entry = Annotated[str, AfterValidator(_check_entry)]
"""A method, with a label where it is compared with itself, as in ``s3:ppo`` and ``s3:grpo``."""


class EvaluationOptions(Options):
    """What is compared at the end."""

    methods: tuple[Entry, ...] = ("direct", "rag", "s3")
    """What is compared, in the order of the table: names from [Methods](methods.md), each with a
    label after a colon where one comes more than once."""
    searchers: dict[str, str] = Field({})
    """By entry of `methods`: the run or checkpoint whose model it uses."""
    questions: PositiveInt = 500
    """Held-out questions; where there are several datasets, of each at most so many."""
    by_source: bool = False
    """Whether each source in a question file is a dataset of its own, with a table of its own."""

    @model_validator(mode="after")
    def _check_searchers(self) -> EvaluationOptions:
        for entry in self.searchers:
            if entry not in self.methods:
                raise ValueError(f"searchers.{entry}: not one of evaluation.methods")
            if method_of(entry) in MODELLESS:
                raise ValueError(f"searchers.{entry}: this method has no model of its own")
        return self


class Recipe(Options):
    """A whole experiment."""

    name: str
    seed: int = 0
    data: DataOptions
    retriever: RetrieverOptions = Bm25Options()
    rerank: RerankOptions | None = None
    searcher: Searcher
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
    def several_datasets(self) -> bool:
        """Whether every source of the held-out questions is a dataset of its own."""
        return bool(self.data.datasets) or self.evaluation.by_source

    @model_validator(mode="after")
    def _check_combination(self) -> Recipe:
        algorithm, lonely = self.learning.algorithm, self.rollout.group_size < 2
        if self.learning.compares_groups and lonely:
            raise ValueError(
                f'learning.algorithm = "{algorithm}" compares the episodes of a question: '
                "set rollout.group_size to 2 or more"
            )
        if self.rollout.refill_rounds > 0 and not self.learning.compares_groups:
            raise ValueError(
                "rollout.refill_rounds replaces groups with equal rewards, which teach "
                f'learning.algorithm = "{algorithm}" as others do: set it to 0'
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
        return self

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


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path, or a shipped one by name, and apply ``key=value`` overrides.

    Raises:
        InputError: no such file, malformed TOML, an unknown key, or a value that does not fit.
    """
    path = recipe_path(source)
    values = _read(path)
    for override in overrides:
        _apply(values, override)
    _refuse_unknown(path, values)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error.errors())}") from error


def index_options(values: Mapping[str, Any], overrides: Sequence[str]) -> IndexOptions:
    """The options of one index, as a command gives them; overrides as in ``load_recipe``.

    Raises:
        InputError: a key does not go with the kind or is missing, or a value does not fit.
    """
    try:
        options: IndexOptions = TypeAdapter(AnyIndexOptions).validate_python(
            _overridden(values, overrides)
        )
    except ValidationError as error:
        raise InputError(f"index options: {_explain(error.errors())}") from error
    return options


def web_options(provider: str, overrides: Sequence[str]) -> WebOptions:
    """The options of search on the web, as a command gives them; see ``index_options``.

    Raises:
        InputError: there is no such provider or key, or a value does not fit.
    """
    values = {"kind": "web", "provider": provider}
    try:
        return WebOptions.model_validate(_overridden(values, overrides))
    except ValidationError as error:
        raise InputError(f"web options: {_explain(error.errors())}") from error


def _overridden(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    chosen = dict(values)
    for override in overrides:
        _apply(chosen, override)
    return chosen


def recipe_path(source: str) -> Path:
    """The file a recipe name or path stands for."""
    path, shipped = Path(source), SHIPPED / f"{source}.toml"
    if path.is_file():
        return path
    if shipped.is_file():
        return shipped
    names = sorted(file.stem for file in SHIPPED.glob("*.toml"))
    close = difflib.get_close_matches(source, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"shipped ones: {', '.join(names)}"
    raise InputError(f"{source}: no such recipe file; {hint}")


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable recipe: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a table of sections")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted key; the value is TOML, or a plain string where it is not."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set {override}: expected key=value, as in --set run.steps=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise InputError(f"--set {override}: {parent} is a value, not a section")
    values[last] = value


def _explain(errors: Sequence[ErrorDetails]) -> str:
    """One line a user can act on, from pydantic's complaints."""
    # A key that is there and wrong explains more than one that is missing.
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in error["loc"] if part not in _VARIANTS)
    match error["type"]:
        case "extra_forbidden":
            return f"{key} does not go with this section's kind"
        case "missing":
            return f"{key} is missing"
        case "union_tag_not_found":
            return f"{key}.kind is missing"
        case "union_tag_invalid":
            tag, expected = error["ctx"]["tag"], error["ctx"]["expected_tags"]
            return f"{key}.kind: {tag!r} is none of {expected}"
        case "literal_error" if close := _nearest_choice(error):
            return f"{key}: {error['msg']}, not {error['input']!r}; did you mean {close}?"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _nearest_choice(error: ErrorDetails) -> str | None:
    """The choice that a value is a misspelling of, as pydantic writes it."""
    choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
    return next(iter(difflib.get_close_matches(str(error["input"]), choices, n=1)), None)


def _refuse_unknown(path: Path, values: dict[str, Any], prefix: str = "") -> None:
    """Find keys that no recipe has, ahead of anything that is missing for want of them."""
    known = _known_keys()
    for name, value in values.items():
        key = prefix + name
        if key not in known:
            nearest = _nearest(key, known)
            hint = f"; did you mean {nearest}?" if nearest else ""
            raise InputError(f"{path}: unknown key {key}{hint}")
        if isinstance(value, dict) and any(other.startswith(f"{key}.") for other in known):
            _refuse_unknown(path, value, f"{key}.")


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The key that was meant: a like name in the section, that name in another, or a like key."""
    section, _, name = key.rpartition(".")
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    if close := difflib.get_close_matches(name, siblings, n=1):
        return f"{section}.{close[0]}" if section else close[0]
    if namesakes := [other for other in known if other.rpartition(".")[2] == name]:
        return namesakes[0]
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.5)), None)


@cache
def _known_keys() -> tuple[str, ...]:
    """All dotted keys of a recipe, each once."""
    return tuple(dict.fromkeys(_keys(Recipe)))


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a schema, those of every variant included."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for part in _models_in(info.annotation):
            yield from _keys(part, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schemas of a section; what has names free to choose is left to pydantic."""
    if get_origin(annotation) is dict:
        return
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)

"""What a recipe says of its evaluation: which methods are compared, on how many questions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, TypeAdapter, model_validator

from searchrl.data.options import NAME
from searchrl.options import Options

MODELLESS = frozenset({"direct", "rag", "oracle"})
"""Methods in which no model but the generator takes part."""
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
    if colon and not NAME.fullmatch(label):
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

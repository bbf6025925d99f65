"""Question files as tasks, scored as SearchRL scores: exact match, F1, and the searches made.

The reward is ``exact_match`` with weight 1; F1 and substring match are metrics. The answer is what
stands in the last ``<answer>`` of the last reply, or the whole reply where there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import verifiers.v1 as vf
from pydantic import Field

from searchrl.data.questions import read_questions
from searchrl.errors import InfrastructureError
from searchrl.rewards.text import exact_match, f1, substring_match
from searchrl_verifiers.search import SearchToolset, SearchToolsetConfig
from searchrl_verifiers.state import SearchState

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_PROMPT = (
    "Answer the question. Use the search tool as often as you need it, and then give the answer "
    "alone, in as few words as possible, between <answer> and </answer>.\n\nQuestion: {question}"
)


class SearchTaskConfig(vf.TaskConfig):
    """What a task reads while it runs."""

    search: SearchToolsetConfig = Field(default_factory=SearchToolsetConfig)


class SearchTasksetConfig(vf.TasksetConfig):
    """Which questions."""

    task: SearchTaskConfig = Field(default_factory=SearchTaskConfig)
    questions: Path = Path("questions.jsonl")
    """A question file in any form that searchrl reads."""
    limit: int | None = None
    """The first so many questions; all when left out."""


class QuestionData(vf.TaskData):
    """A question with its right answers."""

    golden_answers: list[str]


class SearchTask(vf.Task[QuestionData, SearchState, SearchTaskConfig]):
    """One question."""

    @property
    def key(self) -> str:
        """The question's own id."""
        return self.data.id or super().key

    @classmethod
    def toolsets(cls, config: SearchTaskConfig) -> list[vf.Toolset]:
        """The search tool."""
        return [SearchToolset(config.search)]

    @vf.reward
    async def exact_match(self, trace: vf.Trace) -> float:
        """1 where the answer is a right one, after SQuAD's normalisation.

        Raises:
            InfrastructureError: a search failed; there is no reward.
        """
        if trace.state.failure is not None:
            raise InfrastructureError(trace.state.failure)
        return float(exact_match(answer_of(trace.last_reply), self.data.golden_answers))

    @vf.metric
    async def f1(self, trace: vf.Trace) -> float:
        """Words in common with the nearest right answer."""
        return f1(answer_of(trace.last_reply), self.data.golden_answers)

    @vf.metric
    async def substring_match(self, trace: vf.Trace) -> float:
        """1 where a right answer stands in the answer."""
        return float(substring_match(answer_of(trace.last_reply), self.data.golden_answers))

    @vf.metric
    async def searches(self, trace: vf.Trace) -> float:
        """How many searches were answered."""
        return float(trace.state.searches)


class SearchTaskset(vf.Taskset[SearchTask, SearchTasksetConfig]):
    """The questions of a file."""

    def load(self) -> Iterable[SearchTask]:
        """One task a question.

        Raises:
            InputError: the file cannot be read.
        """
        for question in read_questions(self.config.questions, self.config.limit):
            data = QuestionData(
                id=question.id,
                prompt=_PROMPT.format(question=question.text),
                golden_answers=list(question.answers),
            )
            yield SearchTask(data, self.config.task)


def answer_of(reply: str) -> str:
    """The answer in a reply."""
    found = _ANSWER.findall(reply)
    return (found[-1] if found else reply).strip()

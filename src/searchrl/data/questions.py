"""Questions with gold answers, and the line form they are stored in.

``{"id","question","golden_answers"}`` with optional ``supporting_ids`` (gold passages), ``hops``,
``source``, ``reward`` and ``retrieval_query`` (what retrieval is asked in the place of the
question). A question without a gold answer is refused where it is read, with its line number:
later, it would only be a reward that is always zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from searchrl.data.jsonl import read_jsonl
from searchrl.errors import InputError

QuestionReward = Literal["exact_match", "f1", "sub_em", "function"]
"""What a question may ask to be scored by; ``function`` is the one that the recipe names."""
_REWARDS: Mapping[str, QuestionReward] = {name: name for name in get_args(QuestionReward)}


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        id: unique within its file.
        text: as it is put to the model.
        answers: gold answers, at least one; any of them counts.
        source: the dataset it comes from, for per-dataset tables.
        gold_ids: ids of the passages that together hold the answer, in the order of the reasoning;
            empty when the dataset does not say.
        hops: number of passages the answer needs; 0 when unknown.
        reward: what its answers are to be scored by, for recipes that leave that to the questions.
        own_query: what a retrieval with the question asks for; the text itself when empty.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    source: str = "unknown"
    gold_ids: tuple[str, ...] = ()
    hops: int = 0
    reward: QuestionReward | None = None
    own_query: str = ""

    @property
    def query(self) -> str:
        """What a retrieval with the question asks for."""
        return self.own_query or self.text

    def to_row(self) -> dict[str, Any]:
        """The line that ``read_questions`` reads back to an equal question."""
        row = {
            "id": self.id,
            "question": self.text,
            "golden_answers": list(self.answers),
            "source": self.source,
            "supporting_ids": list(self.gold_ids),
            "hops": self.hops,
        }
        if self.reward is not None:
            row["reward"] = self.reward
        if self.own_query:
            row["retrieval_query"] = self.own_query
        return row


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """Read a question file, at most ``limit`` of its lines.

    Raises:
        InputError: a malformed line (with its number), a repeated id, or no question at all.
    """
    questions: list[Question] = []
    seen: set[str] = set()
    for number, row in islice(read_jsonl(path), limit):
        question = question_from_row(row, where=f"{path}:{number}")
        if question.id in seen:
            raise InputError(f"{path}:{number}: id {question.id!r} appears twice; ids must differ")
        seen.add(question.id)
        questions.append(question)
    if not questions:
        raise InputError(f"{path}: no question in it")
    return questions


def question_from_row(row: dict[str, Any], where: str) -> Question:
    """Build a question from one line; ``where`` opens error messages."""
    identifier = row.get("id")
    if not isinstance(identifier, str | int) or isinstance(identifier, bool):
        raise InputError(f'{where}: field "id" is missing or is not a string')
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f'{where}: field "question" is missing or empty')
    hops = row.get("hops", 0)
    if not isinstance(hops, int) or isinstance(hops, bool):
        raise InputError(f'{where}: field "hops" is {type(hops).__name__}, not an integer')
    query = row.get("retrieval_query", "")
    if not isinstance(query, str):
        raise InputError(
            f'{where}: field "retrieval_query" is {type(query).__name__}, not a string'
        )
    return Question(
        id=str(identifier),
        text=text,
        answers=_strings(row, "golden_answers", where, required=True),
        source=str(row.get("source", "unknown")),
        gold_ids=_strings(row, "supporting_ids", where, required=False),
        hops=hops,
        reward=named_reward(row.get("reward"), "reward", where),
        own_query=query,
    )


def named_reward(
    value: object, field: str, where: str, names: Mapping[str, QuestionReward] = _REWARDS
) -> QuestionReward | None:
    """The reward that a field of a row names; ``None`` where it names none.

    Args:
        value: what stands in the field.
        field: its name.
        where: opens error messages.
        names: what may stand there, and what it means.

    Raises:
        InputError: it is no such name.
    """
    if value is None:
        return None
    if not isinstance(value, str) or value not in names:
        raise InputError(f'{where}: field "{field}": {value!r} is none of {", ".join(names)}')
    return names[value]


def _strings(row: dict[str, Any], field: str, where: str, required: bool) -> tuple[str, ...]:
    value = row.get(field, [])
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence) or not all(isinstance(item, str | int) for item in value):
        raise InputError(f'{where}: field "{field}" must be a list of strings')
    strings = tuple(str(item) for item in value)
    if required and not any(item.strip() for item in strings):
        raise InputError(f'{where}: field "{field}" has no gold answer; add one or drop the line')
    return strings

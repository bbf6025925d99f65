"""MIRAGE (arXiv 2402.13178): multiple-choice questions of five medical sets in one JSON tree.

``{set: {id: {"question","options": {"A": ...},"answer": "A"}}}``. A question's text is followed by
its options, as s3 writes them, and its one gold answer is ``letter: text``. Retrieval asks for what
stands before the options: the options would outweigh it, and one of them is the answer. Which
option a reply chose is ``rewards/multiple_choice.py``'s to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from searchrl.data.questions import Question
from searchrl.errors import InputError

OPTIONS = "\nOptions:\n"
"""Stands between a question and its options."""
SETS = frozenset({"mmlu", "medqa", "medmcqa", "pubmedqa", "bioasq"})
"""The names of its sets, as other projects' files write them too."""


def is_mirage(tree: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like the benchmark, by its first entry."""
    rows = next(iter(tree.values()), None)
    row = next(iter(rows.values()), None) if isinstance(rows, dict) else None
    return isinstance(row, dict) and "options" in row


def questions_of_mirage(tree: Mapping[str, Any], where: str) -> Iterator[Question]:
    """The questions of all sets; ``where`` opens error messages.

    Raises:
        InputError: an entry is not of the benchmark's form.
    """
    for source, rows in tree.items():
        if not isinstance(rows, dict):
            raise InputError(f"{where}: {source}: expected an object of questions by id")
        for identifier, row in rows.items():
            yield _question(source, identifier, row, f"{where}: {source}: {identifier}")


def _question(source: str, identifier: str, row: Any, where: str) -> Question:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object")
    text, options, answer = row.get("question"), row.get("options"), row.get("answer")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f'{where}: field "question" is missing or empty')
    if not isinstance(options, dict) or not all(isinstance(o, str) for o in options.values()):
        raise InputError(f'{where}: field "options" must be an object of texts by letter')
    if not isinstance(answer, str) or answer not in options:
        raise InputError(f'{where}: field "answer" is not the letter of an option')
    lines = [f"{letter}: {option}" for letter, option in options.items()]
    gold = f"{answer}: {options[answer]}"
    return Question(
        f"{source}_{identifier}",
        text + OPTIONS + "\n".join(lines),
        (gold,),
        source,
        own_query=text,
    )


def own_query(source: str, text: str) -> str:
    """What retrieval asks for with a question of a set of this name; empty for other datasets."""
    return text.partition(OPTIONS)[0] if source in SETS and OPTIONS in text else ""

"""Question files in the forms that other projects write, told apart by what is in them.

Lines or lists of objects: question lines (FlashRAG's among them), rows of verl, Search-R1 and s3,
the Qwen3-0.6B guide's lines, BEIR's queries. Whole trees: MIRAGE's benchmark and s3's output
sequences. Tables: Parquet files of verl rows. What is not understood is refused with its place;
nothing is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from searchrl.data.jsonl import open_text, read_jsonl
from searchrl.data.mirage import is_mirage, own_query, questions_of_mirage
from searchrl.data.questions import Question, question_from_row
from searchrl.data.verl import question_from_verl, read_parquet
from searchrl.errors import InputError

_PARQUET = b"PAR1"
_OUTPUTS = "_output_sequences"
"""What s3 puts after the dataset's name in the names of its JSON files."""
_Rows = Iterable[tuple[str, dict[str, Any]]]
_Build = Callable[[dict[str, Any], str, int], Question]


def read_dataset(path: Path, source: str | None = None, limit: int | None = None) -> list[Question]:
    """Read a question file in any known form.

    Args:
        path: ``.json``, ``.jsonl`` (both also with ``.gz``) or ``.parquet``; the name decides
            nothing but whether it is unpacked.
        source: keep the questions of this dataset only.
        limit: at most so many.

    Raises:
        InputError: an unknown form, a malformed row (with its place), a repeated id, no question.
    """
    questions: list[Question] = []
    seen: set[str] = set()
    wanted = (q for q in _questions(path) if source is None or q.source == source)
    for question in islice(wanted, limit):
        if question.id in seen:
            raise InputError(f"{path}: id {question.id!r} appears twice; ids must differ")
        seen.add(question.id)
        questions.append(question)
    if not questions:
        of = "" if source is None else f" of source {source!r}"
        raise InputError(f"{path}: no question{of} in it")
    return questions


def _questions(path: Path) -> Iterator[Question]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as handle:
        is_parquet = handle.read(len(_PARQUET)) == _PARQUET
    if is_parquet or path.suffix == ".parquet":
        table = ((f"{path}: row {number}", row) for number, row in read_parquet(path))
        yield from _from_rows(table, question_from_verl)
    elif _is_one_value(path):
        yield from _from_value(_load(path), path)
    else:
        lines = ((f"{path}:{number}", row) for number, row in read_jsonl(path))
        yield from _from_rows(lines)


def _from_rows(rows: _Rows, build: _Build | None = None) -> Iterator[Question]:
    """Questions of rows that all have the form of the first."""
    for place, (where, row) in enumerate(rows, start=1):
        build = build or _form_of(row, where)
        yield build(row, where, place)


def _form_of(row: Mapping[str, Any], where: str) -> _Build:
    if "reward_model" in row:
        return question_from_verl
    if "_id" in row:
        return _from_beir
    if "question" in row:
        return _from_question_line
    raise InputError(
        f"{where}: not a known form of questions: expected a field question, reward_model (verl, "
        f"Search-R1, s3) or _id (BEIR), found {', '.join(list(row)[:5]) or 'none'}"
    )


def _from_question_line(row: dict[str, Any], where: str, place: int) -> Question:
    return question_from_row(row, where)


def _from_beir(row: dict[str, Any], where: str, place: int) -> Question:
    """A BEIR query; BEIR keeps gold answers, where it has any, in the metadata."""
    metadata = row.get("metadata")
    answer = metadata.get("answer") if isinstance(metadata, dict) else None
    if answer is None:
        raise InputError(
            f'{where}: a BEIR query without "metadata.answer" has no gold answer; searchrl '
            "evaluate-retrieval takes BEIR's files as they are"
        )
    line = {"id": row.get("_id"), "question": row.get("text"), "golden_answers": answer}
    return question_from_row(line, where)


def _is_one_value(path: Path) -> bool:
    """Whether a file is one JSON value, a tree or a list, and not one object a line."""
    with open_text(path) as lines:
        first = next((line for line in lines if line.strip()), "")
        more = any(line.strip() for line in lines)
    try:
        value = json.loads(first)
    except json.JSONDecodeError as error:
        # Sound as far as it goes, so it goes on in the next line.
        return more and error.pos >= len(first.rstrip())
    except (ValueError, RecursionError):
        return False
    return isinstance(value, list) or (not more and isinstance(value, dict) and _is_tree(value))


def _is_tree(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(isinstance(item, dict) for item in value.values())


def _load(path: Path) -> Any:
    try:
        with open_text(path) as handle:
            return json.load(handle)
    except (ValueError, RecursionError, OSError, EOFError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


def _from_value(value: Any, path: Path) -> Iterator[Question]:
    if isinstance(value, list):
        rows = [(f"{path}: row {number}", row) for number, row in enumerate(value, start=1)]
        for where, row in rows:
            if not isinstance(row, dict):
                raise InputError(f"{where}: expected an object, got {type(row).__name__}")
        yield from _from_rows(rows)
    elif not _is_tree(value):
        yield from _from_rows([(f"{path}: row 1", value)])
    elif is_mirage(value):
        yield from questions_of_mirage(value, str(path))
    else:
        yield from _from_outputs(value, path)


def _from_outputs(tree: Mapping[str, Any], path: Path) -> Iterator[Question]:
    """Questions of ``{question: {"golden_answers", ...}}``, named after the file and place."""
    source = path.name.partition(".")[0].removesuffix(_OUTPUTS)
    for number, (text, entry) in enumerate(tree.items(), start=1):
        line = {
            "id": f"{source}_{number}",
            "question": text,
            "golden_answers": entry.get("golden_answers", []),
            "source": source,
            "retrieval_query": own_query(source, text),
        }
        yield question_from_row(line, f"{path}: {text[:60]!r}")

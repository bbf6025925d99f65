"""Rows in the form of verl, Search-R1 and s3, as Parquet tables or JSON, and back.

``{"data_source","prompt","ability","reward_model": {"style","ground_truth"},"extra_info"}``. The
question stands beside the prompt, in ``ground_truth``, or at the end of the prompt; the gold
answers in ``ground_truth["target"]`` (text or list), in ``ground_truth`` itself, or beside the
prompt, where ``reward_model`` is the name of a reward. Ids are only unique within a data source, so
the source goes before them; rows written here carry the question's own id and are read back equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from searchrl.data.mirage import own_query
from searchrl.data.questions import Question, QuestionReward, named_reward
from searchrl.data.storage import atomic_write
from searchrl.errors import InputError

_BATCH = 1_000
_ASKED = "Question:"
"""What the question follows in the prompts of Search-R1."""
_REWARDS: Mapping[str, QuestionReward] = {
    "exact_match": "exact_match",
    "f1_score": "f1",
    "sub_em": "sub_em",
    "custom": "function",
}
"""What the deployment guide's lines call rewards."""


def question_from_verl(row: Mapping[str, Any], where: str, place: int | None = None) -> Question:
    """Build a question from a row.

    Args:
        row: the row.
        where: opens error messages.
        place: stands in for the id of a row that has none.

    Raises:
        InputError: a field is missing or of another kind, or there is no gold answer.
    """
    source = row.get("data_source", "unknown")
    if not isinstance(source, str):
        raise InputError(f'{where}: field "data_source" is not a string')
    extra = _mapping(row.get("extra_info"), "extra_info", where)
    hops = row.get("hops") or 0
    if not isinstance(hops, int):
        raise InputError(f'{where}: field "hops" is not an integer')
    text = _question(row, extra, where)
    query = row.get("retrieval_query")
    return Question(
        id=_identifier(row, extra, source, where, place),
        text=text,
        answers=_answers(row, where),
        source=source,
        gold_ids=_strings(row.get("supporting_ids"), "supporting_ids", where),
        hops=hops,
        reward=_reward(row, extra, where),
        own_query=query if isinstance(query, str) else own_query(source, text),
    )


def verl_row(question: Question, index: int, split: str, instruction: str = "") -> dict[str, Any]:
    """The row of a question.

    Args:
        question: the question.
        index: its place in the table.
        split: what the table is for, as in ``train``.
        instruction: goes before the question in the prompt.
    """
    content = f"{instruction} {_ASKED} {question.text}\n" if instruction else question.text
    return {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.answers),
        "data_source": question.source,
        "prompt": [{"role": "user", "content": content}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": list(question.answers)}},
        "extra_info": {
            "split": split,
            "index": index,
            "id": question.id,
            "reward": question.reward,
        },
        "supporting_ids": list(question.gold_ids),
        "hops": question.hops,
        "retrieval_query": question.own_query,
    }


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(row number from 1, row)`` of a Parquet table.

    Raises:
        InputError: pyarrow is not installed, or the file is missing or cannot be read to its end.
    """
    parquet = _pyarrow_parquet(path)
    from pyarrow import ArrowException

    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read after row {number}: {reason}") from error


def write_verl_parquet(
    path: Path, questions: Iterable[Question], split: str, instruction: str = ""
) -> int:
    """Write questions as a Parquet table that verl and Search-R1 train on; returns how many.

    Raises:
        InputError: pyarrow is not installed.
    """
    parquet = _pyarrow_parquet(path)
    import pyarrow

    schema = _schema()
    rows = (verl_row(q, index, split, instruction) for index, q in enumerate(questions))
    count = 0
    with atomic_write(path) as handle, parquet.ParquetWriter(handle, schema) as writer:
        while batch := list(islice(rows, _BATCH)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _schema() -> Any:
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    truth = pa.struct([("target", texts)])
    extra = pa.struct([("split", text), ("index", pa.int64()), ("id", text), ("reward", text)])
    return pa.schema(
        [
            ("id", text),
            ("question", text),
            ("golden_answers", texts),
            ("data_source", text),
            ("prompt", pa.list_(pa.struct([("role", text), ("content", text)]))),
            ("ability", text),
            ("reward_model", pa.struct([("style", text), ("ground_truth", truth)])),
            ("extra_info", extra),
            ("supporting_ids", texts),
            ("hops", pa.int64()),
            ("retrieval_query", text),
        ]
    )


def _pyarrow_parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{path}: Parquet files need the package pyarrow: pip install 'searchrl[parquet]'"
        ) from error
    return parquet


def _identifier(
    row: Mapping[str, Any], extra: Mapping[str, Any], source: str, where: str, place: int | None
) -> str:
    own = extra.get("id")
    if isinstance(own, str):
        return own
    for found in (row.get("id"), extra.get("index"), place):
        if isinstance(found, str | int) and not isinstance(found, bool):
            # Merged tables hold the same id once for each source.
            text = str(found)
            return text if text.startswith(f"{source}_") else f"{source}_{text}"
    raise InputError(f'{where}: neither "id" nor "extra_info.index" is there')


def _question(row: Mapping[str, Any], extra: Mapping[str, Any], where: str) -> str:
    prompt = row.get("prompt")
    for found in (row.get("question"), _truth(row).get("question"), extra.get("question"), prompt):
        if isinstance(found, str) and found.strip():
            return found
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        asked = str(prompt[-1].get("content") or "").rpartition(_ASKED)[2].strip()
        if asked:
            return asked
    raise InputError(f'{where}: neither "question" nor "prompt" holds a question')


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    model = row.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    target = truth.get("target") if isinstance(truth, Mapping) else truth
    name = "golden_answers" if target is None else "reward_model.ground_truth.target"
    answers = _strings(row.get("golden_answers") if target is None else target, name, where)
    if not any(answer.strip() for answer in answers):
        raise InputError(
            f'{where}: no gold answer in "reward_model.ground_truth.target" or "golden_answers"; '
            "add one or drop the row"
        )
    return answers


def _reward(row: Mapping[str, Any], extra: Mapping[str, Any], where: str) -> QuestionReward | None:
    """The reward that a row written here carries, or that the deployment guide's line names."""
    model = row.get("reward_model")
    if isinstance(model, str):
        return named_reward(model, "reward_model", where, _REWARDS)
    return named_reward(extra.get("reward"), "extra_info.reward", where)


def _truth(row: Mapping[str, Any]) -> Mapping[str, Any]:
    model = row.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    return truth if isinstance(truth, Mapping) else {}


def _strings(value: Any, field: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if hasattr(value, "tolist"):  # an array, as pandas returns lists
        value = value.tolist()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise InputError(f'{where}: field "{field}" must be a text or a list of texts')
    return tuple(str(item) for item in value)


def _mapping(value: Any, field: str, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f'{where}: field "{field}" is not an object')
    return value

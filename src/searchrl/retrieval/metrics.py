"""How well a retriever finds the passages that are known to be relevant.

Each metric takes one ranking (ids, best first) and the graded judgements of its query, and agrees
with trec_eval: an unjudged passage is not relevant, a grade above 0 is, and a query without any
relevant passage scores 0 and counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from searchrl.data.jsonl import read_jsonl, read_lines
from searchrl.errors import InputError
from searchrl.retrieval.protocol import Retriever

Grades = Mapping[str, int]
"""Judgements of one query: passage id to grade."""

CUTOFFS: Mapping[str, tuple[int, ...]] = {
    "ndcg": (10,),
    "recall": (5, 10, 100),
    "all_gold": (5, 10, 20),
}
_BATCH = 64
_GRADE = re.compile(r"\s*-?[0-9]{1,9}\s*")


def ndcg(ranking: Sequence[str], grades: Grades, k: int) -> float:
    """Normalised discounted cumulated gain of the first ``k``: gain = grade, discount log2."""
    ideal = _dcg(sorted(grades.values(), reverse=True)[:k])
    return _dcg([grades.get(name, 0) for name in ranking[:k]]) / ideal if ideal else 0.0


def recall(ranking: Sequence[str], grades: Grades, k: int) -> float:
    """Share of the relevant passages that stand among the first ``k``."""
    relevant = _relevant(grades)
    return len(relevant.intersection(ranking[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Sequence[str], grades: Grades) -> float:
    """``1 / rank`` of the first relevant passage, 0 when the ranking holds none."""
    relevant = _relevant(grades)
    ranks = (rank for rank, name in enumerate(ranking, start=1) if name in relevant)
    first = next(ranks, None)
    return 1 / first if first else 0.0


def all_gold(ranking: Sequence[str], grades: Grades, k: int) -> float:
    """1 when every relevant passage stands among the first ``k``, else 0: all hops are covered."""
    relevant = _relevant(grades)
    return float(bool(relevant) and relevant.issubset(ranking[:k]))


def trec_ranking(scores: Mapping[str, float]) -> list[str]:
    """The order trec_eval gives scored passages: score descending, then id *descending*."""
    return sorted(scores, key=lambda name: (scores[name], name), reverse=True)


def query_metrics(
    ranking: Sequence[str],
    grades: Grades,
    ks: Mapping[str, Sequence[int]] = CUTOFFS,
) -> dict[str, float]:
    """All metrics of one query, keyed ``ndcg@k``, ``recall@k``, ``mrr``, ``all_gold@k``."""
    return {
        **{f"ndcg@{k}": ndcg(ranking, grades, k) for k in ks.get("ndcg", ())},
        **{f"recall@{k}": recall(ranking, grades, k) for k in ks.get("recall", ())},
        "mrr": reciprocal_rank(ranking, grades),
        **{f"all_gold@{k}": all_gold(ranking, grades, k) for k in ks.get("all_gold", ())},
    }


def mean_metrics(
    rankings: Mapping[str, Sequence[str]],
    qrels: Mapping[str, Grades],
    ks: Mapping[str, Sequence[int]] = CUTOFFS,
) -> dict[str, float]:
    """Means over the queries that have both a ranking and judgements, and their number ``n``.

    Raises:
        InputError: no query has both.
    """
    rows = [query_metrics(rankings[name], qrels[name], ks) for name in rankings if name in qrels]
    if not rows:
        raise InputError("no question has a line in the qrels; their ids must be the same")
    return {key: fmean(row[key] for row in rows) for key in rows[0]} | {"n": len(rows)}


async def evaluate_retriever(
    retriever: Retriever,
    questions: Mapping[str, str],
    qrels: Mapping[str, Grades],
    ks: Mapping[str, Sequence[int]] = CUTOFFS,
) -> dict[str, float]:
    """Search every judged question as it stands and average the metrics.

    Passages rank as the retriever returns them, so equal scores rank by id ascending, unlike
    ``trec_ranking``. ``mrr`` looks as deep as the largest cutoff.

    Args:
        retriever: what is measured.
        questions: question id to text; those without judgements are left out.
        qrels: question id to graded passage ids.
        ks: the cutoffs of ``ndcg``, ``recall`` and ``all_gold``.

    Returns:
        ``mean_metrics``; with the default cutoffs ``ndcg@10``, ``recall@5``, ``recall@10``,
        ``recall@100``, ``mrr``, ``all_gold@5``, ``all_gold@10``, ``all_gold@20``, ``n``.

    Raises:
        InputError: no question is judged.
        InfrastructureError: the retriever failed.
    """
    depth = max((k for cutoffs in ks.values() for k in cutoffs), default=1)
    judged = {name: text for name, text in questions.items() if name in qrels}
    return mean_metrics(await rankings_of(retriever, judged, depth), qrels, ks)


async def rankings_of(
    retriever: Retriever, questions: Mapping[str, str], depth: int
) -> dict[str, list[str]]:
    """Search every question as it stands: its id to the ids of ``depth`` passages, best first.

    Raises:
        InfrastructureError: the retriever failed.
    """
    rankings: dict[str, list[str]] = {}
    for names in _batches(list(questions)):
        results = await retriever.search([questions[name] for name in names], depth)
        for name, hits in zip(names, results, strict=True):
            rankings[name] = [hit.passage.id for hit in hits]
    return rankings


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read judgements in BEIR's form: a header, then query id, passage id and grade, tabbed.

    Raises:
        InputError: the file is missing or empty, has no header, or a line is malformed, or a
            passage has two grades for one query.
    """
    qrels: dict[str, dict[str, int]] = {}
    for index, (number, line) in enumerate(read_lines(path)):
        fields = line.rstrip("\n").split("\t")
        if index == 0:
            _check_header(path, fields)
            continue
        query, passage, grade = _qrels_line(f"{path}:{number}", fields)
        if qrels.setdefault(query, {}).setdefault(passage, grade) != grade:
            raise InputError(f"{path}:{number}: {passage!r} has two grades for {query!r}")
    if not qrels:
        raise InputError(f"{path}: no judgement in it")
    return qrels


def read_queries(path: Path) -> dict[str, str]:
    """Read id and text of question lines (``id``, ``question``) or BEIR's (``_id``, ``text``).

    Raises:
        InputError: a malformed line (with its number), a repeated id, or no question at all.
    """
    queries: dict[str, str] = {}
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        name, text = row.get("id", row.get("_id")), row.get("question", row.get("text"))
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise InputError(f'{where}: field "id" (or "_id") is missing or is not a string')
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'{where}: field "question" (or "text") is missing or empty')
        if str(name) in queries:
            raise InputError(f"{where}: id {str(name)!r} appears twice; ids must differ")
        queries[str(name)] = text
    if not queries:
        raise InputError(f"{path}: no question in it")
    return queries


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]


def _relevant(grades: Grades) -> set[str]:
    return {name for name, grade in grades.items() if grade > 0}


def _dcg(gains: Sequence[int]) -> float:
    return math.fsum(max(gain, 0) / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _check_header(path: Path, fields: Sequence[str]) -> None:
    if len(fields) == 3 and not _GRADE.fullmatch(fields[2]):
        return
    raise InputError(
        f'{path}:1: expected the header "query-id corpus-id score", three columns with tabs'
    )


def _qrels_line(where: str, fields: Sequence[str]) -> tuple[str, str, int]:
    if len(fields) != 3 or not _GRADE.fullmatch(fields[2]):
        raise InputError(f"{where}: expected query id, passage id and a whole number, with tabs")
    return fields[0], fields[1], int(fields[2])

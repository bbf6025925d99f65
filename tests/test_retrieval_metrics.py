"""Retrieval metrics: trec_eval's numbers, and real corpora at the figures known for them."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import math
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.data.passages import Passage, passage_from_row
from searchrl.errors import InputError
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.metrics import (
    all_gold,
    evaluate_retriever,
    mean_metrics,
    ndcg,
    query_metrics,
    read_qrels,
    read_queries,
    recall,
    reciprocal_rank,
    trec_ranking,
)
from searchrl.retrieval.protocol import Hit

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="shared data absent")

# Names in trec_eval's output, and ours.
CUTOFFS = {"ndcg": (5, 10, 100), "recall": (5, 10, 100, 500)}
OURS = {
    "ndcg_cut_5": "ndcg@5",
    "ndcg_cut_10": "ndcg@10",
    "ndcg_cut_100": "ndcg@100",
    "recall_5": "recall@5",
    "recall_10": "recall@10",
    "recall_100": "recall@100",
    "recall_500": "recall@500",
    "recip_rank": "mrr",
}


def read_trec_run(lines: Iterable[str]) -> dict[str, list[str]]:
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for line in lines:
        query, _, passage, _, score, _ = line.split()
        scores[query][passage] = float(score)
    return {query: trec_ranking(row) for query, row in scores.items()}


def read_trec_qrels(lines: Iterable[str]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for line in lines:
        query, _, passage, grade = line.split()
        qrels[query][passage] = int(grade)
    return qrels


class TestMetrics:
    def test_graded_gains_by_hand(self) -> None:
        grades = {"a": 2, "b": 1, "c": 0, "d": -1}
        gain = 1 / math.log2(2) + 2 / math.log2(4)
        ideal = 2 / math.log2(2) + 1 / math.log2(3)
        assert ndcg(["b", "c", "a"], grades, 10) == pytest.approx(gain / ideal)
        assert ndcg(["b", "c", "a"], grades, 1) == pytest.approx(1 / 2)
        assert ndcg(["d", "a"], {"a": 1, "d": -1}, 2) == pytest.approx(1 / math.log2(3))

    def test_the_other_metrics_by_hand(self) -> None:
        grades, ranking = {"a": 2, "b": 1, "c": 0}, ["x", "c", "b", "a"]
        assert [recall(ranking, grades, k) for k in (2, 3, 4, 9)] == [0, 0.5, 1, 1]
        assert [all_gold(ranking, grades, k) for k in (2, 3, 4, 9)] == [0, 0, 1, 1]
        assert reciprocal_rank(ranking, grades) == 1 / 3
        assert reciprocal_rank(["x"], grades) == 0

    @pytest.mark.parametrize("grades", [{}, {"a": 0}])
    def test_a_query_without_relevant_passages_scores_nothing(self, grades: dict[str, int]) -> None:
        assert set(query_metrics(["a"], grades).values()) == {0.0}

    @given(
        grades=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3), min_size=1),
        ranking=st.permutations("abcdefgh"),
        k=st.integers(1, 10),
    )
    def test_bounds(self, grades: dict[str, int], ranking: Sequence[str], k: int) -> None:
        ideal = sorted(grades, key=lambda name: -grades[name])
        for value in query_metrics(ranking, grades).values():
            assert 0 <= value <= 1
        if any(grades.values()):
            assert ndcg(ideal, grades, k) == 1
            assert all_gold(ideal, grades, len(ideal)) == 1
        assert all_gold(ranking, grades, k) <= recall(ranking, grades, k)

    def test_trec_eval_ranks_equal_scores_by_id_descending(self) -> None:
        assert trec_ranking({"a": 1.0, "b": 2.0, "c": 1.0, "B": 1.0}) == ["b", "c", "a", "B"]

    def test_means_are_over_queries_with_ranking_and_judgements(self) -> None:
        rankings = {"1": ["a"], "2": ["a"], "unjudged": ["a"]}
        qrels = {"1": {"a": 1}, "2": {"b": 1}, "unasked": {"a": 1}}
        means = mean_metrics(rankings, qrels, {"recall": (1,)})
        assert means == {"recall@1": 0.5, "mrr": 0.5, "n": 2}
        with pytest.raises(InputError, match="ids must be the same"):
            mean_metrics({"x": []}, qrels)


@needs_shared
class TestTrecEval:
    def expected(self) -> dict[str, dict[str, float]]:
        """Values by query, ``all`` for the means, from trec_eval's own output."""
        values: dict[str, dict[str, float]] = defaultdict(dict)
        for line in (SHARED / "trec_eval" / "out.test.aq").read_text().splitlines():
            name, query, value = line.split(maxsplit=2)
            if name in OURS:
                values[query][OURS[name]] = float(value)
        return values

    def test_every_query_and_the_means_are_equal(self) -> None:
        expected = self.expected()
        with (SHARED / "trec_eval" / "results.test").open() as lines:
            run = read_trec_run(lines)
        with (SHARED / "trec_eval" / "qrels.test").open() as lines:
            qrels = read_trec_qrels(lines)
        assert set(run) == {"301", "302", "303"} == set(expected) - {"all"}
        for query, ranking in run.items():
            found = query_metrics(ranking, qrels[query], CUTOFFS)
            assert len(found) == len(OURS)
            assert found == pytest.approx(expected[query], abs=5.1e-5)
        means = mean_metrics(run, qrels, CUTOFFS)
        assert means.pop("n") == 3
        assert means == pytest.approx(expected["all"], abs=5.1e-5)

    def test_a_real_run_has_its_known_figures(self) -> None:
        folder = SHARED / "multihop" / "dev"
        with gzip.open(folder / "bm25.anserini.trec.gz", "rt") as lines:
            run = read_trec_run(lines)
        means = mean_metrics(run, read_qrels(folder / "qrels.tsv"))
        assert means["n"] == 500
        assert means["ndcg@10"] == pytest.approx(0.7723, abs=5e-5)
        assert [means[f"recall@{k}"] for k in (5, 10, 100)] == pytest.approx([0.737, 0.872, 0.973])
        gold = [means[f"all_gold@{k}"] for k in (5, 10, 20)]
        assert gold == pytest.approx([0.518, 0.752, 0.874])


class Fixed:
    """A retriever with one answer, which counts how it is asked."""

    def __init__(self, names: Sequence[str]) -> None:
        self.hits = [Hit(Passage(name, "", ""), 1.0) for name in names]
        self.calls: list[tuple[list[str], int]] = []

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append((list(queries), k))
        return [self.hits[:k] for _ in queries]


class TestEvaluateRetriever:
    def test_the_keys_are_those_other_programs_rely_on(self) -> None:
        means = asyncio.run(evaluate_retriever(Fixed("ab"), {"q": "?"}, {"q": {"b": 1}}))
        assert list(means) == [
            "ndcg@10",
            "recall@5",
            "recall@10",
            "recall@100",
            "mrr",
            "all_gold@5",
            "all_gold@10",
            "all_gold@20",
            "n",
        ]
        assert (means["mrr"], means["n"]) == (0.5, 1)

    def test_judged_questions_are_asked_once_in_batches(self) -> None:
        questions = {str(number): f"text {number}" for number in range(150)}
        retriever = Fixed("ab")
        qrels = {name: {"a": 1} for name in questions if name != "7"}
        means = asyncio.run(evaluate_retriever(retriever, questions, qrels))
        asked = [query for queries, _ in retriever.calls for query in queries]
        assert asked == [text for name, text in questions.items() if name != "7"]
        assert len(retriever.calls) == 3
        assert {k for _, k in retriever.calls} == {100}
        assert means["n"] == 149

    def test_equal_scores_rank_as_the_retriever_returns_them(self) -> None:
        cutoffs = {"recall": (1,)}
        means = asyncio.run(evaluate_retriever(Fixed("ab"), {"q": "?"}, {"q": {"a": 1}}, cutoffs))
        assert means["recall@1"] == 1

    def test_questions_of_another_set_are_refused(self) -> None:
        with pytest.raises(InputError, match="ids must be the same"):
            asyncio.run(evaluate_retriever(Fixed("a"), {"q": "?"}, {"other": {"a": 1}}))

    @pytest.mark.pipeline
    @needs_shared
    def test_bm25_on_nfcorpus_stands_where_anserini_does(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(SHARED / "beir" / "nfcorpus.zip") as archive:
            for name in ("queries.jsonl", "qrels/test.tsv"):
                archive.extract(f"nfcorpus/{name}", tmp_path)
            lines = io.TextIOWrapper(archive.open("nfcorpus/corpus.jsonl"), encoding="utf-8")
            corpus = [passage_from_row(json.loads(line), "corpus") for line in lines]
        folder = tmp_path / "nfcorpus"
        queries, qrels = (
            read_queries(folder / "queries.jsonl"),
            read_qrels(folder / "qrels/test.tsv"),
        )
        means = asyncio.run(evaluate_retriever(Bm25Retriever(corpus), queries, qrels))
        assert means["n"] == 323
        assert means["ndcg@10"] == pytest.approx(0.3218, abs=5e-5)  # Anserini's own


class TestReading:
    def test_qrels_are_read_with_their_grades(self, tmp_path: Path) -> None:
        path = tmp_path / "q.tsv"
        path.write_bytes(b"query-id\tcorpus-id\tscore\r\nq1\tp 1\t2\r\n\r\nq1\tp2\t0\nq2\tp1\t1")
        assert read_qrels(path) == {"q1": {"p 1": 2, "p2": 0}, "q2": {"p1": 1}}

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "no judgement in it"),
            ("query-id\tcorpus-id\tscore\n", "no judgement in it"),
            ("q\tp\t1\n", ":1: expected the header"),
            ("q 0 p 1\n", ":1: expected the header"),
            ("q\tp\tscore\nq\tp\n", ":2: expected query id"),
            ("q\tp\tscore\nq\tp\t1.5\n", ":2: expected query id"),
            ("q\tp\tscore\nq\tp\t1\nq\tp\t2\n", ":3: 'p' has two grades for 'q'"),
        ],
    )
    def test_bad_qrels_are_refused(self, tmp_path: Path, text: str, complaint: str) -> None:
        path = tmp_path / "q.tsv"
        path.write_text(text)
        with pytest.raises(InputError, match=complaint) as caught:
            read_qrels(path)
        assert str(caught.value).startswith(str(path))

    def test_questions_of_both_forms_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "q.jsonl"
        path.write_text('{"_id": "a", "text": "A?"}\n{"id": 2, "question": "B?"}\n')
        assert read_queries(path) == {"a": "A?", "2": "B?"}

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("\n", "no question in it"),
            ('{"text": "A?"}\n', ':1: field "id"'),
            ('{"_id": "a", "text": " "}\n', ':1: field "question"'),
            ('{"_id": "a", "text": "A?"}\n{"id": "a", "question": "B?"}\n', ":2: id 'a' appears"),
        ],
    )
    def test_bad_questions_are_refused(self, tmp_path: Path, text: str, complaint: str) -> None:
        path = tmp_path / "q.jsonl"
        path.write_text(text)
        with pytest.raises(InputError, match=complaint):
            read_queries(path)

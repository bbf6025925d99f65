"""BM25: Lucene's scores, exact order among equals, and the same answer however it is asked."""

from __future__ import annotations

import asyncio
import math
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from searchrl.data.corpus import MemoryCorpus
from searchrl.data.passages import Passage, read_corpus
from searchrl.data.questions import read_questions
from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval import analysis, postings_build, postings_tables, term_runs
from searchrl.retrieval.analysis import EnglishAnalyzer
from searchrl.retrieval.bm25 import Bm25Retriever, write_bm25
from searchrl.retrieval.postings_build import quantised_length
from searchrl.retrieval.protocol import Hit, Retriever

DEV = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "multihop" / "dev"
WORDS = "film films director directing born river city the of"

texts = st.lists(st.sampled_from(WORDS.split()), max_size=8).map(" ".join)
corpora = st.lists(st.tuples(texts, texts), min_size=1, max_size=12).map(
    lambda pairs: [Passage(str(i), title, text) for i, (title, text) in enumerate(pairs)]
)


def lucene_byte(length: int) -> int:
    """Lucene's SmallFloat: a length to one byte and back, step by step as its Java code."""
    if length < 24:
        return length
    rest = length - 24
    shift = max(rest.bit_length() - 4, 0)
    encoded = rest if rest.bit_length() < 4 else (rest >> shift) & 7 | (shift + 1) << 3
    bits, exponent = encoded & 7, (encoded >> 3) - 1
    return 24 + (bits if exponent == -1 else (bits | 8) << exponent)


def lucene_scores(
    passages: Sequence[Passage], query: str, k1: float = 0.9, b: float = 0.4
) -> dict[str, float]:
    """Lucene's BM25, straight from the formula, in double precision."""
    words = EnglishAnalyzer().words
    counts = {p.id: Counter(words(p.title) + words(p.text)) for p in passages}
    length = {name: sum(count.values()) for name, count in counts.items()}
    mean = sum(length.values()) / len(passages)
    scores = dict.fromkeys(counts, 0.0)
    for word in words(query):
        df = sum(word in count for count in counts.values())
        idf = math.log(1 + (len(passages) - df + 0.5) / (df + 0.5))
        for name, count in counts.items():
            if tf := count[word]:
                kept = lucene_byte(length[name])
                scores[name] += idf * tf / (tf + k1 * (1 - b + b * kept / mean))
    return scores


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


def search(retriever: Retriever, queries: Sequence[str], k: int) -> list[list[Hit]]:
    return asyncio.run(retriever.search(queries, k))


def small() -> Bm25Retriever:
    return Bm25Retriever(
        [
            Passage("b", "Ed Wood", "A film about a director of films."),
            Passage("a", "Scott Derrickson", "A director, born in Denver."),
            Passage("c", "", "Denver is a city."),
        ]
    )


class TestScores:
    @given(st.lists(st.integers(0, 2**31 - 1), min_size=1))
    def test_lengths_are_kept_as_lucene_keeps_them(self, lengths: list[int]) -> None:
        every = np.array([*lengths, *range(300)], np.int64)
        assert quantised_length(every).tolist() == [lucene_byte(n) for n in every.tolist()]

    @settings(max_examples=60)
    @given(passages=corpora, query=texts, k1=st.floats(0, 3), b=st.floats(0, 1))
    def test_scores_are_those_of_the_formula(
        self, passages: list[Passage], query: str, k1: float, b: float
    ) -> None:
        expected = lucene_scores(passages, query, k1, b)
        hits = Bm25Retriever(passages, k1=k1, b=b).top(query, len(passages))
        assert {hit.passage.id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-5)

    def test_a_query_is_stemmed_like_the_passages(self) -> None:
        (hit, *_) = small().top("filming", 3)
        assert hit.passage.id == "b"
        assert hit.score > 0

    def test_the_title_is_searched(self) -> None:
        assert ids(small().top("derrickson", 1)) == ["a"]

    def test_a_word_that_is_asked_twice_counts_twice(self) -> None:
        once, twice = (small().top(query, 1)[0].score for query in ("film", "film film"))
        assert twice == pytest.approx(2 * once)

    def test_words_that_begin_alike_are_told_apart(self) -> None:
        words = ["zanzibab", "zanzibaba", "zanzibabax", "zanziba", "zanzibac"]
        retriever = Bm25Retriever([Passage(word, "", word) for word in words])
        for word in words:
            first, second = retriever.top(word, 2)
            assert (first.passage.id, second.score) == (word, 0)
        for word in ("zanzibabaq", "zanzib", "zanzibad", "a"):
            assert [hit.score for hit in retriever.top(word, 5)] == [0] * 5


class TestOrder:
    @settings(max_examples=60)
    @given(passages=corpora, query=texts, k=st.integers(1, 15))
    def test_hits_are_the_best_by_score_then_id(
        self, passages: list[Passage], query: str, k: int
    ) -> None:
        retriever = Bm25Retriever(passages)
        every = retriever.top(query, len(passages))
        assert every == sorted(every, key=lambda hit: (-hit.score, hit.passage.id))
        assert len(set(ids(every))) == len(passages)
        assert retriever.top(query, k) == every[:k]

    @settings(max_examples=30)
    @given(passages=corpora, queries=st.lists(texts, max_size=5))
    def test_neither_the_batch_nor_the_order_of_the_corpus_matters(
        self, passages: list[Passage], queries: list[str]
    ) -> None:
        retriever = Bm25Retriever(passages)
        together = search(retriever, queries, 5)
        assert together == [search(retriever, [query], 5)[0] for query in queries]
        other = Bm25Retriever(reversed(passages))
        assert search(other, queries, 5) == together

    def test_equal_scores_at_the_last_place_go_to_the_lower_ids(self) -> None:
        names = [str(number) for number in range(20)]
        retriever = Bm25Retriever([Passage(name, "", "same words") for name in names])
        assert ids(retriever.top("words", 5)) == ["0", "1", "10", "11", "12"]

    @pytest.mark.parametrize("query", ["", "  ", "the of and", "zebra", "?!"])
    def test_a_query_that_matches_nothing_fills_by_id(self, query: str) -> None:
        hits = small().top(query, 2)
        assert [(hit.passage.id, hit.score) for hit in hits] == [("a", 0.0), ("b", 0.0)]

    def test_passages_that_do_not_match_come_last(self) -> None:
        hits = small().top("city", 3)
        assert ids(hits) == ["c", "a", "b"]
        assert [hit.score > 0 for hit in hits] == [True, False, False]

    @pytest.mark.parametrize("k", [3, 4, 1000])
    def test_there_are_never_more_hits_than_passages(self, k: int) -> None:
        assert sorted(ids(small().top("director", k))) == ["a", "b", "c"]

    def test_no_query_no_list(self) -> None:
        assert search(small(), [], 3) == []


class TestInput:
    @pytest.mark.parametrize("k", [0, -1])
    def test_k_must_be_positive(self, k: int) -> None:
        with pytest.raises(InputError, match="at least 1"):
            search(small(), ["film"], k)

    @pytest.mark.parametrize(
        ("k1", "b"), [(-1, 0.4), (math.nan, 0.4), (math.inf, 0.4), (0.9, 1.1), (0.9, math.nan)]
    )
    def test_settings_out_of_range_are_refused(self, k1: float, b: float) -> None:
        with pytest.raises(InputError, match="BM25 needs"):
            Bm25Retriever([Passage("1", "", "x")], k1=k1, b=b)

    def test_an_empty_corpus_and_a_repeated_id_are_refused(self) -> None:
        with pytest.raises(InputError, match="corpus is empty"):
            Bm25Retriever([])
        with pytest.raises(InputError, match="'1' appears twice"):
            Bm25Retriever([Passage("1", "", "x"), Passage("2", "", "x"), Passage("1", "", "y")])

    def test_a_corpus_without_a_single_word_can_be_searched(self) -> None:
        retriever = Bm25Retriever([Passage("2", "", "the"), Passage("1", "", "")])
        assert [(hit.passage.id, hit.score) for hit in retriever.top("the film", 5)] == [
            ("1", 0.0),
            ("2", 0.0),
        ]


class TestFiles:
    @settings(max_examples=25)
    @given(passages=corpora, queries=st.lists(texts, min_size=1, max_size=3))
    def test_mapped_files_answer_as_memory_does(
        self, tmp_path_factory: pytest.TempPathFactory, passages: list[Passage], queries: list[str]
    ) -> None:
        directory, corpus = tmp_path_factory.mktemp("index"), MemoryCorpus(passages)
        write_bm25(corpus, directory, k1=1.2, b=0.75)
        mapped = Bm25Retriever.open(corpus, directory)
        expected = Bm25Retriever(passages, k1=1.2, b=0.75)
        assert search(mapped, queries, 20) == search(expected, queries, 20)

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        passages=corpora,
        run=st.integers(1, 9),
        terms=st.integers(1, 9),
        part=st.integers(1, 9),
        block=st.integers(1, 9),
    )
    def test_a_build_in_pieces_writes_the_same_files(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
        passages: list[Passage],
        run: int,
        terms: int,
        part: int,
        block: int,
    ) -> None:
        whole, pieces = (tmp_path_factory.mktemp(name) for name in ("whole", "pieces"))
        with monkeypatch.context() as patch:
            patch.setattr(postings_tables, "SMALL", 0)
            write_bm25(MemoryCorpus(passages), whole, 0.9, 0.4)
            patch.setattr(postings_build, "_RUN", run)
            patch.setattr(postings_build, "_TERMS", terms)
            patch.setattr(postings_build, "_BLOCK", block)
            patch.setattr(postings_tables, "_BLOCK", block)
            patch.setattr(term_runs, "_PART", part)
            patch.setattr(term_runs, "_SAMPLE", 1)
            write_bm25(MemoryCorpus(passages), pieces, 0.9, 0.4)
        expected = {file.name: file.read_bytes() for file in whole.iterdir()}
        assert {file.name: file.read_bytes() for file in pieces.iterdir()} == expected

    def test_a_build_takes_no_more_memory_for_a_larger_corpus(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(analysis, "_REMEMBERED", 100)
        monkeypatch.setattr(postings_build, "_RUN", 2_000)
        monkeypatch.setattr(postings_build, "_BLOCK", 500)
        monkeypatch.setattr(term_runs, "_PART", 1_000)
        monkeypatch.setattr(term_runs, "_SAMPLE", 50)
        few, many = (peak_of_a_build(count, tmp_path / str(count)) for count in (500, 2_000))
        assert many < few + 50_000

    def test_a_file_that_is_missing_or_cut_is_refused(self, tmp_path: Path) -> None:
        corpus = small().corpus
        write_bm25(corpus, tmp_path, 0.9, 0.4)
        files = sorted(tmp_path.iterdir())
        assert len(files) == 9
        for file in files:
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(IntegrityError):
                Bm25Retriever.open(corpus, tmp_path)
            file.unlink()
            with pytest.raises(IntegrityError):
                Bm25Retriever.open(corpus, tmp_path)
            file.write_bytes(whole)
        assert Bm25Retriever.open(corpus, tmp_path).top("city", 1)[0].score > 0


def peak_of_a_build(count: int, directory: Path) -> int:
    """The most bytes that a build allocates over passages of which each has a word of its own."""
    texts = (" ".join(f"w{n * m % 997}" for m in range(1, 12)) + f" own{n}" for n in range(count))
    corpus = MemoryCorpus([Passage(str(n), "", text) for n, text in enumerate(texts)])
    directory.mkdir()
    tracemalloc.start()
    try:
        write_bm25(corpus, directory, 0.9, 0.4)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not DEV.is_dir(), reason="shared data absent")
@pytest.mark.pipeline
def test_real_passages_score_as_the_formula_says() -> None:
    passages = list(read_corpus(DEV / "corpus.jsonl.gz"))[:300]
    retriever = Bm25Retriever(passages)
    for question in read_questions(DEV / "questions.jsonl.gz", limit=5):
        hits = retriever.top(question.text, 300)
        expected = lucene_scores(passages, question.text)
        found = {hit.passage.id: hit.score for hit in hits}
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)

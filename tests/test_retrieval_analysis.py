"""Lucene's English analysis: golden words, and Anserini's rankings repeated to the last place."""

from __future__ import annotations

import asyncio
import gzip
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.data.passages import read_corpus
from searchrl.retrieval import analysis
from searchrl.retrieval.analysis import MAX_WORD, STOP_WORDS, EnglishAnalyzer, tokens
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.metrics import read_queries

DEV = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "multihop" / "dev"


def words(text: str) -> list[str]:
    return EnglishAnalyzer().words(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wi-fi, x_y and 3D!", ["wi", "fi", "x_y", "and", "3D"]),
        ("U.S.A. 3.14 1,000 1,x a:b", ["U.S.A", "3.14", "1,000", "1", "x", "a:b"]),
        ("O'Neill's dogs' can’t", ["O'Neill", "dogs", "can’t"]),  # noqa: RUF001
        ("http://www.x.com/a?b=c", ["http", "www.x.com", "a", "b", "c"]),
        ("naïve café", ["naïve", "café"]),
        ("日本語 ひら カタカナ 한국어", ["日", "本", "語", "ひ", "ら", "カタカナ", "한국어"]),
        ("Herbalife® 👩‍🚀🙂 🇨🇭", ["Herbalife", "®", "👩‍🚀", "🙂", "🇨🇭"]),
        ("... -- ?!", []),
    ],
)
def test_words_end_where_lucene_ends_them(text: str, expected: list[str]) -> None:
    assert list(tokens(text)) == expected


@pytest.mark.parametrize(
    ("word", "stem"),
    [
        ("caresses", "caress"), ("ponies", "poni"), ("feed", "feed"), ("agreed", "agre"),
        ("hopping", "hop"), ("filing", "file"), ("happy", "happi"), ("sky", "sky"),
        ("relational", "relat"), ("electricity", "electr"), ("adjustable", "adjust"),
        ("controlling", "control"), ("probate", "probat"), ("generalizations", "gener"),
        # Where Porter's code departs from his paper.
        ("possibly", "possibl"), ("assemblies", "assembl"), ("ably", "abli"),
        ("technology", "technolog"), ("technologies", "technolog"), ("logy", "logi"),
        ("anthropologie", "anthropologi"),
        # Words of one or two letters stay whole; Snowball would cut them.
        ("us", "us"), ("s", "s"),
    ],
)  # fmt: skip
def test_stems_are_those_of_porters_own_code(word: str, stem: str) -> None:
    assert words(word) == [stem]


def test_words_are_lowered_stopped_and_stemmed() -> None:
    assert words("The Director's FILMS are IN Ötzi's") == ["director", "film", "ötzi"]
    assert words("ΟΔΟΣ İstanbul") == ["οδοσ", "istanbul"]  # one character at a time, as in Java


def test_there_are_the_33_stop_words_of_lucene() -> None:
    assert len(STOP_WORDS) == 33
    assert words(" ".join(STOP_WORDS)) == []


def test_long_words_are_cut() -> None:
    assert [len(piece) for piece in tokens("x" * (2 * MAX_WORD + 1))] == [MAX_WORD, MAX_WORD, 1]


@given(st.text(st.sampled_from("aB7_.,:;'\"-s \n@\0") | st.characters(codec="ascii")))
def test_text_of_ascii_is_cut_like_any_other(text: str) -> None:
    assert list(tokens(text)) == list(tokens(f"{text} é"))[:-1]


def test_words_that_were_met_before_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "_REMEMBERED", 2)
    analyzer = EnglishAnalyzer()
    text = "The films of " + "x" * (MAX_WORD + 1) + " are films, the FILM's"
    for _ in range(2):
        assert analyzer.words(text) == ["film", "x" * MAX_WORD, "x", "film", "film"]


@given(st.text(st.characters(codec=None, exclude_categories=[])))
def test_any_text_can_be_analysed(text: str) -> None:
    assert all(words(text))


@pytest.mark.pipeline
@pytest.mark.skipif(not DEV.is_dir(), reason="shared data absent")
def test_the_top_ten_of_real_questions_are_anserinis() -> None:
    expected: dict[str, list[str]] = defaultdict(list)
    with gzip.open(DEV / "bm25.anserini.trec.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            query, _, passage, *_ = line.split()
            expected[query].append(passage)
    queries = read_queries(DEV / "questions.jsonl.gz")
    names = list(expected)
    retriever = Bm25Retriever(read_corpus(DEV / "corpus.jsonl.gz"))
    found = asyncio.run(retriever.search([queries[name] for name in names], 10))
    assert len(names) == 500
    for name, hits in zip(names, found, strict=True):
        assert [hit.passage.id for hit in hits] == expected[name][:10]


def test_what_is_longer_than_a_word_is_not_remembered() -> None:
    analyzer = EnglishAnalyzer()
    for text in ("a" * MAX_WORD, "b" * (MAX_WORD + 1)):
        assert "".join(analyzer.words(text)) == text
    assert [*analyzer._terms] == ["a" * MAX_WORD]

"""The corpus store: every passage back as it was, found by row and by id, damage found."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.data.byte_strings import ByteStrings, ByteStringsWriter
from searchrl.data.corpus import Corpus, MemoryCorpus
from searchrl.data.corpus_store import CorpusStore, build_corpus_store
from searchrl.data.passages import Passage
from searchrl.errors import InputError, IntegrityError
from tests.command_line import flip_byte

any_text = st.text(st.characters(codec=None, exclude_categories=[]), max_size=20)
names = st.one_of(any_text, st.text("ab\0", max_size=20), st.integers(0, 10**12).map(str))
passages = st.lists(
    st.builds(Passage, names, any_text, any_text),
    min_size=1,
    max_size=12,
    unique_by=lambda each: each.id,
)


@pytest.fixture
def store(tmp_path: Path) -> CorpusStore:
    corpus = [Passage(name, f"Title {name}", "Text.\nMore.") for name in ("b", "10", "9", "a")]
    return build_corpus_store(corpus, tmp_path / "store")


@settings(max_examples=60, deadline=None)
@given(corpus=passages)
def test_what_is_stored_comes_back(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[Passage]
) -> None:
    store = build_corpus_store(corpus, tmp_path_factory.mktemp("corpus") / "store")
    assert list(store) == corpus
    assert [store[row] for row in range(len(store))] == corpus
    assert [store[int(row)].id for row in store.order] == sorted(each.id for each in corpus)
    assert [store.find(each.id) for each in corpus] == list(range(len(corpus)))
    assert store.find("absent, surely") is None
    assert store.order[store.ranks].tolist() == list(range(len(corpus)))


def test_rows_are_ranked_alike_in_memory_and_on_disk(store: CorpusStore) -> None:
    memory = MemoryCorpus(store)

    def ranked(corpus: Corpus) -> list[str]:
        return [corpus[int(row)].id for row in np.argsort(corpus.ranks)]

    assert ranked(store) == ranked(memory) == ["10", "9", "a", "b"]


def test_a_file_is_read_in_its_order_and_progress_is_told(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        for number in range(20_001):
            lines.write(json.dumps({"id": number, "contents": f'"T{number}"\ntext'}) + "\n\n")
    told: list[tuple[str, int, int | None]] = []
    store = build_corpus_store(path, tmp_path / "store", lambda *each: told.append(each))
    assert len(store) == 20_001
    assert store[12_345] == Passage("12345", "T12345", "text")
    assert [done for _, done, _ in told] == [10_000, 20_000]


def test_a_store_that_stands_there_is_replaced(store: CorpusStore) -> None:
    build_corpus_store([Passage("new", "", "")], store.directory)
    assert [each.id for each in CorpusStore(store.directory)] == ["new"]


def test_equal_corpora_have_equal_digests(store: CorpusStore, tmp_path: Path) -> None:
    assert build_corpus_store(list(store), tmp_path / "same").digest == store.digest
    other = [*list(store)[1:], Passage("b", "Title b", "Text.\nMore!")]
    assert build_corpus_store(other, tmp_path / "other").digest != store.digest


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (['{"id": "a", "text": ""}', "", '{"id": "b", "text": ""}', '{"id": "a", "text": ""}'],
         "corpus.jsonl:4: id 'a' appears twice, first in line 1"),
        (['{"id": "a", "text": ""}', "[1]"], "corpus.jsonl:2: expected a JSON object"),
        (['{"id": "a", "text": ""}', '{"id": "b"}'], 'corpus.jsonl:2: neither "contents"'),
        ([], "corpus.jsonl: the corpus is empty"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_by_its_number(
    tmp_path: Path, lines: list[str], complaint: str
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=complaint):
        build_corpus_store(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_repeated_id_among_given_passages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'x' appears twice"):
        build_corpus_store([Passage("x", "", "1"), Passage("x", "", "2")], tmp_path / "store")


def test_a_file_that_is_cut_is_found_when_it_is_opened(store: CorpusStore) -> None:
    for file in sorted(store.directory.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[:-3])
        with pytest.raises(IntegrityError):
            CorpusStore(store.directory)
        file.unlink()
        with pytest.raises(IntegrityError):
            CorpusStore(store.directory)
        file.write_bytes(whole)
    assert len(CorpusStore(store.directory)) == 4


def test_a_manifest_of_something_else_is_refused(store: CorpusStore) -> None:
    flip_byte(store.directory / "manifest.json")
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        CorpusStore(store.directory)


@given(st.lists(st.binary(max_size=5), max_size=9))
def test_byte_strings_come_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[bytes]
) -> None:
    directory = tmp_path_factory.mktemp("strings")
    with ByteStringsWriter(directory, "s") as writer:
        for value in values:
            writer.append(value)
    strings = ByteStrings(directory, "s")
    assert [strings[index] for index in range(len(strings))] == values
    assert strings.run(0, len(values)) == values
    for outside in (-1, len(values)):
        with pytest.raises(IndexError):
            strings[outside]

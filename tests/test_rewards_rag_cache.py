"""The RAG cache: what is put is read again, a kill costs one line, s3's form goes both ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.errors import InputError, IntegrityError
from searchrl.rewards.rag_cache import (
    UNKNOWN_FINGERPRINT,
    RagCache,
    RagEntry,
    cache_key,
    question_form,
    read_original,
    write_original,
)


def entry(name: str = "a", **changes: Any) -> RagEntry:
    base = RagEntry(
        key=cache_key(name, ["x"], ["p"], "g"),
        source="nq",
        question=f"{name}?",
        answer="Zürich \u2028 \n日本",
        score=1,
        em_score=0,
        fingerprint="g",
    )
    return replace(base, **changes)


def filled(path: Path, *entries: RagEntry) -> RagCache:
    cache = RagCache.open(path)
    for one in entries:
        cache.put(one)
    return cache


@pytest.mark.parametrize(
    ("text", "form"), [(" who is he ", "who is he?"), ("who?", "who?"), ("who? ", "who?")]
)
def test_question_form(text: str, form: str) -> None:
    assert question_form(text) == form
    assert question_form(form) == form


def test_the_key_depends_on_every_part_and_on_the_order() -> None:
    keys = [
        cache_key("q", ["a", "b"], ["p", "r"], "g"),
        cache_key("Q", ["a", "b"], ["p", "r"], "g"),
        cache_key("q", ["b", "a"], ["p", "r"], "g"),
        cache_key("q", ["a", "b"], ["r", "p"], "g"),
        cache_key("q", ["a", "b"], ["p", "r"], "h"),
        cache_key("q", ["a", "b", "p"], ["r"], "g"),
        cache_key("q", ["ab"], ["p", "r"], "g"),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)
    assert keys[0] == cache_key("q", ("a", "b"), ("p", "r"), "g")


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rag_cache.jsonl"
    entries = [entry("a"), entry("b", answer=None, score=0)]
    cache = filled(path, *entries)
    assert list(cache) == entries
    again = RagCache.open(path)
    assert list(again) == entries
    assert len(again) == 2
    assert again.get(entries[0].key) == entries[0]
    assert again.get("none") is None
    assert again.by_question("nq", " b ") == entries[1]
    assert again.by_question("hotpotqa", "b") is None


def test_an_entry_is_on_disk_as_soon_as_it_is_put(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    cache = RagCache.open(path)
    assert not path.exists()
    for count, name in enumerate("abc", start=1):
        cache.put(entry(name))
        assert len(RagCache.open(path)) == count


def test_a_later_entry_of_the_same_key_or_question_counts(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    filled(path, entry(score=0), entry(score=1), entry(key="k", fingerprint="h", score=0))
    cache = RagCache.open(path)
    assert len(cache) == 2
    assert cache.by_question("nq", "a") == cache.get("k")
    own = cache.by_question("nq", "a", "g")
    assert own is not None
    assert (own.fingerprint, own.score) == ("g", 1)
    assert cache.by_question("nq", "a", "other") is None


@given(st.integers(0, 10_000))
def test_a_kill_at_any_byte_loses_only_the_line_being_written(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cache") / "c.jsonl"
    entries = [entry(name) for name in "abc"]
    filled(path, *entries)
    data = path.read_bytes()
    kept = data[: cut % (len(data) + 1)]
    path.write_bytes(kept)
    cache = RagCache.open(path)
    whole = kept.count(b"\n")
    assert list(cache) == entries[:whole]
    for owed in entries[whole:]:
        cache.put(owed)
    assert path.read_bytes() == data


def test_a_torn_line_longer_than_the_next_entry_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    filled(path, entry("a"))
    with path.open("ab") as handle:
        handle.write(b'{"key": "' + b"x" * 5000)
    filled(path, entry("b"))
    assert list(RagCache.open(path)) == [entry("a"), entry("b")]
    assert path.read_bytes().endswith(b"}\n")


GOOD = json.dumps({"key": "k", "source": "s", "question": "q?", "score": 0, "em_score": 0})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "expected a JSON object, got list"),
        (GOOD, 'field "fingerprint"'),
        (GOOD.replace('"key": "k"', '"key": 1'), 'field "key"'),
        (GOOD.replace('"score": 0', '"score": 2'), 'field "score"'),
        (GOOD.replace('"em_score": 0', '"em_score": "0"'), 'field "em_score"'),
        (GOOD.replace("}", ', "answer": 5}'), 'field "answer"'),
    ],
)
def test_any_other_malformed_line_is_refused_with_its_number(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "c.jsonl"
    filled(path, entry())
    with path.open("a", encoding="utf-8") as handle:
        handle.write(line + "\n")
    with pytest.raises(InputError) as caught:
        RagCache.open(path)
    assert f"c.jsonl:2: {message}" in str(caught.value)


def test_a_line_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match=r"c\.jsonl:1: not valid JSON"):
        RagCache.open(path)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        RagCache.open(tmp_path)


def test_a_second_writer_is_noticed_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    first, second = RagCache.open(path), RagCache.open(path)
    first.put(entry("a"))
    with pytest.raises(IntegrityError, match="another program"):
        second.put(entry("b"))
    assert list(RagCache.open(path)) == [entry("a")]


ORIGINAL = {
    "nq": {
        "who is he?": {"answer": "X", "score": 1, "em_score": 0},
        "when?": {"answer": None, "score": 0, "em_score": 0},
    },
    "hotpotqa": {"who is he?": {"answer": "Y", "score": 0, "em_score": 0}},
}


def test_the_original_form_is_read_and_written_unchanged(tmp_path: Path) -> None:
    path, copy = tmp_path / "rag_cache.json", tmp_path / "copy.json"
    path.write_text(json.dumps(ORIGINAL), encoding="utf-8")
    entries = read_original(path)
    assert [one.fingerprint for one in entries] == [UNKNOWN_FINGERPRINT] * 3
    write_original(copy, entries)
    assert json.loads(copy.read_text(encoding="utf-8")) == ORIGINAL


def test_original_entries_serve_any_generator_but_never_over_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rag_cache.json"
    path.write_text(json.dumps(ORIGINAL), encoding="utf-8")
    cache = filled(tmp_path / "c.jsonl", *read_original(path))
    assert len(cache) == 3
    found = cache.by_question("nq", "who is he", "g")
    assert found is not None
    assert found.answer == "X"
    own = entry("who is he", answer="own")
    cache.put(own)
    assert cache.by_question("nq", "who is he", "g") == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"nq": []}', "nq: expected a JSON object"),
        ('{"nq": {"q?": 1}}', "nq: 'q?': expected a JSON object"),
        ('{"nq": {"q?": {"score": 1}}}', "nq: 'q?': field \"em_score\""),
    ],
)
def test_a_malformed_original_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rag_cache.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_original(path)
    assert "rag_cache.json: " in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_original_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_original(tmp_path / "none.json")

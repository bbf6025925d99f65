"""Index directories: whole or absent, checked before they answer, and never in a user's way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from searchrl.data.corpus import Corpus
from searchrl.data.passages import Passage
from searchrl.data.storage import MANIFEST, atomic_directory, read_manifest
from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval import index
from searchrl.retrieval.analysis import EnglishAnalyzer
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.index import build_index, check_index, check_options, open_index
from searchrl.retrieval.options import Bm25Options

CORPUS = [
    Passage(f"p{number:02}", f"Film {name}", f"A story of {name} and a city.")
    for number, name in enumerate("Ada Bo Cy Dot Eve Flo Gus Hal Ida Jo Kay".split())  # noqa: SIM905
]


@pytest.fixture
def built(tmp_path: Path) -> Path:
    build_index(CORPUS, tmp_path / "index")
    return tmp_path / "index"


def rewrite(path: Path, **changes: Any) -> None:
    """Save the index again as if it had been built with other facts in its manifest."""
    with atomic_directory(path, read_manifest(path)["about"] | changes) as directory:
        shutil.copytree(path, directory, dirs_exist_ok=True)
        (directory / MANIFEST).unlink()


def refused(path: Path, match: str, kind: type[InputError] = IntegrityError) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_index(path)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


class TestBuild:
    def test_an_opened_index_answers_as_the_built_one(self, built: Path) -> None:
        queries = ["Dot", "story city", "zebra"]
        expected = asyncio.run(Bm25Retriever(CORPUS).search(queries, 5))
        for verify in (True, False):
            assert asyncio.run(open_index(built, verify=verify).search(queries, 5)) == expected

    def test_the_manifest_tells_how_it_was_built(self, tmp_path: Path) -> None:
        build_index(CORPUS, tmp_path / "index", Bm25Options(k1=1.2, b=0.75))
        about = read_manifest(tmp_path / "index")["about"]
        canaries = about.pop("canaries")
        assert about == {
            "form": 4,
            "kind": "bm25",
            "analyzer": EnglishAnalyzer.name,
            "k1": 1.2,
            "b": 0.75,
            "passages": 11,
        }
        assert [canary["top"] for canary in canaries] == ["p00", "p02", "p04", "p06", "p08"]

    def test_equal_corpora_give_equal_bytes(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            build_index(CORPUS, tmp_path / name)
        one, two = ((tmp_path / name / MANIFEST).read_text() for name in ("one", "two"))
        assert one == two

    def test_titles_of_any_kind_become_canaries(self, tmp_path: Path) -> None:
        titles = ["", "the", "\ud800half", "new\nline", "x" * 300]
        corpus = [Passage(str(n), title, "text") for n, title in enumerate(titles)]
        build_index(corpus, tmp_path / "index")
        assert check_index(tmp_path / "index")["canaries"] == 5
        assert list(open_index(tmp_path / "index").corpus) == corpus

    def test_an_empty_corpus_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="corpus is empty"):
            build_index([], tmp_path / "index")

    def test_a_corpus_that_breaks_off_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError):
            build_index(broken_corpus(), tmp_path / "index")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_a_write_that_breaks_off_leaves_the_old_index(
        self, built: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        def half(corpus: Corpus, directory: Path, *settings: Any) -> None:
            (directory / "half.npy").write_bytes(b"half")
            raise error

        monkeypatch.setattr(index, "write_bm25", half)
        with pytest.raises(error):
            build_index(CORPUS[:2], built)
        assert len(open_index(built).corpus) == len(CORPUS)
        assert os.listdir(built.parent) == ["index"]

    def test_a_disk_that_refuses_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be written"):
            build_index(CORPUS, tmp_path / "file" / "index")

    def test_other_settings_than_asked_for_are_refused(self, built: Path) -> None:
        check_options(built, Bm25Options())
        with pytest.raises(InputError, match=r"b = 0\.4, and retriever\.b is 0\.5"):
            check_options(built, Bm25Options(b=0.5))


class TestPlace:
    def test_an_old_index_is_replaced(self, built: Path) -> None:
        build_index(CORPUS[:3], built)
        assert check_index(built)["passages"] == 3
        assert os.listdir(built.parent) == ["index"]

    def test_an_empty_directory_is_filled(self, tmp_path: Path) -> None:
        build_index(CORPUS, tmp_path)
        assert check_index(tmp_path)["passages"] == 11

    @pytest.mark.parametrize("place", ["file", "folder", "checkpoint", "link", "index with notes"])
    def test_nothing_else_is_touched(self, built: Path, tmp_path: Path, place: str) -> None:
        out = tmp_path / place
        if place == "file":
            out.write_text("mine")
        elif place == "folder":
            out.mkdir()
            (out / "letter.txt").write_text("mine")
        elif place == "checkpoint":
            with atomic_directory(out, {"kind": "checkpoint"}) as directory:
                (directory / "weights").write_text("mine")
        elif place == "link":
            out.symlink_to(built)
        else:
            out = built
            (out / "notes.txt").write_text("mine")
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        with pytest.raises(InputError, match="choose another --out"):
            build_index(CORPUS, out)
        after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        assert after == before


class TestCheck:
    def test_a_good_index_is_described(self, built: Path) -> None:
        report = check_index(built)
        assert report["path"] == str(built)
        assert (report["kind"], report["passages"], report["canaries"]) == ("bm25", 11, 5)
        assert report["files"] == sum(file.is_file() for file in built.rglob("*")) - 1
        assert report["bytes"] > 0

    def test_a_flipped_byte_in_any_file_is_refused(self, built: Path) -> None:
        files = sorted(file for file in built.rglob("*") if file.is_file())
        assert len(files) >= 10
        for file in files:
            whole = file.read_bytes()
            for place in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
                file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
                with pytest.raises(IntegrityError, match=file.name):
                    check_index(built)
            file.write_bytes(whole)
        assert check_index(built)["passages"] == 11

    def test_a_missing_manifest_is_refused(self, built: Path) -> None:
        (built / MANIFEST).unlink()
        refused(built, "no manifest.json there")

    def test_another_form_names_the_command_that_builds(self, built: Path) -> None:
        rewrite(built, form=1)
        refused(built, "form 1, this version reads form 4; build it again: searchrl index build")

    def test_a_file_that_is_cut_is_found_without_reading_it(self, built: Path) -> None:
        file = built / "bm25" / "weights.npy"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(IntegrityError, match="weights"):
            open_index(built, verify=False)

    def test_a_directory_of_another_kind_is_refused(self, built: Path) -> None:
        rewrite(built, kind="checkpoint")
        refused(built, "'checkpoint' is no kind of index")

    def test_another_analyzer_is_refused(self, built: Path) -> None:
        rewrite(built, analyzer="german-1")
        refused(built, "built with another analyzer")

    def test_a_canary_that_finds_something_else_is_refused(self, built: Path) -> None:
        rewrite(built, canaries=[{"query": "Film Ada", "top": "p01"}])
        refused(built, "'Film Ada' now finds 'p00' first, not 'p01'")

    def test_a_stemmer_that_changed_is_found_by_the_canaries(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        corpus = [Passage("a", "", "other"), Passage("b", "Stories", "Cities")]
        build_index(corpus, tmp_path / "index")
        monkeypatch.setattr(EnglishAnalyzer, "words", lambda self, text: text.lower().split())
        refused(tmp_path / "index", "'Stories' now finds 'a' first, not 'b'")

    def test_a_lucene_index_names_the_command_that_builds_ours(self, tmp_path: Path) -> None:
        (tmp_path / "segments_2").write_bytes(b"")
        refused(tmp_path, "is a Lucene .*searchrl index build --kind bm25 --corpus", InputError)

    @pytest.mark.parametrize("present", [True, False])
    def test_a_path_without_a_directory_is_refused(self, tmp_path: Path, present: bool) -> None:
        if present:
            (tmp_path / "index").write_text("")
        refused(tmp_path / "index", "no index directory there; build one", InputError)


def broken_corpus() -> Iterator[Passage]:
    """A corpus that fails after its first passages."""
    yield from CORPUS[:3]
    raise RuntimeError


def test_the_manifest_is_json_that_people_can_read(built: Path) -> None:
    text = (built / MANIFEST).read_text()
    assert json.loads(text)["about"]["kind"] == "bm25"
    assert text.count("\n") > 20

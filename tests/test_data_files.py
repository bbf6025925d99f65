"""Files of questions and passages: read whole, written whole, every complaint with its line."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from searchrl.data import storage
from searchrl.data.jsonl import read_jsonl, read_lines, write_jsonl
from searchrl.data.passages import Passage, passage_from_row, read_corpus, split_contents
from searchrl.data.questions import Question, read_questions
from searchrl.data.storage import (
    MANIFEST,
    atomic_directory,
    atomic_write,
    read_manifest,
    verify_directory,
    write_json,
    write_text,
)
from searchrl.errors import InputError, IntegrityError

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"

anything = st.text(st.characters(codec=None, exclude_categories=[]), max_size=20)
rows_of_text = st.lists(st.dictionaries(anything, anything | st.integers(), max_size=3), max_size=5)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


class TestJsonl:
    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
    @settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rows=rows_of_text)
    def test_what_is_written_is_read_back(
        self, tmp_path: Path, name: str, rows: list[dict[str, Any]]
    ) -> None:
        write_jsonl(tmp_path / name, rows)
        assert [row for _, row in read_jsonl(tmp_path / name)] == rows

    def test_gzipped_bytes_depend_on_the_rows_alone(self, tmp_path: Path) -> None:
        for name in ("one.jsonl.gz", "two.jsonl.gz"):
            write_jsonl(tmp_path / name, [{"a": 1}])
        assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()

    def test_blank_lines_count_and_are_passed_over(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", "", '{"a": 1}', "  ", '{"a": 2}')
        assert list(read_jsonl(path)) == [(2, {"a": 1}), (4, {"a": 2})]

    def test_a_byte_order_mark_is_no_part_of_the_first_line(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
        assert [row["a"] for _, row in read_jsonl(tmp_path / "a.jsonl")] == [1, 2]

    @pytest.mark.parametrize(
        "line",
        [
            "{",
            "[1]",
            "null",
            '"text"',
            '{"a": 1} {"b": 2}',
            '{"a": ' + "9" * 5000 + "}",
            "[" * 99999,
        ],
        ids=["open", "list", "null", "string", "two", "long number", "deep"],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str) -> None:
        path = write(tmp_path / "a.jsonl", '{"a": 1}', line)
        with pytest.raises(InputError, match=r"a\.jsonl:2: ") as caught:
            list(read_jsonl(path))
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"absent\.jsonl: no such file"):
            list(read_jsonl(tmp_path / "absent.jsonl"))

    def test_bytes_that_are_not_utf8_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"a": "\xff"}\n')
        with pytest.raises(InputError, match="cannot be read after line 0"):
            list(read_jsonl(tmp_path / "a.jsonl"))

    def test_a_damaged_gzip_never_reads_as_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl.gz"
        write_jsonl(path, [{"number": number} for number in range(50)])
        packed, whole = path.read_bytes(), list(read_lines(path))
        for place in range(len(packed)):
            path.write_bytes(packed[:place] + bytes([packed[place] ^ 16]) + packed[place + 1 :])
            # Some bytes of a gzip header (time, system) say nothing about the content.
            with suppress(InputError):
                assert list(read_lines(path)) == whole

    def test_a_cut_gzip_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-12])
        with pytest.raises(InputError, match="cannot be read"):
            list(read_jsonl(path))


class TestPassages:
    @pytest.mark.parametrize(
        "row",
        [
            {"id": "7", "contents": '"A title"\nA text.\nMore.'},
            {"id": 7, "contents": "A title\nA text.\nMore."},
            {"id": "7", "title": "A title", "text": "A text.\nMore."},
            {"_id": "7", "title": "A title", "text": "A text.\nMore.", "metadata": {}},
        ],
    )
    def test_every_known_form_reads_the_same(self, tmp_path: Path, row: dict[str, Any]) -> None:
        write_jsonl(tmp_path / "c.jsonl", [row])
        passage = Passage("7", "A title", "A text.\nMore.")
        assert list(read_corpus(tmp_path / "c.jsonl")) == [passage]

    @given(title=st.text(st.characters(exclude_characters="\n")), text=st.text())
    def test_contents_split_back_into_title_and_text(self, title: str, text: str) -> None:
        assert split_contents(Passage("1", title, text).contents) == (title, text)

    @pytest.mark.parametrize(
        ("row", "complaint"),
        [
            ({"text": "x"}, '"id" is missing'),
            ({"id": True, "text": "x"}, '"id" is missing'),
            ({"id": None, "text": "x"}, '"id" is missing'),
            ({"id": "1"}, 'neither "contents" nor "text"'),
            ({"id": "1", "contents": 5}, 'neither "contents" nor "text"'),
            ({"id": "1", "text": None}, '"text" is NoneType'),
            ({"id": "1", "text": "x", "title": 3}, '"title" is int'),
        ],
    )
    def test_a_bad_row_is_refused(self, row: dict[str, Any], complaint: str) -> None:
        with pytest.raises(InputError, match=complaint) as caught:
            passage_from_row(row, where="c.jsonl:9")
        assert str(caught.value).startswith("c.jsonl:9: ")

    def test_a_repeated_id_is_named_with_its_line(self, tmp_path: Path) -> None:
        path = write(tmp_path / "c.jsonl", '{"id": 1, "text": "x"}', '{"id": "1", "text": "y"}')
        with pytest.raises(InputError, match=r"c\.jsonl:2: id '1' appears twice"):
            list(read_corpus(path))

    def test_an_empty_corpus_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="corpus is empty"):
            list(read_corpus(write(tmp_path / "c.jsonl", "")))


class TestQuestions:
    def test_a_question_survives_its_line(self, tmp_path: Path) -> None:
        question = Question("q", "Who?", ("A", "B"), "hotpotqa", ("p1", "p2"), 2)
        write_jsonl(tmp_path / "q.jsonl", [question.to_row()])
        assert read_questions(tmp_path / "q.jsonl") == [question]

    def test_one_answer_may_stand_without_a_list(self, tmp_path: Path) -> None:
        path = write(tmp_path / "q.jsonl", '{"id": 3, "question": "?", "golden_answers": "A"}')
        assert read_questions(path) == [Question("3", "?", ("A",))]

    def test_the_limit_stops_the_reading(self, tmp_path: Path) -> None:
        good = '{"id": %d, "question": "?", "golden_answers": ["A"]}'
        path = write(tmp_path / "q.jsonl", good % 1, good % 2, "broken")
        assert [question.id for question in read_questions(path, limit=2)] == ["1", "2"]

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"id": None}, '"id" is missing'),
            ({"question": "  "}, '"question" is missing or empty'),
            ({"golden_answers": []}, "no gold answer"),
            ({"golden_answers": ["", " "]}, "no gold answer"),
            ({"golden_answers": None}, "must be a list of strings"),
            ({"golden_answers": [["A"]]}, "must be a list of strings"),
            ({"supporting_ids": {"a": 1}}, "must be a list of strings"),
            ({"hops": "two"}, '"hops" is str'),
            ({"retrieval_query": ["a"]}, '"retrieval_query" is list'),
        ],
    )
    def test_a_bad_row_is_refused(
        self, tmp_path: Path, change: dict[str, Any], complaint: str
    ) -> None:
        good = {"id": "1", "question": "?", "golden_answers": ["A"]}
        write_jsonl(tmp_path / "q.jsonl", [good | {"id": "0"}, good | change])
        with pytest.raises(InputError, match=complaint) as caught:
            read_questions(tmp_path / "q.jsonl")
        assert "q.jsonl:2: " in str(caught.value)

    def test_a_repeated_id_and_an_empty_file_are_refused(self, tmp_path: Path) -> None:
        line = '{"id": "1", "question": "?", "golden_answers": ["A"]}'
        with pytest.raises(InputError, match=r"q\.jsonl:2: id '1' appears twice"):
            read_questions(write(tmp_path / "q.jsonl", line, line))
        with pytest.raises(InputError, match="no question in it"):
            read_questions(write(tmp_path / "q.jsonl", ""))

    @pytest.mark.skipif(not SHARED.is_dir(), reason="shared data absent")
    def test_real_questions_point_into_their_corpus(self) -> None:
        questions = read_questions(SHARED / "multihop" / "dev" / "questions.jsonl.gz")
        ids = {
            passage.id for passage in read_corpus(SHARED / "multihop" / "dev" / "corpus.jsonl.gz")
        }
        assert len(questions) == 500
        assert len(ids) == 4937
        assert all(set(question.gold_ids) <= ids for question in questions)


class TestStorage:
    def test_a_write_that_fails_leaves_the_old_file_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "a.txt"
        write_text(path, "old")
        with pytest.raises(TypeError), atomic_write(path) as handle:
            handle.writelines([b"new", None])  # type: ignore[list-item]
        assert path.read_text() == "old"
        assert names(path.parent) == ["a.txt"]

    def test_json_keeps_its_order_and_its_letters(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"z": "é", "a": 1})
        text = (tmp_path / "a.json").read_text(encoding="utf-8")
        assert text == '{\n  "z": "é",\n  "a": 1\n}\n'

    def fill(self, target: Path, content: str) -> None:
        with atomic_directory(target, {"form": 1, "pair": (1, 2)}) as directory:
            (directory / "inner").mkdir()
            (directory / "a.txt").write_text(content)
            (directory / "inner" / "b.txt").write_text("b")

    @pytest.mark.parametrize("one_step", [True, False])
    def test_a_directory_is_replaced_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_step: bool
    ) -> None:
        if not one_step:
            monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
        self.fill(tmp_path / "d", "old")
        (tmp_path / "d" / "stale").write_text("")
        self.fill(tmp_path / "d", "new")
        assert (tmp_path / "d" / "a.txt").read_text() == "new"
        assert names(tmp_path / "d") == ["a.txt", "inner", MANIFEST]
        assert names(tmp_path) == ["d"]
        assert verify_directory(tmp_path / "d") == {"form": 1, "pair": [1, 2]}

    def test_a_directory_that_fails_leaves_the_old_one_alone(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "d", "old")
        with pytest.raises(TypeError), atomic_directory(tmp_path / "d", {"set": {1}}) as directory:
            (directory / "a.txt").write_text("new")
        verify_directory(tmp_path / "d")
        assert (tmp_path / "d" / "a.txt").read_text() == "old"
        assert names(tmp_path) == ["d"]

    def test_a_swap_in_two_steps_that_fails_puts_the_old_one_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fill(tmp_path / "d", "old")
        monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
        rename = Path.rename

        def refuse_the_new(self: Path, target: Path) -> Path:
            if self.suffix == ".tmp":
                raise OSError("no")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", refuse_the_new)
        with pytest.raises(OSError, match="no"):
            self.fill(tmp_path / "d", "new")
        assert (tmp_path / "d" / "a.txt").read_text() == "old"
        assert names(tmp_path) == ["d"]

    def test_what_a_kill_leaves_goes_with_the_next_write(self, tmp_path: Path) -> None:
        program = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from searchrl.data.storage import atomic_directory\n"
            "with atomic_directory(Path(sys.argv[1]), {}) as directory:\n"
            "    (directory / 'half').write_text('written')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        for name in ("d", "other"):
            subprocess.run([sys.executable, "-c", program, tmp_path / name], check=False)
        assert len(names(tmp_path)) == 2
        (tmp_path / ".d.12345678.tmp").write_text("a file")
        self.fill(tmp_path / "d", "new")
        left = set(names(tmp_path)) - {"d", ".d.12345678.tmp"}
        assert [name.startswith(".other.") for name in left] == [True]

    def test_what_another_is_writing_stays(self, tmp_path: Path) -> None:
        with atomic_directory(tmp_path / "d", {}) as directory:
            (directory / "a.txt").write_text("slow")
            self.fill(tmp_path / "d", "quick")
        assert (tmp_path / "d" / "a.txt").read_text() == "slow"
        assert names(tmp_path) == ["d"]

    def test_a_directory_that_is_swept_before_it_is_held_is_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hold, swept = storage._hold, []

        def sweep_first(directory: Path, how: int) -> Any:
            if not swept:
                swept.append(directory)
                directory.rmdir()
            return hold(directory, how)

        monkeypatch.setattr(storage, "_hold", sweep_first)
        self.fill(tmp_path / "d", "content")
        assert swept
        verify_directory(tmp_path / "d")
        assert names(tmp_path) == ["d"]

    def test_a_file_system_without_locks_will_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage.fcntl, "flock", mock.Mock(side_effect=OSError("no locks")))
        (tmp_path / ".d.12345678.tmp").mkdir()
        self.fill(tmp_path / "d", "content")
        verify_directory(tmp_path / "d")
        # Nobody can know whether this one is being written.
        assert sorted(names(tmp_path)) == [".d.12345678.tmp", "d"]

    def test_a_flipped_byte_is_found_wherever_it_is(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "d", "content")
        for file in (file for file in (tmp_path / "d").rglob("*") if file.is_file()):
            whole = file.read_bytes()
            for place in range(len(whole)):
                file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
                with pytest.raises(IntegrityError, match=file.name):
                    verify_directory(tmp_path / "d")
            file.write_bytes(whole)
        verify_directory(tmp_path / "d")

    def test_a_missing_file_is_found(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "d", "content")
        (tmp_path / "d" / "inner" / "b.txt").unlink()
        with pytest.raises(IntegrityError, match=r"b\.txt: missing"):
            verify_directory(tmp_path / "d")

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{}", '{"about": {}, "files": []}', '{"about": {}, "files": {}}', "[" * 9999],
    )
    def test_a_manifest_of_another_form_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(IntegrityError, match="not a manifest"):
            read_manifest(tmp_path)

    def test_a_changed_manifest_is_refused(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "d", "content")
        path = tmp_path / "d" / MANIFEST
        manifest = json.loads(path.read_text())
        manifest["about"]["form"] = 2
        path.write_text(json.dumps(manifest))
        with pytest.raises(IntegrityError, match="its own checksum"):
            read_manifest(tmp_path / "d")

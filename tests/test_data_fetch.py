"""Datasets fetched from a hub on this machine: whole, checked, or not there."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from searchrl.data import catalog, fetch
from searchrl.data.catalog import CATALOG, FLASHRAG, Entry
from searchrl.data.fetch import HubSource, WebSource, fetch_dataset
from searchrl.data.questions import Question, read_questions
from searchrl.data.storage import read_manifest, verify_directory
from searchrl.errors import InfrastructureError, InputError, IntegrityError
from tests.command_line import good, refused, tree

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MIRAGE = {
    "medqa": {"1": {"question": "Which?", "options": {"A": "x", "B": "y"}, "answer": "B"}},
    "mmlu": {"1": {"question": "What?", "options": {"A": "x", "B": "y"}, "answer": "A"}},
}


def flashrag(count: int) -> bytes:
    rows = (
        {
            "id": f"q{n}",
            "question": f"Who is {n}?",
            "golden_answers": [str(n)],
            "metadata": {"x": n},
        }
        for n in range(count)
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class FakeHub(http.server.ThreadingHTTPServer):
    """Serves files under ``repository/file`` as the hub does; hangs up where it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.named: dict[str, str] = {}
        self.cut_after: int | None = None
        self.cut_once = False
        self.gets = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        repository, _, rest = self.path.removeprefix("/datasets/").partition("/resolve/")
        file = f"{repository}/{rest.partition('/')[2]}"
        content = self.server.files.get(file)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        etag = self.server.named.get(file) or hashlib.sha256(content).hexdigest()
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.server.gets += 1
            end = self.server.cut_after
            if self.server.cut_once:
                self.server.cut_after = None
            self.wfile.write(content[:end])
            self.close_connection = True


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_catalog_names_every_split_and_never_takes_one_for_another() -> None:
    questions = [entry for entry in CATALOG.values() if entry.kind == "questions"]
    assert len([e for e in questions if e.repository == FLASHRAG]) == 7
    assert len([e for e in questions if e.url == catalog.MIRAGE_URL]) == 5
    for entry in questions:
        assert entry.evaluation in entry.splits
        assert entry.evaluation != "train"
        if entry.repository:
            assert entry.splits == {s: (f"{entry.name}/{s}.jsonl",) for s in entry.splits}


def test_questions_are_fetched_as_question_lines(hub: FakeHub, tmp_path: Path) -> None:
    for split, count in (("train", 3), ("dev", 2)):
        hub.files[f"{FLASHRAG}/musique/{split}.jsonl"] = flashrag(count)
    told: list[str] = []
    directory = fetch_dataset("musique", tmp_path, (), HubSource(hub.url), told.append)
    assert directory == tmp_path / "musique"
    assert tree(tmp_path) == [
        ".downloads", "musique", "musique/dev.jsonl", "musique/manifest.json",
        "musique/train.jsonl",
    ]  # fmt: skip
    assert read_questions(directory / "dev.jsonl") == [
        Question(f"q{n}", f"Who is {n}?", (str(n),), "musique") for n in range(2)
    ]
    about = verify_directory(directory)
    assert about["evaluation"] == "dev"
    assert about["origins"][0] == {
        "source": FLASHRAG,
        "file": "musique/train.jsonl",
        "revision": COMMIT,
        "sha256": hashlib.sha256(flashrag(3)).hexdigest(),
    }
    assert told == ["musique: musique/train.jsonl", "musique: musique/dev.jsonl"]


def test_one_split_of_several(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[f"{FLASHRAG}/nq/test.jsonl"] = flashrag(2)
    directory = fetch_dataset("nq", tmp_path, ["test"], HubSource(hub.url))
    assert list(read_manifest(directory)["files"]) == ["test.jsonl"]
    with pytest.raises(InputError, match="'popqa' has no split 'train'; there are test"):
        fetch_dataset("popqa", tmp_path, ["train"], HubSource(hub.url))


def test_an_index_in_parts_is_joined(hub: FakeHub, tmp_path: Path) -> None:
    repository = CATALOG["wiki-18-e5"].repository
    hub.files |= {f"{repository}/part_aa": b"a" * 1000, f"{repository}/part_ab": b"b" * 10}
    directory = fetch_dataset("wiki-18-e5", tmp_path, (), HubSource(hub.url))
    assert (directory / "e5_Flat.index").read_bytes() == b"a" * 1000 + b"b" * 10
    assert [origin["file"] for origin in verify_directory(directory)["origins"]] == [
        "part_aa", "part_ab",
    ]  # fmt: skip


def test_a_corpus_is_kept_as_it_is(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[f"{CATALOG['wiki-18'].repository}/wiki-18.jsonl.gz"] = b"packed"
    directory = fetch_dataset("wiki-18", tmp_path, (), HubSource(hub.url))
    assert (directory / "wiki-18.jsonl.gz").read_bytes() == b"packed"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library tries again at once."""
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_a_connection_that_breaks_is_tried_again(
    hub: FakeHub, tmp_path: Path, impatient: None
) -> None:
    content = flashrag(400)
    hub.files[f"{FLASHRAG}/bamboogle/test.jsonl"] = content
    hub.cut_after, hub.cut_once = len(content) // 2, True
    directory = fetch_dataset("bamboogle", tmp_path, (), HubSource(hub.url))
    assert len(read_questions(directory / "test.jsonl")) == 400
    assert hub.gets == 2


def test_a_download_that_is_cut_off_leaves_what_was_there(
    hub: FakeHub, tmp_path: Path, impatient: None
) -> None:
    content = flashrag(400)
    hub.files[f"{FLASHRAG}/bamboogle/test.jsonl"] = content
    old = tmp_path / "bamboogle"
    old.mkdir()
    (old / "test.jsonl").write_text("the old one")
    hub.cut_after = len(content) // 2
    with pytest.raises(InfrastructureError, match=r"bamboogle/test\.jsonl: cannot be fetched"):
        fetch_dataset("bamboogle", tmp_path, (), HubSource(hub.url))
    assert (old / "test.jsonl").read_text() == "the old one"
    assert not list((tmp_path / ".downloads").rglob("test.jsonl"))


def test_what_was_whole_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[f"{FLASHRAG}/hotpotqa/train.jsonl"] = flashrag(3)
    with pytest.raises(InfrastructureError, match=r"dev\.jsonl"):
        fetch_dataset("hotpotqa", tmp_path, (), HubSource(hub.url))
    assert not (tmp_path / "hotpotqa").exists()
    hub.files[f"{FLASHRAG}/hotpotqa/dev.jsonl"] = flashrag(2)
    directory = fetch_dataset("hotpotqa", tmp_path, (), HubSource(hub.url))
    assert [len(read_questions(directory / f"{s}.jsonl")) for s in ("train", "dev")] == [3, 2]
    assert hub.gets == 2


def test_a_file_that_is_not_the_one_described_is_deleted(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[f"{FLASHRAG}/bamboogle/test.jsonl"] = flashrag(3)
    hub.named[f"{FLASHRAG}/bamboogle/test.jsonl"] = "0" * 64
    with pytest.raises(IntegrityError, match="not the file that its source describes"):
        fetch_dataset("bamboogle", tmp_path, (), HubSource(hub.url))
    assert not list(tmp_path.rglob("test.jsonl"))


def test_a_file_that_is_not_there_and_a_hub_that_is_not(
    hub: FakeHub, tmp_path: Path, impatient: None
) -> None:
    with pytest.raises(InfrastructureError, match=FLASHRAG):
        fetch_dataset("bamboogle", tmp_path, (), HubSource(hub.url))
    with pytest.raises(InfrastructureError, match="cannot be fetched"):
        fetch_dataset("bamboogle", tmp_path, (), HubSource("http://127.0.0.1:1"))
    assert not (tmp_path / "bamboogle").exists()


def test_questions_that_cannot_be_read_do_not_replace_those_that_could(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.files[f"{FLASHRAG}/bamboogle/test.jsonl"] = flashrag(3)
    fetch_dataset("bamboogle", tmp_path, (), HubSource(hub.url))
    hub.files[f"{FLASHRAG}/bamboogle/test.jsonl"] = b'{"id": "1", "question": "?"}\n'
    with pytest.raises(InputError, match=r"test\.jsonl:1: .*golden_answers"):
        fetch_dataset("bamboogle", tmp_path, (), HubSource(hub.url))
    assert len(read_questions(tmp_path / "bamboogle" / "test.jsonl")) == 3


def web(content: bytes, status: int = 200) -> WebSource:
    return WebSource(httpx2.MockTransport(lambda _: httpx2.Response(status, content=content)))


def test_a_set_of_mirage(tmp_path: Path) -> None:
    content = json.dumps(MIRAGE).encode()
    directory = fetch_dataset("mmlu", tmp_path, (), web(content))
    (question,) = read_questions(directory / "test.jsonl")
    assert (question.source, question.answers) == ("mmlu", ("A: x",))
    (origin,) = verify_directory(directory)["origins"]
    assert origin["sha256"] == hashlib.sha256(content).hexdigest()
    assert origin["revision"] in catalog.MIRAGE_URL
    with pytest.raises(InfrastructureError, match="404"):
        fetch_dataset("medqa", tmp_path, (), web(b"", 404))
    assert not (tmp_path / "medqa").exists()


def test_a_web_file_that_is_cut_off_leaves_nothing(tmp_path: Path) -> None:
    def cut() -> Iterator[bytes]:
        yield b"half"
        raise httpx2.ReadError("reset")

    source = WebSource(httpx2.MockTransport(lambda _: httpx2.Response(200, content=cut())))
    with pytest.raises(InfrastructureError, match="reset"):
        fetch_dataset("medqa", tmp_path, (), source)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_commands(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "HubSource", lambda: HubSource(hub.url))
    hub.files[f"{FLASHRAG}/bamboogle/test.jsonl"] = flashrag(2)
    told = good("data", "fetch", "bamboogle", "--out", tmp_path, "--json")
    assert list(told.json["files"]) == ["test.jsonl"]
    assert told.stderr == "fetching bamboogle: bamboogle/test.jsonl\n"
    assert "sha256" in good("data", "fetch", "bamboogle", "--out", tmp_path).stdout
    assert "bamboogle" in refused("data", "fetch", "bambogle", "--out", tmp_path)
    rows = good("data", "list", "--json").json
    assert [row["name"] for row in rows] == list(CATALOG)
    assert all(name in good("data", "list").stdout for name in CATALOG)


def test_an_entry_says_where_it_is() -> None:
    assert all(bool(entry.repository) != bool(entry.url) for entry in CATALOG.values())
    assert isinstance(CATALOG["nq"], Entry)

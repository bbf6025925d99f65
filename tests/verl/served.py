"""What runs beside a run of verl and can be killed: servers, and the workers of Ray."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2

from searchrl.recipe import HttpGenerator, Recipe
from tests.command_line import free_port
from tests.verl.verl_fixtures import recipe

_SECONDS_TO_START = 120.0


class Served:
    """A server of the ``searchrl`` program on a port of its own."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", "searchrl", *arguments, "--port", str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self._listens, _SECONDS_TO_START)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            # The worker processes of a server end with it, and not before they notice.
            wait_for(lambda: not self._listens(), _SECONDS_TO_START)

    def _listens(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", self.port)) == 0


class Garbling:
    """Stands before a retriever and answers every third query, by its checksum, with nonsense."""

    def __init__(self, port: int, spared: Collection[str]) -> None:
        spared = frozenset(spared)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                garbled = any(
                    query not in spared and zlib.crc32(query.encode()) % 3 == 0
                    for query in json.loads(body)["queries"]
                )
                answer = b"nonsense"
                if not garbled:
                    url, kind = f"http://127.0.0.1:{port}{self.path}", "application/json"
                    answer = httpx2.post(url, content=body, headers={"Content-Type": kind}).content
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/retrieve"

    def __enter__(self) -> Garbling:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def wait_for(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@contextmanager
def services(folder: Path, *overrides: str) -> Iterator[tuple[Served, Served, Recipe]]:
    """A server of an index and one of the generator, and a recipe that uses both."""
    world = folder / "world"
    corpus, questions, index = world / "corpus.jsonl", world / "questions.jsonl", world / "index"
    _searchrl("synthwiki", "--size", "1000", "--questions", "6", "--out", world)
    _searchrl("index", "build", "--corpus", corpus, "--out", index)
    retriever = Served("serve", "--index", str(index))
    generator = Served("serve-model", "tiny-generator")
    values = recipe("tiny-grpo", *overrides).model_dump(mode="json")
    files = {"kind": "files", "corpus": str(corpus), "questions": str(questions)}
    values["data"] = {"train": files, "test": files}
    values["retriever"] = {"kind": "http", "url": f"http://127.0.0.1:{retriever.port}/retrieve"}
    shared = HttpGenerator.model_fields.keys() & values["generator"].keys()
    values["generator"] = {key: values["generator"][key] for key in shared} | {
        "kind": "http",
        "url": f"http://127.0.0.1:{generator.port}/v1",
        "model": "tiny-generator",
        "tokenizer": "tiny-generator",
        "max_length": 2048,
    }
    retriever.start()
    generator.start()
    try:
        yield retriever, generator, Recipe.model_validate(values)
    finally:
        retriever.kill()
        generator.kill()


def _searchrl(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "searchrl", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def ray_workers(run: Path, kind: str) -> list[int]:
    """The run's Ray workers of one kind, by the title that Ray gives them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if title.startswith(f"ray::{kind}".encode()) and str(run).encode() in variables:
            found.append(int(entry.name))
    return found

"""``searchrl serve`` and ``searchrl mcp`` as processes: start, load, faults, stop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters

from searchrl.data.synthwiki import write_synthwiki
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.index import build_index, open_index
from searchrl.serving.client import HttpRetriever
from tests.command_line import flip_byte, free_port, good, write_recipe

pytestmark = pytest.mark.pipeline
KEY = "canary-4711"
_PATIENCE = 60
SCHEMATHESIS = """\
# A valid list of queries may still be too much for one body, and an invalid one too.
[checks]
negative_data_rejection.expected-statuses = [400, 401, 403, 413, 415, 422]
positive_data_acceptance.expected-statuses = [200, 413]
"""


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    process: subprocess.Popen[str]

    def post(self, body: Any, timeout: float = 30.0) -> httpx2.Response:
        return httpx2.post(f"{self.url}/retrieve", json=body, timeout=timeout)

    def stop(self) -> tuple[int, str, str]:
        """End it as a supervisor would; its exit code and what it said."""
        self.process.send_signal(signal.SIGTERM)
        stdout, stderr = self.process.communicate(timeout=_PATIENCE)
        return self.process.returncode, stdout, stderr


@contextmanager
def serving(index: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Served]:
    port = free_port()
    command = [sys.executable, "-m", "searchrl", "serve", "--index", str(index)]
    process = subprocess.Popen(
        [*command, "--port", str(port), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        yield Served(f"http://127.0.0.1:{port}", process)
    finally:
        if process.poll() is None:
            process.kill()
        # Workers hold the pipes, so this returns when the last of them is gone too.
        process.communicate(timeout=_PATIENCE)


def until_live(served: Served, path: str = "/health/ready") -> None:
    """Wait until the path answers 200."""
    started = time.monotonic()
    while time.monotonic() - started < _PATIENCE:
        try:
            if httpx2.get(served.url + path, timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert served.process.poll() is None, served.process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"{path} did not answer")


def until_ready_workers(served: Served, count: int) -> None:
    """Wait until the server says that exactly so many workers are ready."""
    started = time.monotonic()
    while time.monotonic() - started < _PATIENCE:
        try:
            text = httpx2.get(f"{served.url}/metrics", timeout=5).text
        except httpx2.TransportError:  # the connection was the killed worker's
            continue
        if f"searchrl_ready_workers {count}.0\n" in text:
            return
        time.sleep(0.01)
    raise AssertionError(f"never {count} workers")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("world")
    write_synthwiki(home, 400, 11, 40)
    good("index", "build", "--corpus", home / "corpus.jsonl", "--out", home / "index")
    return home


def test_T_B13_T_B14_it_starts_at_once_answers_and_stops_cleanly(world: Path) -> None:
    with serving(world / "index") as served:
        until_live(served, "/health/live")
        until_live(served)
        answer = served.post({"queries": ["Who directed it?"], "topk": 2})
        assert len(answer.json()["result"][0]) == 2
        code, stdout, stderr = served.stop()
    assert code == 0
    assert stdout == f"serving {world / 'index'} at {served.url}\n"
    assert stderr == ""


def test_T_B14_what_is_under_way_is_finished(world: Path) -> None:
    """512 long queries, the stop in their midst, and the whole answer."""
    words = " ".join(p.text for p in list(open_index(world / "index").corpus)[:20])[:2_000]
    with serving(world / "index") as served:
        until_live(served)

        async def stop_meanwhile() -> httpx2.Response:
            async with httpx2.AsyncClient(timeout=30) as client:
                body = {"queries": [f"{number} {words}" for number in range(500)], "topk": 100}
                request = asyncio.ensure_future(client.post(f"{served.url}/retrieve", json=body))
                while (
                    "searchrl_waiting_queries 500"
                    not in (await client.get(f"{served.url}/metrics")).text
                ):
                    assert not request.done(), "too quick to be stopped meanwhile"
                    await asyncio.sleep(0.005)
                served.process.send_signal(signal.SIGTERM)
                return await request

        response = asyncio.run(stop_meanwhile())
        assert response.status_code == 200
        assert len(response.json()["result"]) == 500
        served.process.communicate(timeout=_PATIENCE)
        assert served.process.returncode == 0


def test_a_damaged_index_ends_the_server_with_the_reason(world: Path, tmp_path: Path) -> None:
    corpus = open_index(world / "index").corpus
    build_index(corpus, tmp_path / "index")
    flip_byte(tmp_path / "index" / "corpus" / "passages.bin")
    with serving(tmp_path / "index") as served:
        _, stderr = served.process.communicate(timeout=_PATIENCE)
        assert served.process.returncode == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert "passages.bin: does not match its checksum" in stderr


def test_T_B01_schemathesis_finds_nothing(world: Path, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS)
    with serving(
        world / "index", "--key-variable", "SEARCH_KEY", env={"SEARCH_KEY": KEY}
    ) as served:
        until_live(served)
        found = subprocess.run(
            [Path(sys.executable).with_name("schemathesis"), "run", f"{served.url}/openapi.json",
             "--header", f"Authorization: Bearer {KEY}", "--max-examples", "100", "--seed", "1",
             "--no-color"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        code, stdout, stderr = served.stop()
    assert found.returncode == 0, found.stdout[-4_000:]
    assert "No issues found" in found.stdout
    assert (code, stderr) == (0, "")
    assert KEY not in stdout


def test_T_B06_workers_answer_alike_and_count_together(world: Path) -> None:
    own = open_index(world / "index")
    queries = [passage.title for passage in list(own.corpus)[:40]]

    async def found(url: str) -> list[Any]:
        retrievers = [HttpRetriever(f"{url}/retrieve") for _ in range(4)]
        rows = await asyncio.gather(
            *(retrievers[n % 4].search([query], 5) for n, query in enumerate(queries))
        )
        for retriever in retrievers:
            await retriever.aclose()
        return [hits for [hits] in rows]

    with serving(world / "index", "--workers", "2") as served:
        until_live(served)
        until_ready_workers(served, 2)
        assert asyncio.run(found(served.url)) == asyncio.run(own.search(queries, 5))
        text = httpx2.get(f"{served.url}/metrics", timeout=5).text
        assert 'searchrl_requests_total{route="/retrieve",status="200"} 40.0' in text
        assert "searchrl_queries_total 40.0" in text
        assert served.stop()[0] == 0


def test_T_B08_overload_is_turned_away_and_passes(world: Path) -> None:
    """Sixty clients at a server with room for four queries: answers or 503, and nothing else."""

    async def load(url: str) -> tuple[list[int], float]:
        async with httpx2.AsyncClient(timeout=10) as client:

            async def one(number: int) -> int:
                body = {"queries": [f"{number} the film of the director"] * 3, "topk": 5}
                response = await client.post(f"{url}/retrieve", json=body)
                if response.status_code == 503:
                    assert int(response.headers["retry-after"]) >= 1
                return response.status_code

            statuses: list[int] = []
            for _ in range(5):
                statuses += await asyncio.gather(*(one(number) for number in range(60)))
            started = time.monotonic()
            assert await one(0) == 200
            return statuses, time.monotonic() - started

    with serving(world / "index", "--capacity", "4") as served:
        until_live(served)
        statuses, recovery = asyncio.run(load(served.url))
        text = httpx2.get(f"{served.url}/metrics", timeout=5).text
    assert set(statuses) == {200, 503}
    assert recovery < 2
    assert "searchrl_waiting_queries 0.0" in text


def test_T_B09_hanging_up_is_noticed_on_a_real_connection(world: Path) -> None:
    words = " ".join(p.text for p in list(open_index(world / "index").corpus)[:20])[:2_000]
    with serving(world / "index") as served:
        until_live(served)
        body = {"queries": [f"{number} {words}" for number in range(500)], "topk": 100}
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{served.url}/retrieve", json=body, timeout=httpx2.Timeout(5, read=0.05))
        text = ""
        while 'searchrl_requests_total{route="/retrieve"' not in text:
            text = httpx2.get(f"{served.url}/metrics", timeout=20).text
    assert 'searchrl_requests_total{route="/retrieve",status="499"} 1.0' in text
    assert "searchrl_waiting_queries 0.0" in text
    batches = re.search(r"searchrl_batch_queries_sum (\S+)", text)
    assert batches is not None
    assert float(batches[1]) < 500


def test_a_worker_that_dies_is_replaced(world: Path) -> None:
    with serving(world / "index", "--workers", "2") as served:
        until_live(served)
        until_ready_workers(served, 2)
        children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children")
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        until_ready_workers(served, 1)
        until_ready_workers(served, 2)
        assert served.post({"queries": ["a"]}).status_code == 200
        assert served.stop()[0] == 0


def test_workers_do_not_outlive_a_killed_parent(world: Path) -> None:
    with serving(world / "index", "--workers", "2") as served:
        until_live(served)
        until_ready_workers(served, 2)
        served.process.kill()
        served.process.communicate(timeout=_PATIENCE)
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{served.url}/health/live", timeout=5)


def test_T_B02_twenty_megabytes_do_not_end_it(world: Path) -> None:
    with serving(world / "index") as served:
        until_live(served)
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as line:
            head = (
                "POST /retrieve HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            )
            line.sendall(f"{head}content-length: 20000000\r\n\r\n".encode())
            assert line.recv(64).startswith(b"HTTP/1.1 413 ")
        assert served.post({"queries": ["a"]}).status_code == 200


def test_evaluation_over_http_is_evaluation_over_the_index(world: Path, tmp_path: Path) -> None:
    """The same table, to the last digit, from a recipe that names the service."""
    data = (
        f'kind = "files"\ncorpus = "{world / "corpus.jsonl"}"\n'
        f'questions = "{world / "questions.jsonl"}"\n'
    )
    recipe = write_recipe(tmp_path / "recipe.toml", Path("tiny-generator"), data, data)
    rows = {}
    with serving(
        world / "index", "--key-variable", "SEARCH_KEY", env={"SEARCH_KEY": KEY}
    ) as served:
        until_live(served)
        service = f"{{kind='http', url='{served.url}/retrieve', key_variable='SEARCH_KEY'}}"
        os.environ["SEARCH_KEY"] = KEY
        try:
            for name, options in (("own", ()), ("served", ("--set", f"retriever={service}"))):
                out = tmp_path / name
                good("evaluate", recipe, "--methods", "rag", "--n", "20", "--out", out, *options)
                episodes = (out / "episodes.jsonl").read_text().splitlines()
                rows[name] = [{**json.loads(line), "seconds": 0} for line in episodes]
        finally:
            del os.environ["SEARCH_KEY"]
    assert rows["own"] == rows["served"]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(KEY.encode() in path.read_bytes() for path in written)


def test_mcp_speaks_over_stdio(world: Path) -> None:
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "searchrl", "mcp", "--index", str(world / "index")],
        env=dict(os.environ),
    )

    async def call() -> Any:
        async with Client(parameters) as client:
            return await client.call_tool("search", {"query": "Who directed it?", "k": 3})

    found = asyncio.run(call()).structured_content["result"]
    own: Bm25Retriever = open_index(world / "index")
    assert [row["id"] for row in found] == [
        hit.passage.id for hit in own.top("Who directed it?", 3)
    ]

"""How many queries a server answers: ours against one written the way Search-R1's is.

    pip install fastapi uvicorn
    python -m benchmarks.retrieval.serve_load --seconds 4

The other server is our own code with the other's design: FastAPI, a plain ``def`` handler in its
thread pool, every request searched on its own, documents turned into JSON by FastAPI. Both hold
the same search: ``null`` finds the same three passages for every query, which leaves the server
alone; ``bm25`` searches a generated corpus. Clients are connections over loopback, each with one
request of one query under way. Runs are bounded in time, and the servers take turns within a
setting, so that another load on the machine meets both; on a busy machine only the ratios mean
something.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from searchrl.data.passages import Passage
from searchrl.data.synthwiki import World
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.protocol import Hit
from searchrl.serving.app import RetrieverApp
from searchrl.serving.server import Address, run_workers
from searchrl.serving.settings import ServerSettings

TOPK = 3
_TICKS = os.sysconf("SC_CLK_TCK")


class NullSearch:
    """Finds the same passages for every query."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._hits = [Hit(passage, 1.0) for passage in passages[:TOPK]]

    def top(self, query: str, k: int) -> list[Hit]:
        """The passages, whatever the query."""
        return self._hits[:k]

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``."""
        return [self._hits[:k] for _ in queries]


def open_search(name: str, size: int) -> NullSearch | Bm25Retriever:
    """The search that both servers hold."""
    passages = list(World(1, size).passages())
    return NullSearch(passages) if name == "null" else Bm25Retriever(passages)


def serve_ours(search: str, size: int, port: int) -> None:
    """Our server, one worker process."""
    run_workers(Address(port=port), partial(_our_app, search, size), lambda: None)


def _our_app(search: str, size: int) -> RetrieverApp:
    return RetrieverApp(lambda _: open_search(search, size), ServerSettings())


def serve_theirs(search: str, size: int, port: int) -> None:
    """A server in Search-R1's manner, one process."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    engine = open_search(search, size)
    app = FastAPI()

    class Query(BaseModel):
        queries: list[str]
        topk: int | None = None
        return_scores: bool = False

    def retrieve(request: Query) -> dict[str, Any]:
        k = request.topk or TOPK
        rows = [[_item(hit) for hit in engine.top(query, k)] for query in request.queries]
        return {"result": rows}

    # Names of this function are not the module's, so FastAPI could not resolve them as text.
    retrieve.__annotations__ = {"request": Query, "return": dict[str, Any]}
    app.post("/retrieve")(retrieve)
    app.get("/health/ready")(_ready)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def _ready() -> dict[str, str]:
    return {"status": "ready"}


def _item(hit: Hit) -> dict[str, Any]:
    passage = hit.passage
    document = {
        "id": passage.id,
        "contents": passage.contents,
        "title": passage.title,
        "text": passage.text,
    }
    return {"document": document, "score": hit.score}


SERVERS = {"ours": serve_ours, "theirs": serve_theirs}


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of clients saw.

    Attributes:
        milliseconds: of each request, in order of its end.
        seconds: the run's length.
        cpu_seconds: that the server's processes used meanwhile.
    """

    milliseconds: tuple[float, ...]
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        """Queries answered a second."""
        return len(self.milliseconds) / self.seconds

    @property
    def cpu_milliseconds(self) -> float:
        """Processor time of the server for one query."""
        return 1_000 * self.cpu_seconds / len(self.milliseconds)

    def percentile(self, share: float) -> float:
        """The time, in milliseconds, that this share of the requests did not exceed."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def measure(
    port: int, process: int, clients: int, queries: Sequence[str], seconds: float
) -> Load:
    """Keep ``clients`` connections busy for ``seconds``."""
    times: list[float] = []
    started, cpu = time.perf_counter(), cpu_seconds(process)
    until = started + seconds
    shares = [queries[client::clients] for client in range(clients)]
    await asyncio.gather(*(_client(port, share, until, times) for share in shares))
    return Load(tuple(times), time.perf_counter() - started, cpu_seconds(process) - cpu)


async def _client(port: int, queries: Sequence[str], until: float, times: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = 0
    while (sent := time.perf_counter()) < until:
        writer.write(_request(queries[number % len(queries)]))
        await _read_answer(reader)
        times.append(1_000 * (time.perf_counter() - sent))
        number += 1
    writer.close()


def _request(query: str) -> bytes:
    body = json.dumps({"queries": [query], "topk": TOPK, "return_scores": True}).encode()
    head = (
        "POST /retrieve HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _read_answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"not an answer: {head[:200]!r}")
    length = head.lower().partition(b"content-length:")[2].split()[0]
    await reader.readexactly(int(length))


def cpu_seconds(process: int) -> float:
    """Processor time of a process and all below it, so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / _TICKS + sum(
        cpu_seconds(int(child)) for child in children
    )


@contextmanager
def running(server: str, search: str, size: int) -> Iterator[tuple[int, int]]:
    """A server in a process of its own; yields its port and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.retrieval.serve_load", "--serve", server]
    process = subprocess.Popen(
        [*command, "--search", search, "--passages", str(size), "--port", str(port)]
    )
    try:
        _await_ready(port, process)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)


def _await_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    import httpx2

    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            url = f"http://127.0.0.1:{port}/health/ready"
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the server did not become ready")


def compare(search: str, size: int, clients: Sequence[int], seconds: float) -> Iterator[str]:
    """Rows of the table for one search."""
    queries = [passage.text[:60] for passage in World(2, size).passages()]
    with running("theirs", search, size) as theirs, running("ours", search, size) as ours:
        for count in clients:
            loads = {}
            for name, (port, process) in (("theirs", theirs), ("ours", ours)):
                loads[name] = asyncio.run(measure(port, process, count, queries, seconds))
            for name, load in loads.items():
                yield _row(search, count, name, load, loads["theirs"])


def _row(search: str, clients: int, name: str, load: Load, base: Load) -> str:
    cells = (
        search, str(clients), name, f"{load.per_second:,.0f}",
        f"{load.per_second / base.per_second:.1f}x",
        f"{load.percentile(0.5):.1f}", f"{load.percentile(0.99):.1f}",
        f"{load.cpu_milliseconds:.2f}", f"{base.cpu_milliseconds / load.cpu_milliseconds:.1f}x",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print one table, or be one of the servers."""
    parser = argparse.ArgumentParser(description="How many queries a server answers.")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each run")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--search", nargs="+", choices=("null", "bm25"), default=["null", "bm25"])
    parser.add_argument("--passages", type=int, default=20_000, help="size of the corpus")
    parser.add_argument("--serve", choices=tuple(SERVERS), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        SERVERS[options.serve](options.search[0], options.passages, options.port)
        return
    print("| search | clients | server | QPS | ratio | p50 ms | p99 ms | CPU-ms/query | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for search in options.search:
        for row in compare(search, options.passages, options.clients, options.seconds):
            print(row, flush=True)


if __name__ == "__main__":
    main()

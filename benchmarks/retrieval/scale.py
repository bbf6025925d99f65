"""How engines grow with the corpus: one table, and what it foretells for all of Wikipedia.

    python -m benchmarks.retrieval.scale --sizes 10000 100000 1000000 --data DIR
    python -m benchmarks.retrieval.scale --python pyserini=OTHER-ENVIRONMENT/bin/python ...

Every engine is built in a child process and asked in another, so that times and memory are its own;
one whose package is missing stands in the table as not installed. Memory is the largest that was
seen of what the process itself had allocated; files that it maps are not counted, since the machine
takes those pages back at will. Word engines are asked for the passage that a query was made from,
vector engines for the exact ten. Everything runs on one thread, and rates are those of the
processor's time, which another load on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.retrieval import vector_engines, word_engines
from benchmarks.retrieval.process_memory import memory
from benchmarks.retrieval.zipf import queries, write_corpus
from searchrl.retrieval.vectors import Vectors

K = 10
WIKIPEDIA = 21_015_324
_QUERIES, _BATCH = 256, 64
_MISSING = 77
_SAMPLE_SECONDS = 0.02
_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_BUILT = "built.json"
_KINDS = {"words": word_engines.ENGINES, "vectors": vector_engines.ENGINES}
_COLUMNS = (
    "kind", "engine", "passages", "build CPU-s", "build memory MB", "index MB", "open s",
    "memory MB", "p50 ms", "p99 ms", "queries a CPU-s alone", "of 64", "recall@10",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Built:
    """What a build took."""

    cpu_seconds: float
    memory_mb: float
    index_mb: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What an opened index took."""

    open_seconds: float
    memory_mb: float
    p50_ms: float
    p99_ms: float
    alone: float
    batched: float
    recall: float


def main() -> None:
    """Print the table and the forecasts, or be one of the children."""
    options = parse()
    if options.child:
        be_child(options.child, options.kind[0], options.engine, options.sizes[0], options.data)
        return
    interpreters = dict(each.split("=", 1) for each in options.python)
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for kind in options.kind:
        for engine in options.engines or _KINDS[kind]:
            if engine in _KINDS[kind]:
                python = interpreters.get(engine, sys.executable)
                rows = list(measured(kind, engine, options.sizes, options.data, python))
                if len(rows) > 1:
                    print(forecast(kind, engine, rows), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kind", nargs="+", choices=tuple(_KINDS), default=["words", "vectors"])
    parser.add_argument("--engines", nargs="+", help="all when left out")
    parser.add_argument("--data", type=Path, default=Path("build/retrieval"))
    parser.add_argument(
        "--python", nargs="+", default=[], metavar="ENGINE=PYTHON",
        help="the interpreter of an engine that needs an environment of its own",
    )  # fmt: skip
    parser.add_argument("--child", choices=("build", "ask"), help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(
    kind: str, engine: str, sizes: Sequence[int], data: Path, python: str
) -> Iterator[tuple[int, Built, Asked]]:
    """Measure one engine at every size, and print a row for each."""
    for size in sizes:
        try:
            built = Built(**built_index(kind, engine, size, data, python))
            asked = Asked(**_child("ask", kind, engine, size, data, python))
        except ImportError:
            print(f"| {kind} | {engine} | not installed{' |' * (len(_COLUMNS) - 2)}", flush=True)
            return
        cells = (
            kind, engine, f"{size:,}", f"{built.cpu_seconds:,.1f}", f"{built.memory_mb:,.0f}",
            f"{built.index_mb:,.1f}", f"{asked.open_seconds:.2f}", f"{asked.memory_mb:,.0f}",
            f"{asked.p50_ms:.2f}", f"{asked.p99_ms:.2f}", f"{asked.alone:,.0f}",
            f"{asked.batched:,.0f}", f"{asked.recall:.3f}",
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
        yield size, built, asked


def built_index(
    kind: str, engine: str, size: int, data: Path, python: str = sys.executable
) -> dict[str, float]:
    """What the build of an index took; it is built where it is not there yet.

    Raises:
        ImportError: the engine is not installed.
    """
    record = index_folder(kind, engine, size, data) / _BUILT
    if not record.is_file():
        taken = _child("build", kind, engine, size, data, python)
        record.write_text(json.dumps(taken))
    found: dict[str, float] = json.loads(record.read_text())
    return found


def index_folder(kind: str, engine: str, size: int, data: Path) -> Path:
    """Where an index lies."""
    return data / f"{kind}-{engine.replace(', ', '-')}-{size}"


def _child(
    task: str, kind: str, engine: str, size: int, data: Path, python: str
) -> dict[str, float]:
    command = [
        python, "-m", "benchmarks.retrieval.scale", "--child", task, "--kind", kind,
        "--engine", engine, "--sizes", str(size), "--data", str(data),
    ]  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **_THREADS}, check=False
    )
    if ended.returncode == _MISSING:
        raise ImportError(engine)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr[-2_000:]}")
    answer: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def be_child(task: str, kind: str, engine: str, size: int, data: Path) -> None:
    """Build or ask one index, and say as JSON what it took."""
    try:
        taken = (build if task == "build" else ask)(kind, engine, size, data)
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(_MISSING)
    print(json.dumps(asdict(taken)))


def build(kind: str, engine: str, size: int, data: Path) -> Built:
    """Build one index; what all engines of a kind share is drawn before."""
    folder = index_folder(kind, engine, size, data)
    source = _shards(size, data) if kind == "vectors" else corpus_file(size, data)
    if kind == "vectors":
        vector_engines.write_drawn(size, source)
    elif not source.is_file():
        write_corpus(source, size)
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with largest_memory() as memory:
        started = time.process_time()
        try:
            _KINDS[kind][engine][0](source, folder)
        except SystemExit as ended:  # commands of others end so
            if ended.code:
                raise
        taken = time.process_time() - started
    files = [file for file in folder.rglob("*") if file.is_file() and file.parent.name != "corpus"]
    return Built(taken, memory(), sum(file.stat().st_size for file in files) / 1e6)


def ask(kind: str, engine: str, size: int, data: Path) -> Asked:
    """Open one index and ask it."""
    return (_ask_vectors if kind == "vectors" else _ask_words)(engine, size, data)


def _ask_words(engine: str, size: int, data: Path) -> Asked:
    questions = list(queries(_QUERIES, size))
    with largest_memory() as memory:
        started = time.perf_counter()
        search = word_engines.ENGINES[engine][1](index_folder("words", engine, size, data))
        opened = time.perf_counter() - started
        for each in questions:  # reads what is mapped
            search(each.text, K)
        taken, alone = _timed([lambda each=each: search(each.text, K)[0] for each in questions])
        found = [each.passage in ids for each, (ids, _) in zip(questions, taken, strict=True)]
        times = [seconds for _, seconds in taken]
    return _asked(opened, memory(), times, alone, alone, float(np.mean(found)))


def _ask_vectors(engine: str, size: int, data: Path) -> Asked:
    vectors = Vectors(_shards(size, data))
    questions = vector_engines.DrawnVectors().queries(vectors, _QUERIES)
    wanted = exact(vectors, questions)
    with largest_memory() as memory:
        started = time.perf_counter()
        folder = index_folder("vectors", engine, size, data)
        search = vector_engines.ENGINES[engine][1](_shards(size, data), folder)
        opened = time.perf_counter() - started
        search(questions[:_BATCH], K)
        taken, alone = _timed([lambda each=each: search(each[None], K) for each in questions])
        parts = np.split(questions, range(_BATCH, len(questions), _BATCH))
        _, batches = _timed([lambda part=part: search(part, K) for part in parts])
        rows = np.concatenate([found for found, _ in taken])
    shared = [len(set(a) & set(b)) for a, b in zip(rows.tolist(), wanted.tolist(), strict=True)]
    times = [seconds for _, seconds in taken]
    rate = batches * len(questions) / len(parts)
    return _asked(opened, memory(), times, alone, rate, float(np.mean(shared)) / K)


def exact(vectors: Vectors, questions: vector_engines.Queries) -> np.ndarray:
    """The rows of the ``K`` best products, by brute force."""
    scores = np.empty((len(questions), 0), np.float32)
    rows = np.empty((len(questions), 0), np.int64)
    for start, block in vectors.blocks():
        here = np.broadcast_to(np.arange(start, start + len(block)), (len(questions), len(block)))
        scores = np.concatenate([scores, questions @ block.T], axis=1)
        rows = np.concatenate([rows, here], axis=1)
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        scores, rows = (np.take_along_axis(each, best, axis=1) for each in (scores, rows))
    return rows


def _timed(calls: Sequence[Callable[[], object]]) -> tuple[list[tuple[object, float]], float]:
    """Answers with the seconds of each, and calls a second of the processor's time."""
    answers = []
    cpu = time.process_time()
    for call in calls:
        started = time.perf_counter()
        answer = call()
        answers.append((answer, time.perf_counter() - started))
    return answers, len(calls) / (time.process_time() - cpu)


def _asked(
    opened: float, memory: float, times: Sequence[float], alone: float, rate: float, recall: float
) -> Asked:
    p50, p99 = (1_000 * float(np.quantile(times, share)) for share in (0.5, 0.99))
    return Asked(opened, memory, p50, p99, alone, rate, recall)


def corpus_file(size: int, data: Path) -> Path:
    """The corpus in Search-R1's form."""
    return data / f"zipf-{size}.jsonl"


def _shards(size: int, data: Path) -> Path:
    return data / f"drawn-{size}"


@contextmanager
def largest_memory() -> Iterator[Callable[[], float]]:
    """Watch what this process allocates; the answer is the largest growth, in MB."""
    before, largest, ended = allocated(), 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(_SAMPLE_SECONDS):
            largest = max(largest, allocated())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: (max(largest, allocated()) - before) / 1e6
    finally:
        ended.set()
        thread.join()


def allocated() -> int:
    """Bytes of this process that no file backs."""
    return memory(os.getpid())[0]


def forecast(kind: str, engine: str, rows: Sequence[tuple[int, Built, Asked]]) -> str:
    """What a power law through the two largest sizes, or a line, says of all of Wikipedia."""
    (small, *_), (large, *_) = rows[-2], rows[-1]
    words = []
    for name, of in (
        ("build CPU-s", lambda row: row[1].cpu_seconds),
        ("build memory MB", lambda row: row[1].memory_mb),
        ("index MB", lambda row: row[1].index_mb),
        ("CPU-ms a query", lambda row: 1_000 / row[2].alone),
    ):
        low, high = max(of(rows[-2]), 1e-9), max(of(rows[-1]), 1e-9)
        power = np.log(high / low) / np.log(large / small)
        line = low + (high - low) * (WIKIPEDIA - small) / (large - small)
        law = high * (WIKIPEDIA / large) ** power
        words.append(f"{name} ~ N^{power:.2f}: {law:,.0f} (line: {line:,.0f})")
    return f"<!-- {kind}, {engine}, at {WIKIPEDIA:,}: {'; '.join(words)} -->"


if __name__ == "__main__":
    main()

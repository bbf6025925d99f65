"""What ``searchrl index build`` takes, as a user starts it, as the corpus grows.

    python -m benchmarks.retrieval.build_memory --sizes 10000 100000 1000000 --data DIR
    python -m benchmarks.retrieval.build_memory --kind dense --encoder MODEL --set max_length=16

The command runs in a process of its own, on one thread, over a corpus with Zipf's law. Its own
memory is what no file backs; resident memory has the pages of mapped files too, which the machine
takes back at will. Both are the largest that was seen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.retrieval.process_memory import memory
from benchmarks.retrieval.scale import corpus_file
from benchmarks.retrieval.zipf import write_corpus

_SAMPLE_SECONDS = 0.02
_COLUMNS = ("kind", "passages", "CPU s", "own memory, MB", "resident, MB", "index, MB")


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kind", choices=("bm25", "dense", "hybrid"), default="bm25")
    parser.add_argument("--encoder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, default=Path("build/retrieval"))
    options = parser.parse_args()
    settings = [each for pair in options.set for each in ("--set", pair)]
    if options.encoder:
        settings += ["--encoder", options.encoder]
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for size in options.sizes:
        corpus = corpus_file(size, options.data)
        if not corpus.is_file():
            write_corpus(corpus, size)
        out = options.data / f"built-{options.kind}-{size}"
        taken, own, resident = build(corpus, out, options.kind, settings)
        index = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        shutil.rmtree(out)
        cells = (size, taken, own / 1e6, resident / 1e6, index / 1e6)
        numbers = " | ".join(f"{cell:,.0f}" for cell in cells)
        print(f"| {options.kind} | {numbers} |", flush=True)


def build(corpus: Path, out: Path, kind: str, settings: list[str]) -> tuple[float, int, int]:
    """Seconds of the processor, and the most bytes of own and of resident memory."""
    command = [
        sys.executable, "-m", "searchrl", "index", "build",
        "--corpus", str(corpus), "--out", str(out), "--kind", kind, *settings,
    ]  # fmt: skip
    before = os.times()
    own = resident = 0
    with subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            sizes = memory(process.pid)
            own, resident = max(own, sizes[0]), max(resident, sum(sizes))
            time.sleep(_SAMPLE_SECONDS)
    if process.returncode:
        sys.exit(process.returncode)
    after = os.times()
    taken = after.children_user + after.children_system
    return taken - before.children_user - before.children_system, own, resident


if __name__ == "__main__":
    main()

"""``searchrl serve --shard`` as processes: lists of all shards, or none while one is down."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from searchrl.data.synthwiki import write_synthwiki
from searchrl.retrieval.index import build_index
from searchrl.retrieval.shards import Shard
from searchrl.serving.client import HttpRetriever
from tests.command_line import free_port

pytestmark = pytest.mark.pipeline
_PATIENCE = 60
QUERY = {"queries": ["Who directed the film?"], "topk": 5}


@contextmanager
def serving(port: int, *options: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "searchrl", "serve", *map(str, options), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=_PATIENCE)


def until(port: int, status: int) -> None:
    """Wait until a search at the port is answered so."""
    deadline = time.monotonic() + _PATIENCE
    found: int | str = "nothing"
    while found != status:
        assert time.monotonic() < deadline, f"the answer is {found}"
        time.sleep(0.05)
        try:
            url = f"http://127.0.0.1:{port}/retrieve"
            found = httpx2.post(url, json=QUERY, timeout=_PATIENCE).status_code
        except httpx2.TransportError as error:
            found = str(error)


def test_shards_behind_one_address(tmp_path: Path) -> None:
    write_synthwiki(tmp_path, 300, 11, 40)
    corpus, parts = tmp_path / "corpus.jsonl", [tmp_path / "part-1", tmp_path / "part-2"]
    whole = build_index(corpus, tmp_path / "whole")
    for number, part in enumerate(parts, start=1):
        build_index(corpus, part, shard=Shard(number, 2))
    first, second, front = free_port(), free_port(), free_port()
    shards = [f"--shard=http://127.0.0.1:{port}" for port in (first, second)]
    with serving(first, "--index", parts[0]), serving(front, *shards):
        # It waits for the shard that is not there yet, and then for one that is gone.
        with serving(second, "--index", parts[1]):
            until(front, 200)
            queries = [whole.corpus[row].title for row in range(0, 300, 30)]
            found = asyncio.run(
                HttpRetriever(f"http://127.0.0.1:{front}/retrieve").search(queries, 9)
            )
            assert found == asyncio.run(whole.search(queries, 9))
        until(front, 503)
        with serving(second, "--index", parts[1]):
            until(front, 200)
    with serving(first, "--index", tmp_path / "whole"), serving(front, *shards[:1]) as refusing:
        refusing.wait(_PATIENCE)
        assert refusing.stderr is not None
        assert f"http://127.0.0.1:{first}: serves no shard" in refusing.stderr.read()
        assert refusing.returncode == 2

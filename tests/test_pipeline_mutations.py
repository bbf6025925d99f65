"""T-E01: files that are not what was written, opened in children with little memory.

A child ends by saying what it refused or that it read the file whole; a signal, a traceback, or an
index that opens although a byte of it differs, is a failure.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from searchrl.data.jsonl import write_jsonl
from searchrl.data.passages import read_corpus
from searchrl.data.verl import read_parquet
from searchrl.errors import SearchRLError
from searchrl.retrieval.index import build_index, open_index
from searchrl.retrieval.options import DenseOptions, HybridOptions
from tests.encoders import CORPUS, write_encoder

pytestmark = pytest.mark.pipeline
_CAP = 2 << 30
"""Bytes that a child may take beside those it was started with."""
_MUTANTS = 100
Read = Callable[[], object]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A child must not need a pool of threads that only its parent has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """The data with a flipped bit, a hole of zeros, an end that is cut off, or noise after it."""
    at = int(draw.integers(0, len(data)))
    match int(draw.integers(0, 4)):
        case 0:
            return data[:at] + bytes([data[at] ^ (1 << int(draw.integers(0, 8)))]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes(len(data[at : at + 64])) + data[at + 64 :]
        case 2:
            return data[:at]
        case _:
            return data + draw.bytes(64)


def outcome(read: Read) -> str:
    """How a child that reads ends: ``read``, or what it refused; anything else fails the test."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(read, there))
    child.start()
    there.close()
    try:
        said = here.recv()
    except EOFError:
        said = "nothing"
    child.join()
    assert child.exitcode == 0, (child.exitcode, said)
    return str(said)


def _child(read: Read, say: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    most = pages * resource.getpagesize() + _CAP
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        read()
    except SearchRLError as error:
        say.send(f"refused: {error}")
    else:
        say.send("read")


def _all(read: Callable[[Path], Iterable[object]], file: Path) -> list[object]:
    return list(read(file))


def test_T_E01_no_mutated_index_or_encoder_is_opened(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    build_index(CORPUS, tmp_path / "index", HybridOptions(encoder=str(encoder)))
    draw = np.random.default_rng(1)
    weights = encoder / "model.safetensors"
    files = [file for file in sorted((tmp_path / "index").rglob("*")) if file.is_file()]
    for number in range(_MUTANTS):
        copy = Path(shutil.copytree(tmp_path / "index", tmp_path / "copy", dirs_exist_ok=True))
        whole = weights.read_bytes()
        if number % 10 == 0:
            spoiled, changed = weights, whole[: int(draw.integers(0, len(whole)))]
        else:
            origin = files[int(draw.integers(0, len(files)))]
            spoiled = copy / origin.relative_to(tmp_path / "index")
            while (changed := mutated(origin.read_bytes(), draw)) == origin.read_bytes():
                pass
        spoiled.write_bytes(changed)
        said = outcome(partial(open_index, copy))
        named = spoiled.name in said or (spoiled == weights and str(encoder) in said)
        assert said.startswith("refused: "), (spoiled, said)
        assert named or "manifest" in said, (spoiled, said)
        weights.write_bytes(whole)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "npy"])
def test_T_E01_a_mutated_file_of_data_is_read_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"data.{kind}"
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").table({"question": [each.text for each in CORPUS]})
        parquet.write_table(table, file)
        read: Read = partial(_all, read_parquet, file)
    elif kind == "npy":
        encoder = write_encoder(tmp_path / "encoder")
        np.save(file, np.ones((len(CORPUS), 16), np.float32))
        options = DenseOptions(encoder=str(encoder))
        read = partial(build_index, CORPUS, tmp_path / "index", options, file)
    else:
        rows = [{"id": each.id, "contents": each.contents} for each in CORPUS]
        write_jsonl(file, rows)
        read = partial(_all, read_corpus, file)
    whole, draw = file.read_bytes(), np.random.default_rng(2)
    for _ in range(_MUTANTS // 4):
        file.write_bytes(mutated(whole, draw))
        said = outcome(read)
        assert said == "read" or file.name in said or "data" in said, said

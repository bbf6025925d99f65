"""Services and workers that die under a run of verl: no reward is made up, the run ends whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from searchrl.distributed.launch import train_on_verl
from searchrl.experiment import Experiment
from searchrl.recipe import Recipe
from searchrl.training.run_directory import RunDirectory
from tests.verl.verl_fixtures import environment, metrics_of, recipe

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def _processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def free_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


class Served:
    """A server of the ``searchrl`` program that can be killed and started again on its port."""

    def __init__(self, port: int, *arguments: str) -> None:
        self.port = port
        self._command = [sys.executable, "-m", "searchrl", *arguments, "--port", str(port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(lambda: _listens(self.port), 120)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def wait_for(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


@contextmanager
def services(folder: Path) -> Iterator[tuple[Served, Served, Recipe]]:
    """A world, a server of its index and one of the generator, and a recipe that uses both."""
    searchrl = [sys.executable, "-m", "searchrl"]
    world = folder / "world"
    make = ["synthwiki", "--size", "1000", "--seed", "0", "--questions", "12", "--out", str(world)]
    subprocess.run([*searchrl, *make], check=True, stdout=subprocess.DEVNULL)
    build = [
        "index",
        "build",
        "--corpus",
        str(world / "corpus.jsonl"),
        "--out",
        str(world / "index"),
    ]
    subprocess.run([*searchrl, *build], check=True, stdout=subprocess.DEVNULL)
    retriever = Served(free_port(), "serve", "--index", str(world / "index"))
    generator = Served(free_port(), "serve-model", "tiny-generator")
    values = recipe("tiny-grpo", "run.steps=4", "run.save_every=1").model_dump(mode="json")
    files = {
        "kind": "files",
        "corpus": str(world / "corpus.jsonl"),
        "questions": str(world / "questions.jsonl"),
    }
    values["data"] = {"train": files, "test": files}
    values["retriever"] = {"kind": "http", "url": f"http://127.0.0.1:{retriever.port}/retrieve"}
    values["generator"] |= {
        "kind": "http",
        "url": f"http://127.0.0.1:{generator.port}/v1",
        "model": "tiny-generator",
        "tokenizer": "tiny-generator",
        "max_length": 2048,
    }
    for key in ("device", "dtype", "thinking"):
        values["generator"].pop(key)
    values["verl"]["restarts"] = 2
    values["verl"]["stall_seconds"] = 45
    with ExitStack() as stack:
        for server in (retriever, generator):
            stack.callback(server.kill)
            server.start()
        yield retriever, generator, Recipe.model_validate(values)


def workers_of(run: Path, name: str) -> list[int]:
    """The run's Ray workers of one kind, by the title that Ray gives them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if title.startswith(f"ray::{name}".encode()) and str(run).encode() in variables:
            found.append(int(entry.name))
    return found


def test_kills_are_survived(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with services(tmp_path) as (retriever, generator, made):

        def hurt(step: int, metrics: dict[str, float]) -> None:
            # Each time in the step that follows, and only in the first attempt at it.
            if step == 1:
                retriever.kill()
                retriever.start()
            elif step == 2:
                generator.kill()
                generator.start()
            elif step == 3 and len(list((out / "logs").glob("verl-*.log"))) == 1:
                [worker] = workers_of(out, "AgentLoopWorker")
                os.kill(worker, signal.SIGKILL)

        train_on_verl(Experiment(made, out), RunDirectory(out), on_step=hurt)
    rows = metrics_of(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # The clients waited for both servers; the worker's step was done again by another attempt.
    assert [row["episodes/failed"] for row in rows] == [0, 0, 0, 0]
    assert len(list((out / "logs").glob("verl-*.log"))) == 2
    assert (out / "STATUS").read_text() == "success\n"

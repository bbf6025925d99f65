"""Two Ray nodes on one machine train together; one dies, and the run goes on with another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from searchrl.distributed.launch import train_on_verl
from searchrl.experiment import Experiment
from searchrl.training.run_directory import RunDirectory
from tests.command_line import free_port
from tests.verl.served import wait_for
from tests.verl.verl_fixtures import metrics_of, recipe
from tests.verl_cpu.recipes import SETTINGS

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(1800)]
_MARK = "SEARCHRL_TEST_NODE"
_RAY = str(Path(sys.executable).with_name("ray"))
_SECONDS_TO_JOIN = 120.0


class Node:
    """A node of a Ray cluster with one GPU, which nothing checks to be there.

    Args:
        address: of the head.
        folder: for Ray's sockets and logs, of the head alone.
    """

    def __init__(self, address: str, folder: Path | None = None) -> None:
        # Every process of the node inherits the mark, which is how a dead machine is made of it.
        self._mark = f"{_MARK}={free_port()}"
        place = ["--address", address]
        if folder is not None:
            port = address.rpartition(":")[2]
            place = ["--head", f"--port={port}", f"--temp-dir={folder}"]
            place.append("--include-dashboard=false")
        ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command = [_RAY, "start", "--block", "--num-cpus=16", "--num-gpus=1", *place, *ports]
        # Ray gives a node half a minute to start, which is little where others compute too.
        assert any(self._start(command) for _ in range(3)), "the node does not start"

    def _start(self, command: list[str]) -> bool:
        name, _, value = self._mark.partition("=")
        with tempfile.NamedTemporaryFile("w") as said:
            process = subprocess.Popen(
                command, env={**os.environ, name: value}, stdout=said, stderr=subprocess.STDOUT
            )
            path = Path(said.name)
            wait_for(
                lambda: process.poll() is not None or "runtime started" in path.read_text(),
                _SECONDS_TO_JOIN,
            )
        return process.poll() is None

    def workers(self, kind: str) -> list[int]:
        """Ray's workers of one kind on this node."""
        return self._processes(f"ray::{kind}".encode())

    def kill(self) -> None:
        """All its processes at once, as when the machine loses its power."""
        for process in self._processes(b""):
            os.kill(process, signal.SIGKILL)

    def _processes(self, title: bytes) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if title in (entry / "cmdline").read_bytes() and self._mark.encode() in (
                    entry / "environ"
                ).read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


@contextmanager
def cluster() -> Iterator[tuple[str, ExitStack]]:
    """The head's address, and what ends the nodes that are pushed to it."""
    address = f"127.0.0.1:{free_port()}"
    # Ray puts sockets there, whose names may not be long.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        ExitStack() as nodes,
    ):
        nodes.callback(Node(address, Path(folder)).kill)
        yield address, nodes


def test_a_machine_dies_and_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    out = tmp_path / "run"
    options = ("verl.nodes=2", "verl.restarts=1", "verl.stall_seconds=120", "run.steps=3")
    made = recipe("tiny-grpo", *options, "run.save_every=1", settings=SETTINGS)
    attempts: dict[int, list[int]] = {}
    with cluster() as (address, nodes):
        second = Node(address)
        nodes.callback(second.kill)

        def lose_a_machine(step: int, metrics: dict[str, float]) -> None:
            attempts.setdefault(step, []).append(len(list((out / "logs").glob("verl-*.log"))))
            if step == 2 and len(attempts[2]) == 1:
                # Each machine has one of the two ranks of the trainer.
                assert len(second.workers("WorkerDict")) == 1
                second.kill()
                nodes.callback(Node(address).kill)

        train_on_verl(
            Experiment(made, out), RunDirectory(out), ray_address=address, on_step=lose_a_machine
        )
    # Its checkpoint of the second step may not have been whole when it died.
    assert attempts in ({1: [1], 2: [1], 3: [2]}, {1: [1], 2: [1, 2], 3: [2]})
    rows = metrics_of(out)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["episodes/failed"] == 0 for row in rows)
    assert (out / "STATUS").read_text() == "success\n"

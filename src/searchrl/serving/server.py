"""A server for an index, its shards or the web: worker processes, started and stopped together.

Each worker maps the index's arrays from the same files, so the machine holds them once. What can be
known to be wrong is refused before anything is bound; an index that turns out to be damaged stops
the server with the reason. A worker that dies is replaced, and none outlives its parent. On SIGTERM
or Ctrl-C the workers take no more connections and finish what is under way.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from searchrl.errors import InfrastructureError, InputError, SearchRLError
from searchrl.serving.gate import check_exposure
from searchrl.serving.served import Served
from searchrl.serving.settings import METRICS_DIRECTORY, ServerSettings
from searchrl.transport.keys import read_key

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    from searchrl.serving.app import RetrieverApp

_BACKLOG = 4_096
_SECONDS_TO_FINISH = 10


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, with how many processes."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1

    @property
    def url(self) -> str:
        """The address as a client writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def serve(
    served: Served, address: Address, settings: ServerSettings, started: Callable[[], None]
) -> None:
    """Serve until a signal ends it.

    Args:
        served: an index, the shards of one, or the web.
        address: where to listen.
        settings: limits and the name of the key's variable.
        started: called when clients may come.

    Raises:
        InputError: nothing there that can be opened, an address that others can reach without a
            key, an empty key, or an address that cannot be bound.
        InfrastructureError: worker processes ended by themselves, one after the other.
    """
    served.check(address.workers)
    check_exposure(address.host, guarded=settings.key_variable is not None)
    _key(settings)
    _check_address(address)
    failures: SimpleQueue[str] = multiprocessing.SimpleQueue()
    loader = partial(load_app, served, settings, os.getpid(), failures)
    with _shared_metrics(address.workers):
        run_workers(address, loader, started)
    if not failures.empty():
        raise InputError(failures.get())


def load_app(
    served: Served, settings: ServerSettings, parent: int, failures: SimpleQueue[str]
) -> RetrieverApp:
    """The application of one worker process; an index that cannot be opened stops its parent."""
    from searchrl.serving.app import RetrieverApp

    threading.Thread(target=_end_with_parent, daemon=True).start()

    def fail(error: SearchRLError) -> None:
        failures.put(str(error))
        os.kill(parent, signal.SIGTERM)

    reader = None if served.reranker is None else served.open_reader
    return RetrieverApp(served.open, settings, _key(settings), fail, reader, served.describe())


def _end_with_parent() -> None:
    """Keep a worker from holding the port when its parent was killed without a word."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _key(settings: ServerSettings) -> str | None:
    return read_key(settings.key_variable, "--key-variable")


def _check_address(address: Address) -> None:
    """See that the port is free: workers share it, so a second server would not notice the first.

    Raises:
        InputError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise InputError(f"{address.url}: cannot be bound: {error.strerror}") from error


@contextmanager
def _shared_metrics(workers: int) -> Iterator[None]:
    """Let several workers count in one place."""
    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="searchrl-metrics-") as directory:
        os.environ[METRICS_DIRECTORY] = directory
        try:
            yield
        finally:
            del os.environ[METRICS_DIRECTORY]


def run_workers(
    address: Address, loader: Callable[[], RetrieverApp], started: Callable[[], None]
) -> None:
    """Run worker processes until a signal ends them.

    Args:
        address: where they listen, and how many there are.
        loader: makes the application, in each of them; has to be picklable.
        started: called when clients may come.

    Raises:
        InfrastructureError: they ended by themselves, one after the other.
    """
    from granian.constants import HTTPModes, Interfaces
    from granian.log import LogLevels
    from granian.server import Server

    server = Server(
        target="searchrl.serving",
        address=address.host,
        port=address.port,
        interface=Interfaces.ASGI,
        workers=address.workers,
        http=HTTPModes.http1,
        websockets=False,
        backlog=_BACKLOG,
        log_level=LogLevels.warning,
        workers_kill_timeout=_SECONDS_TO_FINISH,
        respawn_failed_workers=True,
    )
    server.on_startup(started)
    try:
        server.serve(target_loader=loader, wrap_loader=False)
    except SystemExit as ended:
        raise InfrastructureError("the server's worker processes keep ending") from ended

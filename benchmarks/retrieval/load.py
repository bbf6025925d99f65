"""An HTTP load: connections over loopback, each with one request under way, timed one by one.

One thread and one ``epoll`` drive all connections, with requests made beforehand, so that the
client takes little of the machine that it shares with the server it measures.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_READ = 1 << 18
_SECONDS_TO_ANSWER = 60
_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of clients saw.

    Attributes:
        milliseconds: of each request, in order of its end.
        queries: in each request.
        seconds: the run's length.
        cpu_seconds: that the server's processes used meanwhile.
    """

    milliseconds: tuple[float, ...]
    queries: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        """Queries answered a second."""
        return self.queries * len(self.milliseconds) / self.seconds

    @property
    def cpu_milliseconds(self) -> float:
        """Processor time of the server for one query."""
        return 1_000 * self.cpu_seconds / (self.queries * len(self.milliseconds))

    def percentile(self, share: float) -> float:
        """The time, in milliseconds, that this share of the requests did not exceed."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection:
    """One client: sends its requests in turn, the next when the last is answered."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_SECONDS_TO_ANSWER)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = requests
        self._number = 0
        self._answer = b""
        self._sent = 0.0

    def send(self) -> None:
        request = self._requests[self._number % len(self._requests)]
        self._number += 1
        self._answer = b""
        self._sent = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> float | None:
        """Seconds that the answer took, once it is there."""
        data = self.socket.recv(_READ)
        if not data:
            raise RuntimeError("the server closed a connection")
        self._answer += data
        head, end, body = self._answer.partition(_END_OF_HEAD)
        if not end or len(body) < _body_length(head):
            return None
        return time.perf_counter() - self._sent


def _body_length(head: bytes) -> int:
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"not an answer: {head[:200]!r}")
    return int(head.lower().partition(b"content-length:")[2].split(None, 1)[0])


def measure(
    port: int, process: int, clients: int, requests: Sequence[bytes], queries: int, seconds: float
) -> Load:
    """Keep ``clients`` connections busy for ``seconds``.

    Args:
        port: of the server, on this machine.
        process: the server's; its processor time and that of its children is counted.
        clients: how many connections.
        requests: whole requests, each of ``queries`` queries; dealt out to the connections.
        queries: see there.
        seconds: how long requests are sent.
    """
    connections = [_Connection(port, requests[each::clients]) for each in range(clients)]
    by_file = {each.socket.fileno(): each for each in connections}
    times: list[float] = []
    with select.epoll() as poll:
        for file in by_file:
            poll.register(file, select.EPOLLIN)
        cpu, started = cpu_seconds(process), time.perf_counter()
        for each in connections:
            each.send()
        while by_file:
            events = poll.poll(_SECONDS_TO_ANSWER)
            if not events:
                raise RuntimeError(f"no answer within {_SECONDS_TO_ANSWER} s")
            for file, _ in events:
                taken = by_file[file].receive()
                if taken is None:
                    continue
                times.append(1_000 * taken)
                if time.perf_counter() - started < seconds:
                    by_file[file].send()
                else:
                    poll.unregister(file)
                    by_file.pop(file).socket.close()
        ended = time.perf_counter()
    return Load(tuple(times), queries, ended - started, cpu_seconds(process) - cpu)


def search_request(queries: Sequence[str], topk: int) -> bytes:
    """A whole HTTP request for ``/retrieve``."""
    asked = {"queries": list(queries), "topk": topk, "return_scores": True}
    body = json.dumps(asked).encode()
    head = (
        "POST /retrieve HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def cpu_seconds(process: int) -> float:
    """Processor time of a process and all below it, so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / _TICKS + sum(
        cpu_seconds(int(child)) for child in children
    )

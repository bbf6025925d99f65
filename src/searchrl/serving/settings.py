"""What a server accepts and how long it takes over it; the OpenAPI document states the same.

The limits of a request are fixed, so that a client can rely on them at every server; what depends
on the machine is a setting. A setting never holds the API key, only the name of the environment
variable that does: settings travel to worker processes and into error messages.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_BODY = 1 << 20
"""Bytes of a request's body."""
MAX_QUERIES = 512
"""Queries of one request."""
MAX_QUERY = 4_096
"""Characters of one query."""
MAX_TOPK = 100
"""Passages for one query."""
MAX_SECONDS = 300.0
"""The longest a client may ask to wait."""
MIN_SECONDS = 1.0
"""The shortest."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""Names that a Host header may hold where no other is allowed."""
TIMEOUT_HEADER = "x-request-timeout"
METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable by which the Prometheus library finds the counts of other processes."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What depends on the machine a server runs on.

    Attributes:
        topk: passages for a query of a request that names no number.
        capacity: queries that may be waiting or under way before more are turned away; one request
            is always let in.
        batch: most queries handed to the retriever at a time.
        seconds: deadline of a request that names none.
        body_seconds: how long a client may take to send its request.
        allowed_hosts: names that a Host header may hold; empty for any.
        key_variable: environment variable with the API key; ``None`` leaves the server open.
    """

    topk: int = 3
    capacity: int = 2_048
    batch: int = 64
    seconds: float = 30.0
    body_seconds: float = 10.0
    allowed_hosts: tuple[str, ...] = LOOPBACK_NAMES
    key_variable: str | None = None

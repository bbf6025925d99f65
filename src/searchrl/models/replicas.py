"""One model on several servers: requests go where the fewest are, and away from what failed.

Balancing is the client's, so nothing stands between it and the servers that could itself fail. A
server that failed is left alone for a while; while all of them are, the work waits, as it does for
a single server, and then ends in an ``InfrastructureError``. The servers have to be the same model
with the same settings: whose answer it is does not show.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from searchrl.errors import InfrastructureError
from searchrl.models.protocol import ChatModel, Message, Sampling

_REST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, replaceable so that an outage can be tested in an instant."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(slots=True)
class _Replica:
    model: ChatModel
    under_way: int = 0
    rests_until: float = 0.0


class ReplicatedChatModel(ChatModel):
    """A chat model on several servers.

    Args:
        models: one a server; each has to fail soon when its server is down.
        outage: seconds that a request waits while all servers are down.
        clock: time, for tests.
    """

    def __init__(
        self, models: Sequence[ChatModel], outage: float, clock: Clock | None = None
    ) -> None:
        self._replicas = [_Replica(model) for model in models]
        self._outage = outage
        self._clock = clock or Clock()

    @property
    def max_length(self) -> int:
        """Longest prompt plus reply, in tokens."""
        return self._replicas[0].model.max_length

    def count(self, text: str) -> int:
        """Tokens of plain text."""
        return self._replicas[0].model.count(text)

    def count_chat(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat in the model's template."""
        return self._replicas[0].model.count_chat(messages)

    async def chat(self, messages: Sequence[Message], sampling: Sampling) -> str:
        """The reply to a chat, from whichever server gives it.

        Raises:
            InfrastructureError: no server answered for as long as an outage is waited for.
        """
        given_up_at = self._clock.now() + self._outage
        while True:
            replica = await self._free(given_up_at)
            replica.under_way += 1
            try:
                return await replica.model.chat(messages, sampling)
            except InfrastructureError:
                now = self._clock.now()
                replica.rests_until = now + _REST_SECONDS
                if now >= given_up_at and self._all_rest(now):
                    raise
            finally:
                replica.under_way -= 1

    async def _free(self, given_up_at: float) -> _Replica:
        """The server with the fewest requests of those that do not rest.

        While all rest, waits for the first to be tried again, or until the request is given up,
        which it may try at once then.
        """
        now = self._clock.now()
        if self._all_rest(now):
            first = min(replica.rests_until for replica in self._replicas)
            await self._clock.sleep(max(0.0, min(first, given_up_at) - now))
            now = self._clock.now()
        awake = [r for r in self._replicas if r.rests_until <= now] or self._replicas
        return min(awake, key=lambda replica: replica.under_way)

    def _all_rest(self, now: float) -> bool:
        return all(replica.rests_until > now for replica in self._replicas)

"""Shards of one corpus behind HTTP, found to be whole and of one make before they are searched.

Each shard is a ``searchrl serve`` of its own and says at ``/v1/index`` what it holds. Searches are
given up soon when a shard is down, so that the client, who knows how long an outage may last, waits
at the edge and not in here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from searchrl.errors import InputError
from searchrl.retrieval.protocol import Retriever
from searchrl.retrieval.sharded import ShardedRetriever
from searchrl.serving import wire
from searchrl.serving.client import HttpRetriever
from searchrl.transport.errors import MalformedAnswerError
from searchrl.transport.keys import Credential
from searchrl.transport.service import Call, Patience, Service

_REFUSALS = range(300, 500)
_SECONDS_TO_START = 600.0


def open_shards(urls: Sequence[str], key: str | None, seconds: float) -> Retriever:
    """One retriever over the shards at some addresses.

    Args:
        urls: of the servers, as in ``http://host:8000``.
        key: the API key of all of them.
        seconds: how long a shard may take to answer a search.

    Raises:
        InputError: they are not all the shards of one corpus, or refuse the key.
        InfrastructureError: one of them does not answer.
    """
    bases = [url.rstrip("/") for url in urls]
    check_shards(dict(zip(bases, asyncio.run(_describe(bases, key)), strict=True)))
    return ShardedRetriever(
        {
            base: HttpRetriever(f"{base}/retrieve", key, seconds=seconds, outage=0, cache=0)
            for base in bases
        }
    )


def check_shards(found: dict[str, wire.ServedIndex]) -> None:
    """See that the servers hold all the shards of one corpus, each once.

    Raises:
        InputError: they do not; the line names the server or the shard.
    """
    holders: dict[int, str] = {}
    count, common = 0, ""
    for url, index in found.items():
        if index.shard is None:
            raise InputError(f"{url}: serves no shard; build one with index build --shard 1/2")
        count, common = count or index.shard.of, common or index.shard.set
        if (index.shard.of, index.shard.set) != (count, common):
            raise InputError(
                f"{url}: is no shard of the corpus and the settings of {next(iter(found))}"
            )
        other = holders.setdefault(index.shard.number, url)
        if other != url:
            raise InputError(f"{url}: serves shard {index.shard.number}, as {other} does")
    if absent := sorted(set(range(1, count + 1)) - set(holders)):
        raise InputError(f"--shard: nobody serves shard {absent[0]} of {count}")


async def _describe(urls: Sequence[str], key: str | None) -> list[wire.ServedIndex]:
    return list(await asyncio.gather(*(_describe_one(url, key) for url in urls)))


async def _describe_one(url: str, key: str | None) -> wire.ServedIndex:
    patience = Patience(outage=_SECONDS_TO_START, start=_SECONDS_TO_START, repeat_slow=True)
    service = Service(
        f"{url}/v1/index",
        None if key is None else Credential(key),
        patience,
        refusals=_REFUSALS,
        proxies=False,
    )
    answer = await service.ask(Call())
    try:
        return msgspec.convert(answer, wire.ServedIndex)
    except msgspec.ValidationError as error:
        raise MalformedAnswerError(f"{url}/v1/index: {error}") from error

"""The shards of a corpus as one Ray Serve application behind ``/retrieve``.

    serve run searchrl.distributed.ray_serve:build indexes=/data/part-1,/data/part-2

Each shard is a deployment, which Ray places and starts again; the front asks them all and merges,
as ``searchrl serve --shard`` does. A node that holds the index of a shard is named by a Ray
resource ``shard-N``, where ``placed=yes`` asks for it. A search that a shard fails is answered 503.
Requests are checked and answers written by the types of ``serving.wire``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from searchrl.errors import InfrastructureError
from searchrl.retrieval.index import open_index
from searchrl.retrieval.protocol import Hit
from searchrl.retrieval.sharded import ShardedRetriever
from searchrl.serving import wire
from searchrl.serving.served import IndexOnDisk
from searchrl.serving.settings import MAX_BODY, ServerSettings
from searchrl.serving.shards import check_shards

_SECONDS_TO_COME_AGAIN = "2"
_JSON = "application/json"


class ShardServer:
    """Searches one index.

    Args:
        index: the directory, on the machine where this runs.
    """

    def __init__(self, index: str) -> None:
        self._served = IndexOnDisk(index=Path(index))
        self._retriever = open_index(self._served.index)

    async def describe(self) -> wire.ServedIndex:
        """Which shard of what."""
        return self._served.describe()

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``."""
        return await self._retriever.search(queries, k)


class DeployedShard:
    """A shard server as a retriever.

    Args:
        handle: of its deployment.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``."""
        try:
            found: list[list[Hit]] = await self._handle.search.remote(queries, k)
        except Exception as error:
            # Ray raises errors of many kinds for a replica that is gone or that failed.
            raise InfrastructureError(f"{type(error).__name__}: {error}") from error
        return found


class Front:
    """Answers ``/retrieve`` from all shards.

    Args:
        shards: their deployments, by the directories that they serve.
    """

    def __init__(self, shards: dict[str, DeploymentHandle]) -> None:
        self._handles = shards
        self._retriever = ShardedRetriever({n: DeployedShard(h) for n, h in shards.items()})
        self._decoder = msgspec.json.Decoder(wire.RetrieveRequest)
        self._topk = ServerSettings().topk
        self._opening = asyncio.Lock()
        self._opened = False

    async def __call__(self, request: Request) -> Response:
        """Search, in Search-R1's form."""
        body = await request.body()
        if len(body) > MAX_BODY:
            return _refusal(413, f"the body is larger than {MAX_BODY} bytes")
        try:
            asked = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            return _refusal(422, str(error))
        except ValueError as error:
            return _refusal(400, str(error))
        queries = [asked.queries] if isinstance(asked.queries, str) else asked.queries
        try:
            await self._check()
            hits = await self._retriever.search(queries, wire.limit(asked) or self._topk)
        except InfrastructureError as error:
            return _refusal(503, str(error))
        return _reply(200, wire.retrieve_answer(hits, asked.return_scores))

    async def _check(self) -> None:
        """See once that the shards belong together."""
        async with self._opening:
            if not self._opened:
                told = [handle.describe.remote() for handle in self._handles.values()]
                found = await asyncio.gather(*told)
                check_shards(dict(zip(self._handles, found, strict=True)))
                self._opened = True


def build(arguments: dict[str, str]) -> serve.Application:
    """The application.

    Args:
        arguments: ``indexes``, the directories of all shards with commas between them; ``placed``,
            whether the n-th of them asks for the resource ``shard-n``.
    """
    indexes = arguments["indexes"].split(",")
    placed = "placed" in arguments
    shards = {}
    for number, index in enumerate(indexes, start=1):
        options: dict[str, Any] = {"num_cpus": 1}
        if placed:
            options["resources"] = {f"shard-{number}": 1}
        deployment = serve.deployment(
            ShardServer, name=f"shard-{number}", ray_actor_options=options
        )
        shards[index] = deployment.bind(index)
    application: serve.Application = serve.deployment(Front, name="front").bind(shards)
    return application


def _reply(status: int, answer: msgspec.Struct) -> Response:
    headers = {"retry-after": _SECONDS_TO_COME_AGAIN} if status == 503 else None
    return Response(msgspec.json.encode(answer), status, headers, _JSON)


def _refusal(status: int, detail: str) -> Response:
    return _reply(status, wire.Refusal(detail))

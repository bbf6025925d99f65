"""One retriever over the shards of a corpus: all are asked at once, and their lists are merged.

Every passage has the score that it has in an index of everything (see ``shards``), so the merged
list is that index's list. A shard that fails, or shards that hold the same passage, fail the
search: a list never comes from some of the shards only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from searchrl.errors import InfrastructureError, InputError
from searchrl.retrieval.protocol import Hit, Retriever


class ShardedRetriever:
    """Asks all shards.

    Args:
        shards: a retriever each, by the name that error messages have for it.
    """

    def __init__(self, shards: dict[str, Retriever]) -> None:
        self._shards = shards

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``.

        Raises:
            InfrastructureError: a shard did not answer, or does not belong to the others.
        """
        asked = [self._ask(name, shard, queries, k) for name, shard in self._shards.items()]
        answers = await asyncio.gather(*asked)
        return [merged(lists, k) for lists in zip(*answers, strict=True)]

    async def _ask(
        self, name: str, shard: Retriever, queries: Sequence[str], k: int
    ) -> list[list[Hit]]:
        try:
            return await shard.search(queries, k)
        except (InfrastructureError, InputError) as error:
            # What was right when the shards were opened is no mistake of whoever searches now.
            raise InfrastructureError(f"{name}: {error}") from error


def merged(lists: Sequence[Sequence[Hit]], k: int) -> list[Hit]:
    """The best ``k`` of several lists, by score and then by id.

    Raises:
        InfrastructureError: a passage is in two of them.
    """
    hits = sorted((hit for own in lists for hit in own), key=_order)
    if len({hit.passage.id for hit in hits}) < len(hits):
        raise InfrastructureError("the shards overlap: a passage came from two of them")
    return hits[:k]


def _order(hit: Hit) -> tuple[float, str]:
    return -hit.score, hit.passage.id

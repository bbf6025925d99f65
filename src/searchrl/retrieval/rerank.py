"""Reranking: a cross-encoder reads each query together with each of its candidates.

Pairs are gathered over all queries and read in batches of alike lengths. A score belongs to its
pair, so queries never share candidates, and equal queries get equal answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from searchrl.data.passages import Passage
from searchrl.errors import InputError
from searchrl.retrieval.batches import token_batches
from searchrl.retrieval.networks import load_network, longest_input
from searchrl.retrieval.options import RerankOptions
from searchrl.retrieval.protocol import Hit, Retriever

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MAX_LENGTH = 512


class CrossEncoder:
    """Scores pairs of texts.

    Args:
        network: a sequence classifier with one output, or with two, "no" and "yes".
        tokenizer: its tokenizer.
        max_length: tokens of a pair; the passage is cut.
        batch_size: pairs at once.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        batch_size: int,
    ) -> None:
        self._network = network
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._batch_size = batch_size

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """How well the second text of each pair answers the first; the model's raw output.

        Raises:
            InputError: a query alone is as long as the limit of a pair.
        """
        import torch

        scores = [0.0] * len(pairs)
        queries, texts = [query for query, _ in pairs], [text for _, text in pairs]
        batches = token_batches(self._tokenizer, queries, texts, self._max_length, self._batch_size)
        with torch.inference_mode():
            for places, tensors in batches:
                inputs = {name: each.to(self._network.device) for name, each in tensors.items()}
                logits_BL = self._network(**inputs).logits.float()
                found = logits_BL[:, -1] - (logits_BL[:, 0] if logits_BL.shape[1] == 2 else 0)
                for place, score in zip(places, found.tolist(), strict=True):
                    scores[place] = score
        return scores


class RerankedRetriever:
    """A retriever whose first passages are ordered anew.

    Args:
        inner: finds the candidates.
        reader: scores them.
        depth: candidates a query; never fewer than are asked for.
    """

    def __init__(self, inner: Retriever, reader: CrossEncoder, depth: int) -> None:
        self._inner = inner
        self._reader = reader
        self._depth = depth

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``; scores are the cross-encoder's.

        Raises:
            InputError: as the inner retriever, or a query is longer than the cross-encoder reads.
            InfrastructureError: the inner retriever failed.
        """
        found = await self._inner.search(queries, max(k, self._depth) if k > 0 else k)
        candidates = [[hit.passage for hit in hits] for hits in found]
        return [hits[:k] for hits in reread(self._reader, queries, candidates)]


def reread(
    reader: CrossEncoder, queries: Sequence[str], candidates: Sequence[Sequence[Passage]]
) -> list[list[Hit]]:
    """Each query's own candidates with the reader's scores, best first.

    Raises:
        InputError: a query is longer than the cross-encoder reads.
    """
    asked = list(zip(queries, candidates, strict=True))
    # Each pair is read once: in another batch its score could differ in the last bits.
    pairs = list(
        dict.fromkeys((query, _readable(passage)) for query, own in asked for passage in own)
    )
    scores = dict(zip(pairs, reader.score(pairs), strict=True))
    return [
        _ordered([Hit(passage, scores[query, _readable(passage)]) for passage in own])
        for query, own in asked
    ]


def load_cross_encoder(options: RerankOptions) -> CrossEncoder:
    """Load the model that ``options`` name.

    Raises:
        InputError: there is no such model, or it cannot be loaded, or it has more than two outputs.
    """
    name = options.model
    network, tokenizer = load_network("reranker", name, True, options.dtype, options.device)
    outputs = network.config.num_labels
    if outputs not in (1, 2):
        raise InputError(f"reranker {name!r}: has {outputs} outputs, not 1 or 2")
    limit = longest_input(network, options.max_length or DEFAULT_MAX_LENGTH)
    return CrossEncoder(network, tokenizer, limit, options.batch_size)


def _readable(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}" if passage.title else passage.text


def _ordered(hits: list[Hit]) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.passage.id))

"""What a server serves: an index of this machine, the shards of one on others, or the web.

It is described in the process that starts the server, checked there before anything is bound, and
opened in every worker process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.errors import InputError
from searchrl.retrieval.encoder import Runtime
from searchrl.retrieval.index import open_index, read_about
from searchrl.retrieval.options import AnyForm, RerankOptions
from searchrl.retrieval.rerank import CrossEncoder, load_cross_encoder
from searchrl.retrieval.shards import set_of
from searchrl.retrieval.web.opening import open_web, web_key
from searchrl.retrieval.web.options import WebOptions
from searchrl.transport.keys import read_key

if TYPE_CHECKING:
    from searchrl.retrieval.protocol import Retriever
    from searchrl.serving.backend import Advance
    from searchrl.serving.wire import ServedIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Served(ABC):
    """What each worker process opens.

    Attributes:
        device: where vectors, and the reranker, are computed.
        reranker: the cross-encoder behind ``/rerank``; ``None`` for a server without.
    """

    device: str = "cpu"
    reranker: str | None = None

    @abstractmethod
    def check(self, workers: int) -> None:
        """See that ``workers`` processes can open it.

        Raises:
            InputError: they cannot.
        """

    @abstractmethod
    def open(self, advance: Advance) -> Retriever:
        """The retriever."""

    def describe(self) -> ServedIndex | None:
        """The index; ``None`` where there is none on this machine."""
        return None

    def open_reader(self) -> CrossEncoder:
        """The cross-encoder."""
        assert self.reranker is not None, "asked for only where there is one"
        return load_cross_encoder(RerankOptions(model=self.reranker, device=self.device))


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOnDisk(Served):
    """An index directory of this machine.

    Attributes:
        index: the directory.
        encoder: where its encoder lies now, if it was moved.
        dtype: number form of the encoder, as in ``Runtime``.
    """

    index: Path
    encoder: str | None = None
    dtype: AnyForm = "auto"

    def check(self, workers: int) -> None:
        """See ``Served.check``; the index's files are read when it is opened."""
        read_about(self.index)

    def open(self, advance: Advance) -> Retriever:
        """See ``Served.open``."""
        runtime = Runtime(self.device, self.dtype)
        return open_index(self.index, encoder=self.encoder, runtime=runtime, advance=advance)

    def describe(self) -> ServedIndex:
        """See ``Served.describe``."""
        from searchrl.serving.wire import ServedIndex, ServedShard

        about = read_about(self.index)
        cut = about.get("shard")
        shard = None if cut is None else ServedShard(cut["number"], cut["of"], set_of(about))
        return ServedIndex(about["kind"], about["passages"], shard)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteShards(Served):
    """The shards of a corpus, served elsewhere.

    Attributes:
        urls: of their servers.
        seconds: how long one may take to answer a search.
        key_variable: environment variable with their API key.
    """

    urls: Sequence[str]
    seconds: float
    key_variable: str | None = None

    def check(self, workers: int) -> None:
        """See ``Served.check``; the key is looked for."""
        self._key()

    def open(self, advance: Advance) -> Retriever:
        """See ``Served.open``."""
        from searchrl.serving.shards import open_shards

        return open_shards(self.urls, self._key(), self.seconds)

    def _key(self) -> str | None:
        return read_key(self.key_variable, "--shard-key-variable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Web(Served):
    """The web, through a search service.

    Attributes:
        options: the service, and how it is asked.
        cache: where answers are kept, unless the options say.
    """

    options: WebOptions
    cache: Path

    def check(self, workers: int) -> None:
        """See ``Served.check``; the key is looked for."""
        if workers > 1:
            raise InputError(
                f"--workers {workers}: the web is served by one process, which alone can keep to "
                "the service's rate and to max_requests"
            )
        web_key(self.options)

    def open(self, advance: Advance) -> Retriever:
        """See ``Served.open``."""
        return open_web(self.options, self.cache)

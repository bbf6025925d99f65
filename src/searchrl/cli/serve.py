"""``searchrl serve``: an index, or the shards of one, as an HTTP service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from searchrl.cli.arguments import Device, Encoder, need_packages
from searchrl.errors import InputError

if TYPE_CHECKING:
    from searchrl.serving.server import Served


def command(
    index: Annotated[Path | None, typer.Option(help="An index directory.")] = None,
    shard: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of an index: the address of a server of one of its shards; repeatable."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8000,
    topk: Annotated[
        int, typer.Option(min=1, max=100, help="Passages for a request that names no number.")
    ] = 3,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes over one index.")] = 1,
    capacity: Annotated[
        int, typer.Option(min=1, help="Queries that may wait before more are turned away.")
    ] = 2_048,
    seconds: Annotated[
        float, typer.Option(min=1, max=300, help="Deadline of a request that names none.")
    ] = 30.0,
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable that holds the API key.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that clients may call this server by; repeatable."),
    ] = None,
    shard_key_variable: Annotated[
        str | None, typer.Option(help="Environment variable that holds the API key of the shards.")
    ] = None,
    encoder: Encoder = None,
    device: Device = "cpu",
    reranker: Annotated[
        str | None,
        typer.Option(help="A cross-encoder to answer /rerank: a path or a hub name."),
    ] = None,
) -> None:
    """Serve an index over HTTP, in the form that Search-R1's, s3's and verl's clients speak.

    With --shard, this server asks all shards of a corpus and merges what they find.

    Example: searchrl serve --index indexes/wiki --port 8000
    """
    need_packages("serve", "granian", "msgspec", "prometheus_client")
    from searchrl.serving.gate import allowed_hosts
    from searchrl.serving.server import Address, serve
    from searchrl.serving.settings import ServerSettings

    address = Address(host, port, workers)
    settings = ServerSettings(
        topk=topk,
        capacity=capacity,
        seconds=seconds,
        allowed_hosts=allowed_hosts(host, allow_host or (), guarded=key_variable is not None),
        key_variable=key_variable,
    )
    served = _served(index, shard or (), encoder, shard_key_variable, reranker, device, seconds)
    name = index or f"{len(shard or ())} shards"
    serve(served, address, settings, lambda: typer.echo(f"serving {name} at {address.url}"))


def _served(
    index: Path | None,
    shards: Sequence[str],
    encoder: str | None,
    shard_key_variable: str | None,
    reranker: str | None,
    device: str,
    seconds: float,
) -> Served:
    """What the options ask for.

    Raises:
        InputError: they ask for two things, or none.
    """
    from searchrl.serving.server import IndexOnDisk, RemoteShards

    if index is not None and not shards and shard_key_variable is None:
        return IndexOnDisk(reranker, device, index=index, encoder=encoder)
    if shards and index is None and encoder is None:
        return RemoteShards(
            reranker, device, urls=shards, seconds=seconds, key_variable=shard_key_variable
        )
    raise InputError(
        "serve: name an index (--index, --encoder) or the servers of its shards (--shard, "
        "--shard-key-variable), not both"
    )

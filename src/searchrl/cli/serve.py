"""``searchrl serve``: an index, the shards of one, or search on the web, as an HTTP service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from searchrl.cli.arguments import Device, Encoder, need_packages
from searchrl.errors import InputError

if TYPE_CHECKING:
    from searchrl.retrieval.options import AnyForm
    from searchrl.serving.served import Served

_CACHE = Path("web.sqlite")
"""Where answers of the web are kept, unless ``--set cache`` says."""

Shards = Annotated[
    list[str] | None,
    typer.Option(
        help="Instead of an index: the address of a server of one of its shards; repeatable."
    ),
]
WebSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="key=value, a key of a web recipe's [retriever], as in --set per_second=5; "
        "repeatable.",
    ),
]
Capacity = Annotated[
    int, typer.Option(min=1, help="Queries that may wait before more are turned away.")
]
Seconds = Annotated[
    float, typer.Option(min=1, max=300, help="Deadline of a request that names none.")
]
AllowedHosts = Annotated[
    list[str] | None, typer.Option(help="A name that clients may call this server by; repeatable.")
]
ShardKey = Annotated[
    str | None, typer.Option(help="Environment variable that holds the API key of the shards.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Number form of a dense or hybrid index's encoder."),
]
Reranker = Annotated[
    str | None, typer.Option(help="A cross-encoder to answer /rerank: a path or a hub name.")
]


def command(
    index: Annotated[Path | None, typer.Option(help="An index directory.")] = None,
    shard: Shards = None,
    web: Annotated[
        str | None, typer.Option(help="A service that searches the web, instead of an index.")
    ] = None,
    settings: WebSettings = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8000,
    topk: Annotated[
        int, typer.Option(min=1, max=100, help="Passages for a request that names no number.")
    ] = 3,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes over one index.")] = 1,
    capacity: Capacity = 2_048,
    seconds: Seconds = 30.0,
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable that holds the API key.")
    ] = None,
    allow_host: AllowedHosts = None,
    shard_key_variable: ShardKey = None,
    encoder: Encoder = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    reranker: Reranker = None,
) -> None:
    """Serve an index, or the web, over HTTP, as Search-R1's, s3's and verl's clients speak it.

    With --shard, this server asks all shards of a corpus and merges what they find.

    Example: searchrl serve --index indexes/wiki --port 8000
    """
    need_packages("serve", "granian", "msgspec", "prometheus_client")
    from searchrl.serving.gate import allowed_hosts
    from searchrl.serving.server import Address, serve
    from searchrl.serving.settings import ServerSettings

    address = Address(host, port, workers)
    settings_of_server = ServerSettings(
        topk=topk,
        capacity=capacity,
        seconds=seconds,
        allowed_hosts=allowed_hosts(host, allow_host or (), guarded=key_variable is not None),
        key_variable=key_variable,
    )
    served = _served(
        index,
        shard or (),
        web,
        settings or (),
        encoder,
        shard_key_variable,
        reranker,
        device,
        dtype,
        seconds,
    )
    name = index or (f"the web by {web}" if web else f"{len(shard or ())} shards")
    serve(
        served, address, settings_of_server, lambda: typer.echo(f"serving {name} at {address.url}")
    )


def _served(
    index: Path | None,
    shards: Sequence[str],
    web: str | None,
    overrides: Sequence[str],
    encoder: str | None,
    shard_key_variable: str | None,
    reranker: str | None,
    device: str,
    dtype: AnyForm,
    seconds: float,
) -> Served:
    """What the options name.

    Raises:
        InputError: they name several things or none, or an option goes with another one.
    """
    from searchrl.recipe_file import web_options
    from searchrl.serving.served import IndexOnDisk, RemoteShards, Web

    if sum((index is not None, bool(shards), web is not None)) != 1:
        raise InputError("serve: give one of --index DIR, --shard URL (repeatable), --web SERVICE")
    if encoder is not None and index is None:
        raise InputError(f"--encoder {encoder}: goes with --index, which alone has vectors here")
    if shard_key_variable is not None and not shards:
        raise InputError(f"--shard-key-variable {shard_key_variable}: goes with --shard")
    if dtype != "auto" and index is None:
        raise InputError(f"--dtype {dtype}: goes with --index, which alone has vectors here")
    if overrides and web is None:
        raise InputError(f"--set {overrides[0]}: goes with --web; an index has its settings")
    if index is not None:
        return IndexOnDisk(
            index=index, encoder=encoder, dtype=dtype, device=device, reranker=reranker
        )
    if web is None:
        return RemoteShards(
            urls=shards,
            seconds=seconds,
            key_variable=shard_key_variable,
            device=device,
            reranker=reranker,
        )
    return Web(options=web_options(web, overrides), cache=_CACHE, device=device, reranker=reranker)

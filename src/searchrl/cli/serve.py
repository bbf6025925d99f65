"""``searchrl serve``: an index, or search on the web, as an HTTP service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from searchrl.cli.arguments import Device, Encoder, need_packages
from searchrl.errors import InputError

if TYPE_CHECKING:
    from searchrl.serving.served import Served

_CACHE = Path("web.sqlite")
"""Where answers of the web are kept, unless ``--set cache`` says."""


def command(
    index: Annotated[Path | None, typer.Option(help="An index directory.")] = None,
    web: Annotated[
        str | None, typer.Option(help="A service that searches the web, instead of an index.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="key=value, a key of a web recipe's [retriever], as in --set per_second=5; "
            "repeatable.",
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
    encoder: Encoder = None,
    device: Device = "cpu",
    reranker: Annotated[
        str | None,
        typer.Option(help="A cross-encoder to answer /rerank: a path or a hub name."),
    ] = None,
) -> None:
    """Serve an index, or the web, over HTTP, as Search-R1's, s3's and verl's clients speak it.

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
    served = _served(index, web, settings or [], encoder, device, reranker)
    name = index or f"the web by {web}"
    serve(
        served, address, settings_of_server, lambda: typer.echo(f"serving {name} at {address.url}")
    )


def _served(
    index: Path | None,
    web: str | None,
    overrides: list[str],
    encoder: str | None,
    device: str,
    reranker: str | None,
) -> Served:
    """What the options name.

    Raises:
        InputError: neither or both of index and web, or an option of the other.
    """
    from searchrl.recipe import web_options
    from searchrl.serving.served import ServedIndex, ServedWeb

    if (index is None) == (web is None):
        raise InputError("serve: give either --index DIR or --web SERVICE")
    if index is not None:
        if overrides:
            raise InputError(f"--set {overrides[0]}: goes with --web; an index has its settings")
        return ServedIndex(path=index, encoder=encoder, device=device, reranker=reranker)
    assert web is not None, "one of the two is given"
    if encoder is not None:
        raise InputError(f"--encoder {encoder}: goes with --index; the web has no vectors")
    return ServedWeb(
        options=web_options(web, overrides), cache=_CACHE, device=device, reranker=reranker
    )

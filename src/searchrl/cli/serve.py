"""``searchrl serve``: an index as an HTTP service."""

from __future__ import annotations

from typing import Annotated

import typer

from searchrl.cli.arguments import Index, need_packages


def command(
    index: Index,
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
) -> None:
    """Serve an index over HTTP, in the form that Search-R1's, s3's and verl's clients speak.

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
    serve(index, address, settings, lambda: typer.echo(f"serving {index} at {address.url}"))

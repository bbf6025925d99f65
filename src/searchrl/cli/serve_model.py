"""``searchrl serve-model``: a language model over OpenAI's API."""

from __future__ import annotations

from typing import Annotated

import typer

from searchrl.cli.arguments import Threads, need_packages


def command(
    model: Annotated[str, typer.Argument(help="A path, a hub name, or a shipped tiny model.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 for any that is free.")
    ] = 8001,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; MODEL when left out.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where it runs, as in cpu or cuda:0.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable that holds the API key.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Serve a local model to whatever speaks OpenAI's API, this program included.

    Example: searchrl serve-model tiny-generator --port 8001
    """
    need_packages("serve", "msgspec", "uvicorn")
    from searchrl.cli.machine import use_machine
    from searchrl.models.local import load_model
    from searchrl.serving.gate import allowed_hosts, check_exposure
    from searchrl.serving.model_server import ModelServer
    from searchrl.serving.run import listen, serve, url_of
    from searchrl.transport.keys import read_key

    key = read_key(key_variable, "--key-variable")
    guarded = key is not None
    check_exposure(host, guarded)
    listening = listen(host, port)
    try:
        use_machine(threads)
        loaded = load_model(model, device, dtype)
    except BaseException:
        listening.close()
        raise
    called = name or model
    hosts = allowed_hosts(host, (), guarded)
    app = ModelServer(loaded, loaded.tokenizer, called, hosts, key)
    url = f"{url_of(listening)}/v1"
    serve(app, listening, lambda: typer.echo(f"serving {called} at {url}"))

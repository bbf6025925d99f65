"""``searchrl mcp``: an index as a search tool for other programs' agents."""

from __future__ import annotations

from searchrl.cli.arguments import Device, Encoder, Index, need_packages


def command(index: Index, encoder: Encoder = None, device: Device = "cpu") -> None:
    """Offer a search tool over an index to the program that starts this one (MCP, over stdio).

    Example: searchrl mcp --index indexes/wiki
    """
    need_packages("mcp", "mcp")
    from searchrl.retrieval.encoder import Runtime
    from searchrl.retrieval.index import open_index
    from searchrl.serving.mcp_tool import search_server

    retriever = open_index(index, encoder=encoder, runtime=Runtime(device))
    search_server(retriever).run("stdio")

"""Servers on real loopback sockets: an application in a thread, and one that misbehaves."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from searchrl.models.http import HttpChatModel, HttpLanguageModel, ServedModel
from searchrl.models.options import HttpModelOptions
from searchrl.models.replies import ReplyStore
from searchrl.serving.http import App
from searchrl.serving.run import listen, make_server, url_of


@contextmanager
def running(app: App) -> Iterator[str]:
    """Serve an application until the block ends; yields its address."""
    listening = listen("127.0.0.1", 0)
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield url_of(listening)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextmanager
def misbehaving(*answers: bytes | None) -> Iterator[tuple[str, list[bytes]]]:
    """Answer one connection after another with raw bytes and hang up; ``None`` hangs up at once.

    Yields its address and the bodies of the requests it got. After its last answer nobody listens.
    """
    listening = listen("127.0.0.1", 0)
    requests: list[bytes] = []
    thread = threading.Thread(target=_misbehave, args=(listening, answers, requests))
    thread.start()
    try:
        yield url_of(listening), requests
    finally:
        thread.join()


def _misbehave(
    listening: socket.socket, answers: Sequence[bytes | None], requests: list[bytes]
) -> None:
    with listening:
        listening.settimeout(5)
        for answer in answers:
            connection, _ = listening.accept()
            with connection:
                requests.append(_read_request(connection))
                if answer is not None:
                    connection.sendall(answer)


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
    while len(body) < length:
        body += connection.recv(1 << 16)
    return body


def raw_answer(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """An HTTP answer, with another length than its own where one is given."""
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def options(url: str, **more: Any) -> HttpModelOptions:
    values = {"kind": "http", "url": url, "model": "m", "max_length": 1024, "outage": 0, **more}
    return HttpModelOptions.model_validate(values)


def chat_model(url: str, tmp_path: Path, tokenizer: Any = None, **more: Any) -> HttpChatModel:
    store = ReplyStore(tmp_path / "replies.sqlite")
    return HttpChatModel(ServedModel(options(url, **more), store), tokenizer)


def token_model(url: str, tmp_path: Path, tokenizer: Any) -> HttpLanguageModel:
    store = ReplyStore(tmp_path / "replies.sqlite")
    return HttpLanguageModel(ServedModel(options(url), store), tokenizer)

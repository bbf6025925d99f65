"""Who may reach a server: this machine, or whoever has the key. Requests: see the servers."""

from __future__ import annotations

import pytest

from searchrl.errors import InputError
from searchrl.serving.gate import allowed_hosts, check_exposure, host_name, is_loopback
from searchrl.serving.settings import LOOPBACK_NAMES


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.test", False),
        ("localhost.example.org", False), ("", False),
    ],
)  # fmt: skip
def test_T_B11_where_a_server_may_listen(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    check_exposure(host, guarded=True)
    if loopback:
        check_exposure(host, guarded=False)
    else:
        with pytest.raises(InputError, match="--key-variable"):
            check_exposure(host, guarded=False)


def test_T_B11_host_names_that_may_be_used() -> None:
    assert set(allowed_hosts("127.0.0.1", (), guarded=False)) == set(LOOPBACK_NAMES)
    assert "::1" not in allowed_hosts("::1", (), guarded=False)
    assert "[::1]" in allowed_hosts("::1", (), guarded=False)
    assert "127.9.9.9" in allowed_hosts("127.9.9.9", (), guarded=False)
    assert allowed_hosts("0.0.0.0", (), guarded=True) == ()
    named = allowed_hosts("0.0.0.0", ("Search.Example.org",), guarded=True)
    assert "search.example.org" in named
    assert set(LOOPBACK_NAMES) < set(named)


def test_host_names() -> None:
    assert [host_name(text) for text in ("A.b:80", "[::1]:80", "[::1]", "a", "")] == [
        "a.b", "[::1]", "[::1]", "a", "",
    ]  # fmt: skip

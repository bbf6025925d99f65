"""Keys come from the environment, fit into a header, and are shown nowhere."""

from __future__ import annotations

import pytest

from searchrl.errors import InputError
from searchrl.transport.keys import Credential, read_key


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "ключ", "li\nne"])
def test_a_key_that_cannot_be_one_is_refused(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEARCH_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SEARCH_KEY", value)
    with pytest.raises(InputError) as caught:
        read_key("SEARCH_KEY", "--key-variable")
    assert str(caught.value).startswith(
        "--key-variable: the environment variable SEARCH_KEY has to hold a key"
    )
    assert not value or not value.strip() or value not in str(caught.value)


def test_a_key_is_stripped_and_none_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_KEY", " canary-4711\n")
    assert read_key("SEARCH_KEY", "x") == "canary-4711"
    assert read_key(None, "x") is None


def test_where_a_credential_goes() -> None:
    bearer = Credential("canary")
    assert (bearer.headers, bearer.params) == ({"Authorization": "Bearer canary"}, {})
    own = Credential("canary", "X-Key", scheme="")
    assert (own.headers, own.params) == ({"X-Key": "canary"}, {})
    query = Credential("canary", "key", in_query=True)
    assert (query.headers, query.params) == ({}, {"key": "canary"})
    assert query.hide("?key=canary!") == "?key=[key]!"

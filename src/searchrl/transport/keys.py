"""API keys: named by an environment variable, and kept out of everything that is written."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from searchrl.errors import InputError


def read_key(variable: str | None, setting: str) -> str | None:
    """The key in an environment variable, stripped; ``None`` where no variable is named.

    Args:
        variable: its name.
        setting: what named it, for the error message.

    Raises:
        InputError: the variable is not set or empty, or its value cannot stand in a header.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"{setting}: the environment variable {variable} has to hold a key of printable ASCII "
            "characters without spaces"
        )
    return key


@dataclass(frozen=True, slots=True)
class Credential:
    """A key and where a service wants it; the key stays out of its ``repr``.

    Attributes:
        key: the key.
        name: of the header or query parameter.
        scheme: what stands before the key in a header.
        in_query: a query parameter instead of a header.
    """

    key: str = field(repr=False)
    name: str = "Authorization"
    scheme: str = "Bearer "
    in_query: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What it adds to a request's headers."""
        return {} if self.in_query else {self.name: f"{self.scheme}{self.key}"}

    @property
    def params(self) -> dict[str, str]:
        """What it adds to a request's query."""
        return {self.name: self.key} if self.in_query else {}

    def hide(self, text: str) -> str:
        """The text without the key, which some services repeat in their errors."""
        return text.replace(self.key, "[key]")

"""API keys: named by an environment variable, and kept out of everything that is written."""

from __future__ import annotations

import os

from searchrl.errors import InputError


def read_key(variable: str | None) -> str | None:
    """The key in an environment variable; ``None`` where none is named.

    Raises:
        InputError: the variable is not set or empty, or its value cannot stand in a header.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"the environment variable {variable} has to hold a key of printable ASCII characters "
            "without spaces"
        )
    return key

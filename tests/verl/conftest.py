"""Leaves these tests out where verl is not installed, and keeps them on processors."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.verl.verl_fixtures import environment

collect_ignore_glob = [] if find_spec("verl") is not None else ["test_*.py"]


@pytest.fixture(autouse=True)
def _processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl without a GPU, in this process and in all that it starts."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)

"""What the search tool and the rewards of one rollout share."""

from __future__ import annotations

import verifiers.v1 as vf


class SearchState(vf.State):
    """Attributes:
    searches: how many were answered.
    failure: why a search was not, if one was not.
    """

    searches: int = 0
    failure: str | None = None

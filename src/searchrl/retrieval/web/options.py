"""What a recipe can set about search on the web."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from searchrl.options import Options

ProviderName = Literal["serpapi", "serper", "brave", "tavily", "searxng", "google"]


class WebOptions(Options):
    """The web, through a search service."""

    kind: Literal["web"]
    provider: ProviderName
    """The service; docs/retrieval.md lists them."""
    key_variable: str | None = None
    """Environment variable that holds the API key; the provider's own name for it when left out."""
    url: str | None = Field(None, pattern=r"^https?://[^/\s]+")
    """Where the service is; needed for SearXNG, the provider's own address when left out."""
    engine_id: str | None = None
    """Google: the id of the search engine, ``cx``."""
    extra: dict[str, JsonValue] | None = None
    """More fields for each request, as in ``{gl = "ch", hl = "de"}``."""
    read_pages: bool = False
    """Fetch the pages found and take the passage from there; the service's snippet otherwise."""
    page_characters: PositiveInt = 2_000
    """Longest passage that is taken from a page."""
    per_second: PositiveFloat | None = None
    """Requests a second that the plan allows; no limit when left out."""
    concurrency: PositiveInt = 8
    """Requests at a time."""
    max_requests: PositiveInt | None = None
    """Requests after which the command ends, as a cap on what it costs."""
    seconds: PositiveFloat = 60.0
    """How long one request may take, its repeats included."""
    outage: NonNegativeFloat = 600.0
    """Seconds that the work waits for a service that has gone down."""
    cache: Path | None = None
    """Where answers and pages are kept; ``web.sqlite`` in the run when left out."""

    @model_validator(mode="after")
    def _check_provider(self) -> WebOptions:
        if self.provider == "searxng" and self.url is None:
            raise ValueError('provider = "searxng" needs url, as in "http://127.0.0.1:8888"')
        if (self.provider == "google") != (self.engine_id is not None):
            raise ValueError('provider = "google" and engine_id go together: set both or none')
        return self

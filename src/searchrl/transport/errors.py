"""How a call to a service can fail through no fault of its caller."""

from __future__ import annotations

from searchrl.errors import InfrastructureError


class UnavailableError(InfrastructureError):
    """The service is down, refused the call, or gave no answer in the tries and the time it had."""


class MalformedAnswerError(InfrastructureError):
    """The service answered with something that is no answer to the call."""

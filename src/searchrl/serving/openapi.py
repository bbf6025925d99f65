"""The OpenAPI document of a server, made from the types that check its requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from searchrl import __version__
from searchrl.serving.gate import Route
from searchrl.serving.http import JSON
from searchrl.serving.settings import MAX_BODY, MAX_SECONDS, MIN_SECONDS, TIMEOUT_HEADER
from searchrl.serving.wire import Refusal, schemas

_REASONS = {
    400: "The body is not JSON.",
    401: "The API key is missing.",
    403: "The API key is wrong.",
    408: "The body did not arrive in time.",
    413: f"The body is larger than {MAX_BODY} bytes.",
    415: f"The body is not {JSON}, or is packed.",
    421: "The Host header names another server.",
    422: "A field is missing, unknown, of a wrong type or out of range.",
    503: "The index is not open yet, or too many queries wait.",
    504: "The deadline passed.",
}
_OF_EVERY_ROUTE = (421,)
_OF_A_GUARDED_ROUTE = (401, 403)
_OF_A_ROUTE_WITH_BODY = (400, 408, 413, 415, 422, 503, 504)
_TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds until the client stops waiting.",
    "schema": {"type": "number", "minimum": MIN_SECONDS, "maximum": MAX_SECONDS},
}


def describe(routes: Sequence[Route], guarded: bool) -> dict[str, Any]:
    """The document.

    Args:
        routes: all operations.
        guarded: whether the server asks for an API key.
    """
    types = [kind for route in routes for kinds in route.answers.values() for kind in kinds]
    types += [route.body for route in routes if route.body is not None]
    components: dict[str, Any] = {"schemas": schemas([*dict.fromkeys(types), Refusal])}
    if guarded:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "SearchRL retriever", "version": __version__},
        "paths": {
            route.path: {route.method.lower(): _operation(route, guarded)} for route in routes
        },
        "components": components,
    }


def _operation(route: Route, guarded: bool) -> dict[str, Any]:
    needs_key = guarded and not route.open
    operation: dict[str, Any] = {
        "operationId": route.path.strip("/").replace("/", "_").replace(".", "_"),
        "summary": route.summary,
        "responses": {
            **{str(status): _refused(status) for status in _refusals(route, needs_key)},
            **{str(status): _answer(route, kinds) for status, kinds in route.answers.items()},
        },
    }
    if needs_key:
        operation["security"] = [{"key": []}]
    if route.body is not None:
        operation["parameters"] = [_TIMEOUT]
        operation["requestBody"] = {"required": True, "content": {JSON: _schema(route.body)}}
    return operation


def _refusals(route: Route, needs_key: bool) -> Iterator[int]:
    yield from _OF_EVERY_ROUTE
    if needs_key:
        yield from _OF_A_GUARDED_ROUTE
    if route.body is not None:
        yield from _OF_A_ROUTE_WITH_BODY


def _refused(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": _REASONS[status],
        "content": {JSON: _schema(Refusal)},
    }
    if status == 503:
        seconds = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
        response["headers"] = {"Retry-After": seconds}
    return response


def _answer(route: Route, kinds: Sequence[type[Struct]]) -> dict[str, Any]:
    media = route.content_type.partition(";")[0]
    untyped = {"schema": {"type": "object" if media == JSON else "string"}}
    return {"description": "OK", "content": {media: _schema(*kinds) if kinds else untyped}}


def _schema(*kinds: type[Struct]) -> dict[str, Any]:
    """A schema that holds for a value of any of the types."""
    references = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in kinds]
    return {"schema": references[0] if len(references) == 1 else {"anyOf": references}}

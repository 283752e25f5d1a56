"""What a handler is given and gives back, and errors as problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec


class Request(msgspec.Struct, frozen=True):
    """One request, read to its end.

    Attributes:
        method: in capitals.
        path: decoded, without the query.
        query: what stood behind the question mark, as it came.
        headers: by name in small letters; values of a repeated header are joined by a comma.
        body: the whole of it.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = {}
    body: bytes = b""


class Response(msgspec.Struct, frozen=True):
    """One response; a `body` that is an iterator is sent in pieces as they come, without a length."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}


Handler = Callable[[Request], Awaitable[Response]]
Routes = Mapping[tuple[str, str], Handler]
"""Which `(method, path)` is answered by what. A route for GET answers HEAD as well."""


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None, **members: Any) -> Response:
    """Return an error as problem details; `members` extend them."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return Response(status, msgspec.json.encode(body), "application/problem+json", headers or {})

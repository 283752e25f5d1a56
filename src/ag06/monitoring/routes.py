"""The routes every workflow has, and those that other packages add (entry points of the group `ag06.routes`)."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

from ag06.errors import ConfigurationError
from ag06.monitoring import health_json
from ag06.monitoring.health import HealthRegistry, HealthReport
from ag06.monitoring.http_messages import Handler, Request, Response, Routes

GROUP = "ag06.routes"

Exposition = Callable[[str], tuple[str, AsyncIterator[bytes]]]
"""From the Accept header of a scrape to a content type and the slices of the exposition."""

StatusReport = Callable[[], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]


def standard_routes(
    health: HealthRegistry,
    exposition: Exposition,
    status: StatusReport,
    *,
    version: str | None = None,
    release_id: str | None = None,
) -> dict[tuple[str, str], Handler]:
    """Return `/health`, `/health/live`, `/health/ready`, `/health/startup`, `/metrics` and `/status`."""

    async def full(_: Request) -> Response:
        report = await health.check_health()
        body = health_json.render(report, version=version, release_id=release_id)
        return Response(health_json.status_code(report), body, health_json.CONTENT_TYPE)

    async def live(_: Request) -> Response:
        return _brief(await health.liveness())

    async def ready(_: Request) -> Response:
        return _brief(await health.readiness())

    async def startup(_: Request) -> Response:
        return _brief(health.startup())

    async def metrics(request: Request) -> Response:
        content_type, slices = exposition(request.headers.get("accept", ""))
        return Response(200, slices, content_type)

    async def state(_: Request) -> Response:
        found = status()
        return Response(200, msgspec.json.encode(await found if inspect.isawaitable(found) else found, enc_hook=str))

    return {
        ("GET", "/health"): full,
        ("GET", "/health/live"): live,
        ("GET", "/health/ready"): ready,
        ("GET", "/health/startup"): startup,
        ("GET", "/metrics"): metrics,
        ("GET", "/status"): state,
    }


def with_added_routes(routes: Routes, application: object) -> dict[tuple[str, str], Handler]:
    """Return `routes` and those of every installed package that adds some.

    An entry point of the group `ag06.routes` names a function that takes the `application` (the workflow that runs) and
    returns its routes.

    Raises:
        ConfigurationError: one cannot be loaded, or wants a route that is taken; the message names it.
    """
    merged = dict(routes)
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            added: Routes = dict(entry.load()(application))
        except Exception as error:
            raise ConfigurationError(
                f"routes of {entry.value!r} cannot be added ({type(error).__name__}: {error}); mend or uninstall it"
            ) from error
        taken = sorted(set(added) & set(merged))
        if taken:
            raise ConfigurationError(
                f"routes of {entry.value!r}: {' '.join(taken[0])} is taken; uninstall one of the two"
            )
        merged |= added
    return merged


def _brief(report: HealthReport) -> Response:
    return Response(health_json.status_code(report), health_json.render_brief(report), health_json.CONTENT_TYPE)

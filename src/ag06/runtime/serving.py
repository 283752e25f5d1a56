"""What is shown of a workflow over HTTP, whether its steps run in this process or in workers of it."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from ag06.monitoring import observability
from ag06.monitoring.health import HealthRegistry
from ag06.monitoring.routes import StatusReport, standard_routes, with_added_routes
from ag06.monitoring.server import HttpServer, open_server
from ag06.persistence.event_store import EventStore
from ag06.persistence.stores import sqlite_file

if TYPE_CHECKING:
    from ag06.runtime.workflow import Workflow


async def open_workflow_server(
    workflow: Workflow,
    health: HealthRegistry,
    status: StatusReport,
    *,
    host: str | None = None,
    port: int | str | None = None,
) -> HttpServer | None:
    """Serve health, metrics and status, and the routes that packages add; see `open_server` for what is `None`.

    Raises `ConfigurationError` for a port that cannot be had, and routes that cannot be added.
    """
    routes = standard_routes(
        health, observability.metrics.stream, status, version=version("ag06"), release_id=workflow.name
    )
    added = with_added_routes(routes, workflow)
    return await open_server(added, host=host, port=None if port is None else str(port))


def written_paths(events: EventStore) -> list[str]:
    """Return where a store is written on this machine: its file, the directory of its journal."""
    return [path for path in (sqlite_file(events.url or ""), events.journal_directory) if path is not None]

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ag06.persistence.log import EventLog, LogOptions
from ag06.persistence.stores import open_log
from servers import ValkeyServer

os.environ.setdefault("AG06_JOURNAL", "off")  # tests of the journal name a directory; others see what a store says
os.environ.setdefault("AG06_METRICS_STRICT", "1")  # a mistake of the project's own must fail its test
os.environ.setdefault("AG06_HTTP_PORT", "0")  # workflows of tests run side by side

ADAPTERS = ("memory", "sqlite", "redis")
_numbers = itertools.count()

OpenLog = Callable[..., Awaitable[EventLog]]


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A server for tests that do no harm to it; each test takes a log name of its own."""
    server = ValkeyServer(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.stop()


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store_url(adapter: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The URL of a fresh, empty store."""
    name = f"test-{os.getpid()}-{next(_numbers)}"
    match adapter:
        case "memory":
            return f"memory://{name}"
        case "sqlite":
            return f"sqlite:///{tmp_path}/{name}.db"
        case _:
            server: ValkeyServer = request.getfixturevalue("valkey")
            return f"{server.url}?log={name}"


@pytest.fixture
async def open_store(store_url: str) -> AsyncIterator[OpenLog]:
    """Open the store, as often as a test likes; everything still open is closed at its end."""
    opened: list[EventLog] = []

    async def open_one(**options: Any) -> EventLog:
        log = open_log(store_url, LogOptions(**options))
        await log.open()
        opened.append(log)
        return log

    yield open_one
    for log in reversed(opened):
        await log.close()


@pytest.fixture
async def log(open_store: OpenLog) -> EventLog:
    return await open_store()

"""What the proofs of `ag06 validate` share: a store to prove on, processes, and how a broken promise is told."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from ag06 import Workflow
from ag06.persistence import EventStore


class Bench:
    """A store, names that nobody else uses, and the workflows to clean up."""

    def __init__(self, url: str) -> None:
        """Prove on the store at `url`."""
        self.url = url
        self.events = EventStore(url, journal="off")
        self._run = f"validate-{os.getpid()}-{time.time_ns()}"
        self._count = 0
        self._workflows: list[Workflow] = []

    def name(self) -> str:
        """Return a fresh name, for a type or a workflow."""
        self._count += 1
        return f"{self._run}-{self._count}"

    def workflow(self, **settings: Any) -> Workflow:
        """Return a fresh workflow on the store."""
        app = Workflow(self.name(), store=self.url, journal="off", **settings)
        self._workflows.append(app)
        return app

    async def __aenter__(self) -> Bench:
        await self.events.log()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        log = await self.events.log()
        for app in self._workflows:
            for step in app.steps.values():
                await log.remove_group(step.group)
            await app.close()
        await self.events.close()


def check(holds: bool, otherwise: str) -> None:
    """Raise `AssertionError` with what was found `otherwise`, unless the promise holds."""
    if not holds:
        raise AssertionError(otherwise)


@asynccontextmanager
async def process(
    bench: Bench, script: str, *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a script on the bench's store; it does not outlive the proof. The URL is no argument: `ps` shows those."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"AG06_STORE": bench.url, "AG06_HTTP_PORT": "off", "AG06_LOG_LEVEL": "error"} | environment,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def line(started: asyncio.subprocess.Process) -> str:
    """Return the next line that a process writes."""
    said = b"" if started.stdout is None else await started.stdout.readline()
    check(said.endswith(b"\n"), "a process of the proof ended before its time")
    return said.decode().strip()

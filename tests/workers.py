"""Worker processes of the tests: `ag06 run` on a workflow that the test writes, observed through a file of notes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from textwrap import dedent

from flows import SECONDS, until

_PRELUDE = """
import asyncio, atexit, os, signal, sys, time
from pathlib import Path
from ag06 import Context, Event, Outcome, Retry, Workflow

def note(*words):
    with open("notes", "ab", 0) as notes:  # appended in one write: whole lines, whoever else writes
        notes.write((" ".join(map(str, words)) + "\\n").encode())
"""


class Worker:
    """One `ag06 run`, with the worker processes it may have started itself."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path, log: Path) -> None:
        self.process = process
        self.directory = directory
        self._log = log

    def notes(self, first: str = "") -> list[list[str]]:
        """The words of each line that the workflow noted, of those that begin with `first`."""
        path = self.directory / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines if line.startswith(first)]

    @property
    def said(self) -> str:
        """What the process wrote."""
        return self._log.read_text()

    async def noted(self, first: str, count: int = 1) -> list[list[str]]:
        """Wait until the workflow noted so many lines that begin with `first`; return them."""
        await until(lambda: len(self.notes(first)) >= count or self.process.returncode is not None)
        found = self.notes(first)
        assert len(found) >= count, f"it ended with {self.process.returncode}:\n{self.said}"
        return found

    async def ended(self) -> int:
        """Wait for the end; return the exit code."""
        return await asyncio.wait_for(self.process.wait(), SECONDS)

    async def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.ended()


def write_flow(directory: Path, source: str) -> None:
    (directory / "flow.py").write_text(_PRELUDE + dedent(source))


@asynccontextmanager
async def ag06_run(directory: Path, url: str, *arguments: str) -> AsyncIterator[Worker]:
    """Run the workflow that was written into a directory; at the end no process of it is left."""
    log = directory / f"log-{len(list(directory.glob('log-*')))}"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ag06",
            "run",
            "flow:app",
            *arguments,
            cwd=directory,
            env=os.environ | {"AG06_STORE": url, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        yield Worker(process, directory, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

"""Processes that the crash tests start and kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).parent


class Killable:
    """One process of the tests, to be killed at any moment."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.process = process
        self.name = name

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def said(self) -> bytes:
        """Return what the process wrote on standard output after its first line, once it has ended."""
        assert self.process.stdout is not None
        return await self.process.stdout.read()

    async def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 30)


async def start_worker(url: str, number: int, *, wait: bool = True) -> Killable:
    """Start a process that runs the chain on a store, and `wait` until it has settled its first delivery."""
    name = f"crash-{os.getpid()}-{number}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "chain_app.py"),
        # The log shares standard output with what the worker says here.
        env=os.environ | {"AG06_STORE": url, "AG06_WORKER": name, "AG06_LOG_LEVEL": "error"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    if wait:
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"at work\n"
    return Killable(process, name)

"""What each worker process says of itself, in a file of its own that its supervisor reads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import quote

import msgspec

from ag06.monitoring.probe import call_in_thread

_logger = logging.getLogger("ag06.runtime")

SUFFIX = ".report"
MOST_BYTES = 2**20
"""Size of a report; of a larger one only the fact is told."""
_LONGEST_NAME = 200


class WorkerReport(msgspec.Struct, frozen=True):
    """What a worker last said.

    Attributes:
        worker: its name.
        pid: its process.
        time: when it said so, in seconds since the epoch.
        age: how long ago that was when the report was read, in seconds.
        content: what it said, as JSON has it.
    """

    worker: str
    pid: int
    time: float
    content: dict[str, Any]
    age: float = 0.0


async def write_reports(
    directory: Path,
    worker: str,
    report: Callable[[], Awaitable[Mapping[str, Any]]],
    every: float = 2.0,
    *,
    clock: Callable[[], float] = time,
) -> None:
    """Write what `report` returns into `directory` at once and then every `every` seconds, until cancelled.

    A disk that fails, or a `report` that raises, is warned of once; what was written before grows old, which is how the
    reader sees it.
    """
    path = directory / (_stem(worker) + SUFFIX)
    warned = False
    while True:
        try:
            said = WorkerReport(worker, os.getpid(), clock(), dict(await report()))
            await asyncio.wrap_future(call_in_thread(partial(_write, path, said), "ag06-report"))
        except Exception as error:  # noqa: BLE001 - a worker works on, whatever keeps it from saying how it is
            if not warned:
                _logger.warning("worker %s cannot report to its supervisor, and tries again: %r", worker, error)
            warned = True
        await asyncio.sleep(every)


def _stem(worker: str) -> str:
    return quote(worker, safe="")[:_LONGEST_NAME]


def _write(path: Path, said: WorkerReport) -> None:
    body = msgspec.json.encode(said, enc_hook=str)
    if len(body) > MOST_BYTES:
        note = {"problem": f"a report of {len(body)} bytes was left out; {MOST_BYTES} are the most"}
        body = msgspec.json.encode(msgspec.structs.replace(said, content=note))
    new = path.with_suffix(".new")
    new.write_bytes(body)
    new.replace(path)


def read_reports(directory: Path, now: float) -> list[WorkerReport]:
    """Return the last report of each worker in the order of their names; `now` in seconds since the epoch.

    It reads files: not for the event loop. What is no report is passed over.
    """
    found = []
    for path in directory.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
            with path.open("rb") as file:
                said = msgspec.json.decode(file.read(MOST_BYTES + 1), type=WorkerReport)
            found.append(msgspec.structs.replace(said, age=max(0.0, now - said.time)))
    return sorted(found, key=lambda said: said.worker)


def remove_reports(directory: Path, living: frozenset[str]) -> None:
    """Remove what workers left that are not among the `living`: one that is started again has a new name."""
    kept = {_stem(worker) for worker in living}
    for path in directory.glob("*"):
        if path.suffix in {SUFFIX, ".new"} and path.stem not in kept:
            with contextlib.suppress(OSError):
                path.unlink()

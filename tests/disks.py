"""Disks that are full on demand, under a log in an SQLite file; they need no rights but one that few have."""

from __future__ import annotations

import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from ag06 import StoreUnavailable
from ag06.persistence import EventStore
from servers import ValkeyServer

_MOUNT = ("mount", "-t", "tmpfs", "ag06-test", "-o")


class Disk(Protocol):
    """Where the file lies, and how the place for it runs out."""

    directory: Path

    async def fill(self, store: EventStore) -> None: ...

    async def make_room(self, store: EventStore) -> None: ...


class LimitedPages:
    """SQLite itself refuses to let the database grow, with the error of a full disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def fill(self, store: EventStore) -> None:
        await self._limit(store, 1)  # rounded up to what is there

    async def make_room(self, store: EventStore) -> None:
        await self._limit(store, 1_000_000)

    async def _limit(self, store: EventStore, pages: int) -> None:
        log: Any = await store.log()
        pragma = f"PRAGMA max_page_count = {pages}"
        while True:
            try:
                await log.writer.submit(lambda connection: connection.execute(pragma).fetchone())
            except StoreUnavailable:  # others shared its transaction, and for them the disk was full
                continue
            return


class LimitedFiles:
    """The system lets no file of this process grow beyond what the largest one of the log has now (as a quota does)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def fill(self, store: EventStore) -> None:
        sizes = [path.stat().st_size for path in self.directory.iterdir()]
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes, default=0), hard))

    async def make_room(self, store: EventStore) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


class ServerFiles:
    """The system lets no file of a server grow beyond what its largest one has now."""

    def __init__(self, server: ValkeyServer) -> None:
        self.directory = server.directory
        self._server = server

    async def fill(self, store: EventStore) -> None:
        self._limit(max(path.stat().st_size for path in self.directory.rglob("*") if path.is_file()))

    async def make_room(self, store: EventStore) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        process = self._server.process
        if process is not None and process.poll() is None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class SmallDisk:
    """A filesystem of its own, with a file that takes all the room there is. Only a superuser can mount it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"

    async def fill(self, store: EventStore) -> None:
        with self._ballast.open("ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(b"x" * 4096)

    async def make_room(self, store: EventStore) -> None:
        self._ballast.unlink()


def can_mount() -> bool:
    """Whether this process may mount a filesystem: a superuser often, a container seldom."""
    with tempfile.TemporaryDirectory() as place, suppress(OSError):
        if subprocess.run([*_MOUNT, "size=2m", place], capture_output=True, check=False).returncode == 0:
            return subprocess.run(["umount", place], check=True).returncode == 0
    return False


KINDS = ("pages", "files", *(["disk"] if can_mount() else []))


@contextmanager
def disk(kind: str, directory: Path, megabytes: int = 2) -> Iterator[Disk]:
    """Give a disk of a kind, and take it away with whatever is still full; a filesystem has so many `megabytes`."""
    directory.mkdir()
    match kind:
        case "pages":
            yield LimitedPages(directory)
        case "files":
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            try:
                yield LimitedFiles(directory)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        case _:
            subprocess.run([*_MOUNT, f"size={megabytes}m", str(directory)], check=True)
            try:
                yield SmallDisk(directory)
            finally:
                subprocess.run(["umount", str(directory)], check=True)

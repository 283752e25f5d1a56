"""A disk that can lose its power: what programs did not sync is gone, as `power.c` noted it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from crash.preload import library

_KINDS = ("inodes", "listed", "fresh", "locks", "kept")


class PowerDisk:
    """A directory `live` that programs use, with an image beside it of what a power cut would leave.

    Programs must be started with `environment`; whatever is done without it is durable only after `settle`.
    """

    def __init__(self, directory: Path, sync_us: int = 300) -> None:
        """Begin with an empty `live`; a sync takes `sync_us` microseconds."""
        self.live = (directory / "live").resolve()
        self._image = directory.resolve() / "image"
        self.live.mkdir()
        self.environment = {
            "LD_PRELOAD": str(library("power")),
            "AG06_POWER_LIVE": str(self.live),
            "AG06_POWER_DISK": str(self._image),
            "AG06_POWER_SYNC_US": str(sync_us),
        }
        self.settle()

    def settle(self) -> None:
        """Make everything durable, as after a clean unmount."""
        shutil.rmtree(self._image, ignore_errors=True)
        for kind in _KINDS:
            (self._image / kind).mkdir(parents=True)
        for directory, _, files in os.walk(self.live):
            self._list(Path(directory))
            for name in files:
                path = Path(directory) / name
                shutil.copyfile(path, self._image / "inodes" / str(path.stat().st_ino))

    def cut(self, rng: random.Random | None = None) -> None:
        """Replace `live` by what a power cut leaves; nobody may use it any more.

        With `rng` a part of what was not synced reached the disk all the same, page by page or sector by sector: any
        part of what was overwritten, and of what was appended a beginning (`data=ordered`, as ext4 does by default).
        Nothing of an append-only file (`.aof`) is overwritten: it is what it was, or cut short and written on.
        """
        left = self.live.with_name("left")
        left.mkdir()
        self._restore(self.live.stat().st_ino, left, _Remains(self.live, self._image, rng))
        shutil.rmtree(self.live)
        left.rename(self.live)
        self.settle()

    def _list(self, directory: Path) -> None:
        entries = [
            f"{'d' if entry.is_dir(follow_symlinks=False) else 'f'} {entry.inode()} {entry.name}\0"
            for entry in os.scandir(directory)
        ]
        (self._image / "listed" / str(directory.stat().st_ino)).write_text("".join(entries))

    def _restore(self, number: int, target: Path, remains: _Remains) -> None:
        for kind, inner, name in remains.names(number):
            if kind == "d":
                (target / name).mkdir()
                self._restore(inner, target / name, remains)
            else:
                (target / name).write_bytes(remains.content(inner, name))


class _Remains:
    """What is left of each file and directory, by the number of its inode."""

    def __init__(self, live: Path, image: Path, rng: random.Random | None) -> None:
        self._image = image
        self._rng = rng
        self._now = {path.stat().st_ino: path for path in (live, *live.rglob("*"), *(image / "kept").iterdir())}
        self._share = 0.0 if rng is None else rng.choice([0.1, 0.5, 0.9])
        self._unit = 4096 if rng is None else rng.choice([512, 4096])

    def names(self, number: int) -> Iterator[tuple[str, int, str]]:
        """Yield kind, number and name of what is in a directory."""
        synced = self._image / "listed" / str(number)
        now = self._now.get(number)
        if self._rng is not None and now is not None and self._rng.random() < self._share:
            for entry in sorted(os.scandir(now), key=lambda entry: entry.name):
                yield "d" if entry.is_dir(follow_symlinks=False) else "f", entry.inode(), entry.name
        elif synced.exists():
            for line in synced.read_text().split("\0")[:-1]:
                kind, inner, name = line.split(" ", 2)
                yield kind, int(inner), name

    def content(self, number: int, name: str) -> bytes:
        """Return what is left of a file."""
        image = self._image / "inodes" / str(number)
        synced = image.read_bytes() if image.exists() else b""
        now = self._now.get(number)
        if self._rng is None or now is None:
            return synced
        if name.endswith(".aof"):
            return self._written_on(self._rng, synced, now.read_bytes())
        return self._mixed(self._rng, synced, now.read_bytes())

    def _written_on(self, rng: random.Random, synced: bytes, now: bytes) -> bytes:
        if rng.random() >= self._share:
            return synced
        return now[: rng.randint(_common(synced, now), len(now))]

    def _mixed(self, rng: random.Random, synced: bytes, now: bytes) -> bytes:
        size = len(synced)
        left = bytearray(synced)
        for start in range(0, min(size, len(now)), self._unit):
            end = min(start + self._unit, size, len(now))
            if rng.random() < self._share:
                left[start:end] = now[start:end]
        if len(now) > size and rng.random() < self._share:
            left += now[size : rng.randint(size, len(now))]
        return bytes(left)


def _common(one: bytes, other: bytes) -> int:
    """Return the length of the beginning that two contents share."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low

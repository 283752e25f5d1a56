"""What can still be read of a damaged journal, and how damage is found that SQLite would pass over in silence."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

Row = tuple[Any, ...]

_HEADER = struct.Struct(">IIIIIIII")
_FRAME = struct.Struct(">IIIIII")
_MAGIC = (0x377F0682, 0x377F0683)
_COLUMNS = "n, id, identity, expires, content, synced, record, checksum"


def keep_copy(path: Path) -> str:
    """Copy a damaged journal, with its write-ahead log, beside it; return where to."""
    number = 0
    while (copy := path.with_name(f"{path.name}.corrupt{number or ''}")).exists():
        number += 1
    shutil.copy2(path, copy)
    log = Path(f"{path}-wal")
    if log.exists():
        shutil.copy2(log, f"{copy}-wal")
    return str(copy)


def wal_damage(path: Path) -> str | None:
    """Say what is wrong with a write-ahead log; `None` if nothing is, or it does not exist.

    SQLite ends reading at the first frame with a wrong checksum, without a word: after a power cut that is right, and
    nothing that was confirmed lies there. See "The WAL File Format" in SQLite's documentation.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not data:
        return None
    if len(data) < _HEADER.size:
        return "its write-ahead log is cut off within its header"
    magic, _, page, _, salt1, salt2, check1, check2 = _HEADER.unpack_from(data)
    order = ">" if magic == _MAGIC[1] else "<"
    sums = _checksum(order, data[:24], 0, 0)
    if magic not in _MAGIC or sums != (check1, check2):
        return "the header of its write-ahead log is damaged"
    step = _FRAME.size + page
    strange: int | None = None
    for at in range(_HEADER.size, len(data) - _FRAME.size + 1, step):
        _, _, own1, own2, check1, check2 = _FRAME.unpack_from(data, at)
        if (own1, own2) != (salt1, salt2):
            strange = at if strange is None else strange  # left over from an earlier generation, if all behind it are
            continue
        frame = data[at + _FRAME.size : at + step]
        if strange is None and len(frame) == page:
            sums = _checksum(order, frame, *_checksum(order, data[at : at + 8], *sums))
        if strange is not None or sums != (check1, check2):
            return f"its write-ahead log is damaged from byte {at if strange is None else strange} on"
    return None


def _checksum(order: str, data: bytes, first: int, second: int) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for index in range(0, len(words), 2):
        first = (first + words[index] + second) & 0xFFFFFFFF
        second = (second + words[index + 1] + first) & 0xFFFFFFFF
    return first, second


class Damage:
    """A journal that SQLite finds malformed."""

    def __init__(self, path: Path) -> None:
        """Look at the file at `path`."""
        self._path = path

    def rows(self) -> tuple[list[Row], str]:
        """Return the rows that can be read, from both ends, and words about what lies between them."""
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            front, broke = _read_until_broken(connection, "ASC")
            if not broke:
                return front, ""
            back, _ = _read_until_broken(connection, "DESC")
        first = front[-1][0] if front else 0
        last = min((row[0] for row in back), default=None)
        front += [row for row in reversed(back) if row[0] > first]
        if last is None:
            return front, f"; those behind number {first} are lost to it"
        return front, f"; {max(0, last - first - 1)} between number {first} and {last} are lost to it"


def _read_until_broken(connection: sqlite3.Connection, direction: str) -> tuple[list[Row], bool]:
    rows: list[Row] = []
    try:
        for row in connection.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY n {direction}"):  # noqa: S608 - a constant
            rows.append(row)  # noqa: PERF402 - those before the error count
    except sqlite3.DatabaseError:
        return rows, True
    return rows, False

"""What can still be read of a damaged journal, and how damage is found that SQLite would pass over in silence."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

Row = tuple[Any, ...]

_HEADER = struct.Struct(">IIIIIIII")
_FRAME = struct.Struct(">IIIIII")
_MAGIC = (0x377F0682, 0x377F0683)
_OF_THE_DISK = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
)
_SELECT = "SELECT n, synced, record, checksum FROM entries WHERE record IS NOT NULL"
_BLIND = 10_000
"""Numbers asked for behind the last row that can be read, where the other end cannot be."""
_MOST_ASKED = 1_000_000


def is_of_the_disk(error: sqlite3.DatabaseError, path: Path) -> bool:
    """Whether an error comes from the disk or another process, not from what is written in the file at `path`."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    return code in _OF_THE_DISK or (code == sqlite3.SQLITE_READONLY and not os.access(path, os.W_OK))


def keep_copy(path: Path) -> str:
    """Copy a damaged journal, with its write-ahead log, beside it; return where to."""
    number = 0
    while (copy := path.with_name(f"{path.name}.corrupt{number or ''}")).exists():
        number += 1
    shutil.copy2(path, copy)
    log = Path(f"{path}-wal")
    if log.exists() and log.stat().st_size:
        shutil.copy2(log, f"{copy}-wal")
    return str(copy)


def wal_damage(path: Path) -> str | None:
    """Say what is wrong with a write-ahead log; `None` if nothing is, or it does not exist.

    SQLite ends reading at the first frame with a wrong checksum, without a word: after a power cut that is right, and
    nothing that was confirmed lies there. See "The WAL File Format" in SQLite's documentation. One that is cut off
    exactly between two frames looks as if it had never gone on.
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
        if own1 != salt1 and own2 != salt2:
            strange = at if strange is None else strange  # left over from an earlier generation, if all behind it are
            continue
        if (own1, own2) != (salt1, salt2):
            return f"its write-ahead log is damaged from byte {at if strange is None else strange} on"
        frame = data[at + _FRAME.size : at + step]
        if strange is None and len(frame) == page:
            sums = _checksum(order, frame, *_checksum(order, data[at : at + 8], *sums))
        if strange is not None or sums != (check1, check2):
            return f"its write-ahead log is damaged from byte {at if strange is None else strange} on"
    if (
        strange is None and (len(data) - _HEADER.size) % step
    ):  # what is left over may be cut off: at a limit of its size
        return "its write-ahead log is cut off"
    return None


def _checksum(order: str, data: bytes, first: int, second: int) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for index in range(0, len(words), 2):
        first = (first + words[index] + second) & 0xFFFFFFFF
        second = (second + words[index + 1] + first) & 0xFFFFFFFF
    return first, second


def salvage(path: Path) -> tuple[list[Row], list[int]]:
    """Return the rows of a malformed journal that can be read, unchecked and in order; and the numbers of others.

    Reads from both ends up to what is broken, then asks for every number between.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.text_factory = bytes
        front, broke = _read_until_broken(connection, "ASC")
        if not broke:
            return front, []
        back, _ = _read_until_broken(connection, "DESC")
        lost: list[int] = []
        rows = {row[0]: row for row in front + back}
        first = front[-1][0] if front else 0
        last = min((row[0] for row in back), default=first + _BLIND)
        for number in range(first + 1, min(last, first + _MOST_ASKED)):
            row = _read_one(connection, number)
            if row is not None:
                rows[number] = row
            elif back:
                lost.append(number)
    return [rows[number] for number in sorted(rows)], lost


def _read_until_broken(connection: sqlite3.Connection, direction: str) -> tuple[list[Row], bool]:
    rows: list[Row] = []
    try:
        for row in connection.execute(f"{_SELECT} ORDER BY n {direction}"):
            rows.append(row)  # noqa: PERF402 - those before the error count
    except sqlite3.DatabaseError:
        return rows, True
    return rows, False


def _read_one(connection: sqlite3.Connection, number: int) -> Row | None:
    try:
        row: Row | None = connection.execute(f"{_SELECT} AND n = ?", (number,)).fetchone()
    except sqlite3.DatabaseError:
        return None
    return row

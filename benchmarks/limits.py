"""The physical limits: what the disk and SQLite itself do, without us."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from hashlib import blake2b
from pathlib import Path

from benchmarks.payload import payload, quantiles


async def one_transaction_each(directory: str, count: int) -> dict[str, float]:
    """One event a transaction, WAL and synchronous=FULL, with an id and a dedup index as ours."""
    connection = sqlite3.connect(Path(directory) / "raw.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, body BLOB)")
    connection.execute("CREATE TABLE identities (key BLOB PRIMARY KEY, expires INTEGER) WITHOUT ROWID")
    taken = []
    for number in range(count):
        body = json.dumps(payload(number)).encode()
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO identities VALUES (?, ?)", (blake2b(body, digest_size=16).digest(), 1))
        connection.execute("INSERT INTO events VALUES (?, ?, ?)", (number, f"{number:036d}", body))
        connection.execute("COMMIT")
        taken.append(time.perf_counter() - started)
    connection.close()
    return {"rate": count / sum(taken), **quantiles(taken)}


async def fsync(directory: str, count: int) -> dict[str, float]:
    """One write of 512 bytes and fdatasync."""
    descriptor = os.open(Path(directory) / "fsync", os.O_CREAT | os.O_WRONLY, 0o600)
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        os.write(descriptor, b"x" * 512)
        os.fdatasync(descriptor)
        taken.append(time.perf_counter() - started)
    os.close(descriptor)
    return {"rate": count / sum(taken), **quantiles(taken)}

"""The tables of a log in SQLite, and how a connection to them is opened."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from ag06.errors import ConfigurationError, StoreDamaged, StoreError, StoreUnavailable
from ag06.persistence.sqlite import forks

# seq: the position in the log, milliseconds << 20 | n. stream: type id * 4 + level, less RESTORED if it came back for a
# dead letter alone. prev, prev_level: the event before it of the same type and subject. state of a delivery: see
# `deliveries.py`; leased ones are in no index but the primary key, because every event passes through that state.
# SQLite uses the partial index only for statements that repeat its condition word for word.
_FIRST = """
CREATE TABLE types (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, appended INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE events (
  seq INTEGER PRIMARY KEY, stream INTEGER NOT NULL, id TEXT NOT NULL UNIQUE,
  prev INTEGER, prev_level INTEGER, ordered INTEGER NOT NULL, content BLOB, body BLOB NOT NULL) STRICT;
CREATE INDEX events_by_stream ON events (stream, seq);
CREATE TABLE identities (key BLOB PRIMARY KEY, id TEXT NOT NULL, expires INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE subjects (
  type INTEGER NOT NULL, subject TEXT NOT NULL, seq INTEGER NOT NULL, level INTEGER NOT NULL,
  PRIMARY KEY (type, subject)) STRICT, WITHOUT ROWID;
CREATE TABLE groups (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, workflow TEXT NOT NULL, type INTEGER NOT NULL,
  read0 INTEGER NOT NULL, read1 INTEGER NOT NULL, read2 INTEGER NOT NULL, read3 INTEGER NOT NULL,
  base INTEGER NOT NULL, settled INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE workers (
  id INTEGER PRIMARY KEY, grp INTEGER NOT NULL, name TEXT NOT NULL, expires INTEGER NOT NULL,
  UNIQUE (grp, name)) STRICT;
CREATE TABLE deliveries (
  grp INTEGER NOT NULL, seq INTEGER NOT NULL, state INTEGER NOT NULL, rank INTEGER NOT NULL, due INTEGER,
  worker INTEGER, attempts INTEGER NOT NULL DEFAULT 0, first_failed INTEGER NOT NULL DEFAULT 0,
  deaths INTEGER NOT NULL DEFAULT 0, suspect INTEGER NOT NULL DEFAULT 0, started INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (grp, seq)) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_waiting ON deliveries (grp, state, due) WHERE state > 0;
CREATE TABLE dead_letters (
  n INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL,
  stream INTEGER NOT NULL, body BLOB NOT NULL, failure BLOB NOT NULL, UNIQUE (grp, id)) STRICT;
CREATE TABLE scheduled (
  n INTEGER PRIMARY KEY AUTOINCREMENT, due INTEGER NOT NULL, id TEXT NOT NULL UNIQUE, content BLOB,
  record BLOB NOT NULL) STRICT;
CREATE INDEX scheduled_by_due ON scheduled (due);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES ('duplicates', 0);
"""

# Ids that publishers chose stay known when the retention takes their events.
_SECOND = """
CREATE TABLE trimmed_ids (id TEXT PRIMARY KEY, content BLOB NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counters SELECT 'trimmed', (SELECT coalesce(sum(appended), 0) FROM types) - (SELECT count(*) FROM events);
"""

# behind: a dead letter that is delivered again went behind this event, the last of its subject then; 0 if another one
# went behind it since. A worker that lost its lease gets another number, one that nobody had.
_THIRD = """
ALTER TABLE deliveries ADD COLUMN behind INTEGER;
CREATE INDEX deliveries_retried ON deliveries (grp, behind) WHERE behind > 0;
INSERT INTO counters SELECT 'workers', coalesce(max(id), 0) FROM workers;
"""

_FOURTH = """
ALTER TABLE trimmed_ids ADD COLUMN trimmed INTEGER NOT NULL DEFAULT 0;
UPDATE trimmed_ids SET trimmed = CAST(strftime('%s', 'now') AS INTEGER) * 1000;
CREATE TABLE archives (n INTEGER PRIMARY KEY AUTOINCREMENT, url TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE leaders (role TEXT PRIMARY KEY, holder TEXT NOT NULL, expires INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

# What the processes of a log share besides events; see `EventLog.write_note`.
_FIFTH = """
CREATE TABLE notes (name TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
"""

# since: when a wait of a given length began, in milliseconds since the epoch; null for a wait up to a given time. One
# that began later than now was noted by a clock that was ahead: see `clocks.py`. leases: how long each worker holds on.
_SIXTH = """
ALTER TABLE deliveries ADD COLUMN since INTEGER;
ALTER TABLE scheduled ADD COLUMN since INTEGER;
CREATE TABLE leases (worker INTEGER PRIMARY KEY, visibility INTEGER NOT NULL) STRICT;
CREATE TABLE leads (role TEXT PRIMARY KEY, expires INTEGER NOT NULL, length INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

RESTORED = 1 << 40
"""What lies so far below zero is in no stream: an event that had left the log when its dead letter was retried."""

_STEPS = (_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH)
VERSION = len(_STEPS)
"""Kept in `user_version`: how many steps a file has taken. An older file takes the others, a newer one is refused."""

_OURS = frozenset({"types", "events", "identities", "subjects", "groups", "workers", "deliveries", "dead_letters"})
_OLDEST_SQLITE = (3, 37, 0)  # STRICT tables

_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "9p", "davfs"})
_REMOTE_CLUSTERS = frozenset({"ceph", "lustre", "beegfs", "glusterfs", "gfs2", "ocfs2"})
_REMOTE_FUSE = frozenset({"sshfs", "glusterfs", "ceph", "s3fs", "rclone", "gcsfuse", "davfs2", "smbnetfs"})
MOUNTS = Path("/proc/self/mountinfo")
"""Where the system says what is mounted."""

_OCTAL = re.compile(r"\\([0-7]{3})")  # how mountinfo writes blanks and backslashes


def connect(path: str, wait: float = 0.0, cache_kib: int = 2048) -> sqlite3.Connection:
    """Return a connection in autocommit mode that waits up to `wait` seconds for a lock by itself.

    `cache_kib`: pages it may keep in memory. Reading goes through the log once, so it gains nothing by keeping many.
    Only for `opened` and a `ForkSafeConnection`. A file that is missing is not made. Raises `StoreError` where a fork
    has made SQLite's locks unreal.
    """
    forks.check(path)
    url = f"file:{quote(os.fsencode(path))}?mode=rw"
    connection = sqlite3.connect(url, uri=True, timeout=wait, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def opened(path: str, wait: float) -> Iterator[sqlite3.Connection]:
    """Open a connection as `connect` does for a short piece of work, which a fork waits for."""
    with forks.uninterrupted(), contextlib.closing(connect(path, wait)) as connection:
        yield connection


def prepare(path: str, timeout: float) -> None:
    """Make the file and its tables if they are missing; refuse what is not a log of ours, and leave it as it is.

    Waits up to `timeout` seconds for another process that does the same.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise ConfigurationError(
            f"store {path}: this Python has SQLite {sqlite3.sqlite_version}; 3.37 or newer is needed, or redis://"
        )
    filesystem = _filesystem(path)
    if filesystem in _REMOTE | _REMOTE_CLUSTERS or filesystem.removeprefix("fuse.") in _REMOTE_FUSE:
        raise ConfigurationError(
            f"store {path}: is on a network filesystem ({filesystem}), where SQLite's locks do not hold; "
            "use a local disk, or redis://"
        )
    _make_file(Path(path))
    try:
        with opened(path, timeout) as connection:
            check_schema(connection, path)
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise ConfigurationError(
                    f"store {path}: its filesystem cannot hold a write-ahead log; use a local disk"
                )
            connection.execute("BEGIN IMMEDIATE")
            _create(connection, path)
            connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise StoreUnavailable(f"store {path}: {error}; check permissions, space and who holds it") from error
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(
            f"store {path}: not a usable SQLite file ({error}); look at it with ag06 check, then move it away or "
            "restore a backup"
        ) from error


def explained_error(path: str, error: sqlite3.Error) -> StoreError:
    """Return what a failure of SQLite that no waiting heals means for the store; damage is told apart by its code."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreDamaged(
            f"store {path}: the file is damaged ({error}); stop what uses it, see the extent with ag06 check, and "
            "restore a backup"
        )
    return StoreError(f"store {path}: {error}")


def check_schema(connection: sqlite3.Connection, path: str) -> int:
    """Return the version of the file; raise if it is newer than this release, or not an event log at all."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not (tables >= _OURS if version else not tables):
        raise ConfigurationError(f"store {path}: is an SQLite file, but not an event log; choose another path")
    if version > VERSION:
        raise ConfigurationError(f"store {path}: written by a newer release (schema {version}); upgrade ag06")
    return int(version)


def _create(connection: sqlite3.Connection, path: str) -> None:
    version = check_schema(connection, path)
    for step in _STEPS[version:]:
        for statement in step.split(";"):
            if statement.strip():
                connection.execute(statement)
    if version < VERSION:
        connection.execute(f"PRAGMA user_version = {VERSION}")


def _make_file(path: Path) -> None:
    """Create the file for its owner alone: events may hold what others must not read.

    A file that is there is not opened: closing it would drop every lock that this process holds on it (POSIX), and
    another process could then delete the write-ahead log under our feet.
    """
    wal = Path(f"{path}-wal")
    if _size(wal) and not _size(path):
        raise ConfigurationError(
            f"store {path}: is missing or empty, but its write-ahead log {wal} is not; put the file back or restore a "
            "backup; to begin with nothing, move the write-ahead log away"
        )
    try:
        if not path.exists():
            make_directory(path.parent)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise ConfigurationError(f"store {path}: cannot be opened for writing ({error.strerror})") from error
    if not path.is_file():
        what = "a directory" if path.is_dir() else "not a regular file"
        raise ConfigurationError(f"store {path}: is {what}; name a file, such as sqlite:///events.db")
    for place in (path, path.parent):  # the write-ahead log lies beside the file
        if not os.access(place, os.R_OK | os.W_OK):
            raise ConfigurationError(f"store {path}: cannot be opened for writing ({place} is read-only for this user)")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def make_directory(path: Path) -> None:
    """Create a directory and those above it if they are missing, and sync its name: SQLite syncs what lies in it alone.

    One that is there may be another process's, which has not come to that yet.
    """
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(PermissionError):  # one that may not be listed is older than this log
        above = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(above)
        finally:
            os.close(above)


def _filesystem(path: str) -> str:
    """Return the type of the filesystem that `path` is on, or an empty string where the system does not say."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        mount = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields.split()[4])
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, rest.split()[0]
    return kind

"""Whether the files of an open database still have their names: by device and inode.

A file that was removed or replaced stays open. SQLite goes on writing to it, syncs it and confirms events that nobody
finds again (https://sqlite.org/howtocorrupt.html, section 2.4).
"""

from __future__ import annotations

import os

from ag06.errors import StoreReplaced

Identity = tuple[int, int]
"""Device and inode."""

_BESIDE = ("-wal", "-shm")
_DESCRIPTORS = "/proc/self/fd"
_SHORTENED_BYTES = 32 << 20
"""A write-ahead log of this size may be begun anew by the writer itself; a shorter one only grows."""


class OpenFiles:
    """A database, and the write-ahead log and shared memory of the connection of one writer to it.

    Its writer calls `before_use`, `connected` and `committed`. Where one of them raises, nothing is confirmed.
    """

    def __init__(self, path: str, name: str | None = None, *, alone: bool = False) -> None:
        """Remember which file `name` names now; raise `OSError` if there is none.

        `name`: as the user gave it, symbolic links included; `path`, the real path, unless given. `alone`: no other
        process writes to it, so that shorter files are cut off.
        """
        self._path = path
        self._name = name or path
        self._file = identity(self._name)
        self._alone = alone
        self._size = 0
        self._beside: list[os.stat_result] | None = None

    def before_use(self) -> None:
        """Begin to open the database, or to read in it outside a transaction."""

    def connected(self) -> None:
        """Forget the files beside it: another connection may have made them anew."""
        self._beside = None

    def committed(self) -> None:
        """Come to the end of a transaction before anyone is answered."""

    def change(self) -> str | None:
        """Return what has become of the database; `None` if the name still names it."""
        try:
            found = os.stat(self._name)
        except OSError:
            return "was removed"
        if _identity(found) != self._file:
            return f"was replaced by another file ({_shown(_identity(found))})"
        if self._alone:
            if found.st_size < self._size:
                return f"was cut off, from {self._size} to {found.st_size} bytes,"
            self._size = found.st_size
        return None if found.st_size else "was emptied"

    def change_beside(self) -> str | None:
        """Return what has become of the files beside it since the connection's first transaction.

        To be called in a transaction or after one, by the thread that writes.
        """
        found = []
        for suffix in _BESIDE:
            try:
                found.append(os.stat(self._path + suffix))
            except OSError:
                return f"lost {self._path}{suffix}, which was removed"
        for suffix, before, now in zip(_BESIDE, self._beside or found, found, strict=True):
            if _identity(before) != _identity(now):
                return f"lost {self._path}{suffix}, which was replaced"
            if self._alone and now.st_size < before.st_size < _SHORTENED_BYTES:
                return f"lost the end of {self._path}{suffix}, which was cut off"
        self._beside = found
        return None


class Placement(OpenFiles):
    """The files of a log, looked at before each connection and after each commit; used again if they are put back."""

    def before_use(self) -> None:
        """Raise `StoreReplaced` if the name is gone, or names another file or an empty one."""
        self.check()

    def committed(self) -> None:
        """Raise `StoreReplaced` if one of the files has gone."""
        self.check()
        if (change := self.change_beside()) is not None:
            raise self._replaced(change)

    def check(self) -> None:
        """Raise `StoreReplaced` if the name is gone, or names another file or an empty one."""
        if (change := self.change()) is not None:
            raise self._replaced(change)

    def _replaced(self, change: str) -> StoreReplaced:
        """Return the error that names the file that is open here, and where its content can still be read."""
        descriptor = _descriptor(self._file)
        kept = f", its content in {descriptor} until this process ends" if descriptor else ""
        return StoreReplaced(
            f"store {self._name}: {change} while in use; this process has the file {_shown(self._file)} open{kept}; "
            "move that file back if it was moved; otherwise see docs/guides/backup.md, on a file that was removed"
        )


def identity(path: str) -> Identity:
    """Return which file a path names; raise `OSError` if there is none."""
    return _identity(os.stat(path))


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _shown(identity: Identity) -> str:
    device, inode = identity
    return f"inode {inode} on device {os.major(device)}:{os.minor(device)}"


def _descriptor(wanted: Identity) -> str | None:
    """Return a path under which this process still finds an open file, `None` where the system lists none."""
    try:
        for name in os.listdir(_DESCRIPTORS):
            try:
                if identity(f"{_DESCRIPTORS}/{name}") == wanted:
                    return f"/proc/{os.getpid()}/fd/{name}"
            except OSError:  # closed meanwhile
                continue
    except OSError:
        return None
    return None

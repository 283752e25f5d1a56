"""Whether the files of an open log still have their names: by device and inode.

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


class Placement:
    """The file of a log under the name that the user gave, symbolic links included."""

    def __init__(self, path: str) -> None:
        """Remember which file `path` names now; raise `OSError` if there is none."""
        self._path = path
        self._file = _identity(path)

    def check(self) -> None:
        """Raise `StoreReplaced` if the name is gone or names another file."""
        try:
            status = os.stat(self._path)
        except OSError:
            raise self.replaced("was removed") from None
        if (found := (status.st_dev, status.st_ino)) != self._file:
            raise self.replaced(f"was replaced by another file ({_shown(found)})")
        if not status.st_size:
            raise self.replaced("was emptied")

    def replaced(self, what: str) -> StoreReplaced:
        """Return the error that names the file that is open here, and where its content can still be read."""
        descriptor = _descriptor(self._file)
        kept = f", its content in {descriptor} until this process ends" if descriptor else ""
        return StoreReplaced(
            f"store {self._path}: {what} while in use; this process has the file {_shown(self._file)} open{kept}; move "
            "that file back if it was moved; otherwise see docs/guides/backup.md, on a file that was removed"
        )


class BesideFiles:
    """The write-ahead log and the shared memory of one connection, which SQLite makes with its first transaction."""

    def __init__(self, placement: Placement, path: str) -> None:
        """Watch the files beside `path`, the real path of the file of `placement`."""
        self._placement = placement
        self._paths = tuple(path + suffix for suffix in _BESIDE)
        self._files: list[Identity] | None = None

    def reopened(self) -> None:
        """Remember nothing: another connection may have made them anew."""
        self._files = None

    def check(self) -> None:
        """Raise `StoreReplaced` if one of the log's files has gone since the connection's first transaction.

        To be called after a commit, before it is confirmed.
        """
        self._placement.check()
        try:
            found = [_identity(path) for path in self._paths]
        except OSError as error:
            raise self._placement.replaced(f"lost {error.filename}, which was removed") from None
        if self._files is None:
            self._files = found
        elif self._files != found:
            raise self._placement.replaced(f"lost {self._paths[self._files[0] == found[0]]}, which was replaced")


def _identity(path: str) -> Identity:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _shown(identity: Identity) -> str:
    device, inode = identity
    return f"inode {inode} on device {os.major(device)}:{os.minor(device)}"


def _descriptor(identity: Identity) -> str | None:
    """Return a path under which this process still finds an open file, `None` where the system lists none."""
    try:
        for name in os.listdir(_DESCRIPTORS):
            path = f"{_DESCRIPTORS}/{name}"
            try:
                if _identity(path) == identity:
                    return f"/proc/{os.getpid()}/fd/{name}"
            except OSError:  # closed meanwhile
                continue
    except OSError:
        return None
    return None

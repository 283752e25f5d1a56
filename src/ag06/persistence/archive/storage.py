"""Where an archive lies: any filesystem that fsspec knows. The only module that imports fsspec.

Everything here blocks: it is called from a thread. A file has a name of its own and is never written again, because
object stores can neither append nor rename.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ag06.errors import ArchiveUnavailable, ConfigurationError
from ag06.persistence.stores import masked
from ag06.settings import clean

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CORRUPT = ".corrupt"
"""What the name of a file that was set aside ends with."""

PARTIAL = ".partial"
"""What the name of a file ends with that is being written."""
R = TypeVar("R")
_WITHOUT_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss"})
"""Object stores: a folder is a part of a name there, and making one could make a bucket that nobody meant."""


class Storage:
    """A folder on some filesystem. Paths are relative to it, with `/` between their parts."""

    def __init__(self, url: str, filesystem: AbstractFileSystem, root: str) -> None:
        """Made by `open_storage`."""
        self.url = url
        self._filesystem = filesystem
        self._root = root
        self._local = "file" in _protocols(filesystem)

    @property
    def volatile(self) -> bool:
        """Whether what lies here is gone when the process ends."""
        return "memory" in _protocols(self._filesystem)

    def folder(self, name: str) -> Storage:
        """Return the storage of a folder below."""
        return Storage(f"{self.url.rstrip('/')}/{name}", self._filesystem, self._full(name))

    def file_url(self, path: str) -> str:
        """Return the URL of a file."""
        return str(self._filesystem.unstrip_protocol(self._full(path)))

    def probe(self) -> bool:
        """Return whether the folder is there; raise `ArchiveUnavailable` if it cannot be reached or made."""

        def look() -> bool:
            if self._local:
                return _is_writable(Path(self._root))
            try:
                self._filesystem.ls(self._root, detail=False)
            except FileNotFoundError:
                return False
            return True

        return self._try("be opened", look)

    def write(self, path: str, data: bytes | memoryview) -> None:
        """Write a file that is there as a whole and for good when this returns, or not at all."""

        def write() -> None:
            if self._local:
                _write_durably(Path(self._full(path)), data)
            else:
                if _WITHOUT_FOLDERS.isdisjoint(_protocols(self._filesystem)):
                    self._filesystem.makedirs(posixpath.dirname(self._full(path)), exist_ok=True)
                self._filesystem.pipe_file(self._full(path), bytes(data))

        self._try("be written", write)

    def read(self, path: str) -> bytes:
        """Return what a file holds; `FileNotFoundError` if there is none."""
        return self._try("be read", lambda: bytes(self._filesystem.cat_file(self._full(path))), FileNotFoundError)

    def list(self, folder: str = "") -> list[str]:
        """Return the paths of all files below a folder, sorted."""

        def find() -> list[str]:
            self._filesystem.invalidate_cache()
            return [str(name) for name in self._filesystem.find(self._full(folder))]

        prefix = self._full("").rstrip("/") + "/"
        found = self._try("be listed", find)
        return sorted(name.removeprefix(prefix) for name in found)

    def delete(self, path: str) -> None:
        """Delete a file; one that is not there is gone already."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.rm_file(self._full(path))

        self._try("be deleted from", delete)

    def set_aside(self, path: str) -> str:
        """Rename a damaged file where that is possible; return the URL it has now."""
        try:
            self._try("be renamed", lambda: self._filesystem.mv(self._full(path), self._full(path + CORRUPT)))
        except ArchiveUnavailable:
            return self.file_url(path)
        return self.file_url(path + CORRUPT)

    def _full(self, path: str) -> str:
        return posixpath.join(self._root, path) if path else self._root

    def _try(self, what: str, work: Callable[[], R], *passed: type[Exception]) -> R:
        try:
            return work()
        except Exception as error:
            if isinstance(error, passed):
                raise
            # Each filesystem has errors of its own, and not all of them are OSErrors.
            raise ArchiveUnavailable(f"archive {masked(self.url)} cannot {what}: {_reason(error)}") from error


def open_storage(url: str) -> Storage:
    """Return the folder that `url` names; raise `ConfigurationError` for what is no URL of a known filesystem."""
    url = clean("archive", url, "its URL") if isinstance(url, str) else url
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not separator or (scheme == "file" and not rest.startswith("/")):
        raise ConfigurationError(
            f"archive {masked(str(url))!r} is no URL; write one such as file:///var/ag06/archive or s3://bucket/folder"
        )
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ConfigurationError("an archive needs fsspec and pyarrow: pip install 'ag06[archive]'") from None
    try:
        filesystem, root = url_to_fs(url)
    except ImportError as error:
        extra = "pip install 'ag06[s3]'" if scheme == "s3" else "install what fsspec needs for it"
        raise ConfigurationError(f"archive {masked(url)!r}: {error}; {extra}") from error
    except ValueError as error:
        raise ConfigurationError(
            f"archive {masked(url)!r}: {error}; use file://, s3:// or another of fsspec's"
        ) from error
    except Exception as error:
        raise ArchiveUnavailable(f"archive {masked(url)} cannot be opened: {_reason(error)}") from error
    known_as = str(filesystem.unstrip_protocol(root))
    if not _leads_to(known_as, filesystem, root):
        raise ConfigurationError(
            f"archive {masked(url)!r}: the log would know it as {masked(known_as)!r}, which leads elsewhere: a host, a "
            "login or a chain in the URL is not kept; mount it and use file://, or have the login in the environment"
        )
    return Storage(known_as, filesystem, root)


def _leads_to(url: str, filesystem: AbstractFileSystem, root: str) -> bool:
    """Whether whoever has this URL alone finds the same folder."""
    from fsspec.core import url_to_fs

    try:
        return bool(url_to_fs(url) == (filesystem, root))
    except Exception:  # noqa: BLE001 - each filesystem says in its own way that something is missing
        return False


def _protocols(filesystem: AbstractFileSystem) -> tuple[str, ...]:
    protocol: Any = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _reason(error: Exception) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{words} ({error.filename})" if isinstance(error, OSError) and error.filename else words


def _write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a file for its owner alone, and sync it and its new folders: the log may forget the events then."""
    _make_folder(path.parent)
    partial = path.with_name(path.name + PARTIAL)
    descriptor = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        try:
            with memoryview(data) as view:
                written = 0
                while written < len(view):
                    written += os.write(descriptor, view[written:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _is_writable(folder: Path) -> bool:
    """Whether a folder is there; raise `OSError` if nothing can be written into it, or where it is to be made."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
    return there == folder


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

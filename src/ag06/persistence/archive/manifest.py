"""What an archive says about itself: manifests, never written again, and the entry that the log keeps of each."""

from __future__ import annotations

import datetime as dt
import re
from hashlib import blake2b
from typing import Annotated

import msgspec

from ag06.errors import StoreError
from ag06.persistence.log import Cut

FOLDER = "manifests"
VERSION = 1
_ENTRY = re.compile(r"(?P<folder>.+/)manifests/(?P<run>[^/#]+)\.json#positions=(\d+)-(\d+)&recorded=(\d+)-(\d+)")


_Path = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\d/[\w-]+\.parquet$")]
"""Whoever can write into an archive must not have files deleted or renamed that lie elsewhere."""


class Segment(msgspec.Struct, frozen=True):
    """One file: its path below the log's folder, size, checksum, and what it holds, bounds included."""

    path: _Path
    bytes: int
    blake2b: str
    events: int
    first: int
    last: int
    start_ms: int
    last_ms: int
    types: dict[str, int]


class Manifest(msgspec.Struct, frozen=True):
    """What one run archived: its segments, in the order of positions, and which parts of the log they were."""

    run: str
    made: dt.datetime
    segments: Annotated[tuple[Segment, ...], msgspec.Meta(min_length=1)]
    cuts: tuple[Cut, ...]
    version: int = VERSION

    @property
    def path(self) -> str:
        """Where it lies below the log's folder."""
        return f"{FOLDER}/{self.run}.json"

    @property
    def events(self) -> int:
        """How many events it is about."""
        return sum(segment.events for segment in self.segments)

    def entry(self, folder: str) -> Entry:
        """Return what the log keeps of it; `folder` is the URL of the log's folder, `/` included."""
        return Entry(
            folder,
            self.run,
            min(segment.first for segment in self.segments),
            max(segment.last for segment in self.segments),
            min(segment.start_ms for segment in self.segments),
            max(segment.last_ms for segment in self.segments),
        )


class Entry(msgspec.Struct, frozen=True):
    """What the log keeps of a manifest: where it is, and the range of its events, bounds included."""

    folder: str
    run: str
    first: int
    last: int
    start_ms: int
    last_ms: int

    @property
    def url(self) -> str:
        """The URL under which the log keeps it."""
        return (
            f"{self.folder}{FOLDER}/{self.run}.json"
            f"#positions={self.first}-{self.last}&recorded={self.start_ms}-{self.last_ms}"
        )

    @property
    def path(self) -> str:
        """Where the manifest lies below the folder."""
        return f"{FOLDER}/{self.run}.json"


def parse_entry(url: str) -> Entry | None:
    """Return the entry that a URL of `EventLog.archives` is; `None` for one that only names a folder."""
    found = _ENTRY.fullmatch(url)
    if found is None:
        return None
    folder, run, *numbers = found.groups()
    return Entry(folder, run, *map(int, numbers))


class _Sealed(msgspec.Struct, frozen=True):
    blake2b: str
    manifest: msgspec.Raw


_decode = msgspec.json.Decoder(Manifest).decode
_unseal = msgspec.json.Decoder(_Sealed).decode


def checksum(data: bytes | memoryview) -> str:
    """Return the BLAKE2b-256 (RFC 7693) of a file, as it stands in a manifest."""
    return blake2b(data, digest_size=32).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """Return a manifest as it is stored, with its own checksum."""
    body = msgspec.json.encode(manifest)
    return msgspec.json.encode(_Sealed(checksum(body), msgspec.Raw(body))) + b"\n"


def decode(data: bytes) -> Manifest:
    """Return a stored manifest; raise `StoreError` if it is damaged or of a newer release."""
    try:
        sealed = _unseal(data)
        body = bytes(sealed.manifest)
        if checksum(body) != sealed.blake2b:
            raise StoreError("its checksum does not match")
        manifest = _decode(body)
    except msgspec.DecodeError as error:
        raise StoreError(f"it cannot be read: {error}") from error
    if manifest.version > VERSION:
        raise StoreError(f"it is of a newer release (version {manifest.version}); upgrade ag06")
    return manifest

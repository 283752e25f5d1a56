"""Call board: heartbeat and open calls of one worker process in a shared file, for its supervisor.

The supervisor reads it while the worker cannot answer: its event loop is blocked, or its interpreter held by C code.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

SUFFIX = ".calls"
_HEADER = struct.Struct("<dI")  # time of the last beat, 0 before the first and after the last; bytes of group names
_SLOT = struct.Struct("<BH61s64s")  # whether it is used, index of the group, name of the delivery, id of the event
_NAMES = 64 * 1024
_SLOTS = 2048
_LONGEST_NAME = 200


class OpenCall(msgspec.Struct, frozen=True):
    """A delivery whose call had begun and was not settled when the board was read."""

    group: str
    name: str
    event_id: str


class CallBoard:
    """The board of this process; used in one thread. Calls beyond 2,048 at once are not shown."""

    def __init__(self, path: Path, groups: Sequence[str]) -> None:
        """Create the file for a worker that runs the steps of `groups`; raise `OSError` where that cannot be."""
        names = msgspec.json.encode(list(groups))
        if len(names) > _NAMES - _HEADER.size:
            raise OSError(f"the names of {len(groups)} steps take {len(names)} bytes")
        # Written in full: a page that a full disk could not back would end the process when it is touched.
        content = _HEADER.pack(0.0, len(names)) + names
        path.write_bytes(content.ljust(_NAMES + _SLOTS * _SLOT.size, b"\0"))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._indexes = {group: index for index, group in enumerate(groups)}
        self._free = list(range(_NAMES, _NAMES + _SLOTS * _SLOT.size, _SLOT.size))[::-1]

    def beat(self, now: float) -> None:
        """Write the time of a beat (monotonic clock), 0 when the worker ends."""
        struct.pack_into("<d", self._memory, 0, now)

    def begin(self, group: str, name: str, event_id: str) -> int:
        """Show a call of a step with one delivery; return its slot for `end`."""
        if not self._free:
            return 0
        slot = self._free.pop()
        _SLOT.pack_into(self._memory, slot, 1, self._indexes[group], name.encode(), event_id.encode())
        return slot

    def end(self, slot: int) -> None:
        """Show a call no more."""
        if slot:
            self._memory[slot] = 0
            self._free.append(slot)


def board_path(directory: Path, worker: str) -> Path:
    """Return where the board of a worker is."""
    return directory / (quote(worker, safe="")[:_LONGEST_NAME] + SUFFIX)


def read_beat(path: Path) -> float:
    """Return the time of a worker's last beat; 0 if it does not beat."""
    try:
        with path.open("rb") as file:
            beat, _ = _HEADER.unpack(file.read(_HEADER.size))
    except (OSError, struct.error):
        return 0.0
    return float(beat)


class Board(msgspec.Struct, frozen=True):
    """The groups whose steps a worker runs, and its open calls."""

    groups: list[str] = []
    calls: list[OpenCall] = []


def read_board(path: Path) -> Board:
    """Return what the board of a worker shows; nothing where it cannot be read."""
    try:
        content = path.read_bytes()
        _, size = _HEADER.unpack_from(content)
        groups = msgspec.json.decode(content[_HEADER.size : _HEADER.size + size], type=list[str])
    except (OSError, struct.error, msgspec.DecodeError):
        return Board()
    slots = (_SLOT.unpack_from(content, at) for at in range(_NAMES, len(content), _SLOT.size))
    calls = [
        OpenCall(groups[index], _text(name), _text(event))
        for used, index, name, event in slots
        if used and index < len(groups)
    ]
    return Board(groups, calls)


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode(errors="replace")


def board_of_this_worker(directory: str | None, worker: str, groups: Sequence[str]) -> CallBoard | None:
    """Return a board in a directory of the supervisor; none without one, or where it cannot be written."""
    if directory is None:
        return None
    try:
        return CallBoard(board_path(Path(directory), worker), groups)
    except OSError:
        return None  # the supervisor sees no stall of this worker then; its leases lapse as without a supervisor


def remove_board(directory: Path, worker: str) -> None:
    """Remove the board of a worker that has ended."""
    board_path(directory, worker).unlink(missing_ok=True)

"""The Lua scripts: what runs inside the server, atomically."""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib.resources import files

import msgspec


class Script(msgspec.Struct, frozen=True):
    """One script: its source and the name under which the server keeps it."""

    source: bytes
    sha: bytes


_COUNTS = ("clock", "counts")
_EVENTS = (*_COUNTS, "events")
_DELIVERIES = (*_EVENTS, "ids", "deliveries")
_HELD = (*_DELIVERIES, "held")
_PLACES = (*_COUNTS, "ids", "places")
_PARTS: dict[str, tuple[str, ...]] = {
    "allowed": (),
    "append": (),
    "admit": (*_EVENTS, "receipt"),
    "resolve": (*_EVENTS, "receipt"),
    "promote": (*_EVENTS, "promotion"),
    "register": _COUNTS,
    "census": _COUNTS,
    "discard": ("clock",),
    "trim": _PLACES,
    "settled": _PLACES,
    "drop": _PLACES,
    "archive": ("clock",),
    "note": ("clock",),
    "lead": ("clock",),
    "newest": (),
    "tally": (),
    "measure": (),
    "tails": _COUNTS,
    "turn": ("clock",),
    "fetch": (*_DELIVERIES, "promotion"),
    "order": _DELIVERIES,
    "commit": (*_HELD, "receipt"),
    "release": _HELD,
    "vouch": _DELIVERIES,
    "survived": _DELIVERIES,
    "leave": _DELIVERIES,
    "withhold": _DELIVERIES,
    "forget": _DELIVERIES,
    "renew": _HELD,
    "start": _HELD,
    "remove": _DELIVERIES,
    "retry": _DELIVERIES,
}
NAMES = tuple(_PARTS)
_PUBLISHING = frozenset({"append", "admit"})
"""What a server over its memory limit refuses."""
_READING = frozenset({"allowed", "census", "measure", "newest", "settled", "tally"})
"""What writes nothing. All other scripts drain the log, keep it or lead in it, and go through at any memory limit."""


@cache
def script(name: str) -> Script:
    """Return the script `name.lua` behind the parts that it uses."""
    parts = (*_PARTS[name], name)
    if name not in _PUBLISHING | _READING:
        parts = ("over_limit", *parts)
    source = b"\n".join(files(__package__).joinpath(f"{part}.lua").read_bytes() for part in parts)
    return Script(source, sha1(source, usedforsecurity=False).hexdigest().encode())

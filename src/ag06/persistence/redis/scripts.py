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
    "fetch": (*_DELIVERIES, "promotion"),
    "order": _DELIVERIES,
    "commit": (*_HELD, "receipt"),
    "release": _HELD,
    "leave": _DELIVERIES,
    "withhold": _DELIVERIES,
    "forget": _DELIVERIES,
    "renew": _HELD,
    "start": _HELD,
    "remove": _DELIVERIES,
    "retry": _DELIVERIES,
}
NAMES = tuple(_PARTS)


@cache
def script(name: str) -> Script:
    """Return the script `name.lua` behind the parts that it uses."""
    source = b"\n".join(files(__package__).joinpath(f"{part}.lua").read_bytes() for part in (*_PARTS[name], name))
    return Script(source, sha1(source, usedforsecurity=False).hexdigest().encode())

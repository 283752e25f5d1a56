"""What a note may be: the same for every store."""

from __future__ import annotations

from ag06.content import check_name
from ag06.errors import InvalidEvent
from ag06.persistence.log import MOST_NOTE_BYTES


def check_note(name: str, body: bytes | None = None) -> str:
    """Return the name of a note; raise `InvalidEvent` if it may be none, or for a body that is too large."""
    checked = check_name("note", name)
    if body is not None and not isinstance(body, bytes):
        raise InvalidEvent("body", f"of note {checked!r} must be bytes or None, got {type(body).__name__}")
    if body is not None and len(body) > MOST_NOTE_BYTES:
        raise InvalidEvent(
            "body",
            f"of note {checked!r} is {len(body)} bytes; the limit is {MOST_NOTE_BYTES}; spread it over several names",
        )
    return checked

"""One line of what `ag06 doctor` reports."""

from __future__ import annotations

from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """What was found about a topic; `fail` ends the command with an error."""

    topic: str
    status: Literal["pass", "warn", "fail"]
    what: str

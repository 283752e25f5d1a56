"""How long an exception asks to wait before the next attempt: `Retry-After`, as HTTP clients carry it."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

from ag06.stopping import asks_to_stop

LONGEST_WAIT = 3600.0
"""What is asked for beyond this many seconds is cut: an event must not be lost from sight for one wrong header."""


def requested_wait(error: BaseException, clock: Callable[[], float] = time.time) -> float | None:
    """Return for how many seconds `error` asks not to be tried again, 0 to `LONGEST_WAIT`; `None` if it does not ask.

    It may have an attribute `retry_after` (seconds, a timedelta, or text as in the header), or a header `Retry-After`
    in `error.response.headers` or `error.headers`, in seconds or as a date (RFC 9110, 10.2.3). `clock` in seconds
    since the epoch. What makes no sense is no request.
    """
    try:
        asked = getattr(error, "retry_after", None)
        if asked is None:
            asked = _header(getattr(error, "response", None))
        if asked is None:
            asked = _header(error)
        seconds = _seconds(asked, clock)
    except BaseException as failure:  # these are attributes of somebody else's class: they may do and raise anything
        if asks_to_stop(failure):
            raise
        return None
    return None if seconds is None else min(max(seconds, 0.0), LONGEST_WAIT)


def _header(owner: Any) -> Any:
    headers = getattr(owner, "headers", None)
    if headers is None:
        return None
    found = headers.get("Retry-After")
    return headers.get("retry-after") if found is None else found  # a plain dict knows upper case from lower


def _seconds(asked: object, clock: Callable[[], float]) -> float | None:
    if isinstance(asked, dt.timedelta):
        return asked.total_seconds()
    if isinstance(asked, (int, float)) and not isinstance(asked, bool):
        return None if math.isnan(asked) or asked < 0 else float(asked)
    if isinstance(asked, bytes):
        asked = asked.decode("ascii")
    if not isinstance(asked, str):
        return None
    text = asked.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    moment = parsedate_to_datetime(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() - clock()

"""Every error the package raises on purpose, in one tree under `AG06Error`.

A message says what happened, with which value, and what to do next.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import SupportsFloat


class AG06Error(Exception):
    """The root of every error raised by this package."""


class ConfigurationError(AG06Error):
    """A setting, a URL or a declaration is wrong; the message names it and what is accepted."""


class InvalidEvent(AG06Error, ValueError):  # noqa: N818 - a public name of the contract
    """An event breaks a limit. Nothing was stored.

    Attributes:
        field: the name of the field at fault, such as `"type"` or `"data.items[3]"`.
    """

    def __init__(self, field: str, problem: str) -> None:
        """Name the `field` at fault and the `problem` with it, limit included."""
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[InvalidEvent], tuple[str, str]]:
        return type(self), (self.field, self.problem)


class InvalidMetric(ConfigurationError, ValueError):  # noqa: N818 - reads as what is wrong
    """A metric's name, label, kind or value is wrong; nothing was counted.

    Attributes:
        metric: the name of the metric at fault.
    """

    def __init__(self, metric: str, problem: str) -> None:
        """Name the `metric` at fault and the `problem` with it."""
        super().__init__(f"metric {metric}: {problem}")
        self.metric = metric
        self.problem = problem

    def __reduce__(self) -> tuple[type[InvalidMetric], tuple[str, str]]:
        return type(self), (self.metric, self.problem)


class StoreError(AG06Error):
    """The store could not do what was asked."""


class StoreUnavailable(StoreError, ConnectionError):  # noqa: N818 - a public name of the contract
    """The store cannot be reached or refuses to write now; nothing is known to be stored. Try again later."""


class OutcomeUnknown(StoreUnavailable):
    """The connection was lost before the store's reply: the event may or may not be stored.

    Publish again with `id=error.event_id`: the store then accepts it exactly once.

    Attributes:
        event_id: the id the event has if it was stored.
        doubts: for each record of the append, what the store needs to find out later (`Record.doubt`), or nothing.
    """

    def __init__(self, message: str, event_id: str | None = None, doubts: tuple[bytes | None, ...] = ()) -> None:
        """Say what was lost; `event_id` is filled in by the facade that knows it."""
        super().__init__(message)
        self.event_id = event_id
        self.doubts = doubts


class StoreReplaced(StoreError):  # noqa: N818 - reads as what happened
    """The store's file was removed or replaced while this process had it open; nothing was stored."""


class StoreDamaged(StoreError):  # noqa: N818 - reads as what happened
    """The store's file is damaged: some of it cannot be read. Restore a backup; see `ag06 check`."""


class Unstorable(StoreError):  # noqa: N818 - reads as what happened
    """The store refuses this however often it is repeated, until somebody repairs the store; nothing of it was done.

    Attributes:
        accepted: of a commit, the answers to the settlements before the one that is refused.
    """

    def __init__(self, message: str, accepted: Sequence[bool] = ()) -> None:
        """Say what the store refuses and why."""
        super().__init__(message)
        self.accepted = accepted


class TooLarge(Unstorable):
    """The store takes no request of this size: the message has the size and the setting of the server it exceeds."""


class Backpressure(StoreError):  # noqa: N818 - a public name of the contract
    """A bound is reached (`max_backlog`, or a full buffer); nothing was stored. Slow down and publish again."""


class ArchiveUnavailable(StoreError):  # noqa: N818 - a public name of the contract
    """A part of the asked range lives in an archive that cannot be reached."""


class ArchiveDamaged(ArchiveUnavailable):
    """A file of an archive is not what was written: cut off, or changed. It was set aside where that is possible.

    Attributes:
        path: the URL of the damaged file, as it is named now.
    """

    def __init__(self, message: str, path: str) -> None:
        """Say what is damaged; `path` is where it lies."""
        super().__init__(message)
        self.path = path

    def __reduce__(self) -> tuple[type[ArchiveDamaged], tuple[str, str]]:
        return type(self), (str(self), self.path)


class StepFailed(AG06Error):  # noqa: N818 - reads as what happened
    """A step could not process an event."""


class Reject(StepFailed):
    """Raise it in a step to send the event to the dead letters at once, with the reason you give."""


class RetryAfter(StepFailed):
    """Raise it in a step to have the event tried again, but not before so many seconds; it costs an attempt.

    Attributes:
        retry_after: the seconds, 0 or more; more than an hour is taken for an hour.
    """

    def __init__(self, seconds: float | dt.timedelta, why: str = "the step asked for a pause") -> None:
        """Ask for `seconds`, and say `why` for the log and the dead letter.

        What is below 0 or not a number is 0: a time that was computed and is over. Raises `TypeError` for what is no
        number at all, `None` and text too, so that the pause is not silently left out.
        """
        super().__init__(why)
        if isinstance(seconds, dt.timedelta):
            seconds = seconds.total_seconds()
        if isinstance(seconds, bool) or not isinstance(seconds, SupportsFloat):
            raise TypeError(f"RetryAfter({seconds!r}): a number of seconds or a timedelta")
        asked = float(seconds)
        self.retry_after = asked if asked > 0 else 0.0

    def __reduce__(self) -> tuple[type[RetryAfter], tuple[float, str]]:
        return type(self), (self.retry_after, str(self))


class CircuitOpen(AG06Error):  # noqa: N818 - a public name of the contract
    """A circuit breaker refused the call.

    Attributes:
        name: the breaker's name, or `None`.
        retry_after: seconds until a call may be tried again.
    """

    def __init__(self, name: str | None, retry_after: float) -> None:
        """Name the breaker and say in `retry_after` seconds when to try again."""
        super().__init__(f"circuit breaker {name or '(unnamed)'} refuses calls; try again in {retry_after:.3f} s")
        self.name = name
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[CircuitOpen], tuple[str | None, float]]:
        return type(self), (self.name, self.retry_after)

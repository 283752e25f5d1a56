"""Which exception decides what a failure means, alone or inside exception groups.

For a step (`decide`), of all the exceptions in the groups:

1. a `Reject` is final, whatever else failed;
2. where all are `CircuitOpen`, nothing was tried;
3. one that is not worth another attempt (`Retry(on=...)`) is final;
4. otherwise another attempt follows, no sooner than any of them asks for.

For a circuit breaker (`counts`), one that is recorded makes the call a failure; a `Reject` counts as nothing, as do a
cancellation and what the breaker ignores.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from ag06.errors import CircuitOpen, Reject, RetryAfter
from ag06.retry_after import requested_wait
from ag06.stopping import asks_to_stop

Kinds = Any
"""An exception class, or a tuple of them, as `except` takes it."""

_LONGEST_REFUSAL = 86_400.0
"""Seconds after which a breaker is asked again whatever it said: steps may raise `CircuitOpen` themselves."""
_NO_CALL = (Reject, asyncio.CancelledError, GeneratorExit)
_members_of: Any = BaseExceptionGroup.__dict__["exceptions"].__get__  # a subclass may define its own


class Decision(msgspec.Struct, frozen=True):
    """What a failure means for its event.

    Attributes:
        kind: `"rejected"` or `"final"`: no other attempt; `"refused"`: nothing was tried; `"passing"`: try again.
        error: the exception to name: the one that decides, or the whole where several do.
        wait: seconds that it asks to wait for, `None` where it does not ask.
    """

    kind: Literal["rejected", "refused", "final", "passing"]
    error: BaseException
    wait: float | None = None


def decide(error: BaseException, on: Kinds = Exception, clock: Callable[[], float] = time.time) -> Decision:
    """Return what `error` means for an event whose `Retry` names `on`; `clock` in seconds since the epoch.

    `Exception` among `on` stands for whatever a step can raise, so also for classes that derive from `BaseException`.
    """
    parts = list(_parts(error, Reject, CircuitOpen, (RetryAfter, CircuitOpen), on))
    whole = parts[0][0] if len(parts) == 1 else error
    for member, (is_reject, _, _, _) in parts:
        if is_reject:
            return Decision("rejected", member)
    if all(is_refusal for _, (_, is_refusal, _, _) in parts):
        return Decision("refused", whole, max(_refusal(member) for member, _ in parts))
    anything = _is_a(Exception, on)
    if not all(asks or named or anything for _, (_, _, asks, named) in parts):
        return Decision("final", whole)
    asked = [wait for member, _ in parts if (wait := requested_wait(member, clock)) is not None]
    return Decision("passing", whole, max(asked, default=None))


def is_refusal(error: BaseException | None) -> bool:
    """Return whether a call was refused by a circuit breaker, and so was no attempt."""
    return error is not None and decide(error).kind == "refused"


def counts(error: BaseException, record: Kinds, ignore: Kinds) -> bool | None:
    """Return whether a call that raised `error` failed for a breaker; `None`: it counts as nothing."""
    outcome: bool | None = None
    for member, (is_no_call, is_ignored, is_recorded) in _parts(error, _NO_CALL, ignore, record):
        if is_no_call or is_ignored:
            continue
        if is_recorded:
            return True
        if issubclass(type(member), Exception):
            outcome = False
    return outcome


def is_cancellation(error: BaseException) -> bool:
    """Return whether `error` is a cancellation and nothing else, also in groups."""
    return all(found for _, (found,) in _parts(error, asyncio.CancelledError))


def members(error: BaseException) -> Iterator[BaseException]:
    """Yield `error`, or the exceptions in its groups, however deep, each once."""
    return (member for member, _ in _parts(error))


def _parts(error: BaseException, *families: Kinds) -> Iterator[tuple[BaseException, tuple[bool, ...]]]:
    """Yield each exception that is no group, and whether it, or a group around it, is one of each family."""
    waiting = [(error, (False,) * len(families))]
    seen: set[tuple[int, tuple[bool, ...]]] = set()
    while waiting:
        current, inherited = waiting.pop()
        kind = type(current)
        flags = tuple(given or _is_a(kind, family) for given, family in zip(inherited, families, strict=True))
        if not issubclass(kind, BaseExceptionGroup):
            yield current, flags
            continue
        if (id(current), flags) not in seen:  # the same group may occur in many
            seen.add((id(current), flags))
            waiting += [(member, flags) for member in reversed(_members_of(current))]


def _is_a(kind: type, family: Kinds) -> bool:
    try:
        return issubclass(kind, family)
    except BaseException as failure:  # a class may decide by code of its own what its subclasses are
        if asks_to_stop(failure):
            raise
        return False


def _refusal(error: BaseException) -> float:
    """Return for how many seconds a `CircuitOpen` refuses calls; what makes no sense is no wait."""
    try:
        wait = float(getattr(error, "retry_after", 0.0))
    except BaseException as failure:  # a subclass may make anything of the attribute
        if asks_to_stop(failure):
            raise
        return 0.0
    return min(wait, _LONGEST_REFUSAL) if wait > 0 and not math.isnan(wait) else 0.0

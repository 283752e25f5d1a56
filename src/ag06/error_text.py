"""Text of an exception for logs and dead letters: bounded, valid Unicode, whatever the exception's own code does."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from ag06.stopping import asks_to_stop

LONGEST_MESSAGE = 2_000
LONGEST_TRACEBACK = 16_000

_MOST_EXCEPTIONS = 100
_MOST_FRAMES = 100
# A subclass may define attributes of these names that do anything.
_traceback_of: Any = BaseException.__dict__["__traceback__"].__get__
_cause_of: Any = BaseException.__dict__["__cause__"].__get__
_context_of: Any = BaseException.__dict__["__context__"].__get__
_members_of: Any = BaseExceptionGroup.__dict__["exceptions"].__get__


def kind_of(error: BaseException) -> str:
    """Return the name of the exception's class."""
    name: str = _attempt(lambda: str.__str__(type(error).__name__), "BaseException")
    return _unicode(name)


def message_of(error: BaseException, longest: int = LONGEST_MESSAGE) -> str:
    """Return the exception's message, at most `longest` characters of it."""
    return _unicode(_attempt(lambda: str.__str__(str(error)), "(its __str__ failed)")[:longest])[:longest]


def describe(error: BaseException) -> str:
    """Return class and message in one line of a log."""
    return f"{kind_of(error)}: {message_of(error)}"


def traceback_of(error: BaseException, longest: int = LONGEST_TRACEBACK) -> str:
    """Return the traceback as Python prints it, at most about `longest` characters: its beginning and its end.

    Of more than a hundred exceptions, in causes and groups, only the outermost one is shown: Python's formatting takes
    time and room without bound for them.
    """
    text = None if _is_too_much(error) else _attempt(lambda: _printed(error), None)
    if text is None:
        frames = _attempt(lambda: "".join(traceback.format_tb(_traceback_of(error), limit=-_MOST_FRAMES)), "")
        text = f"Traceback (most recent call last):\n{frames}{describe(error)}\n"
    if len(text) > longest:
        half = longest // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
    return _unicode(text)


def log_error(
    logger: logging.Logger, error: BaseException, message: str, *values: object, level: int = logging.ERROR
) -> None:
    """Log `message % values` and what the user's code raised, with the traceback where a logger can print it."""
    can_be_printed = not _is_too_much(error) and _attempt(lambda: _printed(error), None) is not None
    logger.log(level, f"{message}: %s", *values, describe(error), exc_info=error if can_be_printed else None)


def _printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, _traceback_of(error)))


def _is_too_much(error: BaseException) -> bool:
    """Return whether more than a hundred exceptions would be printed; a group that occurs twice is printed twice."""
    waiting, count = [error], 0
    while waiting:
        count += 1
        current = waiting.pop()
        if issubclass(type(current), BaseExceptionGroup):
            waiting += _members_of(current)
        before = _cause_of(current)
        if before is None:  # no truth value: a class may define its own
            before = _context_of(current)
        if before is not None:
            waiting.append(before)
        if count + len(waiting) > _MOST_EXCEPTIONS:
            return True
    return False


def _attempt(read: Callable[[], Any], otherwise: Any) -> Any:
    """Return `read()`, or `otherwise` if it fails: it may run the code of the exception's class."""
    try:
        return read()
    except BaseException as failure:
        if asks_to_stop(failure):
            raise
        return otherwise


def _unicode(text: str) -> str:
    """Return `text` without lone surrogates, which no store takes."""
    return text.encode(errors="backslashreplace").decode()

"""One exception object for each caller of an operation that failed for several callers at once."""

from __future__ import annotations

import copy

from ag06.errors import AG06Error


def own_error(error: BaseException) -> BaseException:
    """Return a copy of one of our errors, with its attributes and its cause; any other exception as it is.

    A shared exception would collect the tracebacks of all callers, and what is noted in it for one of them.
    """
    if not isinstance(error, AG06Error):
        return error
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own

"""Requests to stop the process, told from exceptions of the same classes that a program raises by itself.

`KeyboardInterrupt` and `SystemExit` are the two that asyncio lets out of its loop. Only the ones that the handler of a
signal raised are requests; any other is a failure of the code that raised it, as a `sys.exit()` deep in a library.
"""

from __future__ import annotations

import signal
import threading
import types
from collections.abc import Iterator
from typing import Any

from ag06.callables import definition_of

_traceback_of: Any = BaseException.__dict__["__traceback__"].__get__  # a subclass may define its own
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK") if hasattr(signal, name)
)


def asks_to_stop(error: BaseException) -> bool:
    """Return whether `error` was raised by the handler of a signal that asks the process to end.

    That is the case where the traceback passes through the handler. Python's own handler of SIGINT is not written in
    Python: it leaves a `KeyboardInterrupt` that no `raise` statement raised.
    """
    if not issubclass(type(error), (KeyboardInterrupt, SystemExit)):
        return False
    if threading.current_thread() is not threading.main_thread():
        return False  # handlers run in the main thread
    frames = list(_frames(error))
    handlers = [signal.getsignal(number) for number in _SIGNALS]
    codes = {getattr(definition_of(handler), "__code__", None) for handler in handlers if callable(handler)} - {None}
    if any(code in codes for code, _ in frames):
        return True
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return is_default and issubclass(type(error), KeyboardInterrupt) and not _is_raised(frames)


def _frames(error: BaseException) -> Iterator[tuple[types.CodeType, int]]:
    """Yield the code and the instruction of each entry of the traceback, the innermost last."""
    entry: types.TracebackType | None = _traceback_of(error)
    while entry is not None:
        yield entry.tb_frame.f_code, entry.tb_lasti
        entry = entry.tb_next


def _is_raised(frames: list[tuple[types.CodeType, int]]) -> bool:
    """Return whether a `raise` statement is where the innermost entry of a traceback stands."""
    from dis import opmap  # needed only where somebody raises such an exception

    if not frames:
        return True
    code, at = frames[-1]
    return code.co_code[at] == opmap["RAISE_VARARGS"]

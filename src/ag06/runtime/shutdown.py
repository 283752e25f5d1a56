"""The signals that ask a process to shut down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

_logger = logging.getLogger("ag06.runtime")


@contextlib.contextmanager
def shutdown_signals() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM and SIGINT set; a second SIGINT cancels the task that is inside.

    Python delivers signals to the main thread alone: in any other the event is never set.
    """
    asked = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        _logger.info(
            "no signal ends a workflow outside the main thread: it runs until the task that awaits serve() is "
            "cancelled, or the process ends"
        )
        yield asked
        return
    loop = asyncio.get_running_loop()
    me = asyncio.current_task()

    def on_signal(number: signal.Signals) -> None:
        # SIGTERM may come twice, from a supervisor and from whoever stopped the supervisor: once is enough.
        if number == signal.SIGINT and asked.is_set() and me is not None:
            me.cancel()
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield asked
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

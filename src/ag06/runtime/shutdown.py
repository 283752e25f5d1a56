"""The signals that ask a process to shut down."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def shutdown_signals() -> Iterator[asyncio.Event]:
    """Yield what SIGTERM and SIGINT set; a second SIGINT cancels the task that is inside."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
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

"""The event loop of a process that does nothing but run steps: it ends when its work does, not when a step ends it.

asyncio lets a `SystemExit` or `KeyboardInterrupt` of any task out of the loop, also that of a task which a step has
started, and `loop.stop()` may be called by anybody. In a loop of the user's own (`Workflow.running`) that is the
user's; here it would end a worker, and the next one that takes the event over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from ag06.error_text import log_error
from ag06.stopping import asks_to_stop

_logger = logging.getLogger("ag06.runtime")
T = TypeVar("T")


def run_until_done(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a new event loop until it is done, and return its result; raise what it raises.

    Its end, and signals, are what ends it. As with `asyncio.run`, tasks that are left over are cancelled then.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        asyncio.set_event_loop(loop)
        task = loop.create_task(work)
        while True:
            try:
                return loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as error:
                if task.done() or asks_to_stop(error):
                    raise
                log_error(_logger, error, "a task that a step started tried to end the process, which goes on")
            except RuntimeError:
                if task.done() or loop.is_closed():
                    raise
                _logger.error("a step, or a task of it, stopped the event loop, which goes on")  # noqa: TRY400

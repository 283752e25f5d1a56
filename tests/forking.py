"""Children made by `os.fork` in the middle of a test, and what they report."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 30
"""How long a child may take before it is killed."""


class Forked:
    """A child that calls `work` and ends; `answer` returns what that returned, as JSON keeps it."""

    def __init__(self, work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> None:
        """Fork here and now."""
        self._there, told = os.pipe()
        with warnings.catch_warnings():  # since 3.12 Python warns of every fork in a process with threads
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = fork()
        if self.pid == 0:
            os.close(self._there)
            _report(work, told)
        os.close(told)

    def answer(self) -> Any:
        """Wait for the end of the child; raise `AssertionError` with its error if it failed."""
        with os.fdopen(self._there, "rb") as pipe:
            text = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"the child ended with {status}"
        succeeded, answer = json.loads(text)
        assert succeeded, answer
        return answer


def _report(work: Callable[[], Any], told: int) -> None:
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        try:
            answer = [True, work()]
        except BaseException as error:
            answer = [False, f"{type(error).__name__}: {error}"]
        with os.fdopen(told, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        os._exit(0)
    finally:
        os._exit(1)


def content(path: Path) -> tuple[str, set[str]]:
    """Return what SQLite's own check finds in a log, and the ids of its events."""
    connection = sqlite3.connect(path)
    try:
        (found,) = connection.execute("PRAGMA integrity_check").fetchone()
        return found, {event_id for (event_id,) in connection.execute("SELECT id FROM events")}
    finally:
        connection.close()

"""`ag06` as a user runs it: a process of its own, in a directory of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_ELSEWHERE = ("COLUMNS", "CI", "GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "NO_COLOR", "TERM")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def environment(**more: str) -> dict[str, str]:
    """The environment without what would change how a command speaks or which store it takes."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("AG06_") and name not in _ELSEWHERE
    }
    return kept | {"TERM": "xterm", "AG06_HTTP_PORT": "0"} | more


def words(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ag06", *(str(argument) for argument in arguments)]


def ag06(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Ended:
    """Run a command to its end, without a terminal."""
    done = subprocess.run(
        words(*arguments),
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def started(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> Iterator[Running]:
    """Start a command that does not end by itself; it is gone afterwards, with all that it started."""
    process = subprocess.Popen(
        words(*arguments),
        cwd=cwd,
        env=environment(PYTHONUNBUFFERED="1", **(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    running = Running(process)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class Running:
    """A command under way. What it wrote to either stream is gathered in one text."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.text = ""
        self._open = [stream.fileno() for stream in (process.stdout, process.stderr) if stream is not None]

    def until(self, *wanted: str, seconds: float = 40.0) -> str:
        """Read until all of `wanted` were written; fail loudly when they do not come."""
        deadline = time.monotonic() + seconds
        while not all(word in self.text for word in wanted):
            assert time.monotonic() < deadline, f"no {wanted} after {seconds} s in:\n{self.text}"
            assert self._read(0.2) or self._open, f"ended without {wanted}:\n{self.text}"
        return self.text

    def line(self, start: str) -> str:
        """Read until a line that begins like this is whole; return the rest of it."""
        self.until(start)
        rest = self.text.partition(start)[2]
        while "\n" not in rest:
            assert self._read(0.2) or self._open, f"ended in the middle of a line:\n{self.text}"
            rest = self.text.partition(start)[2]
        return rest.partition("\n")[0]

    def _read(self, wait: float) -> bool:
        ready, _, _ = select.select(self._open, [], [], wait)
        for number in ready:
            piece = os.read(number, 1 << 16)
            self.text += piece.decode(errors="replace")
            if not piece:
                self._open.remove(number)
        return bool(ready)

    def seen(self, seconds: float) -> bool:
        """Wait so long for anything to be written; return whether anything was, by now."""
        self._read(seconds)
        return bool(self.text)

    def interrupt(self) -> Ended:
        """Press Ctrl-C: the whole process group hears it."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.end()

    def terminate(self) -> Ended:
        self.process.terminate()
        return self.end()

    def end(self, seconds: float = 60.0) -> Ended:
        """Read to the end; fail loudly when it does not come."""
        deadline = time.monotonic() + seconds
        while self._open:
            assert time.monotonic() < deadline, f"still running after {seconds} s:\n{self.text}"
            self._read(0.2)
        return Ended(self.process.wait(seconds), self.text, self.text)


def on_terminal(arguments: Sequence[object], *, cwd: Path, columns: int, env: dict[str, str] | None = None) -> Ended:
    """Run a command on a terminal of so many columns; both streams are one there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        words(*arguments), cwd=cwd, env=environment(**(env or {})), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other end was closed
        while piece := os.read(ours, 1 << 16):
            written += piece
    os.close(ours)
    text = written.decode().replace("\r\n", "\n")
    return Ended(process.wait(60), text, text)

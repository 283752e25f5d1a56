"""Libraries in C that are put before a program's own (LD_PRELOAD), compiled when a test first needs them."""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ag06-preload-")


def _compiler() -> list[str]:
    """Return the system's compiler, or the one that `make test` installs where the system has none."""
    found = shutil.which("cc")
    return [found] if found else [sys.executable, "-m", "ziglang", "cc"]


@functools.cache
def library(name: str) -> Path:
    """Compile `name`.c beside this file; return the library."""
    built = Path(_directory().name) / f"{name}.so"
    command = [*_compiler(), "-O2", "-Wall", "-shared", "-fPIC", "-o", str(built), str(HERE / f"{name}.c"), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}; install a C compiler, or: pip install ziglang")
    return built


class Clock:
    """The clock of the processes that are started with `environment`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0.0)
        self.environment = {"LD_PRELOAD": str(library("clock")), "AG06_CLOCK": str(path)}

    def set(self, ahead: float) -> None:
        """Set it so many seconds ahead of the true time, or behind it."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.write(struct.pack("q", int(ahead * 1e6)))

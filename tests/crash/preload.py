"""Libraries in C that are put before a program's own (LD_PRELOAD), compiled when a test first needs them."""

from __future__ import annotations

import functools
import shutil
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

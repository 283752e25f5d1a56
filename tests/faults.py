"""Ways for a real Valkey server to refuse what it is asked, each with its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from records import eventually
from servers import ValkeyServer, free_port

Server = ValkeyServer


@asynccontextmanager
async def running_server(directory: Path, **config: str) -> AsyncIterator[Server]:
    directory.mkdir(exist_ok=True)
    # A replica need not wait for others who might join it.
    server = await asyncio.to_thread(Server(directory, **{"repl-diskless-sync-delay": "0", **config}).start)
    try:
        yield server
    finally:
        if server.process is not None:
            server.process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(server.kill)


def configure(server: Server, **settings: str) -> None:
    for name, value in settings.items():
        assert server.command("CONFIG", "SET", name.replace("_", "-"), value) == b"+OK\r\n"


def replicate(server: Server, host: str, port: str) -> None:
    assert server.command("REPLICAOF", host, port).startswith(b"+OK")


async def says(server: Server, *words: str, reply: bytes) -> None:
    """Wait until the server answers a command with something that contains `reply`."""

    async def check() -> bool:
        return reply in await asyncio.to_thread(server.command, *words)

    await eventually(check, 20)


class Fault(msgspec.Struct):
    """One way for a server to refuse: how it begins and ends, and what publishers are told meanwhile."""

    name: str
    words: str
    begin: Callable[[Server], Any]
    end: Callable[[Server], Any]
    config: dict[str, str] = {}
    unknown: bool = False
    """Whether publishers may be told that the outcome is unknown."""
    noticed: str = "commit of "
    """What a worker logs meanwhile; empty: it goes on."""


def _out_of_memory(server: Server) -> None:
    configure(server, maxmemory_policy="noeviction", maxmemory="1")


def _lose_the_primary(server: Server) -> None:
    configure(server, replica_serve_stale_data="no")
    replicate(server, "127.0.0.1", str(free_port()))


async def _fail_to_save(server: Server) -> None:
    (server.directory / "dump.rdb").mkdir()  # a snapshot cannot take its place
    configure(server, save="3600 1")
    server.command("BGSAVE")
    await says(server, "INFO", "persistence", reply=b"rdb_last_bgsave_status:err")


async def _save(server: Server) -> None:
    (server.directory / "dump.rdb").rmdir()
    server.command("BGSAVE")
    await says(server, "INFO", "persistence", reply=b"rdb_last_bgsave_status:ok")


async def _run_a_long_script(server: Server) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(b"EVAL 'while true do end' 0\r\n")
    server.long_script = connection  # type: ignore[attr-defined]
    await says(server, "PING", reply=b"-BUSY")


async def _end_the_script(server: Server) -> None:
    await says(server, "SCRIPT", "KILL", reply=b"+OK")
    server.long_script.close()  # type: ignore[attr-defined]


def _restart_slowly(server: Server) -> None:
    server.command("MSET", *(word for n in range(2000) for word in (f"other:{n}", "x" * 100)))
    server.stop()
    server.config["key-load-delay"] = "5000"  # microseconds for each key in its snapshot
    server.start(wait=False)


async def _load(server: Server) -> None:
    await asyncio.to_thread(_restart_slowly, server)

    async def check() -> bool:
        try:
            return (await asyncio.to_thread(server.command, "GET", "x")).startswith(b"-LOADING")
        except OSError:
            return False

    await eventually(check, 20)


def _finish_loading(server: Server) -> None:
    configure(server, key_load_delay="0")
    server.wait_until_ready()


def _freeze(server: Server) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)


def _thaw(server: Server) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGCONT)


FAULTS = [
    Fault(
        "out of memory",
        "is over its memory limit",
        _out_of_memory,
        lambda server: configure(server, maxmemory="0"),
        noticed="",
    ),
    Fault(
        "read only",
        "is a read-only replica",
        lambda server: replicate(server, "127.0.0.1", str(free_port())),
        lambda server: replicate(server, "NO", "ONE"),
    ),
    Fault(
        "primary lost",
        "lost its primary|read-only replica",
        _lose_the_primary,
        lambda server: replicate(server, "NO", "ONE"),
    ),
    Fault(
        "too few replicas",
        "has too few replicas",
        lambda server: configure(server, min_replicas_to_write="1"),
        lambda server: configure(server, min_replicas_to_write="0"),
    ),
    Fault("cannot save", "cannot save to its disk", _fail_to_save, _save),
    Fault(
        "busy",
        "is busy with somebody's script",
        _run_a_long_script,
        _end_the_script,
        config={"busy-reply-threshold": "50"},
    ),
    Fault(
        "loading",
        "is still loading its data|cannot reach",
        _load,
        _finish_loading,
        config={"save": "3600 1000000", "rdbcompression": "no", "loading-process-events-interval-bytes": "1024"},
        unknown=True,
    ),
    Fault(
        "down",
        "is the server up",
        Server.kill,
        Server.start,
        config={"appendonly": "yes", "appendfsync": "always"},
        unknown=True,
    ),
    Fault("frozen", "outcome is unknown|in time", _freeze, _thaw, unknown=True),
]


STOPPING = [fault for fault in FAULTS if fault.noticed]
"""Those that no worker can go on under."""


async def change(what: Callable[[Server], Any], server: Server) -> None:
    result = await asyncio.to_thread(what, server)
    if asyncio.iscoroutine(result):
        await result

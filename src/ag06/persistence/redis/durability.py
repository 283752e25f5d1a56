"""How durable an append is: the command that waits for it, and what the server's settings mean in plain words."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from ag06.errors import AG06Error, ConfigurationError, OutcomeUnknown, StoreUnavailable
from ag06.persistence.log import Durability
from ag06.persistence.redis.client import Command
from ag06.persistence.redis.memory_limit import read_memory
from ag06.persistence.redis.wire import Wire

_KEEPS_ALL = "noeviction"

_NO_DISK = "it has no append-only file (appendonly no)"
_NEVER = "it never syncs its append-only file (appendfsync no)"
_TOO_OLD = "it is too old for WAITAOF, which came with Redis 7.2 and is in every Valkey from 7.2 on"


_SYNC_PERIOD = 1.0
"""How often `appendfsync everysec` syncs, in seconds."""
_LONGEST_SYNC = 10.0
_POLL_SECONDS = 0.005


class Sync(msgspec.Struct, frozen=True):
    """How to make sure of a write.

    Attributes:
        command: sent behind it; its reply says how many have it.
        early: for a server whose reply may come before the disk has the write: how long its background tasks may take
            to have their turn, in seconds. `None`: the reply is enough.
    """

    command: Command
    early: float | None = None


async def find_sync(wire: Wire, level: Durability) -> Sync | None:
    """Return how to make sure of a write at this level; `None`: the server's word is enough.

    Raises `ConfigurationError` if the server cannot give this level, or would throw events away when it is full.
    """
    if level == "server":
        return None
    millis = max(1, int(wire.timeout * 900))
    await wire.run_command("EXISTS", wire.address.prefix)  # in a cluster: to the node that has the log
    policy = (await _info(wire, "memory")).get("maxmemory_policy", _KEEPS_ALL)
    if policy != _KEEPS_ALL:
        raise _refusal(wire, level, f"it deletes events when it is full (maxmemory-policy {policy}, not {_KEEPS_ALL})")
    if level == "fsync":
        (reply,) = await wire.request([("WAITAOF", 1, 0, 1)])
        if isinstance(reply, Exception):
            raise _refusal(wire, level, _why_no_disk(reply))
        appendfsync = await _appendfsync(wire)
        if appendfsync == "no":
            raise _refusal(wire, level, _NEVER)
        return Sync(("WAITAOF", 1, 0, millis), await _turn_seconds(wire) if appendfsync == "everysec" else None)
    both, plain = await wire.request([("WAITAOF", 1, 1, 1000), ("WAIT", 1, 1000)])
    if not isinstance(both, Exception) and both[1] >= 1:
        return Sync(("WAITAOF", 1, 1, millis))
    if isinstance(plain, Exception) or plain < 1:
        raise _refusal(wire, level, "no replica answers")
    return Sync(("WAIT", 1, millis))


def _refusal(wire: Wire, level: Durability, why: str) -> ConfigurationError:
    shown = wire.address.shown
    return ConfigurationError(f"{shown} cannot give durability={level!r}: {why}; change that, or ask for a lower level")


def _why_no_disk(error: Exception) -> str:
    text = str(error)
    if "unknown command" in text.lower():
        return _TOO_OLD
    return _NO_DISK if "appendonly" in text else f"WAITAOF is refused ({text})"


async def _appendfsync(wire: Wire) -> str | None:
    """Return the server's setting; `None` where it does not tell."""
    (reply,) = await wire.request([("CONFIG", "GET", "appendfsync")])
    return None if isinstance(reply, Exception) or not reply else str(reply[1].decode())


async def _turn_seconds(wire: Wire) -> float | None:
    """Return `Sync.early` for a server under `appendfsync everysec`.

    Every Valkey up to 9.1 and Redis before 8 may answer `WAITAOF` when less than a second has passed since the last
    sync, although the write is in none yet (redis/redis pull request 13793).
    """
    server = await _info(wire, "server")
    if int(server.get("redis_version", "0").partition(".")[0]) >= 8:  # Valkey says 7.2.4 here, whatever it is
        return None
    return 1.0 / max(1, int(server.get("configured_hz", "10"))) + 0.05


async def confirm(sync: Sync, wire: Wire, reply: Any) -> None:
    """Return once the write that `reply` belongs to is as durable as asked for; raise `OutcomeUnknown` if it is not."""
    check_waited(sync, reply, wire.address.shown)
    if sync.early is None:
        return
    connections = wire.connections
    try:
        async with asyncio.timeout(_LONGEST_SYNC):
            await asyncio.sleep(_SYNC_PERIOD + sync.early)
            await _wait_for_sync(wire)
            # A sync that took long has kept the next one back: that one begins within a turn.
            await asyncio.sleep(sync.early)
            await _wait_for_sync(wire)
    except TimeoutError:
        raise OutcomeUnknown(
            f"{wire.address.shown} stored the write, but did not sync it within {_LONGEST_SYNC:g} s"
        ) from None
    except StoreUnavailable as error:
        raise OutcomeUnknown(f"{error}; the write was stored, whether it is on disk is unknown") from None
    if wire.connections != connections:
        raise OutcomeUnknown(f"{wire.address.shown} was lost before the write was on its disk; the outcome is unknown")


async def _wait_for_sync(wire: Wire) -> None:
    """Wait until no sync is under way or queued."""
    while True:
        (reply,) = await wire.request([("INFO", "persistence")])
        if isinstance(reply, Exception):
            raise OutcomeUnknown(f"{wire.address.shown} does not tell whether the write is on disk: {reply}")
        state = _pairs(reply)
        if state.get("aof_last_write_status", "ok") != "ok":
            raise OutcomeUnknown(f"{wire.address.shown} could not sync its append-only file; look at its log")
        if state.get("aof_pending_bio_fsync", "0") == "0":
            return
        await asyncio.sleep(_POLL_SECONDS)


def check_waited(sync: Sync, reply: Any, shown: str) -> None:
    """Raise `OutcomeUnknown` unless `reply` says that the level was reached in time."""
    if isinstance(reply, Exception):
        raise OutcomeUnknown(f"{shown} stored the write, but could not make it durable: {reply}")
    reached = reply if isinstance(reply, list) else [reply]
    command = sync.command
    wanted = command[1 : 1 + len(reached)]
    if any(got < least for got, least in zip(reached, wanted, strict=True)):
        raise OutcomeUnknown(f"{shown} stored the write, but did not say in time that it is durable ({command[0]})")


async def report(wire: Wire) -> list[str]:
    """Return sentences about what a crash of the server can lose, and what else its settings put at risk."""
    try:
        settings, replication = await _settings(wire)
    except AG06Error as error:
        return [f"the server does not tell its settings, so what a crash can lose is unknown ({error})"]
    words = [_of_disk(settings)]
    policy = settings.get("maxmemory-policy", _KEEPS_ALL)
    if policy != _KEEPS_ALL:
        full = "a full server" if settings.get("maxmemory", "0") != "0" else "once maxmemory is set, a full server"
        words.append(f"maxmemory-policy {policy}: {full} throws events away; set it to {_KEEPS_ALL}")
    replicas = replication.get("connected_slaves", "0")
    if replication.get("role") == "slave":
        words.append("this server is a replica: it refuses to write")
    elif replicas == "0":
        words.append("no replica: if the machine is lost, so is the log")
    else:
        words.append(f"{replicas} replica(s); a fail-over can lose the last moments unless durability='replicated'")
    return words + await _over_limit(wire) + await _refused_levels(wire, policy)


async def _over_limit(wire: Wire) -> list[str]:
    """Return a sentence about the memory limit if the server is over it."""
    try:
        memory = await read_memory(wire)
    except AG06Error:
        return []
    return [f"new events are refused: the server is over its memory limit, {memory}"] if memory.is_over else []


async def _refused_levels(wire: Wire, policy: str) -> list[str]:
    """Return a sentence about the levels that would be refused for what the server is set to, if any would."""
    if policy != _KEEPS_ALL:
        return [f"durability='fsync' and 'replicated' are refused here (maxmemory-policy {policy})"]
    (reply,) = await wire.request([("WAITAOF", 1, 0, 1)])
    why = _why_no_disk(reply) if isinstance(reply, Exception) else None
    if why is None and await _appendfsync(wire) == "no":
        why = _NEVER
    return [] if why is None else [f"durability='fsync' is refused here: {why}"]


def _of_disk(settings: dict[str, str]) -> str:
    if settings.get("appendonly") == "yes":
        match settings.get("appendfsync"):
            case "always":
                return "every write is on disk before its reply (appendfsync always)"
            case "no":
                return "a crash of the machine can lose what the system had not written (appendfsync no)"
            case _:
                return "a crash of the machine can lose the last second (appendfsync everysec)"
    if settings.get("save"):
        return f"a crash of the server can lose minutes (appendonly no; snapshots: save {settings['save']})"
    return "a crash or restart of the server loses the whole log (appendonly no, no snapshots)"


async def _settings(wire: Wire) -> tuple[dict[str, str], dict[str, str]]:
    names = ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")
    await wire.run_command("EXISTS", wire.address.prefix)  # in a cluster: to the node that has the log
    pairs = await wire.ask(*[("CONFIG", "GET", name) for name in names])
    settings = {pair[0].decode(): pair[1].decode() for pair in pairs if pair}
    return settings, await _info(wire, "replication")


async def _info(wire: Wire, section: str) -> dict[str, str]:
    return _pairs(await wire.run_command("INFO", section))


def _pairs(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode().splitlines())
    return {key: value for key, _, value in lines}

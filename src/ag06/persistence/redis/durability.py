"""How durable an append is: the command that waits for it, and what the server's settings mean in plain words."""

from __future__ import annotations

from typing import Any

from ag06.errors import AG06Error, ConfigurationError, OutcomeUnknown
from ag06.persistence.log import Durability
from ag06.persistence.redis.wire import Command, Wire

_KEEPS_ALL = "noeviction"

_NO_DISK = "it has no append-only file (appendonly no)"
_NEVER = "it never syncs its append-only file (appendfsync no)"
_TOO_EARLY = (
    "its WAITAOF answers up to a second before the disk has the write under appendfsync everysec, as every Valkey does "
    "and Redis before 8 (redis/redis#13793); set appendfsync always"
)
_TOO_OLD = "it is too old for WAITAOF, which came with Redis 7.2 and is in every Valkey from 7.2 on"


async def waiting_command(wire: Wire, level: Durability) -> Command | None:
    """Return the command to send behind a write at this level; `None`: the server's word is enough.

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
        why = await _why_not_synced(wire)
        if why is not None:
            raise _refusal(wire, level, why)
        return ("WAITAOF", 1, 0, millis)
    both, plain = await wire.request([("WAITAOF", 1, 1, 1000), ("WAIT", 1, 1000)])
    if not isinstance(both, Exception) and both[1] >= 1:
        return ("WAITAOF", 1, 1, millis)
    if isinstance(plain, Exception) or plain < 1:
        raise _refusal(wire, level, "no replica answers")
    return ("WAIT", 1, millis)


def _refusal(wire: Wire, level: Durability, why: str) -> ConfigurationError:
    shown = wire.address.shown
    return ConfigurationError(f"{shown} cannot give durability={level!r}: {why}; change that, or ask for a lower level")


def _why_no_disk(error: Exception) -> str:
    text = str(error)
    if "unknown command" in text.lower():
        return _TOO_OLD
    return _NO_DISK if "appendonly" in text else f"WAITAOF is refused ({text})"


async def _why_not_synced(wire: Wire) -> str | None:
    """Return why a reply to WAITAOF would not mean that the disk has the write; `None` if it does, or nobody says."""
    (reply,) = await wire.request([("CONFIG", "GET", "appendfsync")])
    if isinstance(reply, Exception) or not reply or reply[1] == b"always":
        return None
    if reply[1] == b"no":
        return _NEVER
    version = (await _info(wire, "server")).get("redis_version", "0")  # Valkey says 7.2.4 here, whatever it is
    return None if int(version.partition(".")[0]) >= 8 else _TOO_EARLY


def check_waited(command: Command, reply: Any, shown: str) -> None:
    """Raise `OutcomeUnknown` unless `reply` says that the level was reached in time."""
    if isinstance(reply, Exception):
        raise OutcomeUnknown(f"{shown} stored the write, but could not make it durable: {reply}")
    reached = reply if isinstance(reply, list) else [reply]
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
    return words + await _refused_levels(wire, policy)


async def _refused_levels(wire: Wire, policy: str) -> list[str]:
    """Return a sentence about the levels that would be refused for what the server is set to, if any would."""
    if policy != _KEEPS_ALL:
        return [f"durability='fsync' and 'replicated' are refused here (maxmemory-policy {policy})"]
    (reply,) = await wire.request([("WAITAOF", 1, 0, 1)])
    why = _why_no_disk(reply) if isinstance(reply, Exception) else await _why_not_synced(wire)
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
    text: bytes = await wire.run_command("INFO", section)
    lines = (line.partition(":") for line in text.decode().splitlines())
    return {key: value for key, _, value in lines}

"""Dead letters: what steps gave up on, kept until somebody decides."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ag06.persistence.log import StoredDeadLetter
from ag06.persistence.redis.registry import Registry
from ag06.persistence.redis.settling import read_letter
from ag06.persistence.redis.wire import Wire

_PAGE = 200
_pack = msgspec.msgpack.Encoder().encode


class DeadLetters:
    """The dead letters of one log, over the log's own connection."""

    def __init__(self, wire: Wire, registry: Registry) -> None:
        """Ask over `wire`."""
        self._wire = wire
        self._prefix = wire.address.prefix
        self._registry = registry

    async def read(self, group: str | None, limit: int) -> list[StoredDeadLetter]:
        """Return up to `limit` dead letters of a group or of all, oldest first."""
        letters: list[StoredDeadLetter] = []
        at = 0
        while len(letters) < limit:
            names = await self._wire.run_command("ZRANGE", f"{self._prefix}dead", at, at + _PAGE - 1)
            if not names:
                break
            at += len(names)
            pairs = [(owner, event_id) for owner, _, event_id in (name.decode().partition("\x1f") for name in names)]
            pairs = [pair for pair in pairs if group in (None, pair[0])]
            if pairs:
                bodies = await self._wire.ask(*[("HGET", f"{self._prefix}dead:{owner}", key) for owner, key in pairs])
                letters += [
                    read_letter(owner, event_id, packed)
                    for (owner, event_id), packed in zip(pairs, bodies, strict=True)
                    if packed is not None
                ]
        return letters[:limit]

    async def retry(self, letters: Sequence[tuple[str, str]]) -> int:
        """Deliver letters again to the group that gave up on them; return how many were found."""
        wanted: dict[str, list[str]] = {}
        for group, event_id in letters:
            wanted.setdefault(group, []).append(event_id)
        found = 0
        for group, ids in wanted.items():
            event_type = await self._registry.type_of(group)
            if event_type is None:
                continue  # its step was removed: nobody would take them
            for at in range(0, len(ids), _PAGE):
                found += await self._wire.run("retry", group, event_type, _pack(ids[at : at + _PAGE]))
        return found

    async def discard(self, letters: Sequence[tuple[str, str]]) -> int:
        """Delete letters for good; return how many were found."""
        found = 0
        for at in range(0, len(letters), _PAGE):
            found += await self._wire.run("discard", _pack(list(letters[at : at + _PAGE])))
        return found

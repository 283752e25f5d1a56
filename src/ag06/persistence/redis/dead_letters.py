"""Dead letters: what steps gave up on, kept until somebody decides."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ag06.persistence.log import StoredDeadLetter
from ag06.persistence.redis.registry import Registry
from ag06.persistence.redis.settling import read_letter
from ag06.persistence.redis.wire import Wire

_PAGE = 200
_PAGE_BYTES = 4 << 20
_APART = "\x1f"
_pack = msgspec.msgpack.Encoder().encode


class DeadLetters:
    """The dead letters of one log, over the log's own connection."""

    def __init__(self, wire: Wire, registry: Registry) -> None:
        """Ask over `wire`."""
        self._wire = wire
        self._prefix = wire.address.prefix
        self._registry = registry

    async def read(self, group: str | None, limit: int, after: str = "") -> list[StoredDeadLetter]:
        """Return up to `limit` dead letters of a group or of all, oldest first, behind the place `after`."""
        letters: list[StoredDeadLetter] = []
        while len(letters) < limit and (places := await self._places(after)):
            after = places[-1]
            keys = [(place, *place.partition(" ")[2].split(_APART, 1)) for place in places]
            keys = [key for key in keys if group in (None, key[1])]
            keys = keys[: limit - len(letters)]
            packed = await self._packed([(f"{self._prefix}dead:{owner}", name) for _, owner, name in keys])
            letters += [
                read_letter(owner, event_id, letter, place)
                for (place, owner, event_id), letter in zip(keys, packed, strict=True)
                if letter is not None
            ]
        return letters

    async def _packed(self, fields: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """Return the values of fields of hashes, a few MiB in each reply."""
        if not fields:
            return []
        sizes = await self._wire.ask(*[("HSTRLEN", *field) for field in fields])
        values: list[bytes | None] = []
        while len(values) < len(fields):
            first = end = len(values)
            while end < len(fields) and (end == first or sum(sizes[first : end + 1]) <= _PAGE_BYTES):
                end += 1
            values += await self._wire.ask(*[("HGET", *field) for field in fields[first:end]])
        return values

    async def _places(self, after: str) -> list[str]:
        """Return the next places behind one: when a dead letter was buried, in milliseconds, and its name.

        Of one millisecond there may be more than a page; they stand in the order of their names.
        """
        least, skip = after.partition(" ")[0] or "-inf", 0
        key = f"{self._prefix}dead"
        while True:
            reply = await self._wire.run_command(
                "ZRANGEBYSCORE", key, least, "+inf", "WITHSCORES", "LIMIT", skip, _PAGE
            )
            pairs = list(zip(reply[::2], reply[1::2], strict=True))
            places = [f"{int(float(score))} {name.decode()}" for name, score in pairs]
            behind = [place for place in places if _order(place) > _order(after)]
            if behind or len(pairs) < _PAGE:
                return behind
            skip += _PAGE

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


def _order(place: str) -> tuple[int, bytes]:
    """Return what orders places as the server does."""
    buried, _, name = place.partition(" ")
    return int(buried or -1), name.encode()

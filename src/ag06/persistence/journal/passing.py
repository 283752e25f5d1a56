"""A log that hands everything on to another one: what a wrapper does not change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence

from ag06.persistence.log import Cut, EventLog, GroupInfo, Query, Stored, StoredDeadLetter, Subscription


class PassingLog:
    """The port, as far as it goes straight to `inner`."""

    def __init__(self, inner: EventLog) -> None:
        """Stand in front of `inner`."""
        self._inner = inner

    def subscribe(self, group: str, worker: str, visibility: float) -> Subscription:
        """Return `worker`'s end for a registered group; see the port."""
        return self._inner.subscribe(group, worker, visibility)

    async def release_worker(self, worker: str) -> int:
        """Hand out again what a dead worker held; see the port."""
        return await self._inner.release_worker(worker)

    async def vouch(
        self,
        worker: str,
        visibility: float,
        running: Mapping[str, Collection[str]] | None = None,
        groups: Collection[str] | None = None,
    ) -> int:
        """Renew the leases of a worker that is known to live; see the port."""
        return await self._inner.vouch(worker, visibility, running, groups)

    def read(self, query: Query) -> AsyncIterator[list[Stored]]:
        """Yield pages of events; see the port."""
        return self._inner.read(query)

    async def groups(self) -> list[GroupInfo]:
        """Return every step; see the port."""
        return await self._inner.groups()

    async def remove_group(self, group: str) -> bool:
        """Forget a step; see the port."""
        return await self._inner.remove_group(group)

    async def dead_letters(
        self, group: str | None = None, limit: int = 1000, after: str = ""
    ) -> list[StoredDeadLetter]:
        """Return dead letters, oldest first; see the port."""
        return await self._inner.dead_letters(group, limit, after)

    async def retry_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Deliver dead letters again; see the port."""
        return await self._inner.retry_dead_letters(letters)

    async def discard_dead_letters(self, letters: Sequence[tuple[str, str]]) -> int:
        """Delete dead letters; see the port."""
        return await self._inner.discard_dead_letters(letters)

    async def settled(self, before_ms: int, types: Sequence[str] | None = None) -> list[Cut]:
        """Return what every step is done with; see the port."""
        return await self._inner.settled(before_ms, types)

    async def drop(self, cut: Cut) -> int:
        """Delete the events of a cut; see the port."""
        return await self._inner.drop(cut)

    async def archives(self) -> list[str]:
        """Return the URLs of the log's archives; see the port."""
        return await self._inner.archives()

    async def add_archive(self, url: str) -> None:
        """Remember an archive; see the port."""
        await self._inner.add_archive(url)

    async def remove_archive(self, url: str) -> None:
        """Forget an archive; see the port."""
        await self._inner.remove_archive(url)

    async def write_note(self, name: str, body: bytes | None) -> None:
        """Replace or remove a note; see the port."""
        await self._inner.write_note(name, body)

    async def read_note(self, name: str) -> bytes | None:
        """Return a note; see the port."""
        return await self._inner.read_note(name)

    async def lead(self, role: str, holder: str, seconds: float) -> bool:
        """Take, renew or give up a leadership; see the port."""
        return await self._inner.lead(role, holder, seconds)

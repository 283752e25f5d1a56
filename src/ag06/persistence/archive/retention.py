"""`Retention`: how long events stay in the live log and in the archive; and the keeper that sees to it."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from collections.abc import Callable, Mapping

import msgspec

from ag06.content import check_name
from ag06.errors import AG06Error, ArchiveDamaged, ConfigurationError, InvalidEvent, StoreError, StoreUnavailable
from ag06.knob import Knob
from ag06.persistence.archive import mending
from ag06.persistence.archive.leading import leading
from ag06.persistence.archive.manifest import FOLDER, Entry, parse_entry
from ag06.persistence.archive.one_thread import OneThread
from ag06.persistence.archive.reading import Missing, manifest_of
from ag06.persistence.archive.run import ROLE, archive_settled
from ag06.persistence.archive.storage import Storage, open_storage
from ag06.persistence.log import EventLog
from ag06.persistence.stores import masked
from ag06.settings import check_seconds

_logger = logging.getLogger("ag06.persistence")
_ROLE = "retention"
_LEAD_SECONDS = 60.0
_LONGEST_TURN = 3600.0
_SHORTEST_TURN = 0.1
_LONGEST_PAUSE = 60.0
_RELEASE_SECONDS = 1.0


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long events stay, from when they were recorded; only what every step acknowledged goes.

    Attributes:
        archive_after: seconds until they move to the archive; `None`: they do not.
        delete_after: seconds until they are deleted, from the archive too; 0: never; `None`: the store's default for
            what is not archived, and never for what is.
        archive: the URL of the archive, of any filesystem of fsspec whose URLs lead there by themselves (not `ftp://`).
        types: policies of their own for some types, in place of this one; without an `archive` they take this one's.
    """

    archive_after: float | None = None
    delete_after: float | None = None
    archive: str | None = None
    types: Mapping[str, Retention] = {}


class Policy(msgspec.Struct, frozen=True):
    """A `Retention` for one type, or for all types that have none of their own."""

    type: str | None
    archive_after: float | None
    delete_after: float | None
    archive: str

    @property
    def turn(self) -> float:
        """Seconds between two looks: a tenth of what events stay, so that they stay a tenth longer at most."""
        stays = [seconds for seconds in (self.archive_after, self.delete_after) if seconds]
        return max(_SHORTEST_TURN, min([_LONGEST_TURN, *(seconds / 10 for seconds in stays)]))


def check_retention(value: float | Retention | None) -> tuple[float | None, dict[str, float], list[Policy]]:
    """Return what the log itself deletes: after so many seconds, or by type; and the policies of an archive.

    Raises `ConfigurationError` for what cannot be kept.
    """
    if not isinstance(value, Retention):
        if value is not None:
            check_seconds("retention", value, "0 keeps events for ever")
        return value, {}, []
    if not isinstance(value.types, Mapping):
        raise ConfigurationError(f"retention: types={value.types!r}; a mapping from a type to its Retention")
    policies = [_policy(None, value, None)]
    for event_type, own in value.types.items():
        try:
            check_name("type", event_type)
        except InvalidEvent as error:
            raise ConfigurationError(f"retention: {error}") from None
        if not isinstance(own, Retention) or own.types:
            raise ConfigurationError(f"retention: types[{event_type!r}]={own!r}; a Retention without types of its own")
        if own.archive_after is None and own.delete_after is None:
            raise ConfigurationError(f"retention of {event_type!r} says nothing; delete_after=0 keeps it for ever")
        policies.append(_policy(event_type, own, value.archive))
    by_type = {policy.type: _live(policy) or 0.0 for policy in policies if policy.type is not None}
    return _live(policies[0]), by_type, [policy for policy in policies if policy.archive]


def _policy(event_type: str | None, given: Retention, archive: str | None) -> Policy:
    where = "retention" if event_type is None else f"retention of {event_type!r}"
    if given.delete_after is not None:
        check_seconds(f"{where}: delete_after", given.delete_after, "0 keeps events for ever")
    if given.archive_after is not None:
        check_seconds(f"{where}: archive_after", given.archive_after, "None: they stay", least=0.001)
        if not (given.archive or archive):
            raise ConfigurationError(
                f"{where}: archive_after={given.archive_after} needs archive=URL to move events to"
            )
        if given.delete_after and given.delete_after <= given.archive_after:
            raise ConfigurationError(
                f"{where}: delete_after={given.delete_after} is not above archive_after={given.archive_after}: "
                "events would be archived to be deleted; leave archive_after out"
            )
    url = given.archive or archive or ""
    if url:
        check_archive(url)
    return Policy(event_type, given.archive_after, given.delete_after, url)


def check_archive(url: str) -> Storage:
    """Return the archive; raise `ConfigurationError` if the URL can be none, or what one needs is not installed."""
    storage = open_storage(url)
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigurationError("an archive needs fsspec and pyarrow: pip install 'ag06[archive]'")
    return storage


def check_lasting(url: str) -> Storage:
    """Return the archive; raise `ConfigurationError` if it would end with the process, and the events in it."""
    storage = check_archive(url)
    if storage.volatile:
        raise ConfigurationError(
            f"archive {masked(url)!r} is this process's memory: every event moved there would be gone when the process "
            "ends; use file:///var/ag06/archive or s3://bucket/folder"
        )
    return storage


def _live(policy: Policy) -> float | None:
    """Return after how many seconds the log itself deletes: never what must be archived first."""
    return policy.delete_after if policy.archive_after is None else 0.0


class RetentionKeeper:
    """Moves to the archive and deletes from it what is due; of all processes that have one, one does it at a time."""

    def __init__(
        self, policies: list[Policy], clock: Callable[[], float] = time.time, compression: Knob | None = None
    ) -> None:
        """`clock` gives seconds since the epoch, as the store's does; `compression` is how hard it compresses."""
        self._policies = policies
        self._compression = compression
        self._own = frozenset(policy.type for policy in policies if policy.type is not None)
        self._clock = clock
        self._due = dict.fromkeys(policies, 0.0)
        self._failures = dict.fromkeys(policies, 0)
        self._renewal = 0.0
        self._looked = 0.0
        self._leader: str | None = None

    @property
    def archives(self) -> bool:
        """Whether anything moves to an archive."""
        return any(policy.archive_after is not None for policy in self._policies)

    async def keep(self, log: EventLog, holder: str) -> None:
        """Do what is due; problems of an archive are said in the log, and it is tried again after 1, 2, 4 ... 60 s.

        Meanwhile another process may try: it may reach what this one does not.

        Raises `StoreUnavailable` if the store is away.
        """
        now = self._clock()
        if now < self._looked:  # the clock was ahead of its time: nothing waits until it is there again
            self._due = dict.fromkeys(self._policies, 0.0)
            self._renewal = 0.0
        self._looked = now
        due = [policy for policy in self._policies if self._due[policy] <= now]
        if not due and now < self._renewal:
            return
        if not await log.lead(_ROLE, holder, _LEAD_SECONDS):
            return
        self._leader = holder
        self._renewal = now + _LEAD_SECONDS / 3
        for policy in due:
            self._due[policy] = now + policy.turn
            try:
                await self._apply(log, policy, holder)
            except StoreUnavailable:
                raise
            except AG06Error as error:
                _logger.warning("retention: %s; tried again in %.0f s", error, self._put_off(policy))
            except Exception:
                # Whatever it is, the steps of this worker have nothing to do with it.
                _logger.exception("retention: tried again in %.0f s", self._put_off(policy))
            else:
                self._failures[policy] = 0
        if any(self._failures[policy] for policy in due):
            self._renewal = min(self._due.values())
            await self.release(log, holder)

    def _put_off(self, policy: Policy) -> float:
        """Return in how many seconds a policy that could not be kept is tried again."""
        pause = min(_LONGEST_PAUSE, 2.0 ** self._failures[policy])
        self._failures[policy] = min(self._failures[policy] + 1, 10)
        self._due[policy] = self._clock() + pause
        return pause

    async def release(self, log: EventLog, holder: str) -> None:
        """Let another process keep the policies at once; one that `holder` does not lead is left alone."""
        if self._leader != holder:
            return
        self._leader = None
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await log.lead(_ROLE, holder, 0)
        except (StoreError, TimeoutError) as error:
            _logger.debug("retention: the lead ends by itself: %s", error)

    async def _apply(self, log: EventLog, policy: Policy, holder: str) -> None:
        if policy.archive_after is not None:
            before_ms = int((self._clock() - policy.archive_after) * 1000)
            types = None if policy.type is None else [policy.type]
            without = self._own if policy.type is None else frozenset[str]()
            await archive_settled(
                log,
                before_ms,
                policy.archive,
                types,
                without=without,
                holder=holder,
                wait=False,
                only_if_any=True,
                compression=self._compression,
            )
        if policy.delete_after:
            await self._delete(log, policy, holder)

    async def _delete(self, log: EventLog, policy: Policy, holder: str) -> None:
        """Delete every manifest, with its segments, all of whose events are older than their policies allow."""
        now_ms = self._clock() * 1000
        entries = [entry for entry in map(parse_entry, await log.archives()) if entry is not None]
        old = [entry for entry in entries if entry.last_ms < now_ms - (policy.delete_after or 0) * 1000]
        if not old:
            return
        thread = OneThread("ag06-retention")
        try:
            async with leading(log, ROLE, holder) as led:
                for entry in old if led else ():
                    try:
                        await self._delete_if_over(log, thread, entry, now_ms)
                    except (Missing, ArchiveDamaged) as error:  # that file may never come back: the others do not wait
                        _logger.warning("retention: %s; it stays, what else is due is deleted", error)
        finally:
            thread.close()

    async def _delete_if_over(self, log: EventLog, thread: OneThread, entry: Entry, now_ms: float) -> None:
        manifest = await thread.call(manifest_of, entry)
        types = {name for segment in manifest.segments for name in segment.types}
        if all(self._is_over(name, entry, now_ms) for name in types):
            for cut in manifest.cuts:
                await log.drop(cut)  # where something of it is in the live log still
            await _delete_entry(log, thread, entry)

    def _is_over(self, event_type: str, entry: Entry, now_ms: float) -> bool:
        found = next((policy for policy in self._policies if policy.type == event_type), None)
        policy = found or next((policy for policy in self._policies if policy.type is None), None)
        seconds = policy.delete_after if policy is not None else None
        return bool(seconds) and entry.last_ms < now_ms - (seconds or 0) * 1000


async def _delete_entry(log: EventLog, thread: OneThread, entry: Entry) -> None:
    """Say first that it is to go: whoever finds half of it then knows that nothing was lost."""
    home = await thread.call(open_storage, entry.folder)
    await thread.call(home.write, f"{FOLDER}/{entry.run}{mending.DELETED}", b"")
    await mending.finish_deletion(log, home, thread, entry.run, entry)


def keeper_of(policies: list[Policy], compression: Knob) -> RetentionKeeper | None:
    """Return who keeps these policies; `None` where there is nothing to do."""
    if not any(policy.archive_after or policy.delete_after for policy in policies):
        return None
    return RetentionKeeper(policies, compression=compression)

"""One step's end of the log, in one worker."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import threading
from collections.abc import Iterator, Sequence

import msgspec

from ag06.errors import AG06Error, ConfigurationError, OutcomeUnknown, StoreError, StoreUnavailable, Unstorable
from ag06.persistence.log import Delivery, Durability, Settlement, deliveries_of
from ag06.persistence.measuring import COMMIT, RELEASE, RENEW, START, Measured, begin
from ag06.persistence.redis.address import Address
from ag06.persistence.redis.blocking import BlockingWire
from ag06.persistence.redis.client import GroupLost
from ag06.persistence.redis.durability import Sync, check_waited, find_sync
from ag06.persistence.redis.receipts import Call, Receipts
from ag06.persistence.redis.receiving import SLACK, Receiver, Recovery, hand_back
from ag06.persistence.redis.settling import Work, split_work
from ag06.persistence.redis.wire import Wire
from ag06.tasks import start_task

_PAGE = 500
_FAREWELL = 1.5
_pack = msgspec.msgpack.Encoder().encode


class RedisSubscription:
    """Deliveries of one group for one worker, over two connections: one that waits, one that settles."""

    def __init__(
        self,
        address: Address,
        timeout: float,
        durability: Durability,
        group: str,
        worker: str,
        visibility: float,
        recover: Recovery,
    ) -> None:
        """Be `worker`'s end of `group`; leases last `visibility` seconds."""
        self._group, self._worker = group, worker
        self._durability: Durability = durability
        self._recover = recover
        self._held: dict[str, Delivery] = {}
        self._started: set[str] = set()
        self._listening = Wire(address, timeout)
        self._settling = Wire(address, timeout)
        self._receipts = Receipts(self._settling)
        self._renewing = BlockingWire(address, timeout)
        self._renewal = threading.Lock()
        self._receiver = Receiver(
            self._listening,
            group,
            worker,
            max(1, int(visibility * 1000)),
            held=self._held,
            recover=recover,
            nudge=self._nudge,
            prove=self._prove_renewal,
        )
        self._receiving: asyncio.Task[list[Delivery]] | None = None
        self._turn = asyncio.Lock()
        self._nudges: set[asyncio.Task[None]] = set()
        self._checked = False
        self._sync: Sync | None = None
        self._closed = False
        self._ended = False
        self._partly: tuple[Sequence[Settlement], list[bool]] = ((), [])

    async def fetch(self, limit: int, wait: float) -> list[Delivery]:
        """Return up to `limit` deliveries by rank; wait up to `wait` seconds for the first one."""
        if self._closed or limit < 1:
            return []
        if self._receiving is None:
            self._receiving = start_task(self._receiver.receive(limit, wait), f"ag06 redis receive {self._group}")
        task = self._receiving
        # A caller who gives up must not take the connection down with it: what arrives is kept for the next fetch.
        done, _ = await asyncio.wait([task], timeout=max(wait, 0.0) + 2 * self._listening.timeout)
        if not done:
            return []
        self._receiving = None
        deliveries = task.result()
        return self._receiver.hand_out(deliveries, limit)

    async def commit(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle deliveries; see `Subscription.commit`."""
        async with self._turn:
            accepted = self._answered(settlements)
            try:
                for work in split_work(settlements[len(accepted) :], self._started):
                    await self._commit_into(accepted, work, settlements)
            except Unstorable as error:
                for one in settlements[: len(accepted)]:
                    self._let_go(deliveries_of(one))
                raise type(error)(str(error), accepted) from None
            except StoreError:
                self._partly = settlements, accepted
                raise
        for one in settlements:
            self._let_go(deliveries_of(one))
        return accepted

    async def _commit_into(self, accepted: list[bool], work: Work, settlements: Sequence[Settlement]) -> None:
        """Commit the settlements behind those accepted, and add the answers; one by one if one is unstorable."""
        try:
            accepted += await self._commit(work)
        except Unstorable:
            if len(work.places) == 1:
                raise
            for one in settlements[len(accepted) : len(accepted) + len(work.places)]:
                for alone in split_work([one], self._started):
                    accepted += await self._commit(alone)

    def _answered(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Return the answers that the first of these have already, from a commit that broke off behind them."""
        before, accepted = self._partly
        self._partly = (), []
        return accepted if len(before) == len(settlements) and all(map(operator.is_, before, settlements)) else []

    def _let_go(self, deliveries: Sequence[Delivery]) -> None:
        """Forget what was settled or given back, unless the server has handed it out to this worker again since."""
        for delivery in deliveries:
            if self._held.get(delivery.token) is delivery:
                del self._held[delivery.token]
                self._started.discard(delivery.token)

    async def _commit(self, work: Work) -> list[bool]:
        event_type = await self._find_type()
        if event_type is None:
            return [False] * len(work.places)
        began = begin()
        call = Call("commit", (self._group, event_type), (self._worker, self._bound(), *work.packed()))
        reply, *waited = await self._receipts.send([call], None if self._sync is None else self._sync.command)
        if isinstance(reply, Exception):
            error = self._settling.explain(reply)
            if isinstance(error, GroupLost):
                return [False] * len(work.places)
            raise error
        if self._sync is not None:
            # Where that says so too early and power is lost, outputs and acknowledgement are gone together: done again.
            try:
                check_waited(self._sync, waited[0], self._settling.address.shown)
            except OutcomeUnknown:
                self._receipts.expect([call])  # it is repeated, and then it was this worker that settled
                raise
        COMMIT.done(began, work.deliveries)
        return work.accepted(*reply)

    async def mark_started(self, deliveries: Sequence[Delivery]) -> None:
        """Note durably that these run now, so that a death of this worker counts against them."""
        self._started.update([delivery.token for delivery in deliveries])
        await self._on_tokens("start", START, [delivery.token for delivery in deliveries], self._bound())

    async def survived(self, deliveries: Sequence[Delivery], attempts: int = 1) -> None:
        """Take back what was charged for this worker; see `Subscription.survived`."""
        await self._on_tokens("survived", RELEASE, [delivery.token for delivery in deliveries], attempts)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back, unharmed, to be handed out at once to whoever asks."""
        tokens = [delivery.token for delivery in deliveries]
        await self._on_tokens("release", RELEASE, tokens, self._bound())
        self._let_go(deliveries)

    async def _on_tokens(self, script: str, kind: Measured, tokens: list[str], *more: int) -> None:
        async with self._turn:
            event_type = await self._find_type()
            if event_type is None:
                return
            for page in _pages(tokens):
                began = begin()
                try:
                    await self._settling.run(script, self._group, event_type, self._worker, _pack(page), *more)
                except GroupLost:
                    return  # nothing is held in a group that is gone
                kind.done(began)

    def renew(self) -> None:
        """Extend the lease of everything this subscription holds. Blocking; called from a thread of its own."""
        tokens = list(self._held)
        if tokens and self._receiver.event_type is not None and not self._closed:
            self._renew(tokens)

    def _renew(self, tokens: list[str]) -> None:
        """Renew some leases; note whether it can be done, for where it cannot nothing more is fetched."""
        bound = len(tokens) + SLACK
        with self._renewal:
            try:
                for page in _pages(tokens) if tokens else ([],):
                    began = begin()
                    arguments = (self._group, self._receiver.event_type, self._worker, bound, _pack(page))
                    self._renewing.run("renew", *arguments)
                    if tokens:
                        RENEW.done(began)
            except BaseException:
                self._receiver.renewable = False
                raise
            finally:
                if self._closed:
                    self._renewing.close()
        self._receiver.renewable = True

    async def _prove_renewal(self) -> None:
        """Renew nothing, over the connection that renews: raise what prevents it."""
        await asyncio.to_thread(self._renew, [])

    async def close(self) -> None:
        """Give back everything still held and leave the group. Again after a cancellation: go on, for a short time."""
        if self._ended:
            return
        limit = _FAREWELL if self._closed else None
        self._closed = True
        try:
            async with asyncio.timeout(limit):
                await self._give_back()
        except (AG06Error, TimeoutError):
            await self._disconnect()
            raise
        await self._disconnect()

    async def _give_back(self) -> None:
        await self._stop_receiving()
        event_type = self._receiver.event_type
        if event_type is not None:
            with contextlib.suppress(GroupLost):  # it left already
                await hand_back(self._settling, self._group, event_type, self._worker)

    async def _disconnect(self) -> None:
        self._held.clear()
        await self._listening.close()
        await self._settling.close()
        await asyncio.to_thread(self._end_renewal)
        self._ended = True

    def _end_renewal(self) -> None:
        """Close the connection that renews; one that is renewing just now and does not end is closed behind that."""
        if self._renewal.acquire(timeout=_FAREWELL):
            self._renewing.close()
            self._renewal.release()

    def abandon(self) -> None:
        """Count the connections off: their event loop has ended."""
        self._listening.abandon()
        self._settling.abandon()

    async def _stop_receiving(self) -> None:
        """End a wait for news; what it still brings is given back with the rest."""
        self._receiver.closing = True
        task = self._receiving
        if task is None or task.done():
            return
        await self._unblock()
        done, _ = await asyncio.wait([task], timeout=_FAREWELL)
        if not done:
            task.cancel()
            await asyncio.wait([task])

    def _nudge(self) -> None:
        task = start_task(self._unblock())
        self._nudges.add(task)
        task.add_done_callback(self._nudges.discard)

    async def _unblock(self) -> None:
        """Make the server end the wait for news; where that fails, the wait ends by itself a little later."""
        if self._receiver.client_id is not None:
            with contextlib.suppress(StoreError):
                await self._settling.request([("CLIENT", "UNBLOCK", self._receiver.client_id)])

    async def _find_type(self) -> str | None:
        """Return what the group listens to, or `None` if the store does not know the group; make sure of durability."""
        if not self._checked:
            try:
                self._sync = await find_sync(self._settling, self._durability)
            except ConfigurationError as error:
                # The log was opened at this level, so it is not what it was: a replica is away, say. No worker ends.
                raise StoreUnavailable(str(error)) from None
            self._checked = True
        if self._receiver.event_type is not None:
            return self._receiver.event_type
        return await self._recover(self._settling, self._group)

    def _bound(self) -> int:
        """More than this worker can have pending in one stream."""
        return len(self._held) + SLACK


def _pages(tokens: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(tokens), _PAGE):
        yield tokens[at : at + _PAGE]

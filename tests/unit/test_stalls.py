"""What a supervisor does for a worker whose event loop does not turn, on a clock of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from ag06.persistence import EventStore
from ag06.runtime.call_board import CallBoard, OpenCall, board_path
from ag06.runtime.stalls import StallWatch
from ag06.runtime.supervisor import WorkerProcess
from flows import until

LOOK = 0.25


class Living(WorkerProcess):
    """A worker process that lives, for all that its supervisor sees."""

    @property
    def alive(self) -> bool:
        return True


class Renewals:
    """A store that notes what is renewed; it may hang."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs = hangs
        self.asked: list[tuple[Mapping[str, Collection[str]] | None, Collection[str] | None]] = []

    async def log(self) -> Renewals:
        return self

    async def vouch(
        self,
        worker: str,
        visibility: float,
        running: Mapping[str, Collection[str]] | None,
        groups: Collection[str] | None,
    ) -> int:
        self.asked.append((running, groups))
        if self.hangs:
            await asyncio.Event().wait()
        return 0


class Stall:
    """A worker that has beaten once, and its supervisor."""

    def __init__(self, directory: Path, store: Renewals, visibility: float, limit: float) -> None:
        self.store = store
        self.now = 0.0
        self.replaced: list[float] = []
        self.worker = Living(0)
        self.board = CallBoard(board_path(directory, self.worker.fresh_name()), ["shop.bill"])
        self.board.beat(1.0)
        self.board.begin("shop.bill", "7", "id")
        self.watch = StallWatch(directory, cast(EventStore, store), visibility, limit, clock=lambda: self.now)

    async def _replace(self, worker: WorkerProcess, calls: Sequence[OpenCall], seconds: float) -> None:
        assert [call.name for call in calls] == ["7"]
        self.replaced.append(seconds)
        await asyncio.Event().wait()  # it takes long to end it

    async def last(self, seconds: float) -> None:
        """Let the stall last so long more."""
        for _ in range(round(seconds / LOOK)):
            self.now += LOOK
            await self.watch.look([self.worker], self._replace)
            if not self.store.hangs:
                await until(lambda: self.replaced or not _helping())

    async def end(self) -> None:
        for task in _helping():
            task.cancel()
            await asyncio.wait([task])


def _helping() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("help for worker")]


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_worker_that_stalls_is_replaced_once_also_while_the_store_hangs(tmp_path: Path, hangs: bool) -> None:
    stall = Stall(tmp_path, Renewals(hangs=hangs), 12.0, 14.0)
    assert not stall.watch.saw_work
    await stall.last(14.0)
    assert stall.watch.saw_work
    assert stall.replaced == []
    await stall.last(LOOK)
    await until(lambda: stall.replaced == [14.0])
    await stall.last(60.0)
    assert stall.replaced == [14.0]
    await stall.end()


async def test_leases_are_renewed_a_few_times_in_each_and_in_the_groups_of_the_worker_alone(tmp_path: Path) -> None:
    stall = Stall(tmp_path, Renewals(), 30.0, 60.0)
    await stall.last(30.0)
    assert stall.store.asked == [(None, ["shop.bill"])] * 5
    await stall.last(LOOK)
    assert stall.store.asked[5:] == [({"shop.bill": {"7"}}, ["shop.bill"])]
    await stall.last(29.5)
    assert len(stall.store.asked) == 11
    assert stall.replaced == []


async def test_a_supervisor_that_stood_still_itself_replaces_nobody(tmp_path: Path) -> None:
    stall = Stall(tmp_path, Renewals(), 12.0, 14.0)
    await stall.last(5.0)
    stall.now += 3600
    await stall.last(5.0)
    stall.board.beat(2.0)
    await stall.last(10.0)
    assert stall.replaced == []

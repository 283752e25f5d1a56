"""What the optimizer does in trouble: a trial leaves some behind, a worker ends before it began, a note is full."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from ag06 import Event
from ag06.ml import Guardrails, Pace
from ag06.ml.board import Board
from ag06.ml.tuning_loop import TuningLoop
from ag06.persistence.log import LogOptions
from ag06.persistence.stores import open_log
from flows import SECONDS, until
from tuning_load import FAST, Load, Slow, decided, optimizer_of, state_of, workflow_named


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tuned.db"


class Collapsing:
    """A workflow that any trial brings down for a while, also after it is over: its calls cannot be taken back."""

    def __init__(self, store_url: str, seconds: float) -> None:
        self.app = workflow_named(store_url)
        self.calls = self.app.knob("calls", low=1, high=100, default=10, integer=True)
        self.moves: list[float] = []
        self.down_until = 0.0

        @self.app.step("t", concurrency=8)
        async def work(event: Event) -> None:
            if self.calls.value != 10:
                if not self.moves or time.monotonic() > self.down_until:
                    self.moves.append(time.monotonic())
                self.down_until = time.monotonic() + seconds
            await asyncio.sleep(0.25 if time.monotonic() < self.down_until else 0.004)


async def test_nothing_is_tried_while_what_runs_suffers_from_the_trial_before(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = 2.0
    flow = Collapsing(sqlite_url, down)
    careful = {
        **FAST,
        "knobs": ("calls",),
        "guardrails": Guardrails(p99_factor=None, worst_loss=0.5),
        "pace": Pace(explore=200),
        "window": 0.2,
    }
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running(), Load(flow.app):
        await optimizer.start(flow.app, **careful)
        await until(lambda: len(flow.moves) >= 2, 3 * SECONDS)
        status = await optimizer.get_optimization_status()
    # A trial may last for a window or two; the next one comes only when all that it did is over.
    assert flow.moves[1] - flow.moves[0] > down
    assert any("breach" in str(row) for row in status["history"])


async def test_what_was_learned_outlives_a_worker_that_ends_before_it_has_read_it(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, one.app.running(), Load(one.app):
        await optimizer.start(one.app, **FAST)
        await decided(one.app, "trial", 2)
    resume = TuningLoop._resume

    async def late(loop: TuningLoop) -> None:
        await asyncio.sleep(60)
        await resume(loop)

    with monkeypatch.context() as patch:
        patch.setattr(TuningLoop, "_resume", late)
        other = Slow(sqlite_url, one.app.name)
        async with optimizer_of(patch) as optimizer, other.app.running():
            await optimizer.start(other.app, **FAST)
            await state_of(optimizer, leads_here=True)
    log = open_log(sqlite_url, LogOptions())
    await log.open()
    try:
        saved = await Board(log, one.app.name).saved()
    finally:
        await log.close()
    assert saved is not None
    assert saved.campaign
    assert saved.history


async def test_a_history_that_a_note_has_no_room_for_is_cut_and_the_optimizer_goes_on(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ag06.ml.board.MOST_BYTES", 1_000)  # less than all but the history takes
    flow = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running(), Load(flow.app):
        await optimizer.start(flow.app, **FAST)
        await decided(flow.app, "trial", 10)
        status = await optimizer.get_optimization_status()
        saved = await Board(await flow.app.events.log(), flow.app.name).saved()
    assert status["problem"] is None
    assert saved is not None
    assert saved.campaign
    assert not saved.history

"""What the optimizer beside a workflow does when nobody tunes, when it shuts down, and when there are other threads."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ag06.ml.board import Board, Control, Saved
from ag06.ml.campaign import Campaign
from ag06.ml.controls import Controls
from ag06.ml.tuning import DEFAULT_SCORE
from flows import until
from tuning_load import Slow, optimizer_of, state_of


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tuned.db"


def saved_by_another(flow: Slow, rollbacks: int) -> Saved:
    """What a leader has saved that is gone by now, and that had seen to so many rollbacks."""
    campaign = Campaign(list(Controls.of(flow.app).knobs.values()), surrogate=False)
    return Saved(
        at=time.time(),
        leader="another",
        mode="on",
        state="stopped",
        campaign=campaign.state(),
        score=str(DEFAULT_SCORE),
        rollbacks=rollbacks,
    )


async def test_where_nobody_tunes_a_rollback_that_is_over_costs_no_reading_of_all_that_was_saved(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Control] = []
    reads: list[Saved | None] = []
    control, saved = Board.control, Board.saved

    async def counted_control(self: Board) -> Control:
        looks.append(await control(self))
        return looks[-1]

    async def counted_saved(self: Board) -> Saved | None:
        reads.append(await saved(self))
        return reads[-1]

    flow = Slow(sqlite_url)
    async with optimizer_of(monkeypatch) as optimizer, flow.app.running():
        await state_of(optimizer, workflow=flow.app.name)
        (agent,) = optimizer._agents
        await agent.board.save(saved_by_another(flow, 1))
        await agent.board.ask(Control(rollbacks=1))
        monkeypatch.setattr(Board, "control", counted_control)
        monkeypatch.setattr(Board, "saved", counted_saved)
        for number in range(1, 5):
            agent.wake()
            await until(lambda number=number: len(looks) >= number)  # type: ignore[misc]
        agent.wake()
        await until(lambda: len(looks) >= 5)  # the look before it is over
        assert looks[0].rollbacks == 1
        assert len(reads) == 1
        await agent.board.ask(Control(rollbacks=2))
        agent.wake()
        await until(lambda: len(reads) > 1)

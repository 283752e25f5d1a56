"""The supervisor of worker processes: whatever the moment, a stop ends all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ag06.monitoring.instruments import DIRECTORY_VARIABLE
from ag06.persistence import EventStore
from ag06.runtime.supervisor import Supervisor
from ag06.runtime.worker import retry_budget
from flows import until

FLOW = """
from ag06 import Workflow
app = Workflow("flow")
@app.step("asked")
async def answer(event): ...
"""


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
async def test_a_stop_while_workers_start_ends_them(
    turns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow.py").write_text(FLOW)
    supervisor = Supervisor("flow:app", 2, EventStore("sqlite:///flow.db"), store="sqlite:///flow.db")
    running = asyncio.create_task(supervisor.run())
    for _ in range(turns):
        await asyncio.sleep(0)
    supervisor.stop()
    assert await asyncio.wait_for(running, 15) == 0
    processes = [worker.process for worker in supervisor.workers if worker.process is not None]
    assert [process for process in processes if process.returncode is None] == []


async def test_a_worker_that_blocks_past_its_grace_time_is_killed_at_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ag06.runtime.supervisor._SETTLE_SECONDS", 0.2)
    blocks = "\nimport signal, time; open('blocked', 'w').close(); signal.pthread_sigmask(signal.SIG_BLOCK, [15])"
    (tmp_path / "flow.py").write_text(FLOW + blocks + "; time.sleep(3600)")
    supervisor = Supervisor("flow:app", 1, EventStore("sqlite:///flow.db"), store="sqlite:///flow.db", grace=0.2)
    running = asyncio.create_task(supervisor.run())
    await until((tmp_path / "blocked").exists, 60)
    supervisor.stop()
    await asyncio.wait_for(running, 30)
    (worker,) = supervisor.workers
    assert worker.process is not None
    assert worker.process.returncode == -9


async def test_a_fleet_that_worked_outlives_a_mistake_and_works_again_when_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is refused at its start ends with 2; that stops the others only if it was so from the first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ag06.runtime.supervisor._HEALTHY_SECONDS", 0.0)  # it has worked for a while
    alive = FLOW + "\nimport os; open(f'alive.{os.getpid()}', 'w').close()"
    flow = tmp_path / "flow.py"
    flow.write_text(alive)
    codes: list[int] = []
    supervisor = Supervisor(
        "flow:app",
        1,
        EventStore("sqlite:///flow.db"),
        store="sqlite:///flow.db",
        on_death=lambda _, code: codes.append(code),
    )
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(list(tmp_path.glob("alive.*"))) == 1)
    flow.write_text("from ag06 import ConfigurationError\nraise ConfigurationError('refused')")
    (worker,) = supervisor.workers
    assert worker.process is not None
    worker.process.kill()
    await until(lambda: codes.count(2) >= 2, 60)
    flow.write_text(alive)
    await until(lambda: len(list(tmp_path.glob("alive.*"))) == 2, 60)
    supervisor.stop()
    assert await asyncio.wait_for(running, 30) == 0
    assert set(codes) == {-9, 2}


async def test_a_fleet_that_never_worked_ends_with_a_mistake_however_late_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that was down for long may refuse its user once it is up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ag06.runtime.supervisor._HEALTHY_SECONDS", 0.0)
    (tmp_path / "flow.py").write_text("from ag06 import ConfigurationError\nraise ConfigurationError('refused')")
    shared = {DIRECTORY_VARIABLE: str(tmp_path)}
    supervisor = Supervisor("flow:app", 1, EventStore("sqlite:///flow.db"), environment=shared)
    assert await asyncio.wait_for(supervisor.run(), 60) == 2


async def test_workers_of_one_fleet_divide_the_constant_rate_of_the_retry_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tell = "\nimport os; b = retry_budget(); open(f'granted.{os.getpid()}', 'w').write('x' * count(b))"
    counts = "\ndef count(budget): return sum(budget.withdraw() for _ in range(20))"
    (tmp_path / "flow.py").write_text("from ag06.runtime.worker import retry_budget" + FLOW + counts + tell)
    supervisor = Supervisor("flow:app", 2, EventStore("sqlite:///flow.db"), store="sqlite:///flow.db")
    running = asyncio.create_task(supervisor.run())

    def granted() -> list[str]:
        return [text for path in tmp_path.glob("granted.*") if (text := path.read_text())]

    await until(lambda: len(granted()) == 2)
    supervisor.stop()
    assert await asyncio.wait_for(running, 30) == 0
    assert granted() == ["xxxxx", "xxxxx"]
    alone = retry_budget()
    assert sum(alone.withdraw() for _ in range(20)) == 10

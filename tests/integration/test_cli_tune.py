"""`ag06 tune`: what a workflow's optimizer does and did is told, and whoever asks it for something is heard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ag06.ml.board import Board, Control, Posted, Saved
from ag06.ml.decisions import Decision
from ag06.persistence import EventStore
from ag06.persistence.log import EventLog, StepSpec
from commands import Ended, ag06, started
from tuning_past import FLOW, Past, feed, put
from workers import Worker, ag06_run, write_flow

SECONDS = 40.0


@pytest.fixture(params=["sqlite", "redis"])
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def notes(url: str) -> AsyncIterator[tuple[Board, EventLog]]:
    store = EventStore(url)
    try:
        log = await store.log()
        yield Board(log, "flow"), log
    finally:
        await store.close()


async def tune(*arguments: object, url: str, cwd: Path) -> Ended:
    """Run a command while what else there is goes on."""
    return await asyncio.to_thread(ag06, "tune", *arguments, "--store", url, cwd=cwd)


async def saved_when(url: str, holds: Callable[[Saved], bool]) -> Saved:
    """Wait until what a leader saved is so."""
    deadline = time.monotonic() + SECONDS
    async with notes(url) as (board, _):
        while True:
            saved = await board.saved()
            if saved is not None and holds(saved):
                return saved
            assert time.monotonic() < deadline, f"still not so after {SECONDS} s: {saved and saved.told}"
            await asyncio.sleep(0.05)


@asynccontextmanager
async def working(directory: Path, url: str, *arguments: str) -> AsyncIterator[Worker]:
    """Run the workflow that can be tuned, on traffic that never ends."""
    write_flow(directory, FLOW)
    async with ag06_run(directory, url, *arguments) as worker:
        await worker.noted("begins")
        yield worker


async def test_a_workflow_tunes_itself_from_start_to_stop_and_all_is_told(store_url: str, tmp_path: Path) -> None:
    await feed(store_url)
    async with working(tmp_path, store_url):
        untouched = await tune("status", url=store_url, cwd=tmp_path)
        assert "nothing was tuned yet" in untouched.out
        assert (await tune("history", url=store_url, cwd=tmp_path)).out == ""

        begun = await tune("start", url=store_url, cwd=tmp_path)
        assert begun.code == 0, begun
        assert "leads" in begun.out
        again = await tune("start", url=store_url, cwd=tmp_path)
        assert "leads already" in again.out

        saved = await saved_when(store_url, lambda saved: saved.told.get("previous") is not None)
        status = (await tune("status", "--json", url=store_url, cwd=tmp_path)).json
        assert (status["workflow"], status["mode"], status["leader"]) == ("flow", "on", saved.leader)
        assert status["state"] != "stopped"
        assert status["incumbent"]["pause_ms"] < 32.0
        assert status["knobs"]["pause_ms"]["value"] == status["incumbent"]["pause_ms"]
        assert status["previous"] == {"pause_ms": 32.0}
        assert "work.concurrency" in status["pinned"]

        ended = await tune("stop", url=store_url, cwd=tmp_path)
        assert ended.code == 0, ended
        assert f"{saved.leader} has left; what was proved stays: pause_ms 32 -> " in ended.out
        after = (await tune("status", "--json", url=store_url, cwd=tmp_path)).json
        assert (after["mode"], after["state"], after["leader"]) == ("off", "stopped", None)

    history = (await tune("history", "--json", url=store_url, cwd=tmp_path)).json
    kinds = [row["what"] for row in history]
    assert [kind for kind in kinds if kind in ("started", "experiment", "promoted")][:3] == [
        "started",
        "experiment",
        "promoted",
    ]
    assert kinds[-1] == "stopped"
    promoted = history[kinds.index("promoted")]
    assert promoted["before"] == {"pause_ms": 32.0}
    assert promoted["effect"] > 0
    assert "b is better" in promoted["reason"]
    assert {row["source"] for row in history} == {"event"}


async def test_what_no_worker_hears_is_heard_by_the_next_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    await feed(url)
    asked = await tune("start", "--observe", url=url, cwd=tmp_path)
    assert asked.code == 0, asked
    assert "no worker took it up" in asked.out
    async with working(tmp_path, url):
        saved = await saved_when(url, lambda saved: saved.state != "stopped")
        assert saved.mode == "observe"
        changed = await tune("start", url=url, cwd=tmp_path)
        assert "leads" in changed.out
        assert (await saved_when(url, lambda saved: saved.mode == "on")).leader == saved.leader


async def test_workers_that_were_told_off_do_not_look(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    await feed(url)
    (tmp_path / "ag06.toml").write_text('tune = "off"')
    async with working(tmp_path, url):
        asked = await tune("start", url=url, cwd=tmp_path)
        assert asked.code == 0, asked
        assert "AG06_TUNE=off keeps them from looking" in asked.out
        late = await tune("start", "--timeout", 1, url=url, cwd=tmp_path)
        assert late.code == 1, late
        assert "AG06_TUNE=off keeps them from looking" in late.err
        assert late.err.count("ag06 tune status") == 1
        status = (await tune("status", "--json", url=url, cwd=tmp_path)).json
        assert (status["mode"], status["leader"], status["state"]) == ("on", None, "untouched")


async def test_a_leader_rolls_back_when_it_is_asked_to(tmp_path: Path) -> None:
    store_url = f"sqlite:///{tmp_path}/e.db"
    past = Past().until_kept()
    fast = past.campaign.incumbent["pause_ms"]
    await put(store_url, past)
    await feed(store_url)
    async with working(tmp_path, store_url) as worker:
        assert (await worker.noted("pause"))[0] == ["pause", str(fast)]  # it takes up what was proved
        assert (await tune("start", url=store_url, cwd=tmp_path)).code == 0
        done = await tune("rollback", "--yes", url=store_url, cwd=tmp_path)
        assert done.code == 0, done
        assert f"rolled back: pause_ms {fast:.6g} -> 32; " in done.out
        assert "goes on to try other values; to have nothing tried: ag06 tune stop" in done.out
        status = (await tune("status", "--json", url=store_url, cwd=tmp_path)).json
        assert (status["incumbent"], status["previous"]) == ({"pause_ms": 32.0}, None)
        assert (await tune("stop", url=store_url, cwd=tmp_path)).code == 0
        assert worker.notes("pause")[-1] == ["pause", "32.0"]
    history = (await tune("history", "--json", url=store_url, cwd=tmp_path)).json
    assert "rolled_back" in [row["what"] for row in history]


async def test_without_a_leader_the_command_rolls_back_itself(store_url: str, tmp_path: Path) -> None:
    past = Past().until_kept()
    fast = past.campaign.incumbent["pause_ms"]
    await put(store_url, past)
    await feed(store_url)
    done = await tune("rollback", "--yes", url=store_url, cwd=tmp_path)
    assert done.code == 0, done
    assert done.out == f"flow: rolled back: pause_ms {fast:.6g} -> 32\n"
    async with notes(store_url) as (board, log):
        saved, posted, control = await board.saved(), await board.posted(), await board.control()
        assert await log.lead(board.role, "anybody", 1)  # it gave the lead up
        await log.lead(board.role, "anybody", 0)
    assert saved is not None
    assert posted is not None
    assert (posted.incumbent, posted.trial) == ({}, None)  # the defaults, whatever a later release says they are
    assert (saved.rollbacks, control.rollbacks) == (1, 1)
    rows = (await tune("history", "--json", url=store_url, cwd=tmp_path)).json
    assert (rows[-1]["what"], rows[-1]["source"]) == ("rolled_back", "event")
    assert (rows[-1]["before"], rows[-1]["config"]) == ({"pause_ms": fast}, {"pause_ms": 32.0})
    nothing = await tune("rollback", "--yes", url=store_url, cwd=tmp_path)
    assert (nothing.code, nothing.out) == (0, "flow: there is nothing to roll back, the defaults run\n")
    async with working(tmp_path, store_url):
        assert (await tune("start", url=store_url, cwd=tmp_path)).code == 0
        resumed = await saved_when(store_url, lambda saved: saved.state != "stopped")
        assert resumed.rollbacks == 1  # it is not done twice
        assert resumed.campaign["knobs"] == saved.campaign["knobs"]


async def test_workers_that_nobody_leads_follow_a_rollback(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past().until_kept()
    await put(url, past)
    await feed(url)
    async with working(tmp_path, url, "--workers", "2") as worker:
        fast = ["pause", str(past.campaign.incumbent["pause_ms"])]
        assert await worker.noted("pause", 2) == [fast, fast]
        assert (await tune("rollback", "--yes", url=url, cwd=tmp_path)).code == 0
        assert await worker.noted("pause 32.0", 2) == [["pause", "32.0"]] * 2


async def test_a_rollback_works_where_the_campaign_cannot_be_read(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past().until_kept()
    saved = past.saved()
    await put(url, past, Saved(**{**_fields(saved), "campaign": {"knobs": saved.campaign["knobs"], "version": 99}}))
    done = await tune("rollback", "--yes", url=url, cwd=tmp_path)
    assert done.code == 0, done
    async with notes(url) as (board, _):
        posted = await board.posted()
    assert posted is not None
    assert posted.incumbent == {}


def _fields(saved: Saved) -> dict[str, Any]:
    return {name: getattr(saved, name) for name in saved.__struct_fields__}


async def test_a_leader_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past(began=time.time() - 60).until_kept()
    past.at = time.time()
    await put(url, past, past.saved("explore"))
    before = (await tune("status", "--json", url=url, cwd=tmp_path)).json
    assert before["leader"] == "worker-1"  # as far as its notes tell
    ended = await tune("stop", "--timeout", 10, url=url, cwd=tmp_path)
    assert ended.code == 0, ended
    assert "worker-1 has left; what was proved stays" in ended.out


async def test_a_leader_that_does_not_answer_in_time_is_a_failure(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past().until_kept()
    past.at = time.time()
    await put(url, past, past.saved("explore"))
    async with notes(url) as (board, log):
        assert await log.lead(board.role, "worker-1", 60)
        for command in ("stop", "rollback --yes"):
            late = await tune(*command.split(), "--timeout", 1, url=url, cwd=tmp_path)
            assert late.code == 1, late
            assert "at the end of its window" in late.err
        refused = await tune("reset", "--yes", url=url, cwd=tmp_path)
        assert refused.code == 2, refused
        assert "worker-1 tunes flow now; first: ag06 tune stop" in refused.err


async def test_a_leader_that_saved_long_ago_is_none(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past().until_kept()
    await put(url, past, past.saved("explore"))
    status = (await tune("status", "--json", url=url, cwd=tmp_path)).json
    assert (status["leader"], status["state"]) == (None, "stopped")


async def test_what_was_learned_is_forgotten_by_reset_alone(tmp_path: Path) -> None:
    store_url = f"sqlite:///{tmp_path}/e.db"
    await put(store_url, Past().until_kept())
    asked = await tune("reset", url=store_url, cwd=tmp_path)
    assert asked.code == 2
    assert "answer with --yes" in asked.err
    done = await tune("reset", "--yes", url=store_url, cwd=tmp_path)
    assert done.code == 0, done
    async with notes(store_url) as (board, _):
        assert (await board.saved(), await board.posted(), await board.control()) == (None, None, Control())
    kept = (await tune("history", "--json", url=store_url, cwd=tmp_path)).json
    assert "promoted" in [row["what"] for row in kept]  # the events stay


async def test_an_experiment_under_way_is_explained(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past().until_experiment()
    past.at = time.time()
    await put(url, past, past.saved("experiment"))
    status = (await tune("status", "--json", url=url, cwd=tmp_path)).json
    experiment = status["experiment"]
    assert experiment["variant_a"] == {"pause_ms": 32.0}
    assert experiment["variant_b"] == past.campaign.candidate
    assert experiment["windows"] >= 5
    assert status["budget"] == {"explored": 0.25, "loss": 0.01}
    text = (await tune("status", url=url, cwd=tmp_path)).out
    assert experiment["reason"] in text
    assert "25.0% of the time for trials, which cost 1.00% of the score" in text
    assert "throughput 125/s, baseline 125/s" in text


async def test_history_adds_from_the_notes_what_is_no_event(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past().until_kept()
    await put(url, past, events=False)
    rows = (await tune("history", "--json", url=url, cwd=tmp_path)).json
    assert {row["source"] for row in rows} == {"notes"}
    assert [row["what"] for row in rows] == [
        entry.decision.kind for entry in past.history if entry.decision and entry.decision.kind != "trial"
    ]
    told = await tune("history", url=url, cwd=tmp_path)
    assert "their events are not in the log" in told.err


async def test_history_shows_each_window_once_and_what_changed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past().until_kept()
    await put(url, past)
    rows = (await tune("history", "--all", "-n", 1000, "--json", url=url, cwd=tmp_path)).json
    windows = [row for row in rows if row["is_window"]]
    assert len(windows) == sum(entry.purpose is not None for entry in past.history)
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    assert all(row["changed"] == {} for row in windows if row["what"] in ("a", "control", "watch"))
    assert all(row["changed"] == row["config"] for row in windows if row["what"] in ("explore", "b"))
    last = (await tune("history", "-n", 2, "--json", url=url, cwd=tmp_path)).json
    assert [row["what"] for row in last] == ["promoted", "kept"]


async def test_history_is_as_narrow_as_what_it_is_read_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past()
    past.decided(Decision(kind="rested", config={}, reason="nothing better was found, " * 20 + "\x1b[2Jreally"))
    await put(url, past)
    for columns, widest in ((None, 80), (60, 60), (400, 100)):
        env = {} if columns is None else {"COLUMNS": str(columns)}
        told = await asyncio.to_thread(ag06, "tune", "history", "--store", url, cwd=tmp_path, env=env)
        lines = told.out.splitlines()
        assert widest - 20 < max(map(len, lines)) <= widest
        assert [line[21:] for line in lines if not line.startswith(" ")] == ["started: pause_ms 32", "rested"]
        assert "\x1b" not in told.out
        assert told.out.split()[-1] == "\\x1b[2Jreally"


async def test_windows_older_than_the_notes_are_the_trials_of_the_log(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past().until_kept()
    saved = past.saved()
    await put(url, past, Saved(**{**_fields(saved), "history": saved.history[-5:]}))
    rows = (await tune("history", "--all", "-n", 1000, "--json", url=url, cwd=tmp_path)).json
    explored = [row for row in rows if row["what"] == "explore"]
    assert len(explored) == sum(entry.purpose == "explore" for entry in past.history)
    assert {row["source"] for row in explored} == {"event"}


async def test_status_goes_on_until_it_is_told_to_stop(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    past = Past().until_promoted()
    await put(url, past)
    with started("tune", "status", "--watch", "--json", "--store", url, cwd=tmp_path) as watching:
        await asyncio.to_thread(watching.until, '"phase":"watch"')
        await put(url, past.until_kept(), events=False)
        await asyncio.to_thread(watching.until, '"phase":"explore"')
        ended = await asyncio.to_thread(watching.interrupt)
    assert ended.code == 0, ended
    assert "Traceback" not in ended.err


async def test_a_mistake_is_told_in_words(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    mistakes = [("status", "there is no store", await tune("status", url=url, cwd=tmp_path))]
    async with notes(url) as (_, log):
        mistakes.append(("start", "the store knows no workflow yet", await tune("start", url=url, cwd=tmp_path)))
        for name in ("shop", "flow"):
            await log.register(name, [StepSpec(f"{name}.work", "tick")])
    mistakes += [
        ("stop", "say which with --workflow: flow, shop", await tune("stop", url=url, cwd=tmp_path)),
        ("history", "it knows flow, shop", await tune("history", "--workflow", "ship", url=url, cwd=tmp_path)),
        ("rollback", "was tuned yet", await tune("rollback", "--workflow", "flow", url=url, cwd=tmp_path)),
        ("report", "begin with: ag06 tune start", await tune("report", "--workflow", "flow", url=url, cwd=tmp_path)),
    ]
    for command, told, ended in mistakes:
        assert (command, ended.code) == (command, 2)
        assert told in ended.err
        assert ended.err.count("\n") == 1


async def test_notes_of_another_release_are_pointed_out(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/e.db"
    await feed(url)
    async with notes(url) as (board, log):
        await log.write_note("tuning.flow.saved", b'{"at": "yesterday"}')
        await board.post(Posted("a", 1, {}))
    ended = await tune("status", url=url, cwd=tmp_path)
    assert ended.code == 2
    assert "`ag06 tune reset` forgets what was learned" in ended.err
    assert (await tune("reset", "--yes", url=url, cwd=tmp_path)).code == 0


async def test_a_misspelt_setting_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from ag06 import Workflow\napp = Workflow('shop')\n@app.step('a')\ndef step(event): ...\n"
    )
    for arguments in ((), ("--workers", "2")):
        ended = await asyncio.to_thread(ag06, "run", "shop:app", *arguments, cwd=tmp_path, env={"AG06_TUNE": "of"})
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended
        assert "tune 'of' (from AG06_TUNE); use off, manual, observe, on" in ended.err
    assert not (tmp_path / ".ag06").exists()

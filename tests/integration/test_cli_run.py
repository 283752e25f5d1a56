"""`ag06 run`: workers that run until they are told to stop, come back when they die, and follow the code."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from ag06.persistence.log import StepSpec
from commands import ag06, on_terminal, started

FLOW = """
import os
from ag06 import Context, Event, Workflow

app = Workflow("flow", store="sqlite:///flow.db", visibility_timeout=30.0)

@app.step("asked")
async def answer(event: Event, ctx: Context) -> None:
    print("ANSWER", event.data, "from", os.getpid(), flush=True)
    await ctx.publish("answered", event.data)
"""


@pytest.fixture(params=["sqlite", "redis"])
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "flow.py").write_text(FLOW)
    return tmp_path


@pytest.fixture
async def events(store_url: str) -> AsyncIterator[EventStore]:
    store = EventStore(store_url)
    yield store
    await store.close()


async def _answered(events: EventStore) -> list[str]:
    return [event.data async for event in events.replay(types="answered")]


async def test_a_worker_runs_the_steps_until_it_is_told_to_stop(events: EventStore, store_url: str, home: Path) -> None:
    with started("run", "flow:app", "--store", store_url, cwd=home) as worker:
        worker.until("workflow flow on", "steps: answer")
        await events.persist_event("asked", "test", "why")
        worker.until("ANSWER why")
        ended = worker.terminate()
    assert ended.code == 0
    assert await _answered(events) == ["why"]
    assert "Traceback" not in ended.err


async def test_a_killed_worker_is_started_again(events: EventStore, store_url: str, home: Path) -> None:
    with started("run", "flow:app", "--workers", 2, "--store", store_url, cwd=home) as workers:
        await events.persist_event("asked", "test", "first")
        os.kill(int(workers.line("ANSWER first from ")), signal.SIGKILL)
        workers.until("ended with -9")
        await events.persist_event("asked", "test", "second")
        workers.until("ANSWER second")
        ended = workers.interrupt()
    assert ended.code == 0
    assert sorted(await _answered(events)) == ["first", "second"]


async def test_the_command_lines_of_workers_do_not_show_the_store(
    events: EventStore, store_url: str, home: Path
) -> None:
    (home / "flow.py").write_text(FLOW.replace("os.getpid()", "__import__('sys').orig_argv, os.environ"))
    with started("run", "flow:app", "--workers", 2, "--store", store_url, cwd=home) as workers:
        await events.persist_event("asked", "test", "why")
        shown = workers.line("ANSWER why from ")
        workers.terminate()
    assert "'flow:app'" in shown
    assert store_url not in shown  # nor is it in what the steps start


async def test_changed_code_is_run_after_a_reload(home: Path) -> None:
    events = EventStore(f"sqlite:///{home}/flow.db")
    with started("run", "flow:app", "--reload", cwd=home) as workers:
        await events.persist_event("asked", "test", "old")
        workers.until("ANSWER old")
        (home / "flow.py").write_text("this is no Python\n")
        workers.until("flow.py changed", "SyntaxError")
        (home / "flow.py").write_text(FLOW.replace("ANSWER", "NEW ANSWER"))
        await events.persist_event("asked", "test", "new")
        workers.until("NEW ANSWER new")
        ended = workers.interrupt()
    assert ended.code == 0
    assert await _answered(events) == ["old", "new"]
    await events.close()


async def test_the_log_level_is_a_setting(home: Path) -> None:
    with started("run", "flow:app", cwd=home, env={"AG06_LOG_LEVEL": "error"}) as worker:
        events = EventStore(f"sqlite:///{home}/flow.db")
        await events.persist_event("asked", "test", "why")
        worker.until("ANSWER why")
        await events.close()
        ended = worker.interrupt()
    assert ended.code == 0
    assert [line for line in ended.out.splitlines() if not line.startswith("ANSWER")] == []


LOGGING = """
import logging, os, signal
from ag06 import Event, Workflow

app = Workflow("flow", store="sqlite:///flow.db")

@app.step("asked")
async def answer(event: Event) -> None:
    logging.getLogger("shop").warning("asked at %s", "redis://clerk:hunter2@127.0.0.1/0")
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture
async def talkative(home: Path) -> Path:
    (home / "flow.py").write_text(LOGGING)
    events = EventStore(f"sqlite:///{home}/flow.db")
    await events.persist_event("asked", "test", "why")
    await events.close()
    return home


async def test_the_log_is_one_json_object_a_line_on_standard_output(talkative: Path) -> None:
    ended = ag06("run", "flow:app", cwd=talkative)
    assert (ended.code, ended.err) == (0, "")
    assert all({"time", "level", "logger", "event"} <= set(line) for line in ended.lines)
    assert {line["logger"] for line in ended.lines} >= {"ag06.cli", "ag06.runtime", "shop"}
    (own,) = [line for line in ended.lines if line["logger"] == "shop"]
    assert own["level"] == "warning"
    assert own["event"].startswith("asked at redis://")
    assert "hunter2" not in ended.out


@pytest.mark.parametrize(("form", "begins"), [({}, "20"), ({"AG06_LOG_FORMAT": "json"}, "{")])
async def test_the_log_is_readable_on_a_terminal_unless_json_is_asked_for(
    talkative: Path, form: dict[str, str], begins: str
) -> None:
    ended = on_terminal(["run", "flow:app"], cwd=talkative, columns=200, env=form)
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    assert len(lines) >= 2
    assert [line for line in lines if not line.startswith(begins)] == []


async def test_a_step_that_the_store_refuses_is_told_once_for_all_workers(home: Path) -> None:
    events = EventStore(f"sqlite:///{home}/flow.db")
    await (await events.log()).register("flow", [StepSpec("flow.answer", "once asked")])
    await events.close()
    ended = ag06("run", "flow:app", "--workers", 3, cwd=home, env={"AG06_LOG_LEVEL": "warning"})
    assert ended.code == 2
    assert "listens to 'asked', but the store knows it as a step of 'once asked'" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("named", "options", "warned"),
    [
        ("sqlite:///other.db", (), True),
        ("sqlite:///./flow.db", (), False),
        ("sqlite:///other.db", ("--store", "sqlite:///flow.db"), False),
    ],
)
async def test_other_commands_that_would_look_at_another_store_are_warned_of(
    home: Path, named: str, options: tuple[str, ...], warned: bool
) -> None:
    with started("run", "flow:app", *options, cwd=home, env={"AG06_STORE": named}) as worker:
        events = EventStore(f"sqlite:///{home}/flow.db")
        await events.persist_event("asked", "test", "why")
        worker.until("ANSWER why")
        await events.close()
        ended = worker.interrupt()
    assert ended.code == 0
    assert (f"own store= is used, not {named} (from AG06_STORE)" in ended.err) == warned

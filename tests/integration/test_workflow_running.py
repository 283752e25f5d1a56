"""What a workflow promises about where its steps begin, and about running inside somebody's event loop."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import threading
from pathlib import Path

import pytest

from ag06 import ConfigurationError, Event, Workflow
from ag06.runtime.step import Start
from conftest import OpenLog
from flows import SECONDS, said, stored, until


def with_step(store_url: str, *names: str, start: Start | None = None) -> tuple[Workflow, dict[str, list[int]]]:
    app = Workflow("shop", store=store_url)
    heard: dict[str, list[int]] = {name: [] for name in names}

    def declare(name: str) -> None:
        @app.step("order", name=name, start=start)
        async def step(event: Event) -> None:
            heard[name].append(event.data)

    for name in names:
        declare(name)
    return app, heard


async def test_steps_of_a_new_workflow_begin_at_the_beginning(store_url: str) -> None:
    """What was published before the first worker came up is processed."""
    app, heard = with_step(store_url, "bill", "ship")
    await app.events.persist_event("order", "web", 1)
    await app.publish("order", data=2)
    async with app.running():
        await app.drain(SECONDS)
    assert heard == {"bill": [1, 2], "ship": [1, 2]}


async def test_a_step_added_later_begins_at_the_end_unless_told_otherwise(store_url: str, open_store: OpenLog) -> None:
    await open_store()  # keeps a log in memory between the runs
    app, _ = with_step(store_url, "bill")
    async with app.running():
        await app.publish("order", data=1)
        await app.drain(SECONDS)
        (first,) = await stored(app, "order")
    assert first.recorded is not None
    later, heard = with_step(store_url, "bill", "later")
    await later.publish("order", data=2)
    beginning, heard_all = with_step(store_url, "audit", start="beginning")
    moment, heard_some = with_step(store_url, "since", start=first.recorded + dt.timedelta(milliseconds=1))
    end, heard_none = with_step(store_url, "end", start="end")
    for flow in (later, beginning, moment, end):
        async with flow.running():
            await flow.drain(SECONDS)
    assert heard == {"bill": [2], "later": [2]}
    assert heard_all == {"audit": [1, 2]}
    assert heard_some == {"since": [2]}
    assert heard_none == {"end": []}


async def test_a_step_goes_on_where_it_was(store_url: str, open_store: OpenLog) -> None:
    await open_store()
    for n in range(3):
        app, heard = with_step(store_url, "bill", start="beginning")
        async with app.running():
            await app.publish("order", data=n)
            await app.drain(SECONDS)
        assert heard == {"bill": [n]}


async def test_a_step_that_listens_to_another_type_now_is_refused(store_url: str, open_store: OpenLog) -> None:
    await open_store()
    app, _ = with_step(store_url, "bill")
    async with app.running():
        await app.publish("order", data=1)
    changed = Workflow("shop", store=store_url)

    @changed.step("order.paid")
    async def bill(event: Event) -> None: ...

    with pytest.raises(ConfigurationError, match=r"shop\.bill.*ag06 steps remove shop\.bill"):
        async with changed.running():
            raise AssertionError("it ran")
    with pytest.raises(ConfigurationError, match=r"ag06 steps remove shop\.bill"):
        await changed.publish("order.paid")
    await changed.close()


async def test_a_step_that_is_removed_while_it_runs_gets_nothing_more_and_harms_nobody(
    store_url: str, open_store: OpenLog
) -> None:
    await open_store()
    app, heard = with_step(store_url, "bill", "ship")
    async with app.running():
        await app.publish("order", data=1)
        await app.drain(SECONDS)
        log = await app.events.log()
        assert await log.remove_group("shop.bill")
        for n in range(2, 5):
            await app.publish("order", data=n)
        await app.drain(SECONDS)
        assert [group.group for group in await log.groups()] == ["shop.ship"]
    assert heard == {"bill": [1], "ship": [1, 2, 3, 4]}
    async with app.running():  # registered again, as a step that is added later
        await app.publish("order", data=5)
        await app.drain(SECONDS)
    assert heard == {"bill": [1, 5], "ship": [1, 2, 3, 4, 5]}


async def test_a_workflow_runs_once_at_a_time_in_a_process() -> None:
    app, heard = with_step("memory://", "bill")
    async with app.running() as running:
        assert running is app
        with pytest.raises(ConfigurationError, match="'shop' runs already in this process"):
            async with app.running():
                raise AssertionError("it ran twice")
        await app.publish("order", data=1)
        await app.drain(SECONDS)
    assert heard == {"bill": [1]}
    async with app.running():
        await app.publish("order", data=2)
        await app.drain(SECONDS)
    assert heard == {"bill": [1, 2]}


async def test_two_that_start_a_workflow_at_the_same_time_do_not_both_run_it(store_url: str) -> None:
    app, heard = with_step(store_url, "bill")
    entered: list[int] = []
    both_tried = asyncio.Event()

    async def run(number: int) -> None:
        async with app.running():
            entered.append(number)
            await both_tried.wait()
            await app.publish("order", data=number)
            await app.drain(SECONDS)

    running = [asyncio.create_task(run(n)) for n in range(2)]
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
    both_tried.set()
    ended = await asyncio.gather(*running, return_exceptions=True)
    assert len(entered) == 1
    assert sorted(type(error) for error in ended if error is not None) == [ConfigurationError]
    assert heard == {"bill": entered}


async def test_a_step_declared_while_the_workflow_runs_is_refused() -> None:
    app, _ = with_step("memory://", "bill")
    async with app.running():
        with pytest.raises(ConfigurationError, match="declare steps before the workflow 'shop' runs"):

            @app.step("order")
            async def late(event: Event) -> None: ...

    assert set(app.steps) == {"bill"}


async def test_what_fails_inside_running_comes_out_and_the_workflow_has_stopped() -> None:
    app, _ = with_step("memory://", "bill")
    with pytest.raises(ZeroDivisionError):
        async with app.running():
            raise ZeroDivisionError
    async with app.running():
        await app.drain(SECONDS)
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not any("shop" in name for name in names)


async def test_a_drain_that_lasts_too_long_says_so_and_may_be_repeated(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    leave = asyncio.Event()

    @app.step("order")
    async def bill(event: Event) -> None:
        await leave.wait()

    async with app.running():
        await app.publish("order")
        with pytest.raises(TimeoutError, match=r"'shop': 1 events are pending .* after 0\.05 s$"):
            await app.drain(0.05)
        leave.set()
        await app.drain(SECONDS)
        assert (await app.events.stats()).groups[0].backlog == 0


async def test_a_drain_waits_for_what_follows_too(store_url: str) -> None:
    app = Workflow("shop", store=store_url)

    def chain(n: int) -> None:
        @app.step(f"t{n}", name=f"step{n}")
        async def step(event: Event, ctx) -> None:  # type: ignore[no-untyped-def]
            await ctx.publish(f"t{n + 1}", event.data)

    for n in range(5):
        chain(n)
    async with app.running():
        for n in range(10):
            await app.publish("t0", data=n)
        await app.drain(SECONDS)
        assert sorted(await said(app, "t5")) == list(range(10))


async def test_a_workflow_runs_in_the_loop_of_another_thread() -> None:
    app, heard = with_step("memory://", "bill")

    async def main() -> None:
        async with app.running():
            await app.publish("order", data=1)
            await app.drain(SECONDS)

    await asyncio.to_thread(asyncio.run, main())
    await main()
    assert heard == {"bill": [1, 1]}


async def test_running_leaves_no_thread_behind(store_url: str) -> None:
    before = {thread.name for thread in threading.enumerate()}
    app = Workflow("shop", store=store_url)

    @app.step("order")
    def bill(event: Event) -> None: ...

    async with app.running():
        await app.publish("order")
        await app.drain(SECONDS)
    await until(
        lambda: not any(t.name.startswith("ag06") and t.name not in before for t in threading.enumerate()), seconds=5
    )


async def test_a_workflow_without_steps_publishes_and_does_not_serve() -> None:
    app = Workflow("shop", store="memory://")
    assert await app.publish("order") is not None
    with pytest.raises(ConfigurationError, match=r"has no steps; declare one with @app\.step"):
        await app.serve()
    await app.close()


async def test_a_workflow_is_served_outside_the_main_thread_until_it_is_cancelled() -> None:
    """Signals arrive in the main thread alone."""
    app, heard = with_step("memory://", "bill")

    async def main() -> None:
        serving = asyncio.create_task(app.serve())
        await app.publish("order", data=1)
        await until(lambda: heard["bill"])
        serving.cancel()
        await asyncio.wait([serving])
        assert serving.cancelled()

    await asyncio.to_thread(asyncio.run, main())
    assert heard == {"bill": [1]}


async def test_run_works_in_a_thread(tmp_path: Path) -> None:
    program = f"""
import os, sys, threading
from ag06 import Event, Workflow

app = Workflow("shop", store="sqlite:///{tmp_path}/shop.db")
heard = threading.Event()

@app.step("order")
async def bill(event: Event):
    heard.set()

threading.Thread(target=app.run, daemon=True).start()
app2 = Workflow("shop", store="sqlite:///{tmp_path}/shop.db")
import asyncio
asyncio.run(app2.events.persist_event("order", "test"))
assert heard.wait({SECONDS})
print("billed", flush=True)
os._exit(0)  # the workflow runs on: Python's own end would pull executors away from under it
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 0, errors
    assert b"billed" in out
    assert b"no signal ends a workflow outside the main thread" in out
    assert b"Traceback" not in out + errors


async def test_run_inside_an_event_loop_names_what_to_use() -> None:
    app, _ = with_step("memory://", "bill")
    with pytest.raises(ConfigurationError, match=r"await app\.serve\(\).*async with app\.running\(\)"):
        app.run()

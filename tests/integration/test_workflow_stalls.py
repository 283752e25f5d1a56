"""What a fleet promises about workers whose event loop does not turn, and about workers that are started afresh."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ag06 import Workflow
from flows import SECONDS, letters, said, until
from records import eventually
from workers import ag06_run, write_flow

both_stores = pytest.mark.parametrize("adapter", ["sqlite", "redis"])


async def settled(app: Workflow) -> None:
    """Wait until nothing is pending in the step of a workflow that runs elsewhere."""
    log = await app.events.log()

    async def nothing_pending() -> bool:
        return await log.pending(["shop.bill"]) == 0

    await eventually(nothing_pending, SECONDS)


@both_stores
async def test_a_call_that_blocks_the_loop_is_kept_and_what_waits_behind_it_goes_to_others(
    store_url: str, tmp_path: Path
) -> None:
    write_flow(
        tmp_path,
        """
        app = Workflow("shop", visibility_timeout=0.6)

        @app.step("order", concurrency=1)
        async def bill(event: Event, ctx: Context):
            note("start", event.data)
            while event.data == "blocks" and not Path("go").exists():
                time.sleep(0.01)
            await ctx.publish("billed", [event.data, ctx.taken_over])
        """,
    )
    app = Workflow("shop", store=store_url)
    await app.publish("order", data="blocks")
    for n in range(10):
        await app.publish("order", data=n)
    async with ag06_run(tmp_path, store_url, "--workers", "2") as workers:
        await workers.noted("start", 11)
        (tmp_path / "go").touch()
        await settled(app)
        assert await workers.terminate() == 0, workers.said
    billed = await said(app, "billed")
    assert len(billed) == 11
    assert all([name, False] in billed for name in [*range(10), "blocks"])
    assert len(workers.notes("start")) == 11
    assert "ended with" not in workers.said
    await app.close()


@both_stores
async def test_a_worker_that_is_paused_under_its_supervisor_is_no_death(store_url: str, tmp_path: Path) -> None:
    write_flow(
        tmp_path,
        """
        app = Workflow("shop", visibility_timeout=0.6)

        @app.step("order", concurrency=1, retry=Retry(attempts=1))
        async def bill(event: Event, ctx: Context):
            note("start", os.getpid(), event.data)
            while event.data == "long" and not Path("go").exists():
                await asyncio.sleep(0.01)
            await ctx.publish("billed", [event.data, ctx.taken_over])
        """,
    )
    app = Workflow("shop", store=store_url)
    await app.publish("order", data="long")
    for n in range(5):
        await app.publish("order", data=n)
    async with ag06_run(tmp_path, store_url, "--workers", "2") as workers:
        await until(lambda: any(words[2] == "long" for words in workers.notes("start")))
        (pid,) = [int(words[1]) for words in workers.notes("start") if words[2] == "long"]
        os.kill(pid, signal.SIGSTOP)
        await workers.noted("start", 6)  # the other worker gets what the paused one had not begun
        os.kill(pid, signal.SIGCONT)
        (tmp_path / "go").touch()
        await settled(app)
        assert await workers.terminate() == 0, workers.said
    billed = await said(app, "billed")
    assert len(billed) == len(workers.notes("start")) == 6
    assert ["long", False] in billed
    assert await letters(app) == []
    await app.close()


@pytest.mark.parametrize("adapter", ["sqlite"])
async def test_c_code_that_holds_the_interpreter_past_the_lease_runs_once(store_url: str, tmp_path: Path) -> None:
    write_flow(
        tmp_path,
        """
        import ctypes
        app = Workflow("shop", visibility_timeout=0.6)

        @app.step("order", retry=Retry(attempts=1))
        async def bill(event: Event, ctx: Context):
            note("start", event.data)
            ctypes.PyDLL(None).usleep(2_500_000)
            await ctx.publish("billed", ctx.taken_over)
        """,
    )
    app = Workflow("shop", store=store_url)
    await app.publish("order")
    async with ag06_run(tmp_path, store_url, "--workers", "2") as workers:
        await workers.noted("start")
        await settled(app)
        assert await workers.terminate() == 0, workers.said
    assert (await said(app, "billed"), len(workers.notes("start")), await letters(app)) == ([False], 1, [])
    await app.close()


@pytest.mark.parametrize("adapter", ["sqlite"])
@pytest.mark.parametrize("hang", ["time.sleep(3600)", "ctypes.PyDLL(None).sleep(3600)"])
async def test_a_worker_that_stalls_is_replaced_with_its_stack_in_the_log(
    store_url: str, tmp_path: Path, hang: str
) -> None:
    write_flow(
        tmp_path,
        f"""
        import ctypes
        app = Workflow("shop", visibility_timeout=3600, grace=1)

        @app.step("order", retry=Retry(attempts=2))
        async def bill(event: Event, ctx: Context):
            note("start", event.data)
            if event.data == "hangs":
                {hang}
        """,
    )
    app = Workflow("shop", store=store_url)
    event_id = await app.publish("order", data="hangs")
    for n in range(4):
        await app.publish("order", data=n)
    async with ag06_run(tmp_path, store_url, "--workers", "2", "--stall-timeout", "1s") as workers:
        await workers.noted("start", 6)
        await settled(app)
        (letter,) = await letters(app)
        assert await workers.terminate() == 0, workers.said
    assert (letter.event.data, letter.reason, letter.attempts) == ("hangs", "worker_died", 2)
    assert workers.said.count("its event loop has not turned") == 2
    assert f"{event_id} in step shop.bill" in workers.said
    assert workers.said.count("in bill") >= 2  # the frame of the step, from each of the two workers
    await app.close()


@both_stores
async def test_workers_are_started_afresh_after_a_number_of_events_and_lose_none(
    store_url: str, tmp_path: Path
) -> None:
    write_flow(
        tmp_path,
        """
        app = Workflow("shop", visibility_timeout=3600)

        @app.step("order", concurrency=2)
        async def bill(event: Event, ctx: Context):
            note("start", event.data)
            await asyncio.sleep(0.02)
            await ctx.publish("billed", [event.data, ctx.taken_over])
        """,
    )
    app = Workflow("shop", store=store_url)
    for n in range(60):
        await app.publish("order", data=n)
    async with ag06_run(tmp_path, store_url, "--max-events", "40") as workers:
        await until(lambda: "this worker is recycled" in workers.said)
        await workers.noted("start", 60)
        await settled(app)
        assert await workers.terminate() == 0, workers.said
    assert sorted(await said(app, "billed")) == [[n, False] for n in range(60)]
    assert "ended with" not in workers.said
    assert await letters(app) == []
    await app.close()


@pytest.mark.parametrize("adapter", ["sqlite"])
@pytest.mark.parametrize("limits", [("--max-events", "1000"), ()], ids=["limits", "none"])
async def test_a_step_that_ends_its_worker_with_the_exit_code_of_recycling_is_a_death(
    store_url: str, tmp_path: Path, limits: tuple[str, ...]
) -> None:
    write_flow(
        tmp_path,
        """
        app = Workflow("shop", visibility_timeout=3600)

        @app.step("order", retry=Retry(attempts=2))
        async def bill(event: Event):
            note("start")
            os._exit(3)
        """,
    )
    app = Workflow("shop", store=store_url)
    await app.publish("order")
    async with ag06_run(tmp_path, store_url, "--workers", "2", *limits) as workers:
        await workers.noted("start", 2)
        await settled(app)
        (letter,) = await letters(app)
        assert await workers.terminate() == 0, workers.said
    assert (letter.reason, letter.attempts) == ("worker_died", 2)
    assert workers.said.count("ended with 3") == 2
    await app.close()


@pytest.mark.parametrize("adapter", ["sqlite"])
async def test_a_limit_that_a_worker_reaches_at_its_start_is_warned_of_and_the_next_one_waits(
    store_url: str, tmp_path: Path
) -> None:
    write_flow(tmp_path, 'app = Workflow("shop")\n@app.step("order")\nasync def bill(event: Event): ...\n')
    async with ag06_run(tmp_path, store_url, "--max-memory", "1M") as workers:
        await until(lambda: "the next one starts in" in workers.said)
        assert await workers.terminate() == 0, workers.said
    assert "--max-memory of 1 MB is too low" in workers.said
    assert "ended with" not in workers.said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--stall-timeout", "soon"), "stall timeout 'soon' (from flag); use seconds"),
        (("--stall-timeout", "0"), "60s, 2m; or off"),
        (("--max-memory", "much"), "--max-memory 'much'"),
        (("--max-memory", "12"), "1M or more"),
    ],
)
async def test_a_limit_that_is_none_is_refused_at_the_start(
    tmp_path: Path, arguments: tuple[str, str], problem: str
) -> None:
    write_flow(tmp_path, 'app = Workflow("shop")\n@app.step("order")\nasync def bill(event: Event): ...\n')
    async with ag06_run(tmp_path, f"sqlite:///{tmp_path}/events.db", *arguments) as worker:
        assert await worker.ended() == 2
    assert problem in " ".join(worker.said.split())

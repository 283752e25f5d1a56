"""What several worker processes promise together: `ag06 run --workers N`, deaths, order, pauses, reloading."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import defaultdict
from pathlib import Path

import pytest

from ag06 import Workflow
from ag06.persistence.log import StepSpec
from flows import SECONDS, letters, said, until
from records import eventually
from workers import ag06_run, write_flow

both_stores = pytest.mark.parametrize("adapter", ["sqlite", "redis"])


async def settled(app: Workflow, *groups: str) -> None:
    """Wait until nothing is pending in the groups of a workflow that runs elsewhere."""
    log = await app.events.log()

    async def nothing_pending() -> bool:
        return await log.pending(groups) == 0

    await eventually(nothing_pending, SECONDS)


@pytest.mark.parametrize(
    ("adapter", "death"), [("sqlite", "os.kill(os.getpid(), signal.SIGKILL)"), ("redis", "os._exit(9)")]
)
async def test_an_event_that_kills_its_workers_is_a_dead_letter_and_the_others_go_on(
    store_url: str, tmp_path: Path, death: str
) -> None:
    write_flow(
        tmp_path,
        f"""
        app = Workflow("shop", visibility_timeout=3600)

        @app.step("order", retry=Retry(attempts=3), concurrency=4)
        async def bill(event: Event, ctx: Context):
            if event.data == "killer":
                note("killer", os.getpid())
                {death}
            await ctx.publish("billed", event.data)
        """,
    )
    app = Workflow("shop", store=store_url)
    for n in range(10):
        await app.publish("order", data=n)
    killer = await app.publish("order", data="killer")
    for n in range(10, 30):
        await app.publish("order", data=n)
    async with ag06_run(tmp_path, store_url, "--workers", "2") as workers:
        await workers.noted("killer", 3)
        await settled(app, "shop.bill")
        (letter,) = await letters(app)
        assert await workers.terminate() == 0, workers.said
    assert (letter.event.id, letter.reason, letter.attempts) == (killer, "worker_died", 3)
    assert len({pid for _, pid in workers.notes("killer")}) == 3
    assert sorted(await said(app, "billed")) == list(range(30))
    await app.close()


@pytest.mark.parametrize("adapter", ["sqlite"])
@pytest.mark.parametrize("attempts", [2, 3])
async def test_no_innocent_event_is_taken_for_one_that_kills(store_url: str, tmp_path: Path, attempts: int) -> None:
    """Twenty that are taken over together with the killer, and that take longer than it does."""
    write_flow(
        tmp_path,
        f"""
        app = Workflow("shop", visibility_timeout=3600)

        @app.step("order", retry=Retry(attempts={attempts}), concurrency=8)
        async def bill(event: Event, ctx: Context):
            note("start", event.data)
            if event.data == "killer":
                await asyncio.sleep(0.02)
                os._exit(9)
            await asyncio.sleep(0.05)
        """,
    )
    app = Workflow("shop", store=store_url)
    for n in range(10):
        await app.publish("order", data=n)
    await app.publish("order", data="killer")
    for n in range(10, 20):
        await app.publish("order", data=n)
    log = await app.events.log()
    await log.register("shop", [StepSpec("shop.bill", "order", "beginning")])
    assert len(await log.subscribe("shop.bill", "dead", 3600).fetch(100, SECONDS)) == 21
    assert await log.release_worker("dead") == 21
    async with ag06_run(tmp_path, store_url, "--workers", "2") as workers:
        await settled(app, "shop.bill")
        (letter,) = await letters(app)
        assert await workers.terminate() == 0, workers.said
    assert (letter.event.data, letter.reason, letter.attempts) == ("killer", "worker_died", attempts)
    await app.close()


@pytest.mark.parametrize("adapter", ["redis"])
async def test_an_event_with_a_single_attempt_kills_a_single_worker(store_url: str, tmp_path: Path) -> None:
    write_flow(
        tmp_path,
        """
        app = Workflow("shop", visibility_timeout=3600)

        @app.step("order", retry=Retry(attempts=1))
        def bill(event: Event):
            note("start", event.data)
            if event.data == "killer":
                os._exit(9)
        """,
    )
    app = Workflow("shop", store=store_url)
    await app.publish("order", data="killer")
    async with ag06_run(tmp_path, store_url, "--workers", "2") as workers:
        await workers.noted("start killer")
        await settled(app, "shop.bill")
        await app.publish("order", data="good")
        await workers.noted("start good")
        (letter,) = await letters(app)
        assert await workers.terminate() == 0, workers.said
    assert (letter.event.data, letter.reason, letter.attempts) == ("killer", "worker_died", 1)
    assert len(workers.notes("start")) == 2
    await app.close()


@both_stores
async def test_a_subject_is_processed_in_order_and_one_at_a_time_over_two_processes(
    store_url: str, tmp_path: Path
) -> None:
    write_flow(
        tmp_path,
        """
        import random
        app = Workflow("shop", visibility_timeout=3600)

        @app.step("order", concurrency=4, retry=Retry(attempts=3, initial=0.001))
        async def bill(event: Event, ctx: Context):
            note("begin", os.getpid(), event.subject, event.data)
            await asyncio.sleep(random.uniform(0, 0.01))
            note("end", os.getpid(), event.subject, event.data)
            if event.data % 17 == 0 and ctx.attempt == 1:
                raise ConnectionError
            await ctx.publish("billed", event.data, subject=event.subject)
        """,
    )
    app = Workflow("shop", store=store_url)
    await app.events.persist_events(
        [
            {"event_type": "order", "source": "t", "data": n, "subject": f"s{n % 5}", "priority": n % 4}
            for n in range(100)
        ]
    )
    async with ag06_run(tmp_path, store_url, "--workers", "2") as workers:
        count = 100
        while len({words[1] for words in workers.notes("begin")}) < 2 or count < 200:  # one may be long at starting
            assert count < 10_000
            await app.events.persist_events(
                [
                    {"event_type": "order", "source": "t", "data": n, "subject": f"s{n % 5}"}
                    for n in range(count, count + 20)
                ]
            )
            count += 20
            await asyncio.sleep(0.05)
        await settled(app, "shop.bill")
        assert await workers.terminate() == 0, workers.said
    billed = await said(app, "billed")
    running: dict[str, str] = {}
    for what, pid, subject, number in workers.notes():
        if what == "begin":
            assert subject not in running, f"{number} of {subject} ran beside {running[subject]}"
            running[subject] = f"{number} in {pid}"
        else:
            del running[subject]
    lines: dict[int, list[int]] = defaultdict(list)
    for number in billed:
        lines[number % 5].append(number)
    assert lines == {subject: list(range(subject, count, 5)) for subject in range(5)}
    await app.close()


@both_stores
async def test_a_worker_that_dies_is_started_again_and_what_it_held_is_handed_out_at_once(
    store_url: str, tmp_path: Path
) -> None:
    write_flow(
        tmp_path,
        """
        app = Workflow("shop", visibility_timeout=3600)

        @app.step("order", concurrency=1)
        async def bill(event: Event, ctx: Context):
            note("start", os.getpid(), event.data, ctx.taken_over)
            while event.data == "long" and not ctx.taken_over:
                await asyncio.sleep(0.01)
            await ctx.publish("billed", event.data)
        """,
    )
    app = Workflow("shop", store=store_url)
    await app.publish("order", data="long")
    async with ag06_run(tmp_path, store_url, "--workers", "2") as workers:
        ((_, victim, *_),) = await workers.noted("start")
        os.kill(int(victim), signal.SIGKILL)
        (_, (_, heir, *_)) = await workers.noted("start", 2)
        assert heir != victim
        await settled(app, "shop.bill")
        # The one that was started again works too: with three at once, both must have a share.
        while len({words[1] for words in workers.notes("start")}) < 3:
            for n in range(4):
                await app.publish("order", data=n, dedup=False)
            await asyncio.sleep(0.02)
        await settled(app, "shop.bill")
        assert await workers.terminate() == 0, workers.said
    assert workers.notes("start")[1][2:] == ["long", "True"]
    assert (await said(app, "billed")).count("long") == 1
    assert "1 deliveries handed out again" in workers.said
    await app.close()


@both_stores
async def test_what_a_dead_worker_held_is_taken_over_though_nobody_saw_it_die(store_url: str, tmp_path: Path) -> None:
    """Within the visibility timeout, by any other worker, on any store (taskiq-redis#130)."""
    write_flow(
        tmp_path,
        """
        app = Workflow("shop", visibility_timeout=0.5)

        @app.step("order", concurrency=4)
        async def bill(event: Event, ctx: Context):
            note("start", os.getpid(), event.data)
            while not Path("go").exists():
                await asyncio.sleep(0.01)
            await ctx.publish("billed", event.data)
        """,
    )
    app = Workflow("shop", store=store_url)
    for n in range(4):
        await app.publish("order", data=n)
    async with ag06_run(tmp_path, store_url) as first:
        await first.noted("start", 4)
        await first.kill()
    (tmp_path / "go").touch()
    async with ag06_run(tmp_path, store_url) as second:
        await second.noted("start", 8)
        await settled(app, "shop.bill")
        assert await second.terminate() == 0, second.said
    assert sorted(await said(app, "billed")) == [0, 1, 2, 3]
    assert await letters(app) == []
    await app.close()


@pytest.mark.parametrize("adapter", ["sqlite"])
async def test_a_worker_that_was_paused_past_its_lease_cannot_commit(store_url: str, tmp_path: Path) -> None:
    write_flow(
        tmp_path,
        """
        app = Workflow("shop", visibility_timeout=0.5)

        @app.on_outcome
        def tell(outcome):
            note("outcome", os.getpid(), outcome.kind)

        @app.step("order", concurrency=1)
        async def bill(event: Event, ctx: Context):
            note("start", os.getpid(), ctx.taken_over)
            while not (ctx.taken_over or Path("go").exists()):
                await asyncio.sleep(0.01)
            await ctx.publish("billed", {"taken over": ctx.taken_over})
        """,
    )
    app = Workflow("shop", store=store_url)
    await app.publish("order")
    async with ag06_run(tmp_path, store_url) as paused:
        await paused.noted("start")
        async with ag06_run(tmp_path, store_url) as heir:
            paused.process.send_signal(signal.SIGSTOP)
            await heir.noted("start", 2)
            await settled(app, "shop.bill")
            paused.process.send_signal(signal.SIGCONT)
            (tmp_path / "go").touch()
            await paused.noted(f"outcome {paused.process.pid}")
            assert await heir.terminate() == 0, heir.said
        assert await paused.terminate() == 0, paused.said
    assert await said(app, "billed") == [{"taken over": True}]
    kinds = {pid: kind for _, pid, kind in paused.notes("outcome")}
    assert kinds == {str(paused.process.pid): "fenced", str(heir.process.pid): "processed"}
    await app.close()


async def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    write_flow(
        tmp_path,
        """
        app = Workflow("shop")
        atexit.register(lambda: "AG06_SUPERVISOR" in os.environ and note("ended", os.getpid()))

        @app.step("order")
        async def bill(event: Event):
            note("start", os.getpid())
            await asyncio.sleep(0.01)
        """,
    )
    url = f"sqlite:///{tmp_path}/events.db"
    app = Workflow("shop", store=url)
    async with ag06_run(tmp_path, url, "--workers", "2") as workers:
        while len({words[1] for words in workers.notes("start")}) < 2:
            await app.publish("order", dedup=False)
            await asyncio.sleep(0.005)
        await workers.kill()
        await until(lambda: len(workers.notes("ended")) == 2)
    assert {words[1] for words in workers.notes("ended")} == {words[1] for words in workers.notes("start")}
    await app.close()


async def test_a_change_of_a_file_brings_new_code_in_and_loses_nothing(tmp_path: Path) -> None:
    source = """
    app = Workflow("shop", visibility_timeout=3600)

    @app.step("order")
    async def bill(event: Event, ctx: Context):
        note("start", event.data)
        await asyncio.sleep({seconds})
        await ctx.publish("billed", [event.data, "{version}"])
    """
    write_flow(tmp_path, source.format(version="old", seconds=0.3))
    url = f"sqlite:///{tmp_path}/events.db"
    app = Workflow("shop", store=url)
    await app.publish("order", data=1)
    async with ag06_run(tmp_path, url, "--reload") as worker:
        await worker.noted("start 1")
        write_flow(tmp_path, "def broken(:")  # half-written: it waits for the next change
        await until(lambda: "SyntaxError" in worker.said)
        write_flow(tmp_path, source.format(version="new", seconds=0))
        await app.publish("order", data=2)
        await worker.noted("start 2")
        await settled(app, "shop.bill")
        assert await worker.terminate() == 0, worker.said
    assert await said(app, "billed") == [[1, "old"], [2, "new"]]
    assert "Traceback" not in worker.said
    await app.close()


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_a_step_that_listens_to_another_type_now_ends_its_workers_and_they_are_not_started_again(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    before = Workflow("shop", store=url)
    before.step("order.paid", name="bill")(lambda event: None)
    await before.publish("order.paid")
    await before.close()
    write_flow(tmp_path, 'app = Workflow("shop")\n@app.step("order")\nasync def bill(event: Event): ...\n')
    async with ag06_run(tmp_path, url, *arguments) as worker:
        assert await worker.ended() == 2
    assert "ag06 steps remove shop.bill" in " ".join(worker.said.split())
    assert "Traceback" not in worker.said

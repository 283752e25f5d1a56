"""Events, exceptions and steps that would take a worker down with them, if it let them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ag06 import Event, Retry, Workflow
from flows import SECONDS, letters, until


class Amount(msgspec.Struct):
    cents: int


@dataclass
class Picky:
    n: int

    def __post_init__(self) -> None:
        if self.n == 0:
            raise KeyError("zero")


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_a_data_class_that_raises_anything_makes_a_dead_letter_and_the_rest_goes_on() -> None:
    app = Workflow("shop", store="memory://")
    seen: list[int] = []

    @app.step("t", concurrency=1)
    async def step(event: Event[Picky]) -> None:
        seen.append(event.data.n)

    async with app.running():
        for n in range(3):
            await app.publish("t", data={"n": n})
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert (letter.reason, letter.error, seen) == ("invalid", "KeyError", [1, 2])


async def test_an_exception_that_cannot_be_put_into_words_is_a_failure_like_any_other() -> None:
    app = Workflow("shop", store="memory://")
    app.on_outcome(lambda outcome: None)

    @app.step("t", concurrency=1, retry=Retry(attempts=2, initial=0.0))
    async def step(event: Event) -> None:
        if event.data == 0:
            raise SpeechlessError

    async with app.running():
        for n in range(3):
            await app.publish("t", data=n)
        await app.drain(SECONDS)
        (letter,) = await letters(app)
    assert (letter.error, letter.attempts) == ("SpeechlessError", 2)


async def test_a_retry_in_a_batch_of_invalid_events_is_not_forgotten() -> None:
    app = Workflow("shop", store="memory://")
    calls: list[int] = []

    @app.batch_step("t", max_size=10, max_wait=0.5, retry=Retry(attempts=5, initial=0.2, maximum=0.2))
    async def step(events: list[Event[Amount]]) -> None:
        calls.append(len(events))
        if len(calls) == 1:
            raise ValueError("once")

    async with app.running():
        await app.publish("t", data={"cents": 1})
        await until(lambda: calls)
        for _ in range(2):
            await app.publish("t", data={"no": "cents"}, dedup=False)
        await app.drain(SECONDS)
        assert len(await letters(app)) == 2
    assert len(calls) == 2


async def test_a_shutdown_waits_for_no_step_that_will_not_be_cancelled() -> None:
    app = Workflow("shop", store="memory://", grace=0.1)
    leave = asyncio.Event()
    called = asyncio.Event()

    @app.step("t")
    async def step(event: Event) -> None:
        called.set()
        while not leave.is_set():
            try:
                await leave.wait()
            except asyncio.CancelledError:
                continue

    async with app.running():
        await app.publish("t")
        await called.wait()
    assert not leave.is_set()
    leave.set()


def test_an_event_loop_that_ends_under_a_workflow_ends(tmp_path: Path) -> None:
    script = tmp_path / "torn_down.py"
    script.write_text(
        "import asyncio\n"
        "from ag06 import Event, Workflow\n"
        "app = Workflow('shop', store='memory://')\n"
        "called = asyncio.Event()\n"
        "@app.step('t')\n"
        "async def step(event: Event) -> None:\n"
        "    called.set()\n"
        "    await asyncio.sleep(3600)\n"
        "async def main() -> None:\n"
        "    global running\n"
        "    running = app.running()\n"
        "    await running.__aenter__()\n"
        "    await app.publish('t')\n"
        "    await called.wait()\n"
        "asyncio.run(main())\n"
        "print('ended')\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False)
    assert ended.stdout == "ended\n", ended.stderr

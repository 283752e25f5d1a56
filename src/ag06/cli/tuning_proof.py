"""The proof behind `ag06 validate` that experiments on a running workflow can be trusted, and lose no event."""

from __future__ import annotations

import json
from typing import Any

from ag06 import Event
from ag06.cli.proving import Bench, check, line, process
from ag06.ml.board import Board

_ALPHA = 0.01
_TUNED = """
import asyncio, json, logging, random, sys
from ag06 import Retry, Workflow
from ag06.ml import Guardrails, ml_optimizer
app = Workflow(sys.argv[1], journal="off")
pause = app.knob("pause", low=0.001, high=1.0, default=0.06, scale="log")
broken = app.knob("broken", default=False, choices=(False, True))
logging.getLogger("ag06").setLevel(logging.CRITICAL)  # it fails on purpose
room, asked, done = asyncio.Semaphore(32), 0, 0
@app.step(sys.argv[2], name="work", concurrency=8, retry=Retry(attempts=100, initial=0.02, maximum=0.2))
async def work(event):
    await asyncio.sleep(pause.value * random.uniform(0.5, 1.5))  # so that calls do not keep step
    if broken.value:
        raise ConnectionError("the step of this variant fails")
@app.on_outcome
def ended(outcome):
    global done
    done += outcome.kind == "processed"
    room.release()
async def feed():
    global asked
    while True:
        await room.acquire()
        asked += 1
        await app.publish(sys.argv[2], data={"n": asked})
async def compare(name, a, b, most, seed=1):
    found = await ml_optimizer.ab_testing.run_experiment(
        {name: a}, {name: b}, max_windows=most, alpha=float(sys.argv[3]), seed=seed)
    return {"winner": found.winner, "effect": found.effect, "windows": found.windows, "reason": found.reason,
            "after": [pause.value, broken.value]}
async def main():
    ml_optimizer.configure(app, score="maximize throughput", window=0.1, settle=0.03, minimum_events=3,
                           guardrails=Guardrails(p99_factor=None))
    async with app.running():
        feeding = [asyncio.create_task(feed()) for _ in range(4)]
        better = await compare("pause", 0.06, 0.01, 60)
        same = await compare("pause", 0.06, 0.06, 20)
        if same["winner"] is not None:  # one in a hundred may; not two
            same = await compare("pause", 0.06, 0.06, 20, 2)
        worse = await compare("broken", False, True, 40)
        print(json.dumps([better, same, worse]), flush=True)
        for task in feeding:
            task.cancel()
        await asyncio.gather(*feeding, return_exceptions=True)
        await app.drain(timeout=20)
        print(json.dumps({"asked": asked, "done": done}), flush=True)
asyncio.run(main())
"""
"""Runs three experiments on a step that pauses: with a pause of a sixth, with the same, and with one that fails.

The better one is six times as good, so that a noisy machine is no excuse.
"""


async def tuning(bench: Bench) -> str:
    """What is better wins, what is the same does not, what breaks a guardrail ends at once; no event is lost."""
    app, event_type = bench.workflow(), bench.name()
    app.step(event_type, name="work")(_nothing)
    try:
        async with process(bench, _TUNED, app.name, event_type, str(_ALPHA), AG06_TUNE="manual") as tuned:
            better, same, worse = json.loads(await line(tuned))
            account = json.loads(await line(tuned))
            await tuned.wait()
    finally:
        await Board(await bench.events.log(), app.name).forget()
    _judge(better, same, worse)
    stored = len([event async for event in bench.events.replay(types=event_type)])
    counts = (stored, account["asked"], account["done"])
    check(len(set(counts)) == 1, f"stored, published, processed: {counts}, which should be the same")
    return (
        f"6 times as good: {better['effect']:+.0%} proved in {better['windows']} windows; the same: no winner in "
        f"{same['windows']}; one that fails: ended at once; {stored} events, each processed once"
    )


def _judge(better: dict[str, Any], same: dict[str, Any], worse: dict[str, Any]) -> None:
    check(better["winner"] == "b", f"a sixth of the pause did not win: {better['reason']}")
    check(same["winner"] is None, f"of two that are the same, one won: {same['reason']}")
    ended = worse["reason"].startswith("b ended at once")
    check(worse["winner"] is None and ended, f"what breaks a guardrail was not ended: {worse['reason']}")
    for found in (better, same, worse):
        check(found["after"] == [0.06, False], f"the knobs were left at {found['after']} and not where they stood")


async def _nothing(event: Event) -> None:
    """What the step does that is registered here, and run elsewhere."""

"""A workflow that can be tuned, and what an optimizer would have saved of it."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from ag06.knob import Knob
from ag06.ml.board import Board, Entry, Posted, Saved
from ag06.ml.campaign import Campaign
from ag06.ml.decisions import Decision
from ag06.ml.pace import Pace
from ag06.ml.windows import Window
from ag06.persistence import EventStore
from ag06.persistence.log import StepSpec

SCORE = "maximize throughput"
FLOW = """
from ag06.ml import Guardrails, Pace, ml_optimizer

app = Workflow("flow", retention=60)
pause = app.knob("pause_ms", low=1.0, high=64.0, default=32.0, scale="log")
pause.watch(lambda: note("pause", pause.value))

@app.step("tick", name="work", concurrency=8)
async def work(event, ctx):
    note_once()
    await asyncio.sleep(pause.value / 1000)
    await ctx.publish("tick", event.data)  # as many go round as were published at first

_noted = False

def note_once():
    global _noted
    if not _noted:
        note("begins", pause.value)
    _noted = True

ml_optimizer.configure(
    app, score="maximize throughput", knobs=("pause_ms",), window=0.2, settle=0.1, minimum_events=5, share=1.0,
    worst_loss=1.0, surrogate=False, guardrails=Guardrails(p99_factor=None, worst_loss=None),
    pace=Pace(explore=10, experiment=40, watch=3, rest=2),
)
"""
"""Events that go round; the shorter the pause, the more of them a second."""


def knob() -> Knob:
    return Knob("pause_ms", low=1.0, high=64.0, default=32.0, scale="log")


def window(throughput: float) -> Window:
    p99 = 4000 / throughput
    return Window(
        cpu_percent=10.0,
        memory_mb=100.0,
        latency_p50_ms=p99 / 2,
        latency_p95_ms=p99 * 0.9,
        latency_p99_ms=p99,
        throughput=throughput,
        error_rate=0.0,
        queue_size=4,
        queue_age_seconds=0.0,
        events=100,
        seconds=0.1,
        processed=100,
        failed=0,
        dead=0,
        arrival_rate=throughput,
        latency_mean_ms=p99 / 2,
        call_mean_ms=p99 / 2,
        call_p99_ms=p99,
    )


def _throughput(config: dict[str, Any]) -> float:
    return 4000 / float(config["pause_ms"])


class Past:
    """A campaign that ran in no time at all, up to its first promotion, with what is saved of it."""

    def __init__(self, leader: str = "worker-1", began: float | None = None) -> None:
        self.campaign = Campaign([knob()], surrogate=False, pace=Pace(explore=10, experiment=40, watch=3, rest=2))
        self.leader = leader
        self.history: list[Entry] = []
        self.at = time.time() - 3600 if began is None else began
        self.promoted: Decision | None = None
        self.decided(Decision(kind="started", config=self.campaign.incumbent, reason="mode on, begins"))

    def decided(self, decision: Decision) -> None:
        self.history.append(Entry(self.at, decision=decision))

    def step(self) -> None:
        """Run a window; the score is that of the pause alone."""
        from math import log

        plan = self.campaign.next()
        score = log(_throughput(plan.config) / 125.0)
        self.at += 0.15
        before = self.campaign.incumbent
        decisions = self.campaign.record(plan, score)
        self.history.append(Entry(self.at, purpose=plan.purpose, config=plan.config, score=score))
        if plan.purpose == "explore":
            self.decided(Decision(kind="trial", config=plan.config, before=before, reason="scored", score=score))
        for decision in decisions:
            self.decided(decision)
            if decision.kind == "promoted":
                self.promoted = decision

    def until_promoted(self) -> Past:
        while self.promoted is None:
            self.step()
        return self

    def until_kept(self) -> Past:
        while self.history[-1].decision is None or self.history[-1].decision.kind != "kept":
            self.step()
        return self

    def until_experiment(self, windows: int = 5) -> Past:
        while self.campaign.experiment is None or self.campaign.experiment.result.windows < windows:
            self.step()
        return self

    def saved(self, state: str = "stopped", **changes: Any) -> Saved:
        campaign = self.campaign
        found = None if campaign.experiment is None else campaign.experiment.result
        told = {
            "incumbent": campaign.incumbent,
            "previous": campaign.previous,
            "phase": campaign.phase,
            "windows": campaign.tuner.windows,
            "pinned": ["work.concurrency"],
            "experiment": found
            and {
                "variant_a": campaign.incumbent,
                "variant_b": campaign.candidate,
                "windows": found.windows,
                "effect": found.effect,
                "interval": None,
                "reason": found.reason,
            },
            "budget": {"explored": 0.25, "loss": 0.01},
        }
        saved = Saved(
            at=self.at,
            leader=self.leader,
            mode="on",
            state=state,
            campaign=campaign.state(),
            score=SCORE,
            baseline=window(125.0),
            reference=window(_throughput(campaign.incumbent)),
            budget={"total": 100.0, "explored": 25.0, "lost": 1.0},
            history=self.history,
            told=told,
        )
        return msgspec.structs.replace(saved, **changes)


async def put(url: str, past: Past, saved: Saved | None = None, *, events: bool = True, workflow: str = "flow") -> None:
    """Write into a store what a leader would have: its notes, and its decisions as events."""
    store = EventStore(url)
    log = await store.log()
    await log.register(workflow, [StepSpec(f"{workflow}.work", "tick", "beginning")])
    board = Board(log, workflow)
    await board.save(saved or past.saved())
    await board.post(Posted(past.leader, 7, past.campaign.incumbent))
    if events:
        for entry in past.history:
            if entry.decision is not None:
                data = {"workflow": workflow, "at": entry.at, **msgspec.to_builtins(entry.decision)}
                await store.persist_event(entry.decision.event_type, "ag06.optimizer", data, dedup=False)
    await store.close()


async def feed(url: str, count: int = 16) -> None:
    """Publish the events that go round; the workflow that is named by them need not run yet."""
    store = EventStore(url)
    log = await store.log()
    await log.register("flow", [StepSpec("flow.work", "tick", "beginning")])
    for number in range(count):
        await store.persist_event("tick", "test", {"n": number})
    await store.close()

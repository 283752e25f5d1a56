from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import Any

import msgspec
import pytest

from ag06 import Event, Workflow
from ag06.errors import ConfigurationError
from ag06.ml import Score
from ag06.ml.controls import Controls
from ag06.ml.gradient_optimizer import GradientOptimizer, score_of
from ag06.ml.suggestions import GUESS, Optimization
from ag06.ml.windows import Metrics, StepFigures
from made_windows import window


class Machine:
    """A workflow with one knob, and what its figures would be."""

    def __init__(self, seed: int = 0) -> None:
        self.app = Workflow("mixer", store="memory://")
        self.app.knob("block", low=1, high=256, default=8, scale="log", integer=True)
        self.controls = Controls.of(self.app, ["block"])
        self.optimizer = GradientOptimizer(self.app, self.controls, seed)

    def metrics(self, **other: Any) -> Metrics:
        """Throughput grows with the square root of the block."""
        return window(**{"throughput": 100.0 * self.controls.now["block"] ** 0.5} | other)

    async def climb(self, steps: int, target: Any = None) -> list[Optimization]:
        found = []
        for _ in range(steps):
            found.append(await self.optimizer.optimize(self.metrics(), target))
            self.controls.apply(found[-1].changes)
        return found


async def test_called_again_and_again_it_leads_uphill() -> None:
    machine = Machine()
    found = await machine.climb(25, "maximize throughput")
    assert machine.controls.now["block"] > 32
    assert all(0 <= one.confidence <= 1 for one in found)
    assert all(1 <= one.changes.get("block", 1) <= 256 for one in found)
    assert all(one.expected is None or math.isfinite(one.expected) for one in found)
    assert any(one.expected is not None and one.expected > 0 for one in found)
    assert all(one.reason for one in found)
    assert json_of(found)


def json_of(found: list[Optimization]) -> bytes:
    return msgspec.json.encode(found)


async def test_one_measurement_is_one_window_and_the_first_one_leads_a_step_aside() -> None:
    machine = Machine()
    first, *others = await machine.climb(4, "maximize throughput")
    assert (first.expected, first.confidence) == (None, 0.5)
    assert "a step to the side" in first.reason
    assert len(first.changes) == 1
    climb = machine.optimizer._climb
    assert climb is not None
    assert climb.tuner is not None
    assert climb.tuner.windows == 4
    assert all("after 1 windows" not in one.reason for one in others)


@pytest.mark.parametrize("seed", range(6))
async def test_a_first_step_aside_is_the_smallest_that_changes_anything(seed: int) -> None:
    machine = Machine(seed)
    (first,) = await machine.climb(1, "maximize throughput")
    assert first.changes in ({"block": 4}, {"block": 16})


async def test_a_first_step_of_a_knob_with_two_values_goes_to_the_other_one() -> None:
    app = Workflow("mixer", store="memory://")
    app.knob("few", low=1, high=2, default=2, integer=True)
    optimizer = GradientOptimizer(app, Controls.of(app, ["few"]))
    assert (await optimizer.optimize(window())).changes == {"few": 1}


async def test_where_a_window_shows_by_itself_what_to_do_that_is_the_first_step() -> None:
    app = Workflow("fetcher", store="memory://")

    @app.step("page")
    async def get(event: Event[Any]) -> None: ...

    seen = window(cpu_percent=5.0, steps={"fetcher.get": StepFigures(1_000, 0, 10.0, 10.0, 95.0, 95.0, 0)})
    found = await GradientOptimizer(app, Controls.of(app)).optimize(seen)
    assert found.changes == {"get.concurrency": 20}
    assert (found.expected, found.confidence) == (None, GUESS)


async def test_it_suggests_and_moves_nothing_by_itself() -> None:
    machine = Machine()
    for _ in range(5):
        await machine.optimizer.optimize(machine.metrics())
    assert machine.controls.now == {"block": 8}


async def test_once_there_is_something_to_compare_it_says_how_sure_it_is() -> None:
    machine = Machine()
    await machine.climb(12, "maximize throughput")
    machine.controls.apply({"block": 2})
    found = await machine.optimizer.optimize(machine.metrics(), "maximize throughput")
    assert found.changes["block"] > 2
    assert found.expected is not None
    assert found.expected > 0.2
    assert found.confidence > 0.8


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"throughput": math.nan}, "throughput is missing"),
        ({"throughput": math.inf}, "throughput is missing"),
        ({"throughput": 0.0}, "throughput is 0"),
        ({"flags": ("idle",)}, "had no traffic"),
        ({"flags": ("too_few_events",)}, "too few to tell"),
        ({"latency_p99_ms": None}, "p99 is missing"),
        ({"latency_p99_ms": math.nan}, "p99 is missing"),
    ],
)
async def test_figures_that_say_nothing_change_nothing_and_spoil_nothing(figures: dict[str, Any], words: str) -> None:
    machine, other = Machine(), Machine()
    found = await machine.optimizer.optimize(machine.metrics(**figures))
    assert (found.changes, found.expected, found.confidence) == ({}, None, 0.0)
    assert found.reason.startswith("inconclusive: ")
    assert words in found.reason
    first = await machine.climb(3)
    assert first == await other.climb(3)
    found = await machine.optimizer.optimize(machine.metrics(**figures))
    assert found.reason.startswith("inconclusive: ")
    assert await machine.climb(3) == await other.climb(3)


async def test_where_the_score_is_constant_nothing_is_said_to_be_better() -> None:
    machine = Machine()
    for _ in range(20):
        found = await machine.optimizer.optimize(window())
        assert found.expected is None or abs(found.expected) < 0.02
        machine.controls.apply(found.changes)
    assert 1 <= machine.controls.now["block"] <= 256


@pytest.mark.parametrize("weight", ["1e300", "1e6"])
async def test_however_large_the_weights_what_is_expected_is_a_number(weight: str) -> None:
    machine = Machine()
    for one in await machine.climb(12, f"maximize {weight} * throughput"):
        assert one.expected is None or math.isfinite(one.expected)


async def test_a_target_that_is_reached_on_the_way_stays_the_same_climb() -> None:
    wanted, plain = Machine(), Machine()
    reached = 0
    for _ in range(20):
        found = []
        for machine, target in ((wanted, {"throughput": 1e6, "p99": 5}), (plain, "maximize throughput, minimize p99")):
            # Below 5 ms it would read as a limit that is kept to, and what was learned would be forgotten.
            seen = machine.metrics(latency_p99_ms=20 / machine.controls.now["block"] ** 0.4)
            found.append(await machine.optimizer.optimize(seen, target))
            machine.controls.apply(found[-1].changes)
            reached += (seen.latency_p99_ms or 0) < 5
        assert found[0] == found[1]
    assert reached > 4


async def test_another_target_begins_anew() -> None:
    machine, fresh = Machine(), Machine()
    await machine.climb(8, "maximize throughput")
    fresh.controls.apply(machine.controls.now)
    target = "minimize p99"
    assert await machine.climb(3, target) == await fresh.climb(3, target)


async def test_calls_at_once_take_turns() -> None:
    machine = Machine()
    found = await asyncio.gather(*(machine.optimizer.optimize(machine.metrics()) for _ in range(8)))
    assert len(found) == 8


async def test_without_a_workflow_or_a_knob_it_says_that_there_is_none() -> None:
    for optimizer in (GradientOptimizer(), GradientOptimizer(Workflow("empty", store="memory://"), Controls({}))):
        found = await optimizer.optimize(window(), {"p99": 1})
        assert found.changes == {}
        assert "there is no knob to move" in found.reason


@dataclasses.dataclass
class Alike:
    throughput: float = 1.0


@pytest.mark.parametrize("current", [None, {}, {"throughput": 1.0}, Alike(), 5])
async def test_what_are_no_figures_is_refused(current: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"give what collect_metrics\(\) returned"):
        await Machine().optimizer.optimize(current)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"speed": 5}, "'speed' is nothing that a window tells"),
        ({"p99": "soon"}, "p99: 'soon' is no limit"),
        ({"p99": math.nan}, "is no limit"),
        ({"p99": None}, "is no limit"),
        ({"p99": -1}, "is no limit"),
        ({5: 5}, "nothing that a window tells"),
        ("go faster", "cannot read 'go faster'"),
        (5, "give figures by name, or a score in words"),
        (Alike(), "give figures by name, or a score in words"),
    ],
)
async def test_a_target_that_cannot_be_read_is_refused(target: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        await Machine().optimizer.optimize(window(), target)


NOW = window([10.0] * 1_000, throughput=100.0, memory_mb=100.0)


@pytest.mark.parametrize(
    ("target", "score"),
    [
        (None, "maximize throughput, minimize 0.5 * p99"),
        ("minimize p99, memory <= 500MB", "minimize p99, memory <= 500MB"),
        (Score.parse("maximize throughput"), "maximize throughput"),
        ({"throughput": 200}, "maximize throughput"),
        ({"throughput": 200, "p99": 1}, "maximize throughput, minimize p99"),
        ({"throughput": 200, "p99": "50ms"}, "maximize throughput, p99 <= 50.0"),
        ({"throughput": 50, "latency_p99_ms": 1}, "minimize p99, throughput >= 50.0"),
        ({"throughput": 50, "p99": 50}, "maximize throughput, p99 <= 50.0"),
        ({"memory": "50MB"}, "minimize memory"),
        ({}, "maximize throughput"),
        (msgspec.structs.replace(NOW, throughput=200.0), "maximize throughput"),
    ],
)
def test_a_target_says_what_is_to_be_better_and_what_may_stay(target: Any, score: str) -> None:
    told = str(score_of(NOW, target))
    assert told.startswith(score)
    if not isinstance(target, Metrics):
        assert told == score


def test_figures_as_a_target_keep_all_that_they_have() -> None:
    target = msgspec.structs.replace(NOW, throughput=200.0, latency_p99_ms=5.0, error_rate=math.nan)
    told = str(score_of(NOW, target))
    assert told.startswith("maximize throughput, minimize p99")
    assert "memory <= 100.0" in told
    assert "error_rate" not in told

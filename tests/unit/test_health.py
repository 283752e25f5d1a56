from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from ag06.errors import ConfigurationError
from ag06.monitoring import health_json
from ag06.monitoring.health import HealthRegistry, HealthResult
from flows import SECONDS
from records import eventually


class Clock:
    """Seconds that pass when a test says so, for the clock and the time of day."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def health(clock: Clock) -> AsyncIterator[HealthRegistry]:
    registry = HealthRegistry(clock=clock, now=clock.now)
    yield registry
    await registry.close()


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def raises(error: BaseException) -> Any:
    def check() -> None:
        raise error

    return check


def raises_async(error: BaseException) -> Any:
    async def check() -> None:
        raise error

    return check


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


class Answer:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def __call__(self) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (None, "pass", None),
        (True, "pass", None),
        (False, "fail", "the check said False"),
        ("pass", "pass", None),
        ("warn", "warn", "the check said 'warn'"),
        (("warn", "half of it"), "warn", "half of it"),
        (("pass", "all of it"), "pass", None),
        (HealthResult("fail", "full"), "fail", "full"),
    ],
)
@pytest.mark.parametrize("kind", ["sync", "async", "object", "awaitable"])
async def test_an_answer_means_what_the_contract_says(
    health: HealthRegistry, kind: str, answer: Any, status: str, error: str | None
) -> None:
    async def check() -> Any:
        return answer

    def later() -> Any:
        return check()

    kinds = {
        "sync": lambda: answer,
        "async": check,
        "object": Answer(answer),
        "awaitable": later,
    }
    health.register("part", kinds[kind])
    part = (await health.check_health()).components["part"]
    assert (part.status, part.error) == (status, error)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (raises(ValueError("broken")), "ValueError: broken"),
        (raises_async(ValueError("broken")), "ValueError: broken"),
        (raises(UnreadableError()), "UnreadableError: (its __str__ failed)"),
        (raises(SystemExit(3)), "sys.exit(3)"),
        (raises_async(SystemExit(3)), "sys.exit(3)"),
        (raises(ValueError("long " * 1000)), "ValueError: long"),
        (cancels_itself, "the check was cancelled"),
        (lambda: 42, "the check returned a int"),
        (lambda: 1, "the check returned a int"),
        (lambda: "great", "the check returned 'great'"),
        (lambda: ("great", "x"), "the check returned a tuple"),
        (lambda: ("pass", 7), "the check returned a tuple"),
        (lambda: HealthResult("great"), "a HealthResult that is none"),  # type: ignore[arg-type]
        (lambda: HealthResult("pass", observed=object()), "a HealthResult that is none"),  # type: ignore[arg-type]
        (object, "the check returned a object"),
    ],
)
async def test_a_check_that_raises_or_answers_rubbish_is_its_own_fail_and_nobody_elses(
    health: HealthRegistry, check: Any, words: str
) -> None:
    health.register("bad", check)
    health.register("good", lambda: None)
    report = await health.check_health()
    assert report.status == "fail"
    assert report.components["good"].status == "pass"
    bad = report.components["bad"]
    assert bad.status == "fail"
    assert bad.error is not None
    assert words in bad.error
    assert len(bad.error) < 700
    assert health_json.render(report)


async def test_a_check_that_hangs_in_a_thread_is_its_own_fail_and_is_not_started_again(
    health: HealthRegistry, clock: Clock
) -> None:
    go_on, calls = threading.Event(), []

    def hang() -> None:
        calls.append(1)
        assert go_on.wait(SECONDS)

    health.register("stuck", hang, timeout=0.02)
    health.register("good", lambda: None, timeout=SECONDS)
    for _ in range(5):
        report = await health.check_health()
        assert {name: part.status for name, part in report.components.items()} == {"stuck": "fail", "good": "pass"}
        assert "hangs" in str(report.components["stuck"].error)
        clock.seconds += 2
    assert len(calls) == 1
    go_on.set()

    async def recovered() -> bool:
        clock.seconds += 2
        return (await health.check_health()).status == "pass"

    await eventually(recovered)
    assert len(calls) == 2


async def test_one_hanging_thread_a_name_however_often_it_is_registered(health: HealthRegistry) -> None:
    go_on, calls = threading.Event(), []

    def hang() -> None:
        calls.append(1)
        assert go_on.wait(SECONDS)

    for number in range(6):
        health.register("stuck", hang, timeout=0.02)
        assert (await health.check_health()).status == "fail"
        if number % 2:
            health.unregister("stuck")
    assert len(calls) == 1
    go_on.set()


async def test_a_coroutine_that_hangs_is_its_own_fail_though_it_refuses_to_be_cancelled(
    health: HealthRegistry, clock: Clock
) -> None:
    go_on, calls = asyncio.Event(), []

    async def hang() -> None:
        calls.append(1)
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    health.register("stuck", hang, timeout=0.02)
    health.register("good", lambda: None)
    seen = []
    try:
        for _ in range(3):
            report = await health.check_health()
            seen.append({name: part.status for name, part in report.components.items()})
            clock.seconds += 2
    finally:
        go_on.set()
    assert seen == [{"stuck": "fail", "good": "pass"}] * 3
    assert len(calls) == 1


async def test_checks_run_at_once(health: HealthRegistry) -> None:
    everybody = asyncio.Barrier(3)
    both = threading.Barrier(2)

    async def meet() -> None:
        await everybody.wait()

    for name in "abc":
        health.register(name, meet, timeout=SECONDS)
    health.register("d", lambda: both.wait(SECONDS) < 2, timeout=SECONDS)
    health.register("e", lambda: both.wait(SECONDS) < 2, timeout=SECONDS)
    assert (await health.check_health()).status == "pass"


async def test_however_many_ask_a_component_is_checked_once_in_its_ttl(health: HealthRegistry, clock: Clock) -> None:
    calls: list[str] = []

    async def check() -> None:
        calls.append("often")
        await asyncio.sleep(0)

    health.register("often", check)
    health.register("seldom", lambda: calls.append("seldom"), ttl=60)
    await asyncio.gather(*(health.check_health() for _ in range(50)))
    await health.check_health()
    assert sorted(calls) == ["often", "seldom"]
    clock.seconds += 1.5
    await asyncio.gather(*(health.check_health() for _ in range(50)))
    assert sorted(calls) == ["often", "often", "seldom"]


async def test_one_who_gives_up_waiting_takes_the_answer_from_nobody(health: HealthRegistry) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def check() -> None:
        begun.set()
        await go_on.wait()

    health.register("slow", check, timeout=SECONDS)
    impatient, patient = (asyncio.create_task(health.check_health()) for _ in range(2))
    await begun.wait()
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    go_on.set()
    assert (await patient).status == "pass"


async def test_a_component_says_since_when_and_what_was_wrong_last(health: HealthRegistry, clock: Clock) -> None:
    answers: list[Any] = ["pass", ("fail", "full"), ("fail", "still full"), "pass"]
    health.register("disk", lambda: answers.pop(0))
    seen = []
    for _ in range(4):
        seen.append((await health.check_health()).components["disk"])
        clock.seconds += 10
    begin = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=1000)
    assert [(part.since - begin).total_seconds() for part in seen] == [0, 10, 10, 30]
    assert [part.error for part in seen] == [None, "full", "still full", None]
    assert [part.last_error for part in seen] == [None, "full", "still full", "still full"]
    assert [(part.checked - begin).total_seconds() for part in seen] == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("critical", "other", "whole"),
    [
        ("fail", "pass", "fail"),
        ("warn", "fail", "warn"),
        ("pass", "fail", "warn"),
        ("pass", "warn", "warn"),
        ("pass", "pass", "pass"),
        ("fail", "warn", "fail"),
    ],
)
async def test_only_a_critical_fail_is_that_of_the_whole(
    health: HealthRegistry, critical: str, other: str, whole: str
) -> None:
    health.register("critical", lambda: critical)
    health.register("other", lambda: other, critical=False)
    report = await health.check_health()
    assert report.status == whole
    assert {name: part.critical for name, part in report.components.items()} == {"critical": True, "other": False}


async def test_ready_while_every_workflow_runs_and_what_is_critical_works(health: HealthRegistry, clock: Clock) -> None:
    store: list[str] = ["pass"]
    health.register("store", lambda: store[0])
    health.register("mirror", lambda: "fail", critical=False)

    async def ready() -> tuple[str, str | None]:
        clock.seconds += 2
        report = await health.readiness()
        return report.status, report.note

    assert await ready() == ("fail", "no workflow runs")
    assert health.startup().status == "fail"
    health.set_phase("mixer", "opening")
    assert await ready() == ("fail", "mixer is opening")
    assert health.startup().status == "fail"
    health.set_phase("mixer", "running")
    assert await ready() == ("pass", None)
    assert health.startup().status == "pass"
    store[0] = "fail"
    assert (await ready())[0] == "fail"
    assert (await health.liveness()).status == "pass"  # another start would not mend the store
    store[0] = "warn"
    assert (await ready())[0] == "warn"
    health.set_phase("second", "opening")
    assert await ready() == ("fail", "second is opening")
    health.set_phase("second", None)
    health.set_phase("mixer", "stopping")
    assert await ready() == ("fail", "mixer is stopping")
    assert health.startup().status == "pass"


async def test_only_a_component_of_liveness_asks_for_another_start(health: HealthRegistry, clock: Clock) -> None:
    loop = ["pass"]
    health.register("event_loop", lambda: loop[0], live=True)
    health.register("store", lambda: "fail")
    assert (await health.liveness()).status == "pass"
    loop[0] = "fail"
    clock.seconds += 2
    assert (await health.liveness()).status == "fail"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": ""}, "health component ''"),
        ({"name": "a:b"}, "without a colon"),
        ({"name": "a\nb"}, "printable"),
        ({"name": 7}, "health component 7"),
        ({"check": "store"}, "cannot be called"),
        ({"timeout": 0}, "timeout of health component 'x'"),
        ({"timeout": "2"}, "timeout of health component 'x'"),
        ({"timeout": float("nan")}, "timeout of health component 'x'"),
        ({"ttl": -1}, "ttl of health component 'x'"),
    ],
)
def test_what_cannot_be_registered_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words.replace("(", r"\(")):
        HealthRegistry().register(**{"name": "x", "check": lambda: None, **arguments})


def test_components_are_bounded() -> None:
    registry = HealthRegistry()
    for number in range(200):
        registry.register(f"part{number}", lambda: None)
    with pytest.raises(ConfigurationError, match="there are 200 already"):
        registry.register("one more", lambda: None)
    registry.register("part0", lambda: None)  # to replace one is no more


def test_one_registry_serves_one_loop_after_the_other_though_a_run_was_left_hanging() -> None:
    registry = HealthRegistry(ttl=0)
    go_on = threading.Event()
    registry.register("async", asyncio.Event().wait, timeout=0.02)
    registry.register("sync", lambda: go_on.wait(SECONDS), timeout=0.02)
    for _ in range(2):
        assert asyncio.run(registry.check_health()).status == "fail"
    registry.register("async", lambda: None, timeout=SECONDS)
    go_on.set()

    async def recovered() -> bool:
        return (await registry.check_health()).status == "pass"

    asyncio.run(eventually(recovered))


def test_two_loops_may_ask_at_once() -> None:
    registry = HealthRegistry(ttl=0)
    both = threading.Barrier(2)

    async def check() -> None:
        await asyncio.to_thread(both.wait, SECONDS)

    registry.register("part", check, timeout=SECONDS)
    statuses: list[str] = []

    def ask() -> None:
        statuses.append(asyncio.run(registry.check_health()).status)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert statuses == ["pass", "pass"]


async def test_the_report_is_health_json_with_one_check_a_component(health: HealthRegistry) -> None:
    health.register("store", lambda: None)
    health.register("disk", lambda: HealthResult("warn", "nearly full", 1.5, "free", "GB"), critical=False)
    report = await health.check_health()
    body = msgspec.json.decode(health_json.render(report, version="1.2", release_id="1.2.3"))
    assert (body["status"], body["version"], body["releaseId"]) == ("warn", "1.2", "1.2.3")
    assert set(body["checks"]) == {"store:responseTime", "disk:free"}
    (store,) = body["checks"]["store:responseTime"]
    assert (store["status"], store["observedUnit"]) == ("pass", "ms")
    assert "output" not in store
    (disk,) = body["checks"]["disk:free"]
    assert (disk["observedValue"], disk["observedUnit"], disk["output"]) == (1.5, "GB", "nearly full")
    assert datetime.fromisoformat(disk["time"]).utcoffset() == timedelta(0)
    assert [health_json.status_code(msgspec.structs.replace(report, status=s)) for s in ("pass", "warn", "fail")] == [
        200,
        200,
        503,
    ]


async def test_an_answer_for_whoever_asks_tells_no_secret(health: HealthRegistry) -> None:
    health.register("store", raises(ValueError("redis://user:secret@host")))
    health.set_phase("mixer", "running")
    brief = health_json.render_brief(await health.readiness())
    assert msgspec.json.decode(brief) == {"status": "fail", "output": "failed: store"}


async def test_what_a_check_says_is_shown_without_its_secrets(health: HealthRegistry) -> None:
    health.register("crm", raises(ConnectionError("no answer from https://shop:hunter2secret@crm.example/api")))
    health.register("mail", lambda: ("warn", "password=hunter2secret was refused"))
    components = (await health.check_health()).components
    for name in ("crm", "mail"):
        shown = components[name]
        assert "hunter2secret" not in f"{shown.error} {shown.detail} {shown.last_error}"
    assert "crm.example" in str(components["crm"].error)

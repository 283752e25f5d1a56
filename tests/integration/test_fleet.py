"""Several workers are one target: one server tells of all of them, from before the first until after the last."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ag06.persistence import EventStore
from commands import Running, ag06, started
from flows import SECONDS
from servers import free_port

FLOW = """
import asyncio, os
from pathlib import Path
from ag06 import CircuitBreaker, Context, Event, Workflow
from ag06.monitoring import observability

app = Workflow("flow", store="sqlite:///flow.db", visibility_timeout=30.0, grace=30.0)
app.knob("size", low=1, high=9, default=3)
OWN = observability.metrics.registry.counter("answers", "Answers given.", ("to",))

def note(*words):
    with open("notes", "ab", 0) as notes:
        notes.write((" ".join(map(str, words)) + "\\n").encode())

note("import", os.getpid(), os.environ.get("AG06_WORKER"))

def sick():
    note("check", os.getpid())
    index = os.environ.get("AG06_WORKER", "").split("-")[-3:][0]
    return not Path(f"sick.{index}").exists()

observability.health.register("mixer", sick, ttl=0.0)

@app.step("asked", breaker=CircuitBreaker("bank"), concurrency=4)
async def answer(event: Event, ctx: Context) -> None:
    OWN.labels(event.data).inc()
    while event.data == "wait" and not Path("go").exists():
        note("waits", os.getpid())
        await asyncio.sleep(0.05)
    await ctx.publish("answered", event.data)
"""


class Answer(NamedTuple):
    code: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Target:
    """What `ag06 run --workers` shows on its port."""

    def __init__(self, running: Running, home: Path) -> None:
        self.running = running
        self.home = home
        self.url = running.line("listening on ").split('"')[0]

    def get(self, path: str) -> Answer:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as response:
                return Answer(response.status, response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode())

    def until(self, path: str, holds: Callable[[Answer], object], seconds: float = SECONDS) -> Answer:
        deadline = time.monotonic() + seconds
        while not holds(answer := self.get(path)):
            assert time.monotonic() < deadline, f"still {answer}\n{self.running.text}"
            self.running.seen(0.05)
        return answer

    def ready(self) -> None:
        self.until(
            "/status", lambda answer: [w["report_age"] is not None for w in answer.json["workers"]] == [True] * 2
        )
        self.until("/health/ready", lambda answer: answer.code == 200)

    def metric(self, line: str) -> float:
        return next(float(row.split()[-1]) for row in self.get("/metrics").text.splitlines() if row.startswith(line))

    def notes(self, first: str) -> list[list[str]]:
        return [line.split() for line in (self.home / "notes").read_text().splitlines() if line.startswith(f"{first} ")]

    @property
    def directory(self) -> Path:
        environment = Path(f"/proc/{self.get('/status').json['workers'][0]['pid']}/environ").read_bytes().split(b"\0")
        (found,) = [pair for pair in environment if pair.startswith(b"AG06_METRICS_DIR=")]
        return Path(found.partition(b"=")[2].decode())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "flow.py").write_text(FLOW)
    return tmp_path


@asynccontextmanager
async def target(home: Path, **env: str) -> AsyncIterator[Target]:
    with started("run", "flow:app", "--workers", 2, cwd=home, env={"AG06_JOURNAL": "off", **env}) as running:
        yield Target(running, home)


async def publish(home: Path, *data: str) -> None:
    events = EventStore(f"sqlite:///{home}/flow.db")
    await events.persist_events(
        [{"event_type": "asked", "source": "test", "data": each, "dedup": False} for each in data]
    )
    await events.close()


async def test_metrics_are_the_sums_over_living_and_dead_workers(home: Path) -> None:
    processed, own = "ag06_workflow_events_processed_total ", 'ag06_workflow_answers_total{to="a"} '
    async with target(home) as fleet:
        fleet.ready()
        for turn in range(1, 4):
            await publish(home, *["a"] * 100)
            fleet.until("/metrics", lambda _, turn=turn: fleet.metric(processed) == 100 * turn)
            assert fleet.metric(own) == 100 * turn
            victim = fleet.get("/status").json["workers"][turn % 2]
            os.kill(victim["pid"], signal.SIGKILL)
            fleet.until("/metrics", lambda _, turn=turn: fleet.metric("ag06_workflow_worker_restarts_total ") == turn)
            assert fleet.metric(processed) == 100 * turn
            fleet.ready()
        status = fleet.get("/status").json
        assert status["metrics"]["ag06_workflow_events_processed_total"] == 300
        assert sorted(worker["restarts"] for worker in status["workers"]) == [1, 2]
        assert fleet.running.terminate().code == 0


async def test_status_is_that_of_one_process_and_says_who_the_workers_are(home: Path) -> None:
    async with target(home) as fleet:
        fleet.ready()
        await publish(home, *["a"] * 50)
        status = fleet.until(
            "/status", lambda answer: answer.json["performance"].get("flow.answer", {}).get("count") == 50
        ).json
        assert {"components", "performance", "knobs", "breakers", "experiments", "metrics", "steps"} <= set(status)
        assert status["knobs"]["size"]["value"] == 3
        assert status["breakers"]["bank"]["states"] == {"closed": 2}
        assert status["steps"]["flow.answer"]["type"] == "asked"
        assert status["resources"]["memory_mb"] > 0
        pids = {int(words[1]) for words in fleet.notes("import") if words[2] != "None"}
        assert {worker["pid"] for worker in status["workers"]} == pids
        assert all(worker["alive"] and worker["name"] and worker["since"] for worker in status["workers"])
        assert {"store", "disk", "workers", "event_loop", "mixer"} <= set(status["components"])
        names = {worker["name"] for worker in status["workers"]}
        fleet.running.terminate()
    told = {
        line.get("worker") for line in map(json.loads, fleet.running.text.splitlines()) if "shuts down" in line["event"]
    }
    assert told == names


async def test_what_fails_in_one_worker_is_a_warning_that_names_it_and_in_all_a_failure(home: Path) -> None:
    async with target(home) as fleet:
        fleet.ready()
        first, second = [worker["name"] for worker in fleet.get("/status").json["workers"]]
        mixer = lambda answer: answer.json["checks"]["mixer:responseTime"][0]  # noqa: E731
        assert fleet.get("/health").json["status"] == "pass"
        (home / "sick.0").touch()
        found = fleet.until("/health", lambda answer: mixer(answer)["status"] == "warn")
        assert (found.code, found.json["status"]) == (200, "warn")
        assert mixer(found)["output"] == f"{first}: the check said False"
        assert fleet.get("/health/ready").code == 200
        (home / "sick.1").touch()
        found = fleet.until("/health", lambda answer: mixer(answer)["status"] == "fail")
        assert found.code == 503
        assert mixer(found)["output"] == f"{first}, {second}: the check said False"
        assert fleet.get("/health/ready").code == 503
        (home / "sick.0").unlink()
        (home / "sick.1").unlink()
        fleet.until("/health", lambda answer: answer.json["status"] == "pass")
        workers = {str(worker["pid"]) for worker in fleet.get("/status").json["workers"]}
        assert {words[1] for words in fleet.notes("check")} == workers, "the supervisor checks what workers check"


async def test_it_answers_while_workers_come_up_and_while_they_end(home: Path) -> None:
    port = free_port()
    late = FLOW.replace("sqlite:///flow.db", f"redis://127.0.0.1:{port}/0?log=late")
    (home / "flow.py").write_text(late)
    async with target(home) as fleet:  # its store is away
        fleet.running.until("waits for the store")
        for path, code in (("/health/live", 200), ("/health/startup", 503), ("/health/ready", 503)):
            answer = fleet.get(path)
            assert answer.code == code, (path, answer)
            assert path == "/health/live" or "flow is opening" in answer.text
        assert fleet.get("/health").json["checks"]["store:responseTime"][0]["status"] == "fail"
        assert fleet.running.terminate().code == 0
    (home / "flow.py").write_text(FLOW)
    async with target(home) as fleet:
        fleet.ready()
        await publish(home, "wait")
        fleet.until("/status", lambda _: (home / "notes").exists() and fleet.notes("waits"))
        fleet.running.process.send_signal(signal.SIGTERM)
        fleet.until("/health/ready", lambda answer: answer.code == 503 and "flow is stopping" in answer.text)
        assert fleet.get("/health/startup").code == 200
        assert fleet.metric('ag06_workflow_answers_total{to="wait"} ') == 1
        (home / "go").touch()
        assert fleet.running.end().code == 0


def test_a_taken_port_is_told_before_any_worker_starts(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = ag06("run", "flow:app", "--workers", 2, cwd=home, env={"AG06_HTTP_PORT": str(port)})
    assert ended.code == 2
    assert f"AG06_HTTP_PORT: port {port} of 127.0.0.1 is taken" in ended.err
    assert (home / "notes").read_text().split()[2:] == ["None"], "a worker was started"


async def test_where_workers_count_is_private_and_gone_at_the_end(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("temporary")
    async with target(home, TMPDIR=str(place)) as fleet:
        fleet.ready()
        directory = fleet.directory
        assert directory.parent == place
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        for worker in fleet.get("/status").json["workers"]:
            os.kill(worker["pid"], signal.SIGKILL)
        fleet.until("/status", lambda answer: [w["restarts"] for w in answer.json["workers"]] == [1, 1])
        fleet.ready()  # what the dead said is gone
        reports = {path.name for path in directory.glob("*.report")}
        assert reports == {f"{worker['name']}.report" for worker in fleet.get("/status").json["workers"]}
        assert fleet.running.terminate().code == 0
    assert list(place.iterdir()) == []


async def test_a_port_that_is_off_opens_none(home: Path) -> None:
    with started("run", "flow:app", "--workers", 2, cwd=home, env={"AG06_HTTP_PORT": "off"}) as running:
        await publish(home, "a")
        events = EventStore(f"sqlite:///{home}/flow.db")
        while not [event async for event in events.replay(types="answered")]:
            running.seen(0.05)
        await events.close()
        ended = running.terminate()
    assert ended.code == 0
    assert "listening" not in ended.out


async def test_counts_go_on_through_a_reload(home: Path) -> None:
    with started("run", "flow:app", "--workers", 2, "--reload", cwd=home) as running:
        fleet = Target(running, home)
        fleet.ready()
        await publish(home, *["a"] * 10)
        fleet.until("/metrics", lambda _: fleet.metric("ag06_workflow_events_processed_total ") == 10)
        before = {worker["pid"] for worker in fleet.get("/status").json["workers"]}
        (home / "flow.py").write_text(FLOW + "\n")
        running.until("flow.py changed")
        fleet.until("/status", lambda answer: not before & {worker["pid"] for worker in answer.json["workers"]})
        fleet.ready()
        await publish(home, *["a"] * 5)
        fleet.until("/metrics", lambda _: fleet.metric("ag06_workflow_events_processed_total ") == 15)
        assert running.terminate().code == 0

"""What a running workflow shows over HTTP, and when it listens."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ag06 import CircuitBreaker, ConfigurationError, Event, Retry, Workflow
from ag06.monitoring import observability
from ag06.runtime import companions, sampling
from ag06.runtime.companions import Companions, Running
from ag06.runtime.grace import Grace
from flows import SECONDS, until
from servers import ValkeyServer


async def get(url: str) -> tuple[int, str, bytes]:
    """Status, content type and body of an answer."""
    host, _, rest = url.removeprefix("http://").partition("/")
    name, port = host.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(name, int(port))
    writer.write(f"GET /{rest} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), SECONDS)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    found = re.search(rb"content-type: ([^\r]+)", head, re.IGNORECASE)
    return int(head.split()[1]), "" if found is None else found[1].decode(), body


def component(report: bytes, name: str) -> dict[str, Any]:
    """The only entry of a component in an `application/health+json` report."""
    ((entry,),) = [entries for key, entries in json.loads(report)["checks"].items() if key.partition(":")[0] == name]
    found: dict[str, Any] = entry
    return found


async def status_of(url: str) -> dict[str, Any]:
    status, content_type, body = await get(f"{url}/status")
    assert (status, content_type) == (200, "application/json")
    found: dict[str, Any] = json.loads(body)
    return found


async def test_an_embedded_workflow_opens_a_port_only_where_it_is_given_one() -> None:
    app = Workflow("shop", store="memory://")
    assert app.http_url is None
    async with app.running():
        assert app.http_url is None
    async with app.running(http_port=0):
        assert app.http_url is not None
        assert app.http_url.startswith("http://127.0.0.1:")
        url = app.http_url
        assert (await get(f"{url}/health/live"))[0] == 200
    assert app.http_url is None
    with pytest.raises(ConnectionRefusedError):
        await get(f"{url}/health/live")


async def test_a_port_that_is_taken_is_an_error_that_names_the_setting_and_leaves_nothing_behind() -> None:
    app = Workflow("shop", store="memory://")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"AG06_HTTP_PORT: port {port} of 127.0.0.1 is taken"):
            async with app.running(http_port=port):
                pass
    async with app.running(http_port=0):
        assert (await get(f"{app.http_url}/health/ready"))[0] == 200


async def test_a_second_cancellation_while_it_shuts_down_leaves_no_server_and_nothing_in_the_health(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting = asyncio.Event()
    ended = Companions.ended

    async def told_of(self: Companions, grace: Grace) -> None:
        waiting.set()
        await ended(self, grace)

    async def companion(running: Running) -> None:
        running.attached.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()

    monkeypatch.setattr(Companions, "ended", told_of)
    monkeypatch.setattr(companions, "_installed", lambda: (companion,))
    app, url = Workflow("shop", store="memory://"), asyncio.get_running_loop().create_future()

    async def life() -> None:
        async with app.running(http_port=0):
            url.set_result(app.http_url)
            await asyncio.Event().wait()

    living = asyncio.create_task(life())
    assert (await get(f"{await url}/health/ready"))[0] == 200
    living.cancel()
    await asyncio.wait_for(waiting.wait(), SECONDS)
    assert observability.health._phases[app.name] == "stopping"
    living.cancel()
    await asyncio.wait([living])  # the companion is cancelled again
    assert living.cancelled()
    assert app.name not in observability.health._phases
    with pytest.raises(ConnectionRefusedError):
        await get(f"{await url}/health/live")
    async with app.running() as worker:  # it may run again, since it closed its store too
        assert worker is not None


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gauges are read ten times a second."""
    monkeypatch.setattr(sampling, "SECONDS", 0.1)
    monkeypatch.setattr(sampling, "STORE_SECONDS", 0.1)


@pytest.mark.usefixtures("often")
async def test_status_tells_everything_that_is_known(store_url: str) -> None:
    app = Workflow("shop", store=store_url)
    app.knob("size", low=1, high=64, default=8, integer=True)
    breaker = CircuitBreaker("crm")

    @app.step("order", breaker=breaker, retry=Retry(attempts=1))
    async def bill(event: Event) -> None:
        if event.data == "bad":
            raise ValueError("bad")

    async with app.running(http_port=0):
        for data in ("good", "bad"):
            await app.publish("order", data=data)
        await app.drain(SECONDS)
        url = app.http_url or ""
        status = await status_of(url)
        async with asyncio.timeout(SECONDS):
            while (await status_of(url))["steps"]["shop.bill"]["dead_letters"] != 1:
                await asyncio.sleep(0.1)
    assert (status["workflow"], status["store"]) == ("shop", app.events.url)
    assert status["knobs"]["size"] == {
        "value": 8,
        "default": 8,
        "low": 1,
        "high": 64,
        "scale": "linear",
        "pinned": False,
    }
    assert (status["breakers"]["crm"]["state"], status["breakers"]["crm"]["failures"]) == ("closed", 1)
    assert status["performance"]["shop.bill"]["count"] >= 2
    assert status["components"]["store"]["status"] == "pass"
    assert {"event_loop", "store", "consumer_lag", "stuck_steps", "store_configuration"} <= status["components"].keys()
    assert status["metrics"]["ag06_workflow_events_processed_total"] >= 1
    assert status["resources"]["memory_mb"] > 1


async def test_health_and_metrics_are_of_the_kinds_that_probes_and_scrapers_expect() -> None:
    app = Workflow("shop", store="memory://")
    observability.health.register("mixer", lambda: ("fail", "no sound"), critical=False)
    try:
        async with app.running(http_port=0):
            status, kind, body = await get(f"{app.http_url}/health")
            assert (status, kind, json.loads(body)["status"]) == (200, "application/health+json", "warn")
            assert component(body, "mixer")["output"] == "no sound"
            status, kind, body = await get(f"{app.http_url}/metrics")
            assert (status, kind.split(";")[0]) == (200, "text/plain")
            assert b"\nag06_workflow_events_processed_total " in body
    finally:
        observability.health.unregister("mixer")


@pytest.mark.usefixtures("often")
async def test_gauges_follow_what_waits_in_the_store(store_url: str) -> None:
    app = Workflow("backlog", store=store_url, grace=1.0)
    app.knob("size", low=1, high=64, default=8, integer=True)
    go = asyncio.Event()

    @app.step("order", concurrency=1)
    async def bill(event: Event) -> None:
        await go.wait()

    for number in range(5):
        await app.publish("order", data=number)
    async with app.running():
        shown = observability.metrics.snapshot
        step = '{step="backlog.bill"}'
        await until(lambda: shown().get(f"ag06_workflow_in_flight{step}", 0) >= 1)
        await until(lambda: shown().get(f"ag06_workflow_group_backlog{step}") == 5)
        await until(lambda: shown()["ag06_workflow_queue_size"] == 5)
        assert shown()[f"ag06_workflow_group_oldest_age_seconds{step}"] > 0
        assert shown()['ag06_workflow_knob_value{knob="size"}'] == 8
        assert shown()["ag06_workflow_memory_usage_mb"] > 1
        go.set()
        await app.drain(SECONDS)
        await until(lambda: shown()[f"ag06_workflow_group_backlog{step}"] == 0)
    assert shown()[f"ag06_workflow_in_flight{step}"] == 0


async def test_readiness_falls_with_the_store_and_comes_back(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path).start()
    app = Workflow("shop", store=server.url, timeout=1.0)

    @app.step("order")
    async def bill(event: Event) -> None: ...

    try:
        async with app.running(http_port=0):
            ready = f"{app.http_url}/health/ready"
            assert (await get(ready))[0] == 200
            server.kill()

            async def reads(status: int) -> None:
                async with asyncio.timeout(SECONDS):
                    while (await get(ready))[0] != status:
                        await asyncio.sleep(0.1)

            await reads(503)
            store = component((await get(f"{app.http_url}/health"))[2], "store")
            assert store["status"] == "fail"
            assert store["output"]
            assert (await get(f"{app.http_url}/health/live"))[0] == 200
            server.start()
            await reads(200)
    finally:
        server.stop()


async def test_two_workflows_of_a_process_have_components_of_their_own() -> None:
    first, second = Workflow("first", store="memory://"), Workflow("second", store="memory://")
    async with first.running(), second.running():
        components = (await observability.health.check_health()).components
        assert {"store", "store of second"} <= components.keys()
    assert "store" not in (await observability.health.check_health()).components


FLOW = """
from ag06 import Event, Workflow

app = Workflow("shop")

@app.step("order")
async def bill(event: Event) -> None: ...
"""


@pytest.mark.parametrize("command", [["-m", "ag06", "run", "flow:app"], ["-c", "import flow; flow.app.run()"]])
def test_a_workflow_that_is_run_listens_where_the_settings_say(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    environ = os.environ | {"AG06_STORE": f"sqlite:///{tmp_path}/events.db", "AG06_HTTP_PORT": "0"}
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        try:
            for line in process.stdout:
                said += line
                if found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", line):
                    break
            assert found, said
            assert json.loads(line)["logger"] == "ag06.monitoring"
            url = found[1]

            async def ready() -> None:
                async with asyncio.timeout(SECONDS):
                    while (await get(f"{url}/health/ready"))[0] != 200:
                        await asyncio.sleep(0.05)

            asyncio.run(ready())
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_a_workflow_that_is_run_says_which_port_is_taken(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environ = os.environ | {
            "AG06_STORE": f"sqlite:///{tmp_path}/events.db",
            "AG06_HTTP_PORT": str(taken.getsockname()[1]),
        }
        command = [sys.executable, "-m", "ag06", "run", "flow:app"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert "AG06_HTTP_PORT" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout

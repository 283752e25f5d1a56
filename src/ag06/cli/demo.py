"""`ag06 demo`: the main job on real input, a worker killed midway, and an exact account at the end."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import random
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from ag06.cli.opening import check_shared
from ag06.cli.output import print_json, print_table, progress, quiet_log, say
from ag06.errors import OutcomeUnknown, StoreUnavailable
from ag06.settings import resolve
from ag06.tasks import start_task

if TYPE_CHECKING:
    from ag06 import Event, Workflow
    from ag06.cli.demo_account import Account, Fed
    from ag06.runtime.supervisor import Supervisor, WorkerProcess

_WORKERS = 2
_IN_FLIGHT = 32
_BURST = 64
_AT_WORK = 8
_MOST_KILLS = 5
_PATIENCE = 20.0
_NAMESPACE = uuid.UUID("6f1c1f3e-4a53-5b8e-9d0e-0a6f0d8f8a06")


def command(
    store: Annotated[str | None, typer.Option(help="Store URL; a fresh SQLite file unless given.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often the 327 bundled deliveries are fed.")] = 8,
    rate: Annotated[float, typer.Option(min=1, help="Deliveries fed in a second.")] = 250.0,
    json: Annotated[bool, typer.Option("--json", help="Print the account as JSON.")] = False,
) -> None:
    """Feed real GitHub webhook deliveries through three steps, kill a worker midway, account for every one.

    Exits with 1 if the account does not balance. The store keeps the events, the dead letters and the steps `demo.*`.

    Example: ag06 demo --store redis://localhost:6379/0
    """
    with quiet_log(logging.ERROR), tempfile.TemporaryDirectory(prefix="ag06-demo-") as directory:
        url = store or f"sqlite:///{directory}/events.db"
        check_shared(url)
        account, recent = asyncio.run(_demo(url, rounds, rate))
    if json:
        print_json(account)
    else:
        _print(account, recent)
    if not account.balances:
        raise typer.Exit(1)


async def _demo(url: str, rounds: int, rate: float) -> tuple[Account, list[Event[Any]]]:
    from ag06.cli.demo_account import draw_up
    from ag06.cli.demo_app import TYPES, app

    os.environ.setdefault("AG06_LOG_LEVEL", "error")  # for the workers: the demo's rejections are in its account
    app.use_store(url)
    deliveries = _with_repetitions(_load(rounds), random.Random(6))  # noqa: S311 - a shuffle, not a secret
    await app.events.log()
    once = len({delivery["id"] for delivery in deliveries})
    say(
        f"{once // rounds} GitHub deliveries x {rounds} rounds = {once}, every third sent twice: {len(deliveries)} to "
        f"feed; {_WORKERS} worker processes, {app.events.url}"
    )
    started = time.time()
    deaths: asyncio.Queue[WorkerProcess] = asyncio.Queue()
    async with _workers(url, app, deaths) as supervisor:
        with progress() as display:
            fed = await _feed(deliveries, rate, display, supervisor, deaths)
            display.add_task("finishing", total=None)
            drained = await _drained()
        seconds = time.time() - started
    if not drained:
        say(f"the steps did not finish within {_PATIENCE:.0f} s of the last delivery")
    account = await draw_up(
        app.events,
        fed,
        seconds=seconds,
        taken_over=sum(worker.taken_over for worker in supervisor.workers),
        killed=sum(worker.deaths for worker in supervisor.workers),
    )
    recent = [event async for event in app.events.replay(start=time.time() - 60, types=TYPES)]
    await app.close()
    return account, recent


async def _drained() -> bool:
    from ag06.cli.demo_app import app

    try:
        await app.drain(timeout=_PATIENCE)
    except TimeoutError:
        return False
    return True


def _load(rounds: int) -> list[dict[str, Any]]:
    """Return the bundled deliveries `rounds` times, each with a delivery id of its own, as GitHub's header has."""
    here = Path(__file__).parent
    name = "github-webhooks.jsonl.gz"
    bundled = next(
        path for path in (here / "data" / name, here.parents[2] / "examples" / "data" / name) if path.exists()
    )
    lines = gzip.decompress(bundled.read_bytes()).splitlines()
    decode = msgspec.json.decode
    run = f"{os.getpid()}/{time.time_ns()}"
    return [
        {"id": str(uuid.uuid5(_NAMESPACE, f"{run}/{turn}/{number}")), "data": decode(line)}
        for turn in range(rounds)
        for number, line in enumerate(lines)
    ]


def _with_repetitions(deliveries: Sequence[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Send every third delivery again a little later, as GitHub does when an answer is slow."""
    fed: list[tuple[float, dict[str, Any]]] = []
    for number, delivery in enumerate(deliveries):
        fed.append((number, delivery))
        if number % 3 == 0:
            fed.append((number + rng.uniform(0.5, 40), delivery))
    return [delivery for _, delivery in sorted(fed, key=lambda entry: entry[0])]


@asynccontextmanager
async def _workers(url: str, workflow: Workflow, deaths: asyncio.Queue[WorkerProcess]) -> AsyncIterator[Supervisor]:
    from ag06.runtime.fleet import Fleet
    from ag06.runtime.supervisor import Supervisor

    # Another workflow may have the usual port.
    port = "0" if resolve("http_port").origin == "default" else None
    async with Fleet(workflow, http_port=port) as fleet:
        supervisor = Supervisor(
            "ag06.cli.demo_app:app",
            _WORKERS,
            workflow.events,
            store=url,
            grace=10.0,
            environment=fleet.environment,
            on_death=lambda worker, _: deaths.put_nowait(worker),
        )
        fleet.watch(supervisor)
        if fleet.url is not None:
            say(f"while it runs: {fleet.url}/metrics, /health and /status")
        running = start_task(supervisor.run())
        try:
            yield supervisor
        finally:
            supervisor.stop()
            await running


async def _feed(
    deliveries: list[dict[str, Any]],
    rate: float,
    display: Progress,
    supervisor: Supervisor,
    deaths: asyncio.Queue[WorkerProcess],
) -> Fed:
    """Publish at a steady rate; in the middle, with a burst in their hands, kill a worker that is at work."""
    from ag06.cli.demo_account import Fed

    accepted: list[str] = []
    refused = 0
    gate = asyncio.Semaphore(_IN_FLIGHT)
    task = display.add_task("feeding", total=len(deliveries))

    async def send(delivery: dict[str, Any]) -> None:
        nonlocal refused
        async with gate:
            event_id = await _publish(delivery)
        if event_id is None:
            refused += 1
        else:
            accepted.append(event_id)
        display.advance(task)

    started = time.monotonic()
    middle = len(deliveries) // 2
    try:
        async with asyncio.TaskGroup() as group:
            for number, delivery in enumerate(deliveries):
                pause = started + number / rate - time.monotonic()
                if pause > 0.002 and not middle < number <= middle + _BURST:
                    await asyncio.sleep(pause)
                group.create_task(send(delivery))
                if number == middle:
                    group.create_task(_kill(supervisor, deaths))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return Fed(len(deliveries), tuple(accepted), refused)


async def _publish(delivery: dict[str, Any]) -> str | None:
    """Publish as a careful service does: wait for a store that is away, repeat under the same id what may be stored."""
    from ag06.cli.demo_app import RECEIVED, app

    event_id = None
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return await app.publish(
                RECEIVED, source="github", data=delivery["data"], idempotency_key=delivery["id"], id=event_id
            )
        except StoreUnavailable as error:
            if time.monotonic() > deadline:
                raise
            if isinstance(error, OutcomeUnknown):
                event_id = error.event_id
            await asyncio.sleep(0.2)


async def _kill(supervisor: Supervisor, deaths: asyncio.Queue[WorkerProcess]) -> None:
    """Kill a worker that is at work. If it turns out that it held nothing, kill another one."""
    for turn in range(_MOST_KILLS):
        await _at_work()
        victim = supervisor.workers[turn % _WORKERS]
        process, held = victim.process, victim.taken_over
        if process is None or process.returncode is not None:
            await asyncio.sleep(0.1)
            continue
        process.send_signal(signal.SIGKILL)
        while await deaths.get() is not victim:
            continue
        count = victim.taken_over - held
        if count:
            say(f"killed worker process {process.pid} (SIGKILL); deliveries in its hands: {count}")
            return
        say(f"killed worker process {process.pid} (SIGKILL); it held nothing just then, so another one is killed")


async def _at_work() -> None:
    """Wait until deliveries are in the workers' hands, a few seconds at most."""
    from ag06.cli.demo_app import app

    log = await app.events.log()
    own = {step.group for step in app.steps.values()}
    for _ in range(1000):
        try:
            if sum(group.in_flight for group in await log.groups() if group.group in own) >= _AT_WORK:
                return
        except StoreUnavailable:
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.005)


def _print(account: Account, recent: list[Event[Any]]) -> None:
    rows = [
        ("deliveries received", account.received),
        ("duplicates rejected", account.duplicates_rejected),
        ("accepted", account.accepted),
        ("processed through all three steps", account.processed),
        ("dead letters (no sender to attribute them to)", account.dead_letters),
        ("workers killed (SIGKILL)", account.workers_killed),
        ("taken over from the killed", account.taken_over),
        ("counted twice", account.counted_twice),
        ("lost", account.lost),
        ("latency received to counted, p50 / p99", f"{account.latency_p50_ms} / {account.latency_p99_ms} ms"),
        ("events in the log", account.events),
        ("events per second", f"{account.events_per_second} over {account.seconds} s"),
    ]
    print_table("The account", ("what", "measured"), rows)
    console = Console(soft_wrap=True, highlight=False)
    busiest = list(account.repositories.items())[:5]
    console.print("Busiest: " + ", ".join(f"{name} {count}" for name, count in busiest), markup=False)
    console.print(f"Replay of the last minute: {len(recent)} events; the last three:")
    for event in recent[-3:]:
        line = f"  {event.recorded:%H:%M:%S.%f} {event.type} {event.subject or ''} {event.data}"
        console.print(line, markup=False)
    verdict = "[green]The account balances: nothing lost, nothing counted twice."
    console.print(verdict if account.balances else "[red]The account does NOT balance.")

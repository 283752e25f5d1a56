"""`ag06 demo`: the main job on real input, a worker killed midway, and an exact account at the end."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import signal
import sys
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
from rich.table import Table

if TYPE_CHECKING:
    from ag06.cli.demo_account import Account, Fed
    from ag06.persistence import EventStore
    from ag06.runtime.supervisor import Supervisor

_IN_FLIGHT = 32
_NAMESPACE = uuid.UUID("6f1c1f3e-4a53-5b8e-9d0e-0a6f0d8f8a06")


def command(
    store: Annotated[str | None, typer.Option(help="Store URL; a fresh SQLite file unless given.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often the bundled deliveries are fed.")] = 8,
    rate: Annotated[float, typer.Option(min=1, help="Deliveries fed in a second.")] = 250.0,
    json: Annotated[bool, typer.Option("--json", help="Print the account as JSON.")] = False,
) -> None:
    """Feed real GitHub webhook deliveries through three steps, kill a worker midway, account for every one.

    Example: ag06 demo --store redis://localhost:6379/0
    """
    with tempfile.TemporaryDirectory(prefix="ag06-demo-") as directory:
        url = store or f"sqlite:///{directory}/events.db"
        account, recent = asyncio.run(_demo(url, rounds, rate, quiet=json))
    if json:
        sys.stdout.write(msgspec.json.encode(account).decode() + "\n")
    else:
        _print(account, recent)
    if not account.balances:
        raise typer.Exit(1)


async def _demo(url: str, rounds: int, rate: float, *, quiet: bool) -> tuple[Account, list[Any]]:
    from ag06.cli.demo_account import draw_up
    from ag06.cli.demo_app import app

    os.environ["AG06_STORE"] = url
    os.environ.setdefault("AG06_LOG_LEVEL", "error")  # the demo's rejections are in its account
    app.use_store(url)
    console = Console(stderr=True, quiet=quiet)
    deliveries = _with_repetitions(_load(rounds), random.Random(6))  # noqa: S311 - a shuffle, not a secret
    console.print(
        f"{len(deliveries)} deliveries (a third of them sent twice), 2 worker processes, store {app.events.url}"
    )
    before = await app.events.log()
    if (await before.stats()).events and url.startswith("redis"):
        console.print("[yellow]the store holds events already; the account looks at this run's deliveries alone")
    started = time.time()
    async with _workers(url, app.events) as supervisor:
        with Progress(console=console, transient=True, disable=quiet) as progress:
            fed = await _feed(deliveries, rate, progress, supervisor)
            task = progress.add_task("finishing", total=None)
            await app.drain(timeout=45)
            progress.remove_task(task)
        seconds = time.time() - started
    taken_over = sum(worker.taken_over for worker in supervisor.workers)
    killed = sum(worker.deaths for worker in supervisor.workers)
    account = await draw_up(app.events, fed, seconds=seconds, taken_over=taken_over, killed=killed)
    recent = [event async for event in app.events.replay(start=time.time() - 60)]
    await app.close()
    return account, recent


def _load(rounds: int) -> list[dict[str, Any]]:
    """Return the bundled deliveries `rounds` times, each with a delivery id of its own, as GitHub's header has."""
    here = Path(__file__).parent
    name = "github-webhooks.jsonl.gz"
    bundled = next(
        path for path in (here / "data" / name, here.parents[2] / "examples" / "data" / name) if path.exists()
    )
    lines = gzip.decompress(bundled.read_bytes()).splitlines()
    decode = msgspec.json.decode
    return [
        {"id": str(uuid.uuid5(_NAMESPACE, f"{os.getpid()}/{time.time_ns()}/{turn}/{number}")), "data": decode(line)}
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
async def _workers(url: str, events: EventStore) -> AsyncIterator[Supervisor]:
    from ag06.runtime.supervisor import Supervisor

    supervisor = Supervisor("ag06.cli.demo_app:app", 2, events, store=url, grace=10.0)
    running = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        supervisor.stop()
        await running


async def _feed(deliveries: list[dict[str, Any]], rate: float, progress: Progress, supervisor: Supervisor) -> Fed:
    """Publish at a steady rate; in the middle, kill a worker that is at work."""
    from ag06.cli.demo_account import Fed
    from ag06.cli.demo_app import RECEIVED, app

    accepted: list[str] = []
    refused = 0
    gate = asyncio.Semaphore(_IN_FLIGHT)
    task = progress.add_task("feeding", total=len(deliveries))

    async def send(delivery: dict[str, Any]) -> None:
        nonlocal refused
        async with gate:
            event_id = await app.publish(
                RECEIVED, source="github", data=delivery["data"], idempotency_key=delivery["id"]
            )
        if event_id is None:
            refused += 1
        else:
            accepted.append(event_id)
        progress.advance(task)

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, delivery in enumerate(deliveries):
            pause = started + number / rate - time.monotonic()
            if pause > 0.002:
                await asyncio.sleep(pause)
            group.create_task(send(delivery))
            if number == len(deliveries) // 2:
                _kill(supervisor, progress)
    return Fed(len(deliveries), tuple(accepted), refused)


def _kill(supervisor: Supervisor, progress: Progress) -> None:
    victim = supervisor.workers[0].process
    if victim is not None and victim.returncode is None:
        victim.send_signal(signal.SIGKILL)
        progress.console.print(f"[red]killed worker process {victim.pid} (SIGKILL) in the middle")


def _print(account: Account, recent: list[Any]) -> None:
    console = Console()
    table = Table(title="The account", show_header=False)
    rows = [
        ("deliveries received", account.received),
        ("duplicates rejected", account.duplicates_rejected),
        ("accepted", account.accepted),
        ("processed through all three steps", account.processed),
        ("dead letters (no sender to attribute them to)", account.dead_letters),
        ("taken over from the killed worker", account.taken_over),
        ("counted twice", account.counted_twice),
        ("lost", account.lost),
        ("latency received to counted, p50 / p99", f"{account.latency_p50_ms} / {account.latency_p99_ms} ms"),
        ("events in the log", account.events),
        ("events per second", f"{account.events_per_second} over {account.seconds} s"),
    ]
    for name, value in rows:
        table.add_row(name, str(value))
    console.print(table)
    busiest = list(account.repositories.items())[:5]
    console.print("Busiest: " + ", ".join(f"{name} {count}" for name, count in busiest))
    console.print(f"Replay of the last minute: {len(recent)} events; the last three:")
    for event in recent[-3:]:
        console.print(f"  {event.recorded:%H:%M:%S.%f} {event.type} {event.subject or ''} {event.data}", soft_wrap=True)
    verdict = "[green]The account balances: nothing lost, nothing counted twice."
    console.print(verdict if account.balances else "[red]The account does NOT balance.")

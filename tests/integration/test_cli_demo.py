"""`ag06 demo`: an exact account of real deliveries, with a worker killed on the way."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from ag06.cli import demo
from ag06.cli.app import app
from ag06.cli.demo_account import Account, Fed, draw_up
from ag06.cli.demo_app import CLASSIFIED, COUNTED, RECEIVED
from ag06.cli.demo_app import app as demo_app
from ag06.persistence.log import Bury, Failure
from commands import ag06, started
from servers import ValkeyServer

QUICK = ("demo", "--rounds", 2, "--rate", 1000)
BALANCED = Account(
    received=13,
    duplicates_rejected=3,
    accepted=10,
    processed=9,
    dead_letters=1,
    taken_over=2,
    lost=0,
    counted_twice=0,
    workers_killed=1,
    latency_p50_ms=5.0,
    latency_p99_ms=9.0,
    events=37,
    seconds=1.0,
    events_per_second=37.0,
    repositories={"a/b": 9},
)


def _changed(**values: Any) -> Account:
    return msgspec.structs.replace(BALANCED, **values)


@pytest.mark.parametrize("store", ["sqlite", "redis"])
async def test_the_account_of_a_demo_balances(store: str, tmp_path: Path, valkey: ValkeyServer) -> None:
    url = f"sqlite:///{tmp_path}/demo.db" if store == "sqlite" else f"{valkey.url}?log=demo-{os.getpid()}"
    for _ in range(2 if store == "sqlite" else 1):  # what an earlier run left behind is not counted again
        ended = ag06(*QUICK, "--json", "--store", url, cwd=tmp_path)
        assert ended.code == 0, ended
        account = msgspec.convert(ended.json, Account)
        assert account.balances
        assert (account.received, account.duplicates_rejected, account.accepted) == (872, 218, 654)
        assert (account.processed, account.dead_letters, account.lost) == (646, 8, 0)
        assert account.events == 654 + 3 * 646
        assert account.workers_killed > 0
        assert account.taken_over > 0
    assert "killed worker process" in ended.err


async def test_a_demo_shows_its_account_and_a_replay(tmp_path: Path) -> None:
    ended = ag06("demo", "--rounds", 1, "--rate", 1000, cwd=tmp_path)
    assert ended.code == 0, ended
    assert "Replay of the last minute: 1296 events" in ended.out
    assert "The account balances" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_a_demo_can_be_looked_at_while_it_runs_whoever_has_the_usual_port(tmp_path: Path) -> None:
    with contextlib.ExitStack() as around:
        with contextlib.suppress(OSError):  # somebody has it
            around.enter_context(socket.create_server(("127.0.0.1", 9090)))
        running = around.enter_context(
            started("demo", "--rounds", 2, "--rate", 300, cwd=tmp_path, env={"AG06_HTTP_PORT": ""})
        )
        url = running.line("while it runs: ").partition("/metrics")[0]
        processed = 0.0
        while not processed:
            with urllib.request.urlopen(f"{url}/status", timeout=10) as answer:
                status = json.loads(answer.read())
            processed = status["metrics"]["ag06_workflow_events_processed_total"]
        assert len(status["workers"]) == 2
        assert running.end().code == 0


@pytest.mark.parametrize(
    "account",
    [
        _changed(received=14),
        _changed(processed=8),
        _changed(processed=8, lost=1),
        _changed(processed=8, dead_letters=2, lost=1),
        _changed(counted_twice=1),
        _changed(workers_killed=0),
    ],
)
def test_an_account_that_does_not_balance_ends_the_demo_with_1(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(url: str, rounds: int, rate: float) -> tuple[Account, list[Any]]:
        return account, []

    assert BALANCED.balances
    monkeypatch.setattr(demo, "_demo", run)
    ended = CliRunner().invoke(app, ["demo"])
    assert ended.exit_code == 1
    assert "does NOT balance" in ended.output


async def test_the_account_finds_what_was_lost_doubled_or_buried(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/made-up.db"
    demo_app.use_store(url)
    events = demo_app.events
    ids = [str(await demo_app.publish(RECEIVED, "github", {"n": number})) for number in range(5)]
    stranger = str(await demo_app.publish(RECEIVED, "github", {"n": 5}))
    for root in (ids[0], ids[1], ids[1], stranger):
        await events.persist_event(COUNTED, "x", {"repository": "a/b"}, correlation_id=root, dedup=False)
    await events.persist_event(CLASSIFIED, "x", {"n": 2}, correlation_id=ids[2])
    log = await events.log()
    subscription = log.subscribe("demo.enrich", "w", 30.0)
    (delivery,) = await subscription.fetch(1, 5.0)
    await subscription.commit([Bury(delivery, Failure("failed", "ValueError", "it broke", "", 1, 1, 2))])
    await subscription.close()

    account = await draw_up(events, Fed(8, tuple(ids), 2), seconds=2.0, taken_over=0, killed=1)
    await events.close()
    assert (account.processed, account.counted_twice, account.dead_letters, account.lost) == (2, 1, 1, 2)
    assert account.events == 5 + 3 + 1
    assert account.repositories == {"a/b": 3}
    assert not account.balances

"""How commands speak: to a terminal, to a file, to a reader that leaves; what is not the result goes to stderr."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from commands import ag06, environment, on_terminal, words

HIDE_CURSOR = "\x1b[?25l"
STORE = ("--store", "sqlite:///all.db")


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[EventStore]:
    store = EventStore(f"sqlite:///{tmp_path}/all.db")
    await store.stats()
    yield store
    await store.close()


async def _publish(events: EventStore, count: int) -> list[str]:
    ids = await events.persist_events(
        [{"event_type": "counted", "source": "test", "data": {"n": number}} for number in range(count)]
    )
    return [event_id for event_id in ids if event_id is not None]


async def test_an_empty_result_says_so_and_is_no_failure(events: EventStore, tmp_path: Path) -> None:
    ended = ag06("events", "list", *STORE, cwd=tmp_path)
    assert ended == (0, "", "Events: none\n")


@pytest.mark.parametrize("command", ["events replay", "events export -", "events tail --from-start"])
async def test_a_reader_that_leaves_ends_the_command_quietly(events: EventStore, tmp_path: Path, command: str) -> None:
    await _publish(events, 3000)
    with subprocess.Popen(
        words(*command.split(), *STORE),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b'"n":0}' in process.stdout.readline().replace(b" ", b"")
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""


async def test_a_full_disk_is_told_in_one_line(events: EventStore, tmp_path: Path) -> None:
    await _publish(events, 3000)
    full = os.open("/dev/full", os.O_WRONLY)  # standard output, and nothing else: a device is not to be replaced
    try:
        done = subprocess.run(
            words("events", "replay", *STORE),
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(full)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


async def test_what_is_not_a_terminal_gets_whole_lines(events: EventStore, tmp_path: Path) -> None:
    long = "x" * 200
    event_id = await events.persist_event(long, long, {"n": 1}, subject=long)
    ended = ag06("events", "list", *STORE, cwd=tmp_path, env={"COLUMNS": "40"})
    (line,) = [line for line in ended.out.splitlines() if '{"n":1}' in line]
    assert event_id is not None
    assert event_id in line
    assert line.count(long) == 3


async def test_no_colour_is_used_where_none_is_wanted(events: EventStore, tmp_path: Path) -> None:
    await _publish(events, 2)
    red = "\x1b[31m"
    command = ["events", "list", "--store", "nonsense"]
    assert red in on_terminal(command, cwd=tmp_path, columns=100).out
    assert red not in on_terminal(command, cwd=tmp_path, columns=100, env={"NO_COLOR": "1"}).out
    assert "\x1b" not in ag06("events", "list", *STORE, cwd=tmp_path).out


@pytest.mark.parametrize("columns", [30, 100, 250])
async def test_ids_can_be_copied_from_a_terminal_of_any_width(events: EventStore, tmp_path: Path, columns: int) -> None:
    ids = await _publish(events, 2)
    ended = on_terminal(["events", "list", *STORE], cwd=tmp_path, columns=columns)
    assert ended.code == 0
    assert all(event_id in ended.out for event_id in ids), ended.out


async def test_progress_stays_away_where_nobody_looks(events: EventStore, tmp_path: Path) -> None:
    await _publish(events, 2)
    assert ag06("events", "export", "x.jsonl", *STORE, cwd=tmp_path).err == ""
    assert HIDE_CURSOR in on_terminal(["events", "export", "y.jsonl", *STORE], cwd=tmp_path, columns=100).out

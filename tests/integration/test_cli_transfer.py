"""`ag06 events export` and `replay --to`: what leaves a log is whole, or is not there at all."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import os
import stat
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ag06.cloudevents import from_structured
from ag06.event import Event, Priority
from ag06.persistence import EventStore
from commands import ag06, environment, words

THEN = dt.datetime(2026, 1, 31, 12, 0, tzinfo=dt.UTC)

ON_SQLITE = pytest.mark.parametrize("adapter", ["sqlite"])  # whatever the store


@pytest.fixture(params=["sqlite", "redis"])
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def events(store_url: str) -> AsyncIterator[EventStore]:
    """A log of events that differ in everything, and of three that say the same thing."""
    store = EventStore(store_url)
    for number in range(20):
        await store.persist_event(
            f"type-{number % 3}",
            "tëst",
            {"n": number, "nested": [None, {"big": 2**60 + 1}]},
            Priority(number % 4),
            subject=f"s{number % 2}" if number % 5 else None,
            correlation_id="together" if number % 2 else None,
            causation_id="before" if number % 7 == 0 else None,
        )
    for _ in range(3):
        await store.persist_event("same", "test", {"n": -1}, time=THEN, dedup=False)
    yield store
    await store.close()


async def _all(events: EventStore) -> list[Event[Any]]:
    return [event async for event in events.replay()]


def _without_recorded(events: list[Event[Any]]) -> list[dict[str, Any]]:
    return [{name: getattr(event, name) for name in event.__struct_fields__ if name != "recorded"} for event in events]


async def test_a_copy_holds_the_same_events_in_the_same_order(
    events: EventStore, store_url: str, tmp_path: Path
) -> None:
    target = f"sqlite:///{tmp_path}/a%20copy.db"
    for told in ("23 events copied\n", "0 events copied, 23 were there already\n"):  # twice stores them once
        ended = ag06("events", "replay", "--to", target, "--store", store_url, cwd=tmp_path)
        assert (ended.code, ended.out) == (0, told), ended
    copied = EventStore(target)
    assert _without_recorded(await _all(copied)) == _without_recorded(await _all(events))
    await copied.close()
    assert (tmp_path / "a copy.db").exists()
    listed = ag06("events", "list", "--json", "-n", 100, "--store", target, cwd=tmp_path)
    assert len(listed.json) == 23


async def test_a_copy_may_go_the_other_way(events: EventStore, store_url: str, tmp_path: Path, valkey: Any) -> None:
    target = f"{valkey.url}?log=copy-{os.getpid()}-{store_url.partition(':')[0]}"
    ended = ag06("events", "replay", "--type", "same", "--to", target, "--store", store_url, cwd=tmp_path)
    assert (ended.code, ended.out) == (0, "3 events copied\n"), ended
    copied = EventStore(target)
    assert [event.data["n"] for event in await _all(copied)] == [-1, -1, -1]
    await copied.close()


@ON_SQLITE
async def test_a_store_is_not_copied_into_itself(events: EventStore, store_url: str, tmp_path: Path) -> None:
    ended = ag06("events", "replay", "--to", store_url, "--store", store_url, cwd=tmp_path)
    assert ended.code == 2
    assert "is the store that is read" in ended.err
    assert len(await _all(events)) == 23


@ON_SQLITE
async def test_replayed_lines_are_the_events(events: EventStore, store_url: str, tmp_path: Path) -> None:
    ended = ag06("events", "replay", "--correlation-id", "together", "-n", 4, "--store", store_url, cwd=tmp_path)
    assert ended.code == 0, ended
    assert [line["data"]["n"] for line in ended.lines] == [1, 3, 5, 7]
    assert ended.lines[0]["source"] == "tëst"


async def test_an_export_is_read_back_as_the_same_events(events: EventStore, store_url: str, tmp_path: Path) -> None:
    packed = ag06("events", "export", "all.jsonl.gz", "--store", store_url, cwd=tmp_path)
    assert (packed.code, packed.out) == (0, "23 events written to all.jsonl.gz\n")
    lines = gzip.decompress((tmp_path / "all.jsonl.gz").read_bytes()).splitlines()
    assert [json.loads(line)["id"] for line in lines] == [event.id for event in await _all(events)]

    ended = ag06("events", "export", "-", "--format", "cloudevents", "--store", store_url, cwd=tmp_path)
    back = [from_structured(line.encode()) for line in ended.out.splitlines()]
    assert _without_recorded(back) == _without_recorded(await _all(events))


@ON_SQLITE
async def test_an_export_replaces_a_file_when_it_is_whole(events: EventStore, store_url: str, tmp_path: Path) -> None:
    await events.stats()
    real = tmp_path / "real.jsonl"
    real.write_text("old")
    real.chmod(0o640)
    (tmp_path / "link.jsonl").symlink_to(real)
    ended = ag06("events", "export", "link.jsonl", "--type", "same", "--store", store_url, cwd=tmp_path)
    assert ended.code == 0, ended
    assert len(real.read_text().splitlines()) == 3
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert (tmp_path / "link.jsonl").is_symlink()
    assert not list(tmp_path.glob("*.part"))


@ON_SQLITE
async def test_an_export_into_a_pipe_leaves_the_pipe_a_pipe(events: EventStore, store_url: str, tmp_path: Path) -> None:
    await events.stats()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    ended = ag06("events", "export", "pipe", "--type", "same", "--store", store_url, cwd=tmp_path)
    reader.join(20)
    assert ended.code == 0, ended
    assert len(received[0].splitlines()) == 3
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("path", ["missing/x.jsonl", ".", "", "all.db/x"])
async def test_a_path_that_cannot_be_written_is_a_mistake(tmp_path: Path, path: str) -> None:
    events = EventStore(f"sqlite:///{tmp_path}/all.db")
    await events.persist_event("x", "test", {})
    await events.close()
    before = sorted(tmp_path.iterdir())
    ended = ag06("events", "export", path, "--store", "sqlite:///all.db", cwd=tmp_path)
    assert ended.code == 2, ended
    assert "cannot be written" in ended.err
    assert "Traceback" not in ended.err
    assert sorted(tmp_path.iterdir()) == before


async def test_an_interrupted_export_leaves_the_old_file(tmp_path: Path) -> None:
    events = EventStore(f"sqlite:///{tmp_path}/all.db", dedup_window=0)
    await events.persist_events([{"event_type": "x", "source": "t", "data": "y" * 900} for _ in range(5000)])
    await events.close()
    (tmp_path / "out.jsonl").write_text("old")
    # A limit on the size of files ends the export in its middle, as a full disk does.
    limited = ["bash", "-c", 'ulimit -f 1000; trap "" XFSZ; exec "$@"', "bash"]
    done = subprocess.run(
        [*limited, *words("events", "export", "out.jsonl", "--store", "sqlite:///all.db")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done
    assert done.stderr == "error: File too large\n"
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert not list(tmp_path.glob("*.part"))

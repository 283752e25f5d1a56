"""A log's file that is removed, moved or replaced while it is in use: nothing is confirmed that nobody finds again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ag06 import ConfigurationError, Event, Workflow
from ag06.errors import StoreReplaced
from ag06.monitoring import observability
from ag06.persistence import EventStore
from flows import SECONDS
from records import eventually


def _remove(path: Path) -> None:
    for name in path.parent.glob("events.db*"):
        name.unlink()


def _move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def _replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _remove_beside(suffix: str) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        path.with_name(path.name + suffix).unlink()

    remove.__name__ = f"remove{suffix}"
    return remove


WAYS = [_remove, _move, _replace, _empty, _remove_beside("-wal"), _remove_beside("-shm")]


@pytest.mark.parametrize("lose", WAYS, ids=lambda way: way.__name__)
async def test_no_id_is_returned_for_a_file_that_has_lost_its_name(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    path = tmp_path / "events.db"
    store = EventStore(f"sqlite:///{path}")
    await store.persist_event("t", "s", 0)
    inode = path.stat().st_ino
    lose(path)
    for number in range(3):
        with pytest.raises(StoreReplaced, match=rf"store {path}: .*while in use.*inode {inode} on device"):
            await store.persist_event("t", "s", number)
    await store.close()


@pytest.mark.parametrize("lose", WAYS[:4], ids=lambda way: way.__name__)
async def test_nothing_is_read_from_a_file_that_has_lost_its_name(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    path = tmp_path / "events.db"
    store = EventStore(f"sqlite:///{path}")
    await store.persist_event("t", "s", 0)
    lose(path)
    with pytest.raises(StoreReplaced):
        await store.replay_from(0)
    with pytest.raises(StoreReplaced):
        await store.stats()
    await store.close()


async def test_the_error_names_both_files(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    store = EventStore(f"sqlite:///{path}")
    await store.persist_event("t", "s", 0)
    before = path.stat().st_ino
    _replace(path)
    with pytest.raises(StoreReplaced, match=f"by another file .inode {path.stat().st_ino} .*the file inode {before} "):
        await store.persist_event("t", "s", 1)
    await store.close()


async def test_a_link_that_names_another_file_is_noticed(tmp_path: Path) -> None:
    for name in ("one.db", "two.db"):
        other = EventStore(f"sqlite:///{tmp_path / name}")
        await other.persist_event("t", "s", name)
        await other.close()
    link = tmp_path / "current.db"
    link.symlink_to("one.db")
    store = EventStore(f"sqlite:///{link}")
    await store.persist_event("t", "s", 1)
    link.unlink()
    link.symlink_to("two.db")
    with pytest.raises(StoreReplaced, match=r"current\.db"):
        await store.persist_event("t", "s", 2)
    await store.close()


async def test_a_file_that_is_put_back_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    store = EventStore(f"sqlite:///{path}")
    await store.persist_event("t", "s", 0)
    _move(path)
    with pytest.raises(StoreReplaced):
        await store.persist_event("t", "s", 1)
    path.with_name("moved.db").rename(path)
    assert await store.persist_event("t", "s", 2)
    await store.close()
    again = EventStore(f"sqlite:///{path}")
    assert {event.data async for event in again.replay()} >= {0, 2}
    await again.close()


async def test_a_workflow_whose_file_is_gone_is_unhealthy_and_no_new_file_appears(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    app = Workflow("shop", store=f"sqlite:///{path}", grace=0.1)

    @app.step("t")
    async def step(event: Event) -> None: ...

    async with app.running(http_port=0):
        await app.publish("t", data=1)
        await app.drain(SECONDS)
        _remove(path)

        async def failed() -> bool:
            report = await observability.health.check_health()
            return report.status == "fail" and "was removed while in use" in (report.components["store"].error or "")

        await eventually(failed)
    assert not path.exists()


async def test_a_write_ahead_log_without_its_file_is_not_dropped_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    store = EventStore(f"sqlite:///{path}")
    await store.persist_event("t", "s", 0)
    left = (tmp_path / "events.db-wal").read_bytes()
    await store.close()
    path.unlink()
    (tmp_path / "events.db-wal").write_bytes(left)
    with pytest.raises(ConfigurationError, match=r"is missing or empty, but its write-ahead log .*-wal is not"):
        await EventStore().initialize(f"sqlite:///{path}")
    assert os.listdir(tmp_path) == ["events.db-wal"]

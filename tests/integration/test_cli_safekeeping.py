"""`ag06 check` and `ag06 backup`, and that damage is reported alike by every command."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from ag06.persistence.sqlite.backup import back_up
from commands import ag06
from servers import ValkeyServer


async def _store(path: Path, count: int = 200) -> EventStore:
    store = EventStore(f"sqlite:///{path}")
    await store.persist_events({"event_type": "t", "source": "s", "data": [n, "x" * 500]} for n in range(count))
    return store


def _damage(path: Path) -> None:
    """Overwrite a page in the middle of the events."""
    whole = path.read_bytes()
    middle = len(whole) // 2 // 4096 * 4096
    path.write_bytes(whole[:middle] + b"\x1b\xff" * 8192 + whole[middle + 16384 :])


async def test_a_backup_of_a_log_in_use_is_read_back_and_holds_every_event(tmp_path: Path) -> None:
    store = await _store(tmp_path / "shop.db")  # open, its write-ahead log not folded in
    ended = ag06("backup", "copy.db", "--json", "--store", "sqlite:///shop.db", cwd=tmp_path)
    assert ended.code == 0, ended
    assert ended.json["events"] == 200
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    await store.persist_event("t", "s", "later")
    await store.close()
    copy = EventStore(f"sqlite:///{tmp_path}/copy.db")
    assert [event.data[0] async for event in copy.replay()] == list(range(200))
    assert await copy.persist_event("t", "s", "goes on") is not None
    await copy.close()
    assert ag06("check", "--store", "sqlite:///copy.db", cwd=tmp_path).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"shop.db", "copy.db"}


async def test_a_backup_never_replaces_a_file(tmp_path: Path) -> None:
    await (await _store(tmp_path / "shop.db")).close()
    (tmp_path / "copy.db").write_text("older")
    ended = ag06("backup", "copy.db", "--store", "sqlite:///shop.db", cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "copy.db exists; a backup is a new file, such as copy-2.db" in ended.err
    assert (tmp_path / "copy.db").read_text() == "older"


async def test_a_damaged_log_gives_no_backup(tmp_path: Path) -> None:
    await (await _store(tmp_path / "shop.db")).close()
    _damage(tmp_path / "shop.db")
    ended = ag06("backup", "copy.db", "--store", "sqlite:///shop.db", cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "the file is damaged" in ended.err
    assert {path.name for path in tmp_path.iterdir()} <= {"shop.db", "shop.db-wal", "shop.db-shm"}


async def test_a_backup_whose_content_does_not_read_back_gets_no_name(tmp_path: Path) -> None:
    """VACUUM copies rows without looking at them."""
    await (await _store(tmp_path / "shop.db")).close()
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("UPDATE events SET body = x'7b00' WHERE seq = (SELECT max(seq) FROM events)")
    connection.close()
    ended = ag06("backup", "copy.db", "--store", "sqlite:///shop.db", cwd=tmp_path)
    assert ended.code == 2
    assert "its copy does not read back" in ended.err
    assert not (tmp_path / "copy.db").exists()


async def test_a_sound_log_is_reported_with_its_counts(tmp_path: Path) -> None:
    store = await _store(tmp_path / "shop.db")
    ended = ag06("check", "--json", "--store", "sqlite:///shop.db", cwd=tmp_path)
    assert ended.code == 0, ended
    assert ended.json == {"path": str(tmp_path / "shop.db"), "events": 200, "dead_letters": 0, "problems": []}
    await store.close()


@pytest.mark.parametrize(
    "command",
    [
        ("check",),
        ("events", "list", "--limit", "2000"),
        ("events", "export", "-"),
        ("events", "replay", "--to", "sqlite:///other.db"),
        ("backup", "copy.db"),
    ],
    ids=" ".join,
)
async def test_damage_is_reported_alike_by_every_command_that_meets_it(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    await (await _store(tmp_path / "shop.db", 2000)).close()
    _damage(tmp_path / "shop.db")
    ended = ag06(*command, "--store", "sqlite:///shop.db", cwd=tmp_path)
    assert ended.code == 2, ended
    assert "damaged" in ended.out + ended.err
    assert "backup" in ended.out + ended.err
    assert "Traceback" not in ended.err
    assert "\x1b" not in ended.out + ended.err


async def test_an_event_that_is_none_any_more_is_damage_too(tmp_path: Path) -> None:
    await (await _store(tmp_path / "shop.db")).close()
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("UPDATE events SET body = x'ff' WHERE seq = (SELECT max(seq) FROM events)")
    connection.close()
    for command in (("check",), ("events", "list"), ("events", "export", "-")):
        ended = ag06(*command, "--store", "sqlite:///shop.db", cwd=tmp_path)
        assert ended.code == 2, ended
        assert "is damaged" in ended.out + ended.err


async def test_rows_that_are_gone_are_missed(tmp_path: Path) -> None:
    await (await _store(tmp_path / "shop.db")).close()
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)")
    connection.close()
    ended = ag06("check", "--store", "sqlite:///shop.db", cwd=tmp_path)
    assert ended.code == 2
    assert "events: 199 rows, but 200 by the counters" in ended.out


async def test_what_is_no_log_is_refused(tmp_path: Path, valkey: ValkeyServer) -> None:
    sqlite3.connect(tmp_path / "theirs.db").execute("CREATE TABLE theirs (a)").connection.close()
    for command in (("check",), ("backup", "copy.db")):
        assert "there is no store" in ag06(*command, "--store", "sqlite:///nowhere.db", cwd=tmp_path).err
        assert "is no SQLite file" in ag06(*command, "--store", valkey.url, cwd=tmp_path).err
        ended = ag06(*command, "--store", "sqlite:///theirs.db", cwd=tmp_path)
        assert (ended.code, "not an event log" in ended.err) == (2, True), ended
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.db"}


async def test_a_backup_while_others_write_is_of_one_moment(tmp_path: Path) -> None:
    store = await _store(tmp_path / "shop.db", 0)
    for turn in range(5):
        for n in range(20):
            await store.persist_event("t", "s", [turn, n])
        done = back_up(str(tmp_path / "shop.db"), str(tmp_path / f"copy-{turn}.db"))
        assert done.events == 20 * (turn + 1)
    await store.close()


@pytest.mark.parametrize("left", [10, 100, 5000])
async def test_a_file_that_was_cut_off_is_damage_not_a_traceback(tmp_path: Path, left: int) -> None:
    await (await _store(tmp_path / "shop.db")).close()
    (tmp_path / "shop.db").write_bytes((tmp_path / "shop.db").read_bytes()[:left])
    for command in (("check",), ("backup", "copy.db")):
        ended = ag06(*command, "--store", "sqlite:///shop.db", cwd=tmp_path)
        assert ended.code == 2, ended
        assert "damaged" in ended.out + ended.err or "not an event log" in ended.err
        assert "Traceback" not in ended.err


async def test_a_backup_into_a_folder_that_is_missing_names_it(tmp_path: Path) -> None:
    await (await _store(tmp_path / "shop.db")).close()
    ended = ag06("backup", "missing/copy.db", "--store", "sqlite:///shop.db", cwd=tmp_path)
    assert ended.code == 2
    assert "the folder missing does not exist; make it first" in ended.err

"""The files of a journal are deleted, moved or replaced while it is in use: no event that was confirmed is lost."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ag06.persistence.journal import file as journal_file
from ag06.persistence.journal import log as journal_log
from ag06.persistence.journal.claim import Claims
from ag06.persistence.journal.file import JournalFile
from ag06.persistence.journal.place import JournalMoved
from ag06.persistence.journal.rescue import Rescue
from ag06.persistence.log import Appended, LogOptions
from ag06.tasks import start_task
from faulty import AWAY, Both, kept
from journals import journals, when
from records import record


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_log, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(journal_log, "_DISK_SECONDS", 0.02)


@pytest.fixture
async def both(tmp_path: Path) -> Both:
    made = Both(tmp_path / "journal", LogOptions())
    await made.log.open()
    return made


def delete_all(path: Path) -> None:
    shutil.rmtree(path.parent.parent)


def delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def delete_file(path: Path) -> None:
    path.unlink()


def delete_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def delete_lock(path: Path) -> None:
    path.with_suffix(".lock").unlink()


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.parent.with_name("elsewhere"))


def replace_file(path: Path) -> None:
    fresh = path.with_suffix(".fresh")
    shutil.copy2(path, fresh)
    fresh.replace(path)


def replace_folder_by_another(path: Path) -> None:
    moved = path.parent.parent.with_name("elsewhere")
    path.parent.rename(moved)
    other = path.parent.parent.with_name("other")
    other.mkdir()
    os.symlink(other, path.parent)


def cut_off_log(path: Path) -> None:
    os.truncate(f"{path}-wal", 0)


CHANGES = [
    delete_all,
    delete_folder,
    delete_file,
    delete_log,
    move_folder,
    replace_file,
    replace_folder_by_another,
    cut_off_log,
]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_journal_whose_files_go_away_is_written_anew_before_the_next_id_is_given(
    both: Both, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    await kept(both, 1, 2)
    await kept(both, 3)
    before = Path(both.state.path)
    change(before)
    with caplog.at_level(logging.WARNING, "ag06"):
        await kept(both, 4)
    after = Path(both.state.path)
    assert after.exists()
    assert after != before
    assert str(before) in caplog.text
    assert str(after) in caplog.text
    assert both.state.events == 4
    both.log.abandon()  # what a crash leaves is all that counts
    again = Both(both.directory, LogOptions())
    await again.log.open()
    await again.straight()
    assert set(await again.numbers()) == {1, 2, 3, 4}
    await again.log.close()


async def test_a_journal_is_written_anew_though_nobody_publishes(both: Both) -> None:
    await kept(both, 1, 2)
    before = both.state.path
    delete_all(Path(before))

    async def moved() -> bool:
        return both.state.path != before

    await when(moved)
    assert [str(path) for path in journals(both.directory)] == [both.state.path]
    both.fail(None)
    await both.straight()
    assert await both.numbers() == [1, 2]
    await both.log.close()


async def test_a_journal_without_its_lock_gets_another_one(both: Both) -> None:
    await kept(both, 1)
    before = both.state.path
    delete_lock(Path(before))

    async def moved() -> bool:
        return both.state.path != before

    await when(moved)
    await kept(both, 2)
    both.log.abandon()
    again = Both(both.directory, LogOptions())
    await again.log.open()
    await again.straight()
    assert await again.numbers() == [1, 2]
    await again.log.close()


async def test_where_no_new_folder_can_be_made_the_open_file_is_drained(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    await kept(both, 1, 2)
    shutil.rmtree(both.directory)
    both.directory.write_text("a file where the folder was")
    with caplog.at_level(logging.WARNING, "ag06"):

        async def reported() -> bool:
            return "end with this process" in caplog.text

        await when(reported)
    assert both.state.events == 2
    both.fail(None)
    assert await both.log.append([record(3)]) == [Appended.STORED]

    async def drained() -> bool:
        return not both.state.active

    await when(drained)
    assert await both.numbers() == [1, 2, 3]
    await both.log.close()


async def test_a_folder_that_is_deleted_while_nothing_waits_is_made_again(both: Both) -> None:
    await kept(both, 1)
    both.fail(None)
    await both.straight()
    shutil.rmtree(both.directory)
    await kept(both, 2)
    assert [str(path) for path in journals(both.directory)] == [both.state.path]
    both.fail(None)
    await both.straight()
    assert await both.numbers() == [1, 2]
    await both.log.close()


async def test_a_link_to_the_folder_in_its_place_is_the_same_folder(both: Both) -> None:
    await kept(both, 1)
    path = Path(both.state.path)
    elsewhere = both.directory.with_name("volume")
    both.directory.rename(elsewhere)
    os.symlink(elsewhere, both.directory)
    await kept(both, 2)
    assert both.state.path == str(path)
    both.fail(None)
    await both.straight()
    assert await both.numbers() == [1, 2]
    await both.log.close()


async def test_a_read_only_folder_does_not_stop_a_journal_that_is_open(both: Both) -> None:
    await kept(both, 1)
    folder = Path(both.state.path).parent
    folder.chmod(0o500)
    try:
        await kept(both, 2)
        assert both.state.events == 2
    finally:
        folder.chmod(0o700)
    both.fail(None)
    await both.straight()
    assert await both.numbers() == [1, 2]
    await both.log.close()


async def test_closing_saves_what_lies_in_a_deleted_file(both: Both) -> None:
    await kept(both, 1, 2)
    delete_all(Path(both.state.path))
    both.fail(AWAY)
    await both.log.close()
    again = Both(both.directory, LogOptions())
    await again.log.open()
    await again.straight()
    assert await again.numbers() == [1, 2]
    await again.log.close()


async def test_an_append_that_the_old_file_still_has_in_its_queue_while_the_journal_moves_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(str(tmp_path / "journal"), "redis://somewhere/0")
    file = JournalFile(claims.new())
    await file.open()
    await file.append([record(1)], synced=False)
    old, started, may_end = file._writer, journal_file._start_writer, threading.Event()
    appending: list[asyncio.Task[list[Appended]]] = []
    assert old is not None

    async def start(*arguments: Any) -> Any:
        """Leave an append behind what keeps the old file busy until the journal has moved."""
        writer = await started(*arguments)
        old.submit(lambda _: may_end.wait(20), durable=False)
        appending.append(asyncio.create_task(file.append([record(2)], synced=False)))
        await asyncio.sleep(0)
        return writer

    monkeypatch.setattr(journal_file, "_start_writer", start)
    before = file.path
    delete_file(before)
    saving = asyncio.create_task(Rescue(claims).save(file))

    async def moved() -> bool:
        return file.path != before

    await when(moved)
    may_end.set()
    with pytest.raises(JournalMoved):
        await appending[0]
    await saving
    assert await file.append([record(2)], synced=False) == [Appended.STORED]
    assert len(await file.read()) == 2
    await file.close()


async def test_a_copy_whose_callers_have_given_up_is_waited_for_and_its_error_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(str(tmp_path / "journal"), "redis://somewhere/0")
    file = JournalFile(claims.new())
    await file.open()
    await file.append([record(1)], synced=False)
    delete_file(file.path)
    copying, may_fail = asyncio.Event(), asyncio.Event()
    unread: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unread.append(context))

    async def move(claim: Any) -> None:
        copying.set()
        await may_fail.wait()
        raise OSError("no room")

    monkeypatch.setattr(file, "move", move)
    loop.set_task_factory(getattr(asyncio, "eager_task_factory", None))
    rescue = Rescue(claims)
    caller = start_task(rescue.save(file))
    await copying.wait()
    caller.cancel()
    await asyncio.wait([caller])
    finishing = asyncio.create_task(rescue.finish())
    await asyncio.sleep(0)
    assert not finishing.done()
    may_fail.set()
    await finishing
    assert not rescue._saving
    gc.collect()
    assert not unread
    await file.close()

"""A damaged or missing part of an archive is named, never skipped in silence; what is whole stays readable."""

from __future__ import annotations

import datetime as dt
import logging
import os
import re
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_storage_options

from ag06 import ArchiveDamaged, ArchiveUnavailable, ConfigurationError, InvalidEvent, Retention
from ag06.persistence import EventStore
from ag06.persistence.archive import batch, reading, run
from ag06.persistence.archive import segments as segment_module
from ag06.persistence.archive.storage import Storage
from ag06.persistence.sqlite import reading as sqlite_reading
from archives import everything, fill, later, live, manifests, numbers, opened, segments


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/events.db"


async def archived(events: EventStore, archive: Path, runs: int = 3, each: int = 50) -> list[Path]:
    """Archive some runs, a segment each; leave some events in the live log."""
    for number in range(runs):
        await fill(events, each, number * each)
        await events.archive_before(later(), f"file://{archive}")
    await fill(events, each, runs * each)
    found = segments(archive)
    assert len(found) == runs
    return found


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, where: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [cut_off, flip, empty]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_segment_is_set_aside_and_named(
    store_url: str, archive: Path, damage: Callable[[Path], None]
) -> None:
    async with opened(store_url) as events:
        _, bad, _ = await archived(events, archive)
        damage(bad)
        for _ in range(2):  # the second time it is set aside already
            with pytest.raises(ArchiveDamaged) as raised:
                await everything(events)
            assert raised.value.path == f"file://{bad}.corrupt"
            assert raised.value.path in str(raised.value)
            assert re.search(r"events recorded from 20.*T.* to 20.*T", str(raised.value))
        assert not bad.exists()
        assert bad.with_name(bad.name + ".corrupt").exists()


async def test_what_lies_beside_a_damaged_segment_is_readable(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        found = await everything(events)
        _, bad, _ = await archived(events, archive)
        found = await everything(events)
        cut_off(bad)
        after = found[100].recorded
        assert after is not None
        assert numbers(await everything(events, start=after)) == list(range(100, 200))
        assert numbers(await everything(events, end=found[49].recorded + dt.timedelta(milliseconds=1))) == list(
            range(50)
        )
        # What comes before the damage is given out before it is named.
        seen: list[int] = []

        async def read() -> None:
            async for event in events.replay():
                seen.append(event.data["number"])  # noqa: PERF401 - those before the error count

        with pytest.raises(ArchiveDamaged):
            await read()
        assert seen == list(range(50))


async def test_a_good_copy_in_place_of_a_damaged_segment_mends_the_archive(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        _, bad, _ = await archived(events, archive)
        copy = bad.read_bytes()
        flip(bad)
        with pytest.raises(ArchiveDamaged):
            await everything(events)
        bad.write_bytes(copy)
        assert numbers(await everything(events)) == list(range(200))


async def test_salvage_reads_what_is_left_and_says_what_is_not(
    store_url: str, archive: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A segment of four row groups.
    monkeypatch.setattr(segment_module, "_GROUP_ROWS", 50)
    monkeypatch.setattr(run, "_PIECE_EVENTS", 50)
    monkeypatch.setattr(sqlite_reading, "PAGE", 50)
    async with opened(store_url) as events:
        for part in range(4):
            await fill(events, 50, part * 50)
        await events.archive_before(later(), f"file://{archive}")
        (bad,) = segments(archive)
        assert segment_module.group_count(bad.read_bytes()) == 4
        flip(bad, 0.4)
        with caplog.at_level(logging.ERROR, logger="ag06.persistence"):
            left = numbers(await everything(events, salvage=True))
        gone = sorted(set(range(200)) - set(left))
        assert left == sorted(left)
        assert len(gone) == 50
        assert gone == list(range(gone[0], gone[0] + 50))
        assert "row group" in caplog.text
        assert "is damaged" in caplog.text
        with pytest.raises(ArchiveDamaged):
            await everything(events)


async def test_salvage_of_a_segment_without_its_end_says_that_nothing_is_left(
    store_url: str, archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(store_url) as events:
        _, bad, _ = await archived(events, archive)
        cut_off(bad)
        assert numbers(await everything(events, salvage=True)) == [*range(50), *range(100, 200)]
        assert "nothing of it can be read" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_manifest_is_named_with_its_range(
    store_url: str, archive: Path, damage: Callable[[Path], None]
) -> None:
    async with opened(store_url) as events:
        await archived(events, archive)
        found = await everything(events)
        bad = manifests(archive)[1]
        damage(bad)
    reading._manifest.cache_clear()
    async with opened(store_url) as events:
        with pytest.raises(ArchiveDamaged, match=re.escape(str(bad))) as raised:
            await everything(events)
        assert found[50].recorded is not None
        assert found[50].recorded.isoformat() in str(raised.value)
        assert numbers(await everything(events, start=found[100].recorded)) == list(range(100, 200))
        # A run leaves what it cannot judge alone.
        await events.archive_before(later(), f"file://{archive}")
        assert bad.exists()
        assert numbers(await everything(events, start=found[100].recorded)) == list(range(100, 200))


async def test_an_archive_that_is_gone_is_named_with_its_range_and_the_rest_is_readable(
    store_url: str, archive: Path
) -> None:
    async with opened(store_url) as events:
        await archived(events, archive)
        found = await everything(events)
    archive.rename(archive.with_name("elsewhere"))
    reading._manifest.cache_clear()
    async with opened(store_url) as events:
        with pytest.raises(ArchiveUnavailable, match=r"events recorded from") as raised:
            await everything(events)
        assert str(archive) in str(raised.value)
        assert found[0].recorded is not None
        assert found[0].recorded.isoformat() in str(raised.value)
        # The range of the live log alone does not touch it.
        assert numbers(await everything(events, start=found[150].recorded)) == list(range(150, 200))
        archive.with_name("elsewhere").rename(archive)
        assert numbers(await everything(events)) == list(range(200))


async def test_a_lost_segment_is_named(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        _, lost, _ = await archived(events, archive)
        lost.unlink()
        with pytest.raises(ArchiveUnavailable, match=f"{re.escape(str(lost))} is not there"):
            await everything(events)


def lose_archive(archive: Path) -> None:
    shutil.rmtree(archive)


def block_archive(archive: Path) -> None:
    shutil.rmtree(archive)
    archive.write_text("in the way")


LOSSES: list[tuple[Callable[[Path], None], range, str]] = [
    (lambda archive: segments(archive)[1].unlink(), range(50, 100), "is not there"),
    (lambda archive: manifests(archive)[1].unlink(), range(50, 100), "is not there"),
    (lambda archive: flip(manifests(archive)[1]), range(50, 100), "restore the file"),
    (lose_archive, range(150), "is not there"),
    (block_archive, range(150), "cannot be read"),
]


@pytest.mark.parametrize(
    ("lose", "lost", "words"), LOSSES, ids=["segment", "manifest", "broken manifest", "archive", "unreachable"]
)
async def test_salvage_reads_on_behind_what_is_gone_and_says_what_that_was(
    store_url: str,
    archive: Path,
    lose: Callable[[Path], None],
    lost: range,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened(store_url) as events:
        await archived(events, archive)
        found = await everything(events)
        lose(archive)
        reading._manifest.cache_clear()
        with pytest.raises(ArchiveUnavailable, match=r"replay around it .*--start, --end.*--salvage") as raised:
            await everything(events)
        assert words in str(raised.value)
        assert caplog.records == []
        assert numbers(await everything(events, salvage=True)) == [n for n in range(200) if n not in lost]
        first, last = found[lost[0]].recorded, found[lost[-1]].recorded
        assert first is not None
        assert last is not None
        assert f"events recorded from {first.isoformat()}" in caplog.text
        assert f"to {last.isoformat()}" in caplog.text
        assert words in caplog.text
        assert str(archive) in caplog.text


async def test_salvage_of_a_run_that_lost_one_of_its_segments_reads_the_others(
    store_url: str, archive: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batch, "_SEGMENT_BYTES", 1)
    monkeypatch.setattr(segment_module, "_GROUP_ROWS", 50)
    monkeypatch.setattr(run, "_PIECE_EVENTS", 50)
    monkeypatch.setattr(sqlite_reading, "PAGE", 50)
    async with opened(store_url) as events:
        await fill(events, 200)
        await events.archive_before(later(), f"file://{archive}")
        assert len(manifests(archive)) == 1
        assert len(segments(archive)) == 4
        lost = segments(archive)[1]
        lost.unlink()
        assert numbers(await everything(events, salvage=True)) == [*range(50), *range(100, 200)]
        assert str(lost) in caplog.text


@pytest.mark.parametrize("lose", [lose_archive, lambda archive: segments(archive)[1].unlink()])
async def test_a_run_says_that_files_of_earlier_runs_are_gone(
    store_url: str, archive: Path, lose: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(store_url) as events:
        await archived(events, archive)
        found = await everything(events)
        await events.archive_before(later(), f"file://{archive}")
        assert caplog.messages == []
        lose(archive)
        await fill(events, 5, 200)
        assert (await events.archive_before(later(), f"file://{archive}")).events == 5
        (said,) = caplog.messages
        assert f"archive file://{archive}" in said
        assert "earlier runs are gone" in said
        assert found[50 if len(segments(archive)) > 1 else 0].recorded.isoformat() in said  # type: ignore[union-attr]


class Hosted(LocalFileSystem):
    """A filesystem whose URLs name a host, as those of `ftp://` and `sftp://` do."""

    protocol = "hosted"

    def __init__(self, host: str, **more: Any) -> None:
        super().__init__(**more)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(infer_storage_options(path)["path"])

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        found = infer_storage_options(path)
        return {"host": found["host"]} if "host" in found else {}


fsspec.register_implementation("hosted", Hosted, clobber=True)


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("/var/ag06/archive", ConfigurationError, "is no URL; write one"),
        ("archive", ConfigurationError, "is no URL; write one"),
        ("file://relative/archive", ConfigurationError, "is no URL; write one"),
        ("", ConfigurationError, "is no URL; write one"),
        (None, ConfigurationError, "is no URL; write one"),
        ("nonsense://archive", ConfigurationError, "nonsense"),
        ("gcs://bucket/archive", ConfigurationError, "gcs"),
        ("simplecache::file:///tmp/archive", ConfigurationError, "leads elsewhere"),
        (
            "hosted://user:secret@host/archive",
            ConfigurationError,
            r"^archive 'hosted://user:\*\*\*@host/archive'.*elsewhere",
        ),
        ("file:///dev/null/archive", ArchiveUnavailable, "cannot be written"),
        ("file:///proc/archive", ArchiveUnavailable, "cannot be written"),
    ],
)
async def test_an_archive_that_cannot_be_written_is_an_error_before_anything_leaves_the_log(
    store_url: str, url: str, error: type[Exception], words: str
) -> None:
    async with opened(store_url) as events:
        await fill(events, 20)
        with pytest.raises(error, match=words):
            await events.archive_before(later(), url)
        assert await live(events) == 20
        assert numbers(await everything(events)) == list(range(20))
        assert await (await events.log()).archives() == []


async def test_a_full_disk_is_an_error_before_anything_leaves_the_log(tmp_path: Path, archive: Path) -> None:
    async with opened("memory://full-disk") as events:
        await fill(events, 200, data={"noise": os.urandom(20_000).hex()})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(ArchiveUnavailable, match="cannot be written: File too large"):
                await events.archive_before(later(), f"file://{archive}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await live(events) == 200
        assert segments(archive) == []
        assert [path.name for path in archive.rglob("*") if path.is_file()] == ["about.json"]
        assert (await events.archive_before(later(), f"file://{archive}")).events == 200


async def test_what_does_not_read_back_as_it_was_written_leaves_the_log_as_it_is(
    store_url: str, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Storage.write

    def damaging(self: Storage, path: str, data: bytes) -> None:
        write(self, path, data)
        if path.endswith(".parquet"):
            flip(Path(self.file_url(path).removeprefix("file://")))

    async with opened(store_url) as events:
        await fill(events, 20)
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", damaging)
            with pytest.raises(ArchiveDamaged, match="checksum"):
                await events.archive_before(later(), f"file://{archive}")
        assert await live(events) == 20
        assert numbers(await everything(events)) == list(range(20))
        # The next run sets aside what it finds, and archives the events anew.
        assert (await events.archive_before(later(), f"file://{archive}")).events == 20
        assert await live(events) == 0
        assert numbers(await everything(events)) == list(range(20))
        assert len(list(archive.rglob("*.json.corrupt"))) == 1


async def test_an_event_of_a_newer_release_is_not_archived_in_part(store_url: str, archive: Path) -> None:
    """What this release does not know it could not give back."""
    async with opened(store_url) as events:
        await fill(events, 5)
        log = await events.log()
        await log.writer.submit(  # type: ignore[attr-defined]
            lambda connection: connection.execute(
                'UPDATE events SET body = CAST(replace(CAST(body AS TEXT), \'{"id"\', \'{"novelty":1,"id"\') AS BLOB) '
                "WHERE seq = (SELECT min(seq) FROM events)"
            )
        )
        with pytest.raises(Exception, match=r"novelty.*upgrade ag06"):
            await events.archive_before(later(), f"file://{archive}")
        assert await live(events) == 5


@pytest.mark.parametrize("moment", [dt.datetime(2026, 1, 1), "2026-01-01", True, float("nan")])  # noqa: DTZ001
async def test_a_moment_that_is_none_is_named(store_url: str, archive: Path, moment: object) -> None:
    async with opened(store_url) as events:
        await fill(events, 5)
        with pytest.raises(InvalidEvent, match="timestamp: "):
            await events.archive_before(moment, f"file://{archive}")  # type: ignore[arg-type]
        with pytest.raises(InvalidEvent, match="start: "):
            await events.replay_from(moment)  # type: ignore[arg-type]
        assert not archive.exists()


async def test_a_moment_in_milliseconds_moves_nothing(store_url: str, archive: Path) -> None:
    async with opened(store_url) as events:
        await fill(events, 5)
        for moment in (time.time() * 1000, time.time() + 90_000, dt.datetime(9999, 1, 1, tzinfo=dt.UTC)):
            with pytest.raises(InvalidEvent, match="seconds, not milliseconds"):
                await events.archive_before(moment, f"file://{archive}")
        assert await live(events) == 5
        assert not archive.exists()


async def test_an_archive_in_memory_is_warned_of_where_the_store_outlives_it(
    store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(store_url) as events, opened("memory://both-in-memory") as memory:
        await fill(events, 5)
        await fill(memory, 5)
        await memory.archive_before(later(), f"memory://{tmp_path}/both")
        assert caplog.messages == []
        await events.archive_before(later(), f"memory://{tmp_path}/one")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "gone when it ends" in caplog.text
        assert numbers(await everything(events)) == list(range(5))


@pytest.mark.parametrize("of_a_type", [False, True])
def test_a_retention_that_archives_to_memory_needs_a_store_in_memory(store_url: str, of_a_type: bool) -> None:
    retention = Retention(archive_after=5.0, archive="memory://a")
    if of_a_type:
        retention = Retention(types={"a": retention})
    EventStore("memory://", retention=retention)
    with pytest.raises(ConfigurationError, match="would be gone when the process ends"):
        EventStore(store_url, retention=retention)


async def test_a_replay_from_the_future_finds_nothing_and_one_from_before_everything_finds_all(
    store_url: str, archive: Path
) -> None:
    async with opened(store_url) as events:
        await archived(events, archive)
        assert await events.replay_from(later()) == []
        assert numbers(await events.replay_from(0)) == list(range(200))
        with pytest.raises(InvalidEvent, match=r"end: .* lies before start"):
            await everything(events, start=later(), end=1.0)


@pytest.mark.parametrize("part", [segments, manifests])
async def test_events_stay_until_they_are_archived_anew_where_what_a_killed_run_wrote_is_damaged(
    store_url: str, archive: Path, part: Callable[[Path], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(self: object, manifest: object) -> None:
        raise RuntimeError("killed")

    async with opened(store_url) as events:
        await fill(events, 20)
        await events.archive_before(later(), f"file://{archive}")
        await fill(events, 20, 20)
        with monkeypatch.context() as patch:
            patch.setattr(run._Run, "_drop", killed)  # once the log knows of the archive, and has its events still
            with pytest.raises(RuntimeError, match="killed"):
                await events.archive_before(later(), f"file://{archive}")
        assert await live(events) == 20
        cut_off(part(archive)[1])
        await fill(events, 20, 40)
        done = await events.archive_before(later(), f"file://{archive}")
        assert (done.events, await live(events)) == (40, 0)
        if part is segments:
            assert numbers(await everything(events, salvage=True)) == list(range(60))
        # As a whole once what nobody can read any more is out of the way.
        log = await events.log()
        await log.remove_archive((await log.archives())[2])
        assert numbers(await everything(events)) == list(range(60))


async def test_a_copy_of_a_log_that_archives_to_the_same_place_takes_nothing_from_the_log(
    store_url: str, tmp_path: Path, archive: Path
) -> None:
    async with opened(store_url) as events:
        await fill(events, 20)
        await events.archive_before(later(), f"file://{archive}")
        await fill(events, 20, 20)
    for path in tmp_path.glob("events.db*"):
        shutil.copy(path, path.with_name(path.name.replace("events", "copy")))
    async with opened(store_url) as events, opened(f"sqlite:///{tmp_path}/copy.db") as copy:
        await fill(events, 20, 40)
        await fill(copy, 20, 1000)
        await copy.archive_before(later(), f"file://{archive}")
        with pytest.raises(ConfigurationError, match="a copy of the log archives there too"):
            await events.archive_before(later(), f"file://{archive}")
        assert numbers(await everything(events)) == list(range(60))
        await events.archive_before(later(), f"file://{archive}-of-its-own")
        assert await live(events) == 0
        assert numbers(await everything(events)) == list(range(60))
        assert numbers(await everything(copy)) == [*range(40), *range(1000, 1020)]

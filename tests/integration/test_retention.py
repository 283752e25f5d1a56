"""Retention policies: what is old moves to the archive, what is older goes, in the background and by one process."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ag06
from ag06 import ArchiveUnavailable, ConfigurationError, Event, Retention, Workflow
from ag06.persistence import EventStore
from ag06.persistence.archive.mending import DELETED
from ag06.persistence.archive.retention import RetentionKeeper, check_retention
from ag06.persistence.archive.storage import Storage
from archives import TYPE, everything, fill, later, live, manifests, numbers, opened, segments
from records import eventually

DAY = 86_400.0


class Clock:
    """The time of day, as far ahead as a test likes."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


def keeper_of(retention: Retention, clock: Callable[[], float]) -> RetentionKeeper:
    return RetentionKeeper(check_retention(retention)[2], clock)


async def keep(events: EventStore, keeper: RetentionKeeper, holder: str = "me") -> None:
    await keeper.keep(await events.log(), holder)


async def test_events_move_to_the_archive_when_they_are_old_enough_and_go_when_they_are_older(
    store_url: str, archive: Path
) -> None:
    clock = Clock()
    retention = Retention(archive_after=DAY, delete_after=30 * DAY, archive=f"file://{archive}")
    keeper = keeper_of(retention, clock)
    async with opened(store_url, retention=retention) as events:
        await fill(events, 20)
        await keep(events, keeper)
        assert await live(events) == 20
        assert not archive.exists()
        clock.ahead = DAY + 10
        await keep(events, keeper)
        assert await live(events) == 0
        assert numbers(await everything(events)) == list(range(20))
        clock.ahead = 29 * DAY
        await keep(events, keeper)
        assert numbers(await everything(events)) == list(range(20))
        clock.ahead = 31 * DAY
        await keep(events, keeper)
        assert await everything(events) == []
        assert segments(archive) == []
        assert manifests(archive) == []


async def test_types_have_policies_of_their_own(store_url: str, archive: Path) -> None:
    clock = Clock()
    retention = Retention(
        archive_after=DAY,
        archive=f"file://{archive}",
        types={
            "kept": Retention(delete_after=0),
            "short": Retention(archive_after=10.0, delete_after=5 * DAY),
            "elsewhere": Retention(archive_after=DAY, archive=f"file://{archive}-other"),
        },
    )
    keeper = keeper_of(retention, clock)
    async with opened(store_url, retention=retention) as events:
        for place, event_type in enumerate(["kept", "short", "elsewhere", "any"]):
            await fill(events, 10, place * 10, event_type)
        await fill(events, 1, 40, "kept")
        clock.ahead = 60.0
        await keep(events, keeper)
        assert await live(events) == 31
        clock.ahead = DAY + 60
        await keep(events, keeper)
        assert await live(events) == 11
        assert len(segments(archive)) == 2
        assert len(segments(Path(f"{archive}-other"))) == 1
        assert numbers(await everything(events)) == list(range(41))
        clock.ahead = 6 * DAY
        await keep(events, keeper)
        assert numbers(await everything(events)) == [*range(10), *range(20, 41)]


async def test_a_manifest_goes_only_when_every_type_in_it_may(store_url: str, archive: Path) -> None:
    clock = Clock()
    retention = Retention(delete_after=DAY, archive=f"file://{archive}", types={"kept": Retention(delete_after=0)})
    keeper = keeper_of(retention, clock)
    async with opened(store_url, retention=0) as events:
        await fill(events, 10)
        await fill(events, 10, 10, "kept")
        await events.archive_before(later(), f"file://{archive}")
        await fill(events, 10, 20)
        await events.archive_before(later(), f"file://{archive}")
        clock.ahead = 2 * DAY
        await keep(events, keeper)
        assert len(manifests(archive)) == 1
        assert set(numbers(await everything(events))) >= set(range(20))


async def test_what_a_policy_is_to_archive_is_not_trimmed_before(store_url: str, archive: Path) -> None:
    """The archive is away: the events stay in the live log however old they are, and the log says why."""
    retention = Retention(archive_after=0.001, delete_after=0.002, archive="file:///dev/null/archive")
    async with opened(store_url, retention=retention) as events:
        await fill(events, 10)
        await asyncio.sleep(0.01)
        await (await events.log()).maintain()
        assert await live(events) == 10


async def test_an_archive_that_is_away_is_said_in_the_log_and_tried_again(
    store_url: str, archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    archive.write_text("in the way")
    retention = Retention(archive_after=DAY, archive=f"file://{archive}")
    start = time.time()
    keeper = keeper_of(retention, lambda: start + clock.ahead)
    async with opened(store_url, retention=retention) as events:
        await fill(events, 10)
        clock.ahead = 2 * DAY
        with caplog.at_level(logging.WARNING, logger="ag06.persistence"):
            await keep(events, keeper)
        assert "cannot be written" in caplog.text
        assert str(archive) in caplog.text
        assert await live(events) == 10
        archive.unlink()
        await keep(events, keeper)  # not due yet
        assert await live(events) == 10
        clock.ahead += 3600.0
        await keep(events, keeper)
        assert await live(events) == 0
        assert numbers(await everything(events)) == list(range(10))


async def test_an_archive_that_stays_away_is_tried_less_and_less_often(
    store_url: str, archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start, ahead = time.time() + DAY, 0
    archive.write_text("in the way")
    retention = Retention(archive_after=0.001, archive=f"file://{archive}")
    keeper = keeper_of(retention, lambda: start + ahead)
    tried: list[int] = []
    async with opened(store_url, retention=retention) as events:
        await fill(events, 10)
        for ahead in range(190):
            await keep(events, keeper)
            if caplog.records:
                tried.append(ahead)
                caplog.clear()
        assert tried == [0, 1, 3, 7, 15, 31, 63, 123, 183]
        archive.unlink()
        ahead = 243
        await keep(events, keeper)
        assert await live(events) == 0
        # Once it was reached, its next absence begins anew.
        shutil.rmtree(archive)
        archive.write_text("in the way")
        await fill(events, 10, 10)
        ahead = 300
        await keep(events, keeper)
        assert "tried again in 1 s" in caplog.text


async def test_who_cannot_reach_the_archive_lets_another_process_try(store_url: str, archive: Path) -> None:
    clock = Clock()
    retention = Retention(archive_after=DAY, archive=f"file://{archive}")
    one = keeper_of(Retention(archive_after=DAY, archive="file:///dev/null/archive"), clock)
    other = keeper_of(retention, clock)
    async with opened(store_url, retention=retention) as events:
        await fill(events, 10)
        clock.ahead = 2 * DAY
        await keep(events, one, "one")
        assert await live(events) == 10
        await keep(events, other, "other")
        assert await live(events) == 0
        # Who has failed leads no more, and takes nothing from who does.
        await one.release(await events.log(), "one")
        assert not await (await events.log()).lead("retention", "third", 60)
        await other.release(await events.log(), "other")
        assert await (await events.log()).lead("retention", "third", 60)


@pytest.mark.parametrize("reachable", [True, False])
async def test_the_next_worker_keeps_the_policies_at_once(store_url: str, archive: Path, reachable: bool) -> None:
    url = f"file://{archive}" if reachable else "file:///dev/null/archive"
    app = Workflow("shop", store=store_url, retention=Retention(archive_after=0.2, archive=url))
    led = asyncio.Event()

    @app.step(TYPE)
    async def bill(event: Event) -> None:
        pass

    async with opened(store_url, retention=0) as events:
        async with app.running():
            log = await app.events.log()
            lead = log.lead

            async def seen(role: str, holder: str, seconds: float) -> bool:
                done = await lead(role, holder, seconds)
                if role == "retention" and done:
                    led.set()
                return done

            log.lead = seen  # type: ignore[method-assign]
            await fill(app.events, 5)
            await asyncio.wait_for(led.wait(), 20)
        assert await (await events.log()).lead("retention", "next", 60)


async def test_one_of_many_processes_keeps_the_policies(store_url: str, archive: Path) -> None:
    clock = Clock()
    retention = Retention(archive_after=DAY, archive=f"file://{archive}")
    one, other = (keeper_of(retention, clock) for _ in range(2))
    async with opened(store_url, retention=retention) as events:
        await keep(events, one, "one")
        await fill(events, 10)
        clock.ahead = 2 * DAY
        await keep(events, other, "other")
        assert await live(events) == 10
        await keep(events, one, "one")
        assert await live(events) == 0


@pytest.mark.parametrize("crash", ["marked", "forgotten", "segments"])
async def test_a_deletion_that_was_cut_short_is_finished_and_never_undone(
    store_url: str, archive: Path, crash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    retention = Retention(delete_after=DAY, archive=f"file://{archive}")
    keeper = keeper_of(retention, clock)
    async with opened(store_url, retention=0) as events:
        await fill(events, 10)
        await events.archive_before(later(), f"file://{archive}")
        await fill(events, 1, 10, "newest")
        log = await events.log()
        clock.ahead = 2 * DAY

        class Cut(BaseException):
            """The process ends here."""

        async def no_more(self: Any, url: str) -> None:
            raise Cut

        def not_this(self: Storage, path: str) -> None:
            raise Cut

        delete = Storage.delete

        def only_segments(self: Storage, path: str) -> None:
            if not path.endswith(".parquet"):
                raise Cut
            delete(self, path)

        with monkeypatch.context() as patch:
            if crash == "marked":
                patch.setattr(type(log), "remove_archive", no_more)
            else:
                patch.setattr(Storage, "delete", not_this if crash == "forgotten" else only_segments)
            with pytest.raises(Cut):
                await keep(events, keeper)
        assert [path.suffix for path in archive.rglob("*") if path.is_file()].count(DELETED) == 1
        await fill(events, 10, 11)
        await events.archive_before(later(), f"file://{archive}")
        assert numbers(await everything(events)) == list(range(10, 21))
        assert len(manifests(archive)) == 1
        assert not list(archive.rglob(f"*{DELETED}"))


async def test_a_running_workflow_keeps_its_policies(store_url: str, archive: Path) -> None:
    app = Workflow("shop", store=store_url, retention=Retention(archive_after=0.2, archive=f"file://{archive}"))

    @app.step(TYPE)
    async def bill(event: Event) -> None:
        pass

    async with app.running():
        await fill(app.events, 30)
        await app.drain(timeout=20)

        async def moved() -> bool:
            return await live(app.events) == 0

        await eventually(moved, 20)
        assert numbers(await everything(app.events)) == list(range(30))
    assert segments(archive)


async def test_a_workflow_stops_in_the_middle_of_a_run(tmp_path: Path, archive: Path) -> None:
    """The run is cut off; its events are still there, and the next one has them."""
    url = f"sqlite:///{tmp_path}/events.db"
    settings: dict[str, Any] = {"store": url, "retention": Retention(archive_after=0.01, archive=f"file://{archive}")}
    app = Workflow("shop", **settings)
    async with app.running():
        await fill(app.events, 3000)
        while not archive.exists():
            await asyncio.sleep(0.001)
    async with opened(url) as events:
        assert numbers(await everything(events)) == list(range(3000))
        await events.archive_before(later(), f"file://{archive}")
        assert numbers(await everything(events)) == list(range(3000))


WRONG = [
    (Retention(archive_after=5.0), "needs archive=URL"),
    (Retention(archive_after=-1.0, archive="memory://a"), "archive_after=-1.0"),
    (Retention(archive_after=10.0, delete_after=5.0, archive="memory://a"), "not above archive_after"),
    (Retention(delete_after=-1.0), "delete_after=-1.0"),
    (Retention(archive_after=5.0, archive="nonsense://a"), "nonsense"),
    (Retention(archive_after=5.0, archive="a"), "is no URL"),
    (Retention(types={"": Retention()}), "type: must not be empty"),
    (Retention(types={"a": Retention(archive="memory://a")}), "retention of 'a' says nothing"),
    (Retention(types={"a": 5.0}), "a Retention without types"),  # type: ignore[dict-item]
    (Retention(types={"a": Retention(types={"b": Retention()})}), "a Retention without types"),
    (Retention(types=["a"]), "a mapping from a type"),  # type: ignore[arg-type]
    (Retention(types={"a": Retention(archive_after=5.0)}), "retention of 'a': archive_after=5.0 needs archive=URL"),
    ("7 days", "retention='7 days'"),
    (-1, "retention=-1"),
]


@pytest.mark.parametrize(("retention", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_retention_that_cannot_be_kept_is_an_error_at_the_start(retention: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words.replace("[", r"\[")):
        EventStore("memory://", retention=retention)
    with pytest.raises(ConfigurationError, match=words.replace("[", r"\[")):
        Workflow("shop", store="memory://", retention=retention)


def test_retention_is_public() -> None:
    assert ag06.Retention is Retention
    assert "Retention" in ag06.persistence.__all__


async def test_a_part_of_an_archive_that_is_lost_keeps_no_other_from_being_deleted(
    store_url: str, archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    keeper = keeper_of(Retention(delete_after=DAY, archive=f"file://{archive}"), clock)
    async with opened(store_url, retention=0) as events:
        for part in range(3):
            await fill(events, 10, part * 10)
            await events.archive_before(later(), f"file://{archive}")
        lost = manifests(archive)[0]
        lost.unlink()
        clock.ahead = 2 * DAY
        await keep(events, keeper)
        assert manifests(archive) == []
        assert str(lost) in caplog.text
        assert len(segments(archive)) == 1
        # Whose file is lost is still named to whoever asks for its events.
        with pytest.raises(ArchiveUnavailable, match="is not there"):
            await everything(events)


async def test_a_clock_that_was_ahead_of_its_time_puts_nothing_off(store_url: str, archive: Path) -> None:
    clock = Clock()
    keeper = keeper_of(Retention(archive_after=10.0, archive=f"file://{archive}"), clock)
    async with opened(store_url, retention=0) as events:
        clock.ahead = 400 * DAY
        await keep(events, keeper)
        clock.ahead = 0.0
        await fill(events, 10)
        clock.ahead = 60.0
        await keep(events, keeper)
        assert await live(events) == 0


async def test_a_shutdown_does_not_wait_for_an_archive_that_hangs(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    write = Storage.write

    def hanging(self: Storage, path: str, data: bytes) -> None:
        hangs.set()
        goes_on.wait()
        write(self, path, data)

    def shop(**settings: Any) -> tuple[Workflow, asyncio.Queue[str]]:
        app = Workflow("shop", store=f"sqlite:///{tmp_path}/events.db", grace=0.2, visibility_timeout=3600, **settings)
        started: asyncio.Queue[str] = asyncio.Queue()

        @app.step("order")
        async def bill(event: Event) -> None:
            await started.put(event.id)
            await asyncio.Event().wait()

        return app, started

    monkeypatch.setattr(Storage, "write", hanging)
    app, started = shop(retention=Retention(archive_after=0.001, archive=f"file://{archive}"))
    try:
        async with asyncio.timeout(30):
            async with app.running():
                await app.publish("nobody.listens", data=1)
                order = await app.publish("order", data=1)
                assert await started.get() == order
                await asyncio.to_thread(hangs.wait)
            again, started_again = shop()
            async with again.running():
                assert await started_again.get() == order, "what was in flight was not given back"
    finally:
        goes_on.set()

"""`ag06 events archive`, and replays that read archives, as a user runs them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archives import TYPE, fill, later, live, opened, segments
from commands import ag06


@pytest.fixture(params=["sqlite", "redis"])
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_events_move_to_the_archive_and_are_replayed_and_exported_from_there(
    store_url: str, tmp_path: Path
) -> None:
    async with opened(store_url) as events:
        await fill(events, 30)
        await fill(events, 5, 30, "order.billed")
    store = ("--store", store_url)
    before = ag06("events", "replay", *store, cwd=tmp_path)
    target = f"file://{tmp_path}/archive"
    ended = ag06("events", "archive", "--before", "0s", "--to", target, "--type", TYPE, *store, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("30 events recorded from 20")
    assert f"moved to 1 files in {target}" in ended.out
    async with opened(store_url) as events:
        assert await live(events) == 5
    assert ag06("events", "replay", *store, cwd=tmp_path) == before
    assert len(before.lines) == 35
    exported = ag06("events", "export", "-", *store, cwd=tmp_path)
    assert exported.out == before.out
    again = ag06("events", "archive", "--before", "0s", "--to", target, "--json", *store, cwd=tmp_path)
    assert (again.code, again.json["events"]) == (0, 5)
    assert again.json["files"][0].startswith(target)
    nothing = ag06("events", "archive", "--before", "1d", "--to", target, *store, cwd=tmp_path)
    assert (nothing.code, nothing.out.partition(":")[0]) == (0, "nothing to archive")


async def test_the_archive_may_be_named_by_the_settings(store_url: str, tmp_path: Path) -> None:
    async with opened(store_url) as events:
        await fill(events, 3)
    env = {"AG06_ARCHIVE": f"file://{tmp_path}/archive"}
    ended = ag06("events", "archive", "--before", "0s", "--json", "--store", store_url, cwd=tmp_path, env=env)
    assert ended.json["events"] == 3
    (tmp_path / "ag06.toml").write_text(f'archive = "file://{tmp_path}/other"\n')
    async with opened(store_url) as events:
        await fill(events, 3, 3)
    ended = ag06("events", "archive", "--before", "0s", "--json", "--store", store_url, cwd=tmp_path)
    assert ended.json["url"].startswith(f"file://{tmp_path}/other")


async def test_an_archive_in_memory_is_refused_from_the_settings_too(store_url: str, tmp_path: Path) -> None:
    async with opened(store_url) as events:
        await fill(events, 3)
    archive = ("events", "archive", "--before", "0s", "--store", store_url)
    ended = ag06(*archive, cwd=tmp_path, env={"AG06_ARCHIVE": "memory://archive"})
    assert (ended.code, "would be gone when the process ends" in ended.err) == (2, True)
    (tmp_path / "ag06.toml").write_text('archive = "memory://archive"\narchive_after = "30d"\n')
    for command in (archive, ("events", "list", "--store", store_url)):
        ended = ag06(*command, cwd=tmp_path)
        assert (ended.code, "would be gone when the process ends" in ended.err) == (2, True)
    async with opened(store_url) as events:
        assert await live(events) == 3


async def test_a_damaged_archive_is_one_line_and_salvage_prints_the_rest(store_url: str, tmp_path: Path) -> None:
    store = ("--store", store_url)
    async with opened(store_url) as events:
        for part in range(2):
            await fill(events, 20, part * 20)
            await events.archive_before(later(), f"file://{tmp_path}/archive")
        await fill(events, 20, 40)
    bad = segments(tmp_path / "archive")[0]
    os.truncate(bad, 100)
    ended = ag06("events", "replay", *store, cwd=tmp_path)
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1
    assert f"{bad}.corrupt is damaged" in ended.err
    salvaged = ag06("events", "replay", "--salvage", *store, cwd=tmp_path)
    assert [event["data"]["number"] for event in salvaged.lines] == list(range(20, 60))
    assert f"{bad}.corrupt is damaged" in salvaged.err


MISTAKES = [
    (("--before", "0s"), 2, "no archive is named; give --to URL"),
    (("--before", "0s", "--to", "/archive"), 2, "is no URL"),
    (("--before", "0s", "--to", "nonsense://archive"), 2, "nonsense"),
    (("--before", "0s", "--to", "memory://archive"), 2, "would be gone when the process ends"),
    (("--before", "tomorrow", "--to", "file:///tmp/a"), 2, "--before 'tomorrow' is not a time"),
    (("--before", "0s", "--to", "file:///dev/null/archive"), 1, "cannot be written: File exists (/dev/null)"),
]


@pytest.mark.parametrize(("options", "code", "words"), MISTAKES, ids=[words for _, _, words in MISTAKES])
async def test_a_mistake_is_one_line_and_moves_nothing(
    store_url: str, tmp_path: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    async with opened(store_url) as events:
        await fill(events, 3)
    ended = ag06("events", "archive", *options, "--store", store_url, cwd=tmp_path)
    assert ended.code == code
    assert words in ended.err
    assert len(ended.err.splitlines()) == 1
    async with opened(store_url) as events:
        assert await live(events) == 3


async def test_a_run_that_moves_nothing_makes_no_folder(store_url: str, tmp_path: Path) -> None:
    target = tmp_path / "archive"
    async with opened(store_url) as events:
        await fill(events, 3)
        done = await events.archive_before(0, f"file://{target}")
        assert (done.events, done.url) == (0, f"file://{target}")
        assert not target.exists()
        assert await (await events.log()).archives() == []
        assert (await events.archive_before(later(), f"file://{target}")).events == 3


DOCTORS = [
    ("file://{path}/there", 0, "pass", "it can be reached"),
    ("file://{path}/new/deep", 0, "pass", "the first run makes it"),
    ("file://{path}/file/archive", 0, "warn", "Not a directory"),
    ("memory://archive", 2, "fail", "would be gone when the process ends"),
    ("nonsense://archive", 2, "fail", "nonsense"),
]


@pytest.mark.parametrize(("url", "code", "status", "words"), DOCTORS, ids=[words for *_, words in DOCTORS])
def test_the_doctor_looks_at_the_archive_and_writes_nothing(
    tmp_path: Path, url: str, code: int, status: str, words: str
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("in the way")
    before = sorted(tmp_path.rglob("*"))
    env = {"AG06_ARCHIVE": url.format(path=tmp_path), "AG06_JOURNAL": "off"}
    ended = ag06("doctor", "--json", cwd=tmp_path, env=env)
    (found,) = [finding for finding in ended.json if finding["topic"] == "archive"]
    assert (ended.code, found["status"]) == (code, status)
    assert words in found["what"]
    assert sorted(tmp_path.rglob("*")) == before

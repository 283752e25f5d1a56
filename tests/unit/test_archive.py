"""The parts of an archive: segments give back what they took, merging has no gap or double, manifests are sealed."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ag06 import ConfigurationError
from ag06.errors import ArchiveDamaged, InvalidEvent, StoreError
from ag06.event import Event, decode_event, to_millis
from ag06.persistence.admission import Admission
from ag06.persistence.archive import manifest as manifests
from ag06.persistence.archive.manifest import Manifest, Segment, parse_entry
from ag06.persistence.archive.merging import Merger
from ag06.persistence.archive.reading import read_manifest
from ag06.persistence.archive.retention import Retention, check_retention
from ag06.persistence.archive.segments import SCHEMA, SegmentWriter, check_segment, read_segment
from ag06.persistence.archive.selection import Selection
from ag06.persistence.archive.storage import open_storage
from ag06.persistence.log import Cut, Stored
from ag06.settings import Setting, seconds_of

ADMISSION = Admission()
_names = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_times = st.datetimes(timezones=st.just(dt.UTC)) | st.datetimes(
    timezones=st.just(dt.timezone(dt.timedelta(hours=-7, minutes=30))),
    min_value=dt.datetime(1, 1, 2),  # noqa: DTZ001 - hypothesis wants it so
    max_value=dt.datetime(9999, 12, 30),  # noqa: DTZ001
)
_events = st.fixed_dictionaries(
    {
        "event_type": _names,
        "source": _names,
        "data": _json,
        "priority": st.integers(0, 3),
        "id": st.none() | _names,
        "subject": st.none() | _names,
        "idempotency_key": st.none() | _names,
        "correlation_id": st.none() | _names,
        "causation_id": st.none() | _names,
        "traceparent": st.none() | _names,
        "time": st.none() | _times,
        "dedup": st.booleans(),
    }
)


class _Everything(dict[tuple[str, int], range]):
    def get(self, key: Any, default: Any = None) -> range:
        return range(1 << 62)


def segment(stored: list[Stored], ranges: Any = None) -> bytes:
    with ThreadPoolExecutor(1) as pool:
        writer = SegmentWriter(_Everything() if ranges is None else ranges, pool)
        writer.add(stored)
        data, _ = writer.close()
    return bytes(data)


@settings(max_examples=60, deadline=None)
@given(st.lists(_events, min_size=1, max_size=8))
def test_a_segment_gives_back_every_event_as_it_was(members: list[dict[str, Any]]) -> None:
    stored = []
    for number, member in enumerate(members):
        try:
            body = ADMISSION.admit(**member).body
        except InvalidEvent:
            continue  # a name or a text that no log takes
        stored.append(Stored((1_790_000_000_000 + number << 20) + number, 1_790_000_000_000 + number, body))
    if not stored:
        return
    data = segment(stored)
    found = [placed for page in read_segment(data) for placed in page]
    expected = [(one.position, decode_event(one.body, one.recorded_ms)) for one in stored]
    assert found == expected
    assert [str(event) for _, event in found] == [str(event) for _, event in expected]  # types too: 1 is not 1.0
    assert check_segment(data) == (len(stored), stored[0].position, stored[-1].position)


def numbered(count: int, first: int = 0) -> list[Stored]:
    return [
        Stored(number * 10, 1_790_000_000_000 + number, ADMISSION.admit(f"type-{number % 2}", "s", number).body)
        for number in range(first, first + count)
    ]


@settings(deadline=None)
@given(st.integers(-5, 120), st.integers(-5, 120), st.integers(0, 12), st.integers(0, 12))
def test_a_selection_of_a_segment_is_that_of_a_list(after: int, last: int, start: int, end: int) -> None:
    base = 1_790_000_000_000
    selection = Selection(
        after=after, last=last, start_ms=base + start, end_ms=base + end, types=frozenset(["type-1", "other"])
    )
    found = [event.data for page in read_segment(segment(numbered(10)), selection) for _, event in page]
    assert found == [
        number for number in range(10) if number % 2 and after < number * 10 <= last and start <= number < end
    ]


def test_a_segment_holds_only_what_lies_in_the_range_of_its_stream() -> None:
    data = segment(numbered(10), {("type-0", 1): range(21, 61), ("type-1", 1): range(31)})
    assert [event.data for page in read_segment(data) for _, event in page] == [1, 3, 4, 6]


def test_a_segment_out_of_order_is_not_believed() -> None:
    stored = numbered(3)
    for wrong in ([stored[1], stored[0], stored[2]], [stored[0], stored[0]]):
        with pytest.raises(StoreError, match="do not ascend"):
            check_segment(segment(wrong))


@pytest.mark.parametrize("body", [b"{", b'{"id":"a"}', b"[]", b'{},{"id":"b"}', b""])
def test_a_body_that_is_no_event_is_named(body: bytes) -> None:
    with pytest.raises(StoreError, match=r"event at position 17 cannot be archived|is not one JSON object"):
        segment([Stored(17, 1, body)])


def test_the_columns_are_those_of_the_documentation() -> None:
    assert SCHEMA.names == [
        "position", "recorded", "id", "type", "source", "subject", "data", "time", "priority", "correlation_id",
        "causation_id", "traceparent", "identity",
    ]  # fmt: skip


async def _pages(items: list[int], size: int) -> AsyncIterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 60)), st.integers(1, 7)), max_size=6))
async def test_merging_gives_out_every_position_once_and_in_order(sources: list[tuple[set[int], int]]) -> None:
    merger: Merger[int] = Merger(lambda item: item)
    for items, size in sources:
        merger.add(min(items, default=-1), _pages(sorted(items), size))
    found = [item async for page in merger.pages() for item in page]
    assert found == sorted(set().union(*(items for items, _ in sources)))


async def test_a_source_that_lies_behind_is_not_asked_before_its_turn() -> None:
    asked = []

    async def source(name: str, items: list[int]) -> AsyncIterator[list[int]]:
        asked.append(name)
        yield items

    merger: Merger[int] = Merger(lambda item: item)
    merger.add(1, source("early", [1, 2]))
    merger.add(5, source("late", [5, 6]))
    pages = merger.pages()
    assert await anext(pages) == [1, 2]
    assert asked == ["early"]
    assert await anext(pages) == [5, 6]


def manifest() -> Manifest:
    part = Segment("2026-01-01/a-0000.parquet", 10, "00", 3, 5, 9, 1_000, 2_000, {"t": 3})
    return Manifest("a", dt.datetime(2026, 1, 1, tzinfo=dt.UTC), (part,), (Cut("t", 1, 10),))


def test_a_manifest_comes_back_as_it_was_and_every_changed_byte_is_noticed() -> None:
    data = manifests.encode(manifest())
    assert manifests.decode(data) == manifest()
    for place in range(len(data) - 1):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(StoreError):
            manifests.decode(bytes(changed))
    for length in range(len(data) - 1):
        with pytest.raises(StoreError):
            manifests.decode(data[:length])


def test_a_manifest_of_a_newer_release_is_refused() -> None:
    with pytest.raises(StoreError, match="upgrade ag06"):
        manifests.decode(manifests.encode(msgspec.structs.replace(manifest(), version=2)))


@pytest.mark.parametrize("path", ["../../victim", "/etc/passwd", "2026-01-01/../../a.parquet", "about.json", ""])
def test_a_manifest_that_names_a_file_outside_the_archive_is_refused(path: str) -> None:
    (part,) = manifest().segments
    forged = msgspec.structs.replace(manifest(), segments=(part, msgspec.structs.replace(part, path=path)))
    with pytest.raises(StoreError, match="cannot be read"):
        manifests.decode(manifests.encode(forged))


def test_a_manifest_under_the_name_of_another_run_is_damaged() -> None:
    folder = open_storage("memory:///misplaced")
    folder.write("manifests/b.json", manifests.encode(manifest()))
    with pytest.raises(ArchiveDamaged, match="that of another run"):
        read_manifest(folder, "b")


@pytest.mark.parametrize("folder", ["file:///var/ag06/x/", "s3://bucket/a#b/x/", "memory:///x/"])
def test_an_entry_is_found_again_in_its_url(folder: str) -> None:
    entry = manifest().entry(folder)
    assert parse_entry(entry.url) == entry
    assert parse_entry(folder) is None
    assert (entry.first, entry.last, entry.start_ms, entry.last_ms) == (5, 9, 1_000, 2_000)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", None), ("90", 90), ("1.5", 1.5), ("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000)],
)
def test_a_span_is_a_number_with_its_unit(text: str, seconds: float | None) -> None:
    assert seconds_of(Setting("archive_after", text, "flag")) == seconds


@pytest.mark.parametrize("text", ["5x", "-5", "d", "1e3", "99999999d", "5 d", "٣d"])
def test_a_span_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="archive after"):
        seconds_of(Setting("archive_after", text, "AG06_ARCHIVE_AFTER"))


def test_what_must_be_archived_first_is_never_deleted_by_the_log_itself() -> None:
    retention = Retention(
        delete_after=50.0,
        archive="memory://a",
        types={
            "archived": Retention(archive_after=5.0, delete_after=60.0),
            "kept": Retention(delete_after=0),
            "short": Retention(delete_after=1.0),
        },
    )
    seconds, by_type, policies = check_retention(retention)
    assert seconds == 50.0
    assert by_type == {"archived": 0.0, "kept": 0, "short": 1.0}
    assert [policy.archive for policy in policies] == ["memory://a"] * 4
    assert check_retention(None) == (None, {}, [])
    assert check_retention(7) == (7, {}, [])


_MISSING = """
import asyncio, sys
sys.modules[sys.argv[1]] = None
import ag06
from ag06.persistence import EventStore

async def main():
    events = EventStore("memory://")
    await events.persist_event("t", "s", 1)
    assert [event.data async for event in events.replay()] == [1]
    try:
        await events.archive_before(0, "memory://a")
    except ag06.ConfigurationError as error:
        print(error)
    try:
        EventStore("memory://", retention=ag06.Retention(archive_after=1, archive="memory://a"))
    except ag06.ConfigurationError as error:
        print(error)

asyncio.run(main())
"""


@pytest.mark.parametrize("package", ["pyarrow", "fsspec"])
def test_without_the_extra_everything_else_works_and_the_error_names_it(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MISSING, package], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["an archive needs fsspec and pyarrow: pip install 'ag06[archive]'"] * 2


def test_whoever_archives_nothing_does_not_load_what_it_takes() -> None:
    script = (
        "import sys, ag06, ag06.persistence; print([name for name in ('pyarrow', 'fsspec') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_an_event_is_what_its_columns_say() -> None:
    (page,) = read_segment(segment(numbered(1)))
    (position, event), *_ = page
    assert position == 0
    assert isinstance(event, Event)
    assert event.recorded is not None
    assert to_millis(event.recorded) == 1_790_000_000_000
    assert event.recorded.tzinfo is dt.UTC
    assert event.time.tzinfo is dt.UTC


@pytest.mark.parametrize("url", ['"file:///tmp/archive"', "file:///tmp/arch\nive"])
def test_the_url_of_an_archive_is_cleaned_as_any_setting(url: str) -> None:
    with pytest.raises(ConfigurationError, match="from its URL"):
        open_storage(url)

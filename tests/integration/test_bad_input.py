"""What breaks a limit is refused by name, and leaves no trace in any store."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ag06 import ConfigurationError, InvalidEvent, Workflow
from ag06.persistence import EventStore

NAIVE = dt.datetime(2026, 1, 2, 12, 0)  # noqa: DTZ001
NOON = NAIVE.replace(tzinfo=dt.UTC)
NAMES = ("type", "source", "subject", "id", "idempotency_key", "correlation_id", "causation_id", "traceparent")


@dataclass
class Meeting:
    at: dt.datetime


class Reading(msgspec.Struct):
    value: float


def deep(levels: int) -> Any:
    data: Any = 1
    for n in range(levels):
        data = [data] if n % 2 else {"a": data}
    return data


looped: dict[str, Any] = {}
looped["again"] = [looped]

DATA: list[tuple[Any, str, str]] = [
    ({"a": [1, float("nan")]}, "data.a[1]", "is nan; JSON has no NaN"),
    ({"a": float("-inf")}, "data.a", "is -inf"),
    (decimal.Decimal("NaN"), "data", "is NaN"),
    (Reading(float("nan")), "data.value", "is nan"),
    ({"a": {1, 2}}, "data.a", "of type set"),
    ({"a": b"bytes"}, "data.a", "of type bytes"),
    ({"a": object()}, "data.a", "of type object"),
    (lambda: 1, "data", "of type function"),
    (1 + 2j, "data", "of type complex"),
    ({1: 2}, "data", "has the key 1 of type int; keys must be text"),
    ({"a": {("x", "y"): 2}}, "data.a", "of type tuple"),
    ({"a": "\ud800"}, "data.a", "lone surrogate at character 0"),
    ({"a\udfff": 1}, "data", "lone surrogate"),
    ({"a": NAIVE}, "data.a", "2026-01-02T12:00:00 has no time zone"),
    (Meeting(NAIVE), "data.at", "has no time zone"),
    (deep(101), "data", "deeper than 100 levels"),
    (deep(100_000), "data", "deeper than 100 levels"),
    (looped, "data", "deeper than 100 levels"),
    ("x" * (1 << 20), "data", "is 1048578 bytes of JSON; the limit is 1048576 (max_event_bytes)"),
    (["ü" * 1000] * 600, "data", "the limit is 1048576"),
]

SETTINGS: list[tuple[dict[str, Any], str, str]] = [
    ({"priority": 4}, "priority", "is 4; use Priority.LOW, NORMAL, HIGH or CRITICAL (0 to 3)"),
    ({"priority": -1}, "priority", "is -1"),
    ({"priority": True}, "priority", "is True"),
    ({"priority": 1.0}, "priority", "is 1.0"),
    ({"priority": "urgent"}, "priority", "is 'urgent'"),
    ({"priority": None}, "priority", "is None"),
    ({"priority": []}, "priority", "is []"),
    ({"delay": -0.001}, "delay", "is -0.001; seconds from 0 to"),
    ({"delay": float("nan")}, "delay", "is nan"),
    ({"delay": float("inf")}, "delay", "is inf"),
    ({"delay": 11 * 366 * 86_400}, "delay", "ten years"),
    ({"delay": "1"}, "delay", "is '1'"),
    ({"delay": True}, "delay", "is True"),
    ({"delay": dt.timedelta(seconds=1)}, "delay", "seconds"),
    ({"delay": 1, "at": NOON}, "at", "must not come together with delay"),
    ({"delay": 0, "at": NOON}, "at", "must not come together with delay"),
    ({"at": NAIVE}, "at", "2026-01-02T12:00:00 has no time zone"),
    ({"at": 1_700_000_000}, "at", "must be an aware datetime, got int"),
    ({"at": "2026-01-02T12:00:00Z"}, "at", "must be an aware datetime, got str"),
    ({"time": NAIVE}, "time", "2026-01-02T12:00:00 has no time zone"),
    ({"time": NOON.date()}, "time", "must be an aware datetime, got date"),
    ({"time": 1_700_000_000.0}, "time", "must be an aware datetime, got float"),
    ({"time": "now"}, "time", "must be an aware datetime, got str"),
    ({"time": dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1)))}, "time", "outside the years 1 to"),
]


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EventStore]:
    opened = EventStore(store_url)
    yield opened
    await opened.close()


async def refused(store: EventStore, field: str, words: str, **arguments: Any) -> None:
    """Publish in every way there is; each must be refused, and leave nothing."""
    said = {"event_type": "t", "source": "s", "data": 1} | arguments
    with pytest.raises(InvalidEvent) as error:
        await store.persist_event(**said)
    assert error.value.field == field
    assert str(error.value).startswith(f"{field}: ")
    assert words in str(error.value), str(error.value)
    good = {"event_type": "t", "source": "s", "data": "good"}
    with pytest.raises(InvalidEvent) as error:
        await store.persist_events([good, said])
    assert error.value.field == f"events[1].{field}"
    assert words in str(error.value)


async def assert_untouched(store: EventStore) -> None:
    stats = await store.stats()
    assert (stats.events, stats.scheduled, stats.duplicates, stats.groups) == (0, 0, 0, ())
    assert await store.replay_from(0) == []
    # Nor was the refused event, or the good one beside it, remembered.
    assert await store.persist_event("t", "s", "good") is not None
    assert await store.persist_event("t", "s", 1) is not None


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_that_breaks_a_limit_is_refused_and_nothing_is_stored(store: EventStore, name: str) -> None:
    argument = "event_type" if name == "type" else name
    bad: list[tuple[Any, str]] = [
        ("", "must not be empty"),
        ("x" * 256, "is 256 bytes of UTF-8; the limit is 255"),
        ("ü" * 128, "is 256 bytes of UTF-8; the limit is 255"),
        ("a\ud800", "lone surrogate at character 1"),
        ("a\nb", "control character '\\n'"),
        ("a\x00", "control character"),
        (7, "must be text, got int"),
        (b"bytes", "must be text, got bytes"),
        (["t"], "must be text, got list"),
    ]
    if name in ("type", "source"):
        bad.append((None, "must be text, got NoneType"))
    for value, words in bad:
        await refused(store, name, words, **{argument: value})
        if name == "idempotency_key":
            await refused(store, name, words, dedup=False, **{argument: value})
    await assert_untouched(store)


async def test_data_that_cannot_be_stored_as_it_is_is_refused_and_nothing_is_stored(store: EventStore) -> None:
    for data, field, words in DATA:
        with pytest.raises(InvalidEvent) as error:
            await store.persist_event("t", "s", data)
        place = error.value.field
        # Of what is too deep, only the beginning of the path is named.
        assert place.startswith("data") if "deeper" in words else place == field
        await refused(store, place, words, data=data)
    await assert_untouched(store)


async def test_settings_of_an_event_that_are_wrong_are_refused_and_nothing_is_stored(store: EventStore) -> None:
    for arguments, field, words in SETTINGS:
        await refused(store, field, words, **arguments)
    await assert_untouched(store)


async def test_the_largest_names_and_data_are_stored_whole(store: EventStore) -> None:
    name = "ü" * 127 + "x"
    names = {"id": name, "subject": name, "correlation_id": name, "causation_id": name, "idempotency_key": name}
    largest, deepest = "x" * ((1 << 20) - 2), deep(100)
    assert await store.persist_event(name, name, largest, **names) == name
    assert await store.persist_event(name, name, deepest) is not None
    first, second = await store.replay_from(0)
    assert {getattr(first, field) for field in ("type", "source", *names) if hasattr(first, field)} == {name}
    assert (first.data, second.data) == (largest, deepest)
    with pytest.raises(InvalidEvent, match="other content"):
        await store.persist_event(name, name, "other", id=name)


async def test_the_limit_of_an_event_can_be_set(store_url: str) -> None:
    store = EventStore(store_url, max_event_bytes=3 << 20)
    data = "x" * (2 << 20)
    assert await store.persist_event("t", "s", data) is not None
    assert [event.data for event in await store.replay_from(0)] == [data]
    with pytest.raises(InvalidEvent, match=r"data: is 3145729 bytes of JSON; the limit is 3145728"):
        await store.persist_event("t", "s", "x" * ((3 << 20) - 1))
    await store.initialize(store_url, max_event_bytes=10)
    with pytest.raises(InvalidEvent, match=r"data: is 11 bytes of JSON; the limit is 10"):
        await store.persist_event("t", "s", "x" * 9)
    assert await store.persist_event("t", "s", "x" * 8) is not None
    assert len(await store.replay_from(0)) == 2
    await store.close()


async def test_a_workflow_refuses_the_same_and_stores_nothing(store_url: str) -> None:
    app = Workflow("shop", store=store_url)

    @app.step("t")
    async def step(event: Any) -> None:
        raise AssertionError("nothing was published")

    async with app.running():
        for arguments, field, _ in [*SETTINGS, ({"data": {1}}, "data", ""), ({"event_type": ""}, "type", "")]:
            with pytest.raises(InvalidEvent) as error:
                await app.publish(**{"event_type": "t", "data": 1} | arguments)
            assert error.value.field == field
        await app.drain(timeout=20)
        stats = await app.events.stats()
    assert (stats.events, stats.scheduled, stats.duplicates, stats.dead_letters) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (NAIVE, "2026-01-02T12:00:00 has no time zone"),
        (True, "is True; give an aware datetime or seconds since the epoch"),
        ("2026-01-02T12:00:00Z", "give an aware datetime or seconds since the epoch"),
        (NOON.date(), "give an aware datetime"),
        (float("nan"), "is nan"),
        (float("inf"), "is inf"),
        (1e14, "is 100000000000000.0"),
        (decimal.Decimal(1), "give an aware datetime"),
    ],
    ids=str,
)
async def test_a_moment_that_is_none_is_refused_by_replay(store: EventStore, moment: Any, words: str) -> None:
    await store.persist_event("t", "s", 1)
    calls = {
        "start": [store.replay_from(moment), anext(store.replay(start=moment))],
        "end": [anext(store.replay(end=moment))],
    }
    for field, attempts in calls.items():
        for attempt in attempts:
            with pytest.raises(InvalidEvent) as error:
                await attempt
            assert error.value.field == field
            assert words in str(error.value)


@pytest.mark.parametrize(
    ("selection", "field"),
    [
        ({"limit": "3"}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"types": 3}, "types"),
        ({"types": ["t", None]}, "types"),
        ({"sources": [1]}, "sources"),
    ],
    ids=str,
)
async def test_a_selection_that_is_none_is_refused_by_replay(
    store: EventStore, selection: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidEvent) as error:
        await anext(store.replay(**selection))
    assert error.value.field == field


# Settings and URLs

WRONG_SETTINGS = [
    {name: value}
    for name, values in {
        "dedup_window": ["300", True, -1, float("nan"), float("inf"), 1e300, None],
        "retention": ["7 days", True, -1, float("nan"), float("inf"), 1e300],
        "timeout": ["5", True, 0, -1, float("nan"), float("inf"), 1e9, None],
        "max_backlog": ["5", True, -1, 1.5, float("inf"), None],
        "max_event_bytes": ["5", True, 0, -1, 1.5, None],
        "durability": ["disk", "", "FSYNC", 1, True, ["fsync"]],
    }.items()
    for value in values
]


@pytest.mark.parametrize("setting", WRONG_SETTINGS, ids=str)
async def test_a_wrong_setting_is_named_with_its_value_and_what_is_accepted(setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    store = EventStore()
    with pytest.raises(ConfigurationError) as error:
        await store.initialize("memory://settings", **setting)
    assert str(error.value).startswith(f"{name}={value!r}")
    assert len(str(error.value)) > len(f"{name}={value!r}") + 10
    with pytest.raises(ConfigurationError):
        EventStore("memory://settings", **setting)
    with pytest.raises(ConfigurationError):
        Workflow("shop", store="memory://settings", **setting)
    with pytest.raises(ConfigurationError, match="initialize"):
        await store.persist_event("t", "s")


async def test_a_wrong_setting_leaves_an_open_store_as_it_is(store_url: str) -> None:
    store = EventStore()
    await store.initialize(store_url)
    await store.persist_event("t", "s", 1)
    with pytest.raises(ConfigurationError):
        await store.initialize("memory://other", timeout=-1)
    assert (store.url, len(await store.replay_from(0))) == (store_url, 1)
    await store.close()


async def test_a_level_of_durability_that_does_not_exist_is_refused_and_nothing_is_stored(store: EventStore) -> None:
    for level in ("disk", "", 1, True):
        with pytest.raises(ConfigurationError, match=f"durability={level!r}; use 'server', 'fsync' or 'replicated'"):
            await store.persist_event("t", "s", 1, durability=level)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=f"durability={level!r}"):
            await store.persist_events([{"event_type": "t", "source": "s"}], durability=level)  # type: ignore[arg-type]
    await assert_untouched(store)


WRONG_URLS: list[tuple[Any, str]] = [
    ("", "is not a URL"),
    ("events.db", "is not a URL"),
    ("memory", "is not a URL"),
    ("memory:", "is not a URL"),
    ("redis:user:s3cret@host", "is not a URL"),
    ("postgres://user:s3cret@host/db", "unknown scheme 'postgres'"),
    ("unix:///run/redis.sock", "unknown scheme 'unix'"),
    ("kafka://host", "unknown scheme 'kafka'"),
    ("://host", "unknown scheme ''"),
    ("sqlite://events.db", "write sqlite:///relative.db or sqlite:////absolute.db"),
    ("sqlite:///", "write sqlite:///relative.db or sqlite:////absolute.db"),
    ("sqlite:///:memory:", "memory://"),
    ("sqlite:///?mode=ro", "needs a file"),
    ("sqlite:///a.db?mode=ro", "takes no options after '?'; write a '?' in a name as %3F"),
    ("memory://a?log=b", "takes no options after '?'"),
    ("sqlite:///a%00b", "the character U+0000 at position 1"),
    ("sqlite:///a%1b[31mb.db", "the character U+001B at position 1"),
    ("sqlite:///%22a.db%22", "is in quotes"),
    ('"sqlite:///a.db"', "is in quotes"),
    ("sqlite:///a\n.db", "the character U+000A"),
    ("redis://", "write redis://HOST:PORT/DB"),
    ("redis:///0", "write redis://HOST:PORT/DB"),
    ("redis://:s3cret@:6379", "write redis://HOST:PORT/DB"),
    ("redis://host:0", "write redis://HOST:PORT/DB"),
    ("redis://host:99999", "Port out of range"),
    ("redis://host:port", "is not a URL"),
    ("redis://[::1", "is not a URL"),
    ("redis://host/events", "the path is the number of a database"),
    ("redis://host/1/2", "the path is the number of a database"),
    ("redis://host/-1", "the path is the number of a database"),
    ("redis://host/0?log=", "log=''"),
    ("redis://host/0?log=a{b}", "log='a{b}'"),
    ("redis://host/0?log=" + "x" * 65, "at most 64"),
    ("redis://host/0?log=a&log=b", "names an option twice"),
    ("redis://host/0#log=a", "has a part after '#'"),
    ("redis://host/0?bogus=1", "the option bogus is not accepted"),
    ("redis://host/0?socket_timeout=x", "the option socket_timeout is not accepted"),
    ("redis://host/0?password=s3cret", "the option password is not accepted"),
    ("redis://host/0?ssl_ca_certs=x", "the option ssl_ca_certs is not accepted"),
    ("rediss://host/0?ssl_cert_reqs=perhaps", "the option ssl_cert_reqs is not accepted"),
    ("redis://user:s3/cret@host", "%2F"),
    ("redis://user:s3?cret@host", "%3F"),
    ("redis://user:s3#cret@host", "%23"),
    (5, "a URL as text"),
    (Path("events.db"), "a URL as text"),
    (b"memory://", "a URL as text"),
]


@pytest.mark.parametrize(("url", "words"), WRONG_URLS, ids=lambda value: None)
async def test_a_wrong_url_is_a_configuration_error_that_shows_no_password(url: Any, words: str) -> None:
    for attempt in (EventStore().initialize(url), _use(url)):
        with pytest.raises(ConfigurationError) as error:
            await attempt
        assert words in str(error.value)
        assert "cret" not in str(error.value)
        assert "s3" not in str(error.value)


async def _use(url: Any) -> None:
    await EventStore(url).persist_event("t", "s")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:s3cret@host:6379/0?log=a", "redis://:***@host:6379/0?log=a"),
        ("redis://user:s3c@ret@host", "redis://user:***@host"),
        ("rediss://host/0?ssl_password=s3cret&log=a", "rediss://host/0?ssl_password=***&log=a"),
        ("redis://user@host/0", "redis://user@host/0"),
        ("redis://host/0", "redis://host/0"),
        ("sqlite:////home/me@work:here/a@b.db", "sqlite:////home/me@work:here/a@b.db"),
        ("memory://a:b@c", "memory://a:b@c"),
    ],
)
def test_the_url_of_a_store_is_shown_without_its_password(url: str, shown: str) -> None:
    assert EventStore(url).url == shown


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ({"type": "t", "source": "s"}, r"events\[1\]: unknown argument 'type'; use event_type, source, data, priority"),
        ({"event_type": "t"}, r"events\[1\]: argument 'source' is missing"),
        ({"source": "s"}, r"events\[1\]: argument 'event_type' is missing"),
    ],
)
async def test_a_member_with_arguments_that_do_not_fit_says_which_ones_do(
    tmp_path: Path, member: dict[str, Any], words: str
) -> None:
    store = EventStore(f"sqlite:///{tmp_path}/events.db")
    with pytest.raises(InvalidEvent, match=words) as error:
        await store.persist_events([{"event_type": "t", "source": "s"}, member])
    assert "Admission" not in str(error.value)
    assert (await store.stats()).events == 0
    await store.close()


async def test_a_path_from_the_home_directory_lies_there_and_its_directories_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    store = EventStore("sqlite:///~/new/events.db")
    await store.persist_event("t", "s")
    await store.close()
    assert (tmp_path / "home/new/events.db").exists()
    assert not (tmp_path / "~").exists()

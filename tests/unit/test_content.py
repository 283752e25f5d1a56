from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06 import InvalidEvent
from ag06.content import check_name, check_time, content_hash, encode_data, key_hash

NOON = dt.datetime(2026, 1, 2, 12, 0, tzinfo=dt.UTC)


def test_the_content_hash_stays_the_same_over_releases() -> None:
    data = encode_data({"b": [1, 2.5, None, True], "a": "ü"})
    assert content_hash("t", "s", None, data, None).hex() == "20c0b5687ddd7af50f5458f04bd92081"
    assert content_hash("t", "s", "x", data, NOON).hex() == "aa0a0426964eccb472f5bad15e73a826"
    assert key_hash("t", "s", "k").hex() == "759d8d6334b9396a5f15de7c4a0007e1"


def test_the_order_of_keys_does_not_matter_and_everything_else_does() -> None:
    def hashed(data: Any = 1, **other: Any) -> bytes:
        said = {"type": "t", "source": "s", "subject": None, "time": None} | other
        return content_hash(said["type"], said["source"], said["subject"], encode_data(data), said["time"])

    assert hashed({"a": 1, "b": {"c": 2, "d": 3}}) == hashed({"b": {"d": 3, "c": 2}, "a": 1})
    different = [hashed(), hashed("1"), hashed([1]), hashed(None), hashed(1.5), hashed(type="u"), hashed(source="u")]
    different += [hashed(subject="u"), hashed(time=NOON), hashed(type="ts", source="")]
    assert len(set(different)) == len(different)


@dataclass
class Point:
    x: float


class Struct(msgspec.Struct):
    x: Any


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (None, "null"),
        ({"z": 1, "a": (1, 2)}, '{"a":[1,2],"z":1}'),
        (OrderedDict(b=1, a=2), '{"a":2,"b":1}'),
        (Point(1.5), '{"x":1.5}'),
        (Struct([1]), '{"x":[1]}'),
        (Pair(1, 2), "[1,2]"),
        (decimal.Decimal("1.10"), '"1.10"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (NOON, '"2026-01-02T12:00:00Z"'),
        (2**64, "18446744073709551616"),
        (-(2**63) - 1, "-9223372036854775809"),
    ],
)
def test_what_json_holds_is_taken(data: Any, stored: str) -> None:
    assert encode_data(data).decode() == stored


def deep(levels: int) -> Any:
    data: Any = 1
    for _ in range(levels):
        data = [data]
    return data


looped: list[Any] = []
looped.append(looped)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"a": float("nan")}, r"data\.a.*nan"),
        ([{"a": [float("inf")]}], r"data\[0\]\.a\[0\].*inf"),
        ({"a": decimal.Decimal("NaN")}, "NaN"),
        (Struct(float("nan")), "nan"),
        (Point(float("inf")), "inf"),
        ({"a": {1, 2}}, "set"),
        ({"a": b"x"}, "bytes"),
        ({"a": object()}, "object"),
        ({1: 2}, "key 1 of type int"),
        ({"a": {None: 2}}, "NoneType"),
        ({None: 2}, "NoneType"),
        ({"a": 10**5000}, "digits"),
        ({"a": "\ud800"}, "surrogate"),
        ({"\ud800": 1}, "surrogate"),
        ({"a": dt.datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        (deep(101), "deeper than 100"),
        (deep(100_000), "deeper than 100"),
        (looped, "deeper than 100"),
        ("x" * (1024 * 1024), "1048578 bytes.*limit is 1048576"),
    ],
    ids=lambda value: None,
)
def test_what_would_come_back_changed_is_refused_with_its_place(data: Any, words: str) -> None:
    with pytest.raises(InvalidEvent, match=words) as refused:
        encode_data(data)
    assert refused.value.field.startswith("data")


def test_the_deepest_and_the_largest_data_are_taken() -> None:
    assert len(encode_data(deep(100))) == 201
    assert len(encode_data("x" * (1024 * 1024 - 2))) == 1024 * 1024
    assert len(encode_data("x" * 98, limit=100)) == 100


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(_json)
def test_any_json_comes_back_as_it_was(data: Any) -> None:
    assert msgspec.json.decode(encode_data(data)) == data


@pytest.mark.parametrize("name", ["a", "ä" * 127, "x" * 255, "with space", "𝄞", "a\u200bb"])
def test_a_name_of_up_to_255_bytes_is_taken(name: str) -> None:
    assert check_name("type", name) == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        ("x" * 256, "256 bytes.*255"),
        ("ä" * 128, "256 bytes.*255"),
        ("\ud800", "surrogate"),
        ("a\nb", "control"),
        ("\x7f", "control"),
        (5, "int"),
        (None, "NoneType"),
        (b"x", "bytes"),
    ],
)
def test_a_wrong_name_is_refused_with_its_field_and_the_limit(name: Any, words: str) -> None:
    with pytest.raises(InvalidEvent, match=words) as refused:
        check_name("subject", name)
    assert refused.value.field == "subject"


@pytest.mark.parametrize("time", [dt.datetime(2026, 1, 1), "2026", 5, None])  # noqa: DTZ001
def test_a_time_without_a_zone_is_refused(time: Any) -> None:
    with pytest.raises(InvalidEvent, match="time"):
        check_time("time", time)


def test_a_time_is_kept_in_utc() -> None:
    there = dt.datetime(2026, 1, 2, 13, 0, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert check_time("time", there) == NOON
    assert check_time("time", there).tzinfo is dt.UTC

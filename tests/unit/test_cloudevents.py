"""Against CloudEvents 1.0.2: the JSON event format, and the binary mode of the HTTP protocol binding."""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06 import Event, InvalidEvent, Priority
from ag06.cloudevents import from_batch, from_binary, from_structured, to_batch, to_binary, to_structured

NOON = dt.datetime(2026, 1, 2, 12, 0, 0, 123456, tzinfo=dt.UTC)
FULL: Event[Any] = Event(
    id="018bcfe5-6800-7000-8000-000000000001",
    type="order.placed",
    source="shop/web",
    data={"price": 100, "note": 'a "quoted" 100% é €'},
    time=NOON,
    priority=Priority.HIGH,
    subject='ein "Kunde" 100 % ü',
    correlation_id="c-1",
    causation_id="c-0",
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    recorded=NOON.replace(microsecond=124000),
)
PLAIN: Event[Any] = Event(id="1", type="t", source="s", data=None, time=NOON.replace(microsecond=0))

names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40)
moments = st.datetimes(timezones=st.just(dt.UTC))
datas = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=5,
)
events = st.builds(
    Event,
    id=names,
    type=names,
    source=names,
    data=datas,
    time=moments,
    priority=st.sampled_from(Priority),
    subject=st.none() | names,
    correlation_id=st.none() | names,
    causation_id=st.none() | names,
    traceparent=st.none() | names,
    recorded=st.none() | moments,
)


@given(events)
def test_an_event_survives_the_structured_mode(event: Event[Any]) -> None:
    assert from_structured(to_structured(event)) == event


@given(events)
def test_an_event_survives_the_binary_mode(event: Event[Any]) -> None:
    assert from_binary(*to_binary(event)) == event


@given(st.lists(events, max_size=3))
def test_events_survive_the_batched_mode(batch: list[Event[Any]]) -> None:
    assert from_batch(to_batch(batch)) == batch


def test_the_attributes_have_the_names_and_types_of_the_specification() -> None:
    message = json.loads(to_structured(FULL))
    assert message == {
        "specversion": "1.0",
        "id": "018bcfe5-6800-7000-8000-000000000001",
        "source": "shop/web",
        "type": "order.placed",
        "time": "2026-01-02T12:00:00.123456Z",
        "datacontenttype": "application/json",
        "subject": 'ein "Kunde" 100 % ü',
        "correlationid": "c-1",
        "causationid": "c-0",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "priority": 2,
        "recordedtime": "2026-01-02T12:00:00.124000Z",
        "data": {"price": 100, "note": 'a "quoted" 100% é €'},
    }
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in message)


def test_what_an_event_does_not_have_is_left_out() -> None:
    assert set(json.loads(to_structured(PLAIN))) == {
        "specversion", "id", "source", "type", "time", "datacontenttype", "data",
    }  # fmt: skip


def test_a_batch_is_one_json_array_and_may_be_empty() -> None:
    assert json.loads(to_batch([PLAIN, FULL])) == [json.loads(to_structured(PLAIN)), json.loads(to_structured(FULL))]
    assert from_batch(to_batch([])) == []


def test_header_values_are_printable_ascii_with_percent_encoding() -> None:
    headers, body = to_binary(FULL)
    assert headers["ce-subject"] == "ein%20%22Kunde%22%20100%20%25%20%C3%BC"
    assert headers["ce-id"] == FULL.id
    assert headers["ce-specversion"] == "1.0"
    assert headers["content-type"] == "application/json"
    assert "ce-datacontenttype" not in headers
    assert json.loads(body) == FULL.data


@given(events)
def test_no_header_value_holds_what_http_cannot_carry(event: Event[Any]) -> None:
    headers, _ = to_binary(event)
    assert all(re.fullmatch(r"[!#$&-~]|[!#-~]+", value) for value in headers.values())


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),  # the example of the binding
        ("Euro%20%e2%82%ac", "Euro €"),  # lower-case digits are accepted
        ('"a \\"quoted\\" \\\\ value"', 'a "quoted" \\ value'),  # RFC 7230, section 3.2.6
        ('"100%25"', "100%"),  # first the quotes, then the percent signs
        ("a+b", "a+b"),  # no form encoding
        ("%2541", "%41"),  # a single round
    ],
)
def test_header_values_are_unquoted_and_decoded_once(value: str, meant: str) -> None:
    headers = {"CE-SpecVersion": "1.0", "Ce-Id": "1", "ce-source": "s", "ce-type": "t", "CE-SUBJECT": value}
    assert from_binary(headers, b"").subject == meant


def test_header_names_are_taken_in_any_case_and_others_are_ignored() -> None:
    headers = {"CE-SpecVersion": "1.0", "Ce-Id": "1", "ce-source": "s", "CE-TYPE": "t", "ce-unknown": "x", "x-y": "z"}
    event = from_binary(headers, b'{"a": 1}')
    assert (event.id, event.source, event.type, event.data) == ("1", "s", "t", {"a": 1})


def attributes(**other: Any) -> bytes:
    message: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}
    message |= other
    return json.dumps({name: value for name, value in message.items() if value is not ...}).encode()


def test_optional_attributes_may_be_missing_null_or_unknown() -> None:
    before = dt.datetime.now(dt.UTC)
    event = from_structured(attributes(subject=None, time=None, priority=None, dataschema="http://x", comexample=7))
    assert (event.subject, event.priority, event.data) == (None, Priority.NORMAL, None)
    assert before <= event.time <= dt.datetime.now(dt.UTC)


def test_a_time_with_an_offset_is_taken_as_utc() -> None:
    assert from_structured(attributes(time="2026-01-02T14:00:00.5+02:00")).time == NOON.replace(microsecond=500_000)


def test_data_in_base64_is_json_where_it_can_be_and_text_otherwise() -> None:
    encoded = base64.b64encode(b'{"a": 1}').decode()
    assert from_structured(attributes(data_base64=encoded)).data == {"a": 1}
    binary = base64.b64encode(b"\xff\x00").decode()
    assert from_structured(attributes(data_base64=binary)).data == binary


@pytest.mark.parametrize(
    ("content_type", "body", "data"),
    [
        ("application/json", b"[1]", [1]),
        ("application/json; charset=utf-8", b"[1]", [1]),
        ("application/vnd.example+json", b"[1]", [1]),
        ("text/plain", "é".encode(), "é"),
        ("text/plain; charset=ISO-8859-1", "é".encode("latin-1"), "é"),
        ("application/octet-stream", b"\x00\xff", "AP8="),
        ("application/json", b"", None),
    ],
)
def test_the_content_type_says_what_the_body_of_a_binary_message_is(
    content_type: str, body: bytes, data: object
) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t", "Content-Type": content_type}
    assert from_binary(headers, body).data == data


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (attributes(specversion="0.3"), "specversion"),
        (attributes(specversion=...), "specversion"),
        (attributes(id=...), "id"),
        (attributes(id=""), "id"),
        (attributes(source=...), "source"),
        (attributes(source=7), "source"),
        (attributes(type=""), "type"),
        (attributes(subject=""), "subject"),
        (attributes(subject="x" * 256), "subject"),
        (attributes(time="yesterday"), "time"),
        (attributes(time="2026-01-02T12:00:00"), "time"),
        (attributes(time=5), "time"),
        (attributes(priority=4), "priority"),
        (attributes(priority=1.5), "priority"),
        (attributes(priority="high"), "priority"),
        (attributes(data_base64="!"), "data_base64"),
        (attributes(data_base64="AA==", data=1), "data_base64"),
        (b"[]", "body"),
        (b"{", "body"),
        (b"\xff", "body"),
    ],
)
def test_a_message_that_breaks_the_rules_names_the_attribute(body: bytes, field: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        from_structured(body)
    assert refused.value.field == field


def test_one_wrong_member_spoils_a_batch() -> None:
    with pytest.raises(InvalidEvent, match="array"):
        from_batch(to_structured(PLAIN))
    with pytest.raises(InvalidEvent, match="specversion"):
        from_batch(b'[{"specversion": "1.0", "id": "1", "source": "s", "type": "t"}, {}]')


@pytest.mark.parametrize(
    ("headers", "body", "field"),
    [
        ({"ce-subject": "%FF"}, b"", "ce-subject"),
        ({"content-type": "application/json"}, b"{", "body"),
        ({"content-type": "text/plain"}, b"\xff", "body"),
        ({"content-type": "text/plain; charset=klingon"}, b"a", "content-type"),
    ],
)
def test_a_binary_message_that_cannot_be_read_names_the_part(headers: dict[str, str], body: bytes, field: str) -> None:
    required = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
    with pytest.raises(InvalidEvent) as refused:
        from_binary(required | headers, body)
    assert refused.value.field == field

"""Whatever is said, it is one line, and nobody's call fails for it."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import json
import numbers
import unicodedata
import uuid
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.errors import ConfigurationError
from ag06.event import Priority
from ag06.monitoring import logs
from ag06.monitoring.log_lines import LONGEST_LINE, Lines, as_coloured_text, as_json, as_text
from ag06.monitoring.log_values import LONGEST_TEXT, ROOM, Values
from ag06.monitoring.redaction import Redaction
from said import listening


class Hostile:
    """Raises whatever is asked of it."""

    def __repr__(self) -> NoReturn:
        raise RuntimeError("no repr")

    def __str__(self) -> NoReturn:
        raise RuntimeError("no str")

    def __eq__(self, other: object) -> NoReturn:
        raise RuntimeError("no comparison")

    __hash__ = object.__hash__


class Int64:
    """An integer as numpy's are: registered as one, and no `int`."""

    def __int__(self) -> int:
        return 7


numbers.Integral.register(Int64)


class Colour(enum.Enum):
    RED = 1


class Shout(str):
    __slots__ = ()


ANY_TEXT = st.text(st.characters(codec=None))  # lone surrogates too
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    ANY_TEXT,
    st.binary(),
    st.datetimes(),
    st.decimals(),
    st.uuids(),
    st.complex_numbers(),
    st.builds(Hostile),
    st.integers(4_000, 6_000).map(lambda digits: 10**digits),
    st.sampled_from([Colour.RED, Priority.HIGH, Shout("a"), object, ..., float("inf")]),
)
KEYS = st.one_of(ANY_TEXT, st.integers(), st.none(), st.tuples(st.integers()), st.builds(Hostile))
ANY_VALUE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner), st.dictionaries(KEYS, inner, max_size=4), st.frozensets(KEYS)
    ),
    max_leaves=12,
)
FIELDS = st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=5)
RESERVED = ("time", "level", "logger", "event", "exception", "stack")


def lines() -> Lines:
    return Lines(Values(Redaction()), clock=lambda: 1_700_000_000.25)


def is_one_line(raw: bytes) -> None:
    text = raw.decode()
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1  # splits at more than newlines
    controls = {c for c in text[:-1] if unicodedata.category(c) in {"Cc", "Zl", "Zp"}}
    # ASCII's DEL is the one control that JSON lets stand and that moves nothing on a terminal.
    assert controls <= {"\x7f"}
    assert not set(text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


@given(event=ANY_VALUE, given=FIELDS)
def test_any_event_with_any_fields_is_one_line_of_json(event: Any, given: dict[str, Any]) -> None:
    raw = as_json(lines().fields("info", "x", event, given))
    is_one_line(raw)
    line = json.loads(raw)
    assert list(line)[:4] == ["time", "level", "logger", "event"]
    assert isinstance(line["event"], str)
    assert (line["time"], line["level"], line["logger"]) == ("2023-11-14T22:13:20.250000+00:00", "info", "x")
    assert len(line) >= 4 + len({key for key in given if key not in {"exc_info", "stack_info"}}) - _clashes(given)


def _clashes(given: dict[str, Any]) -> int:
    """How many names are the same once they can be written: two different halves of surrogate pairs are not."""
    written = [key.encode("utf-8", "backslashreplace") for key in given]
    return len(written) - len(set(written))


@given(event=ANY_VALUE, given=FIELDS)
def test_any_event_with_any_fields_is_one_printable_line_of_text(event: Any, given: dict[str, Any]) -> None:
    raw = as_text(lines().fields("info", "x", event, given))
    is_one_line(raw)
    assert raw.decode()[:-1].isprintable()


@given(name=st.text(), given=FIELDS)
def test_a_colour_is_the_only_escape_on_a_terminal(name: str, given: dict[str, Any]) -> None:
    text = as_coloured_text(lines().fields("error", name, name, given)).decode()[:-1]
    for code in ("\x1b[31m", "\x1b[2m", "\x1b[0m"):
        text = text.replace(code, "", 1 if code != "\x1b[0m" else 2)
    assert text.isprintable()


@given(st.text())
def test_json_gives_a_text_back_as_it_was(text: str) -> None:
    plain = Redaction().text(text)
    assert json.loads(as_json(lines().fields("info", "x", text, {"a": text})))["a"] == plain


@pytest.mark.parametrize(
    "forged",
    [
        'done"}\n{"time":"2026-01-01T00:00:00+00:00","level":"error","event":"forged"',
        "done\r\n2026-01-01T00:00:00+00:00 ERROR    app: forged",
        "done\u2028forged", "done\u0085forged", "done\x0bforged", "done\x1b[2K\x1b[1Gforged", "done\x9b2Kforged",
        "done\u202eforged", "done\u2066forged", "done\x08\x08\x08\x08forged", "done\x00forged",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["json", "text"])
def test_no_message_value_or_name_forges_a_line(forged: str, form: str) -> None:
    with listening(form=form) as said:
        logger = logs.create_context_logger("app")
        logger.info(forged)
        logger.info("x", value=forged)
        logger.info("x", **{forged: 1})
        logger.info("x", deep={forged: [forged]})
        logger.info("%s", forged)
        logs.create_context_logger(forged).info("x")
    rows = said.rows()
    assert len(rows) == 6
    assert all("forged" in row for row in rows)
    assert not any(row.startswith(("2026-01-01", '{"time":"2026-01-01')) for row in rows)
    for row in rows:
        assert len(row.splitlines()) == 1
        assert not set(row) & set("\x1b\x9b\x08\x00\u202e\u2066")


def test_an_exception_in_text_is_indented_so_that_no_line_of_it_is_one_of_the_log() -> None:
    with listening(form="text") as said:
        try:
            raise ValueError("no\n2026-01-01T00:00:00+00:00 ERROR    app: forged\r\x1b[1A\u2028")
        except ValueError:
            logs.create_context_logger("app").exception("failed")
    first, *rest = said.rows()
    assert first.endswith("app: failed")
    assert any("forged\\r\\x1b[1A\\u2028" in row for row in rest)
    assert all(row.startswith("    ") and row.isprintable() for row in rest)


def test_what_json_cannot_hold_is_shown_by_its_repr() -> None:
    moment = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    with listening() as said:
        logs.create_context_logger("x").info(
            "x", nan=float("nan"), inf=-float("inf"), big=2**70, raw=b"\xff", kind=int, colour=Colour.RED,
            priority=Priority.HIGH, moment=moment, price=decimal.Decimal("1.10"), id=uuid.UUID(int=1), path=Path("/a"),
            number=fractions.Fraction(1, 2), count=Int64(), items={1}, pair=(1, "a"), hostile=Hostile(),
            shout=Shout("a"), keys={1: "a", None: "b", (1, 2): "c"}, half="\ud800", bad_key={Hostile(): 1},
        )  # fmt: skip
    shown = said.last()
    assert {key: shown[key] for key in list(shown)[4:]} == {
        "nan": "nan", "inf": "-inf", "big": str(2**70), "raw": "b'\\xff'", "kind": "<class 'int'>", "colour": "RED",
        "priority": "HIGH", "moment": "2026-01-02 00:00:00+00:00", "price": "1.10",
        "id": "00000000-0000-0000-0000-000000000001", "path": "/a", "number": 0.5, "count": 7, "items": [1],
        "pair": [1, "a"], "hostile": "<Hostile that cannot be shown: RuntimeError>", "shout": "a",
        "keys": {"1": "a", "None": "b", "(1, 2)": "c"}, "half": "\\ud800",
        "bad_key": "<dict that cannot be shown: RuntimeError>",
    }  # fmt: skip


def test_long_deep_endless_and_many_values_are_cut_and_say_so() -> None:
    endless: list[Any] = []
    endless.append(endless)
    bomb: Any = "x"
    for _ in range(12):
        bomb = [bomb] * 100
    with listening() as said:
        logger = logs.create_context_logger("x")
        logger.info("x" * 100_000, text="y" * 100_000, endless=endless, bomb=bomb, many=list(range(100_000)))
        logger.info("x", mapping={str(i): "z" * 1_000 for i in range(1_000)}, raw=bytes(10**7))
        logger.info("x", **{f"field {i} " + "n" * 1_000: "\x00" * 8_000 for i in range(500)})
    first, second, third = said.lines()
    assert first["event"].endswith(f"... ({100_000 - LONGEST_TEXT} more characters)")
    assert first["text"].startswith("y" * LONGEST_TEXT + "...")
    assert json.dumps(first["endless"]).startswith('[[[[[[[["[...]')
    assert len(json.dumps(first["bomb"])) < 2 * ROOM
    assert first["many"][-1].endswith("more items")
    assert len(json.dumps(second)) < 4 * ROOM
    assert third["..."] == "404 more fields"
    assert all(len(row) < 8 * LONGEST_LINE for row in said.rows())


def test_a_name_that_the_line_uses_itself_is_renamed_and_not_lost() -> None:
    with listening() as said:
        logger = logs.create_context_logger("x", level=3, logger="mine").bind(self=1, cls=2)
        logger.info(
            "said", event="e", event_="f", time=9, exception="none", stack=1, level_=4, method_name="m", name="n"
        )
    line = said.last()
    assert (line["event"], line["level"], line["logger"]) == ("said", "info", "x")
    assert {line["event_"], line["event__"]} == {"e", "f"}
    assert {line["level_"], line["level__"]} == {3, 4}
    assert (line["time_"], line["exception_"], line["stack_"], line["logger_"]) == (9, "none", 1, "mine")
    assert (line["self"], line["cls"], line["method_name"], line["name"]) == (1, 2, "m", "n")


def test_time_is_utc_with_offset_and_microseconds() -> None:
    with listening() as said:
        before = dt.datetime.now(dt.UTC)
        logs.create_context_logger("x").info("x")
    moment = dt.datetime.fromisoformat(said.last()["time"])
    assert moment.utcoffset() == dt.timedelta(0)
    assert before <= moment <= dt.datetime.now(dt.UTC)
    assert len(said.last()["time"]) == len("2026-11-25T02:40:08.123456+00:00")


def test_an_exception_has_type_message_and_frames_with_its_cause() -> None:
    with listening("debug") as said:
        logger = logs.create_context_logger("x")
        try:
            try:
                raise KeyError("a")
            except KeyError as error:
                raise ConfigurationError("b\nc") from error
        except ConfigurationError as error:
            logger.exception("failed", order=1)
            logger.warning("failed", exc_info=error)
            logger.warning("failed", exc_info=(type(error), error, error.__traceback__))
        for odd in (("a", ValueError("odd"), "b"), (1, 2, 3), Hostile(), "text", [], None, 0, 1):
            logger.debug("odd", exc_info=odd, stack_info=odd)
        logger.exception("outside of a handler")
        logger.warning("none", exc_info=False, stack_info=True)
    first, second, third, *odd_ones, outside, stack = said.lines()
    assert [line.get("exception", {}).get("message") for line in odd_ones] == ["odd", *[None] * 7]
    assert first["exception"] == second["exception"] == third["exception"]
    assert first["exception"]["type"] == "ag06.errors.ConfigurationError"
    assert first["exception"]["message"] == "b\nc"
    assert "KeyError: 'a'" in first["exception"]["frames"]
    assert "test_logs_lines.py" in first["exception"]["frames"]
    assert (first["level"], first["order"], second["level"]) == ("error", 1, "warning")
    assert "exception" not in outside
    assert "exception" not in stack
    assert "test_an_exception_has_type" in stack["stack"]


def test_an_exception_that_cannot_say_what_it_is_is_reported_as_that() -> None:
    class MuteError(Exception):
        def __str__(self) -> NoReturn:
            raise RuntimeError("no")

    with listening() as said:
        try:
            raise MuteError
        except MuteError:
            logs.create_context_logger("x").exception("failed")
        try:
            raise ExceptionGroup("several", [ValueError("one" * 100_000), MuteError()])
        except ExceptionGroup:
            logs.create_context_logger("x").exception("failed")
    assert said.lines()[0]["exception"]["message"] == "<no message: RuntimeError>"
    assert said.lines()[0]["exception"]["type"].endswith("MuteError")
    assert len(said.rows()[1]) < LONGEST_LINE


def test_arguments_fill_the_event_and_a_wrong_format_string_costs_only_the_format() -> None:
    with listening() as said:
        logger = logs.create_context_logger("x")
        logger.info("%s is %d", "a", 1)
        logger.info("%(a)s", {"a": 1})
        logger.info("100% sure")
        logger.info("%d", "no number")
        logger.info("too many", *[1])
        logger.info({"a": 1})
        logger.info(None)
    events = [line["event"] for line in said.lines()]
    assert events == [
        "a is 1", "1", "100% sure", "['%d', 'no number']", "['too many', 1]", "{'a': 1}", "None",
    ]  # fmt: skip


def test_a_value_that_changes_after_the_call_is_shown_as_it_was() -> None:
    with listening() as said:
        items = [1]
        logs.create_context_logger("x").info("x", items=items)
        items.append(2)
    assert said.last()["items"] == [1]

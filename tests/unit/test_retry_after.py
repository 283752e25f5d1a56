from __future__ import annotations

import asyncio
import datetime as dt
import pickle
import random
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from email.message import Message
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06 import Retry, RetryAfter
from ag06.persistence.log import Bury, Delivery, Postpone
from ag06.retry_after import LONGEST_WAIT, requested_wait
from ag06.runtime.verdict import judge

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110
DELIVERY = Delivery(token=1, recorded_ms=0, level=1, body=b"")


def now() -> float:
    return NOW


class Answer:
    """What HTTP clients hang on their errors."""

    def __init__(self, headers: Any) -> None:
        self.headers = headers


def asking(**attributes: Any) -> Exception:
    error = Exception("too many requests")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0),
        ("Sunday, 06-Nov-94 08:50:07 GMT", 30.0),  # the two obsolete forms that RFC 9110 tells to accept
        ("Sun Nov  6 08:50:07 1994", 30.0),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0.0),  # over already
        ("999999999999", LONGEST_WAIT),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_WAIT),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("١٢", None),  # digits, but not those of the grammar
        ("Sun, 99 Nov 1994 08:49:37 GMT", None),
    ],
)
def test_the_header_is_read_as_the_rfc_says(text: str, seconds: float | None) -> None:
    message = Message()
    message["retry-after"] = text
    for headers in ({"Retry-After": text}, {"retry-after": text}, message):
        assert requested_wait(asking(response=Answer(headers)), now) == seconds
        assert requested_wait(asking(headers=headers), now) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (2.5, 2.5),
        (7, 7.0),
        ("7", 7.0),
        (dt.timedelta(minutes=1), 60.0),
        (1e9, LONGEST_WAIT),
        (float("inf"), LONGEST_WAIT),
        (float("nan"), None),
        (-1, None),
        (True, None),
        (object(), None),
        (None, None),
    ],
)
def test_an_attribute_says_it_too(value: object, seconds: float | None) -> None:
    assert requested_wait(asking(retry_after=value), now) == seconds


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (30, 30.0),
        (2.5, 2.5),
        (Decimal("1.5"), 1.5),
        (dt.timedelta(minutes=1), 60.0),
        (-1, 0.0),
        (float("nan"), 0.0),
        (dt.timedelta(seconds=-5), 0.0),
        (float("inf"), LONGEST_WAIT),
    ],
)
def test_a_step_that_asks_for_a_pause_gets_it_and_no_wait_for_a_time_that_is_over(given: Any, seconds: float) -> None:
    assert requested_wait(RetryAfter(given), now) == seconds
    assert requested_wait(pickle.loads(pickle.dumps(RetryAfter(given))), now) == seconds


@pytest.mark.parametrize("given", [None, "30", b"30", True, object(), [30]])
def test_a_pause_that_is_no_number_is_told_to_the_step_at_once(given: Any) -> None:
    with pytest.raises(TypeError, match=r"RetryAfter\(.*\): a number of seconds or a timedelta"):
        RetryAfter(given)


def test_an_error_that_breaks_when_it_is_looked_at_asks_for_nothing() -> None:
    class OddError(Exception):
        @property
        def response(self) -> Any:
            raise RuntimeError("no response was set")

    assert requested_wait(OddError(), now) is None
    assert requested_wait(asking(response=object(), headers=5), now) is None
    assert requested_wait(ValueError("plain"), now) is None


@asynccontextmanager
async def busy_server(retry_after: str) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 503 Busy\r\nRETRY-AFTER: {retry_after}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def test_the_error_of_a_real_client_is_understood() -> None:
    async with busy_server("17") as url:
        with pytest.raises(urllib.error.HTTPError) as refused:
            await asyncio.to_thread(urllib.request.urlopen, url)
    assert requested_wait(refused.value) == 17.0
    refused.value.close()


@given(asked=st.floats(0, 7200), failures=st.integers(1, 20), seed=st.integers())
def test_a_wait_that_was_asked_for_is_kept_with_jitter_on_top(asked: float, failures: int, seed: int) -> None:
    retry = Retry(initial=0.1, maximum=60.0)
    wait = retry.delay(failures, random.Random(seed), at_least=asked)
    assert asked <= wait <= asked + max(0.1 * asked, min(60.0, 0.1 * 2 ** (failures - 1)))


def test_many_that_were_told_the_same_do_not_come_back_at_one_instant() -> None:
    waits = [judge(DELIVERY, asking(retry_after=30), Retry(), now) for _ in range(200)]
    delays = sorted(wait.delay_ms for wait in waits if isinstance(wait, Postpone))
    assert len(delays) == 200
    assert delays[0] >= 30_000
    assert delays[-1] <= 33_001
    assert delays[-1] - delays[0] > 1_500
    assert len(set(delays)) > 100


def test_waiting_as_asked_costs_an_attempt_and_the_last_is_the_last() -> None:
    verdict = judge(DELIVERY, RetryAfter(30), Retry(attempts=2), now)
    assert isinstance(verdict, Postpone)
    assert verdict.attempts == 1
    last = judge(Delivery(1, 0, 1, b"", attempts=1), RetryAfter(30, "still closed"), Retry(attempts=2), now)
    assert isinstance(last, Bury)
    assert (last.failure.reason, last.failure.error_type, last.failure.message) == (
        "failed", "RetryAfter", "still closed",
    )  # fmt: skip


def test_a_step_that_asks_for_it_is_tried_again_whatever_exceptions_its_retry_names() -> None:
    retry = Retry(attempts=3, on=ConnectionError)
    assert isinstance(judge(DELIVERY, RetryAfter(1), retry, now), Postpone)
    assert isinstance(judge(DELIVERY, asking(retry_after=1), retry, now), Bury)


def test_it_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(RetryAfter(2.5, "closed")))
    assert (error.retry_after, str(error)) == (2.5, "closed")

"""A request to stop is told from an exception of the same class that a program raises by itself."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from ag06.stopping import asks_to_stop


class Handler:
    def __call__(self, *_: object) -> None:
        raise KeyboardInterrupt

    def leave(self, *_: object) -> None:
        sys.exit(1)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def raise_again() -> None:
    try:
        interrupt()
    except KeyboardInterrupt:  # noqa: TRY203 - a second statement is what is tested
        raise


def error_of(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_ctrl_c_is_a_request_and_a_raise_statement_is_none() -> None:
    assert asks_to_stop(error_of(interrupt))
    assert asks_to_stop(error_of(raise_again))
    assert not asks_to_stop(error_of(raise_interrupt))
    assert not asks_to_stop(error_of(sys.exit))
    assert not asks_to_stop(KeyboardInterrupt())
    assert not asks_to_stop(ValueError())


@pytest.mark.parametrize("handler", [Handler().leave, Handler(), lambda *_: sys.exit(1)])
def test_what_the_handler_of_a_signal_raises_is_a_request(handler: Callable[..., None]) -> None:
    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)
    assert asks_to_stop(error_of(terminate))
    assert asks_to_stop(error_of(interrupt))
    assert not asks_to_stop(error_of(raise_interrupt))
    assert not asks_to_stop(error_of(sys.exit))


def test_the_second_ctrl_c_under_asyncio_is_a_request() -> None:
    async def main() -> None:
        interrupt()  # cancels this task
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()  # type: ignore[union-attr]
        assert asks_to_stop(error_of(interrupt))
        assert not asks_to_stop(error_of(raise_interrupt))

    asyncio.run(main())


def test_no_request_reaches_a_thread() -> None:
    found: list[bool] = []
    error = error_of(interrupt)
    thread = threading.Thread(target=lambda: found.append(asks_to_stop(error)))
    thread.start()
    thread.join()
    assert found == [False]

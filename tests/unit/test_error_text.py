"""The text of an exception: bounded, valid Unicode, whatever the exception does."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from ag06.error_text import describe, kind_of, log_error, message_of, traceback_of


class Panic(BaseException):
    pass


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


class Speechless(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise Panic


class Text(str):
    __slots__ = ()

    def __getitem__(self, key: object) -> str:
        raise Panic

    encode = __getitem__  # type: ignore[assignment]


class Wordy(Exception):  # noqa: N818
    def __str__(self) -> str:
        return Text("words")


class Untraceable(Exception):  # noqa: N818
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise Panic

    @property
    def __notes__(self) -> list[str]:
        raise Panic


def chain(length: int) -> BaseException:
    error = ValueError("the oldest")
    for _ in range(length):
        following = ValueError("a later one")
        following.__context__ = error
        error = following
    return raised(error)


def test_class_and_message_of_an_ordinary_exception() -> None:
    assert describe(KeyError("price")) == "KeyError: 'price'"
    assert traceback_of(raised(KeyError("price"))).endswith("KeyError: 'price'\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [(Speechless(), "(its __str__ failed)"), (Wordy(), "words"), (Untraceable("this"), "this"), (Panic(), "")],
)
def test_an_exception_that_cannot_be_looked_at_still_has_a_text(error: BaseException, words: str) -> None:
    assert message_of(error) == words
    text = traceback_of(raised(error))
    assert text.startswith("Traceback (most recent call last):\n")
    assert "raise error" in text
    assert kind_of(error) in text


def test_what_is_too_long_is_cut_and_what_is_no_unicode_is_escaped() -> None:
    error = raised(ValueError("\ud800" + "x" * 1_000_000))
    assert message_of(error) == "\\ud800" + "x" * 1_994
    assert len(traceback_of(error)) < 16_100
    assert "characters left out" in traceback_of(error)


@pytest.mark.parametrize("make", [lambda: chain(50), lambda: chain(10_000)], ids=["few", "many"])
def test_of_too_many_causes_only_the_last_exception_is_shown(make: Callable[[], BaseException]) -> None:
    error = make()
    text = traceback_of(error, longest=1_000_000)
    assert text.count("a later one") == (1 if "the oldest" not in text else 50)
    assert len(text) < 20_000


def test_a_callback_that_raises_what_no_logger_can_print_is_logged_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("ag06.test")
    log_error(logger, raised(Speechless()), "a %s failed", "hook")
    log_error(logger, raised(Untraceable("this")), "a %s failed", "hook")
    log_error(logger, raised(ValueError("that")), "a %s failed", "hook")
    assert [record.getMessage() for record in caplog.records] == [
        "a hook failed: Speechless: (its __str__ failed)",
        "a hook failed: Untraceable: this",
        "a hook failed: ValueError: that",
    ]
    assert [record.exc_info is not None for record in caplog.records] == [True, False, True]

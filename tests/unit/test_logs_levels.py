"""Which lines are written, changed while the process runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from ag06.errors import ConfigurationError
from ag06.monitoring import logs
from ag06.monitoring.log_levels import Levels, level_number
from said import Said, listening

LEVELS = ("debug", "info", "warning", "error", "critical")


@pytest.fixture
def said() -> Iterator[Said]:
    with listening() as heard:
        yield heard


def events(said: Said) -> list[str]:
    return [line["event"] for line in said.lines()]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_lets_pass_itself_and_what_is_above(said: Said, level: str) -> None:
    logger = logs.create_context_logger("app")
    logs.set_level(level)
    for name in LEVELS:
        getattr(logger, name)(name)
        logger.log(name, f"log {name}")
        getattr(logging.getLogger("lib"), name)(f"lib {name}")
        assert logger.is_enabled_for(name) == (name in LEVELS[LEVELS.index(level) :])
    wanted = [text for name in LEVELS[LEVELS.index(level) :] for text in (name, f"log {name}", f"lib {name}")]
    assert events(said) == wanted
    assert [line["level"] for line in said.lines()] == [text.split()[-1] for text in wanted]


def test_a_level_changed_at_run_time_counts_for_loggers_that_exist_and_that_are_bound(said: Said) -> None:
    logger = logs.create_context_logger("app")
    bound = logger.bind(a=1)
    logger.debug("before")
    logs.set_level("debug")
    logger.debug("on")
    bound.debug("bound")
    structlog.get_logger("other").debug("other")
    logs.set_level("error")
    bound.warning("after")
    assert events(said) == ["on", "bound", "other"]


def test_a_logger_has_a_level_of_its_own_and_hands_it_down(said: Said) -> None:
    loggers = {name: logs.create_context_logger(name) for name in ("shop", "shop.cart", "shopping")}
    logs.set_level("debug", logger="shop")
    for name, logger in loggers.items():
        logger.debug(name)
        logging.getLogger(name).debug("lib %s", name)
    assert events(said) == ["shop", "lib shop", "shop.cart", "lib shop.cart"]
    logs.set_level("error", logger="shop.cart")
    logs.set_level("critical")
    loggers["shop.cart"].warning("too low")
    loggers["shop"].debug("own")
    logs.create_context_logger("shop.cart.item").error("new one")
    assert events(said)[4:] == ["own", "new one"]
    logs.set_level(None, logger="shop")
    loggers["shop"].debug("own no more")
    logging.getLogger("shop").debug("own no more")
    assert len(said.rows()) == 6


def test_a_level_set_before_anything_is_logged_counts() -> None:
    logs.set_level("error", logger="early")
    try:
        assert not logs.create_context_logger("early").is_enabled_for("warning")
        assert logs.create_context_logger("late").is_enabled_for("info")
    finally:
        logs.restore_logging()


def test_levels_of_the_standard_library_are_as_before_after_logging_is_restored() -> None:
    logging.getLogger("mine").setLevel(logging.ERROR)
    before = logging.getLogger().level
    with listening("debug"):
        logs.set_level("debug", logger="mine")
        assert logging.getLogger().level == logging.DEBUG
    assert (logging.getLogger().level, logging.getLogger("mine").level) == (before, logging.ERROR)
    logging.getLogger("mine").setLevel(logging.NOTSET)


def test_sampling_keeps_its_share_of_one_event_and_every_warning() -> None:
    numbers = iter([0.05, 0.5, 0.0999, 0.1, 0.99, 0.0])
    levels = Levels(random=lambda: next(numbers))
    levels.set_sampling("poll", 0.1)
    kept = [levels.passes(logging.INFO, "app", "poll") for _ in range(6)]
    assert kept == [True, False, True, False, False, True]
    assert all(levels.passes(level, "app", "poll") for level in (logging.WARNING, logging.ERROR, logging.CRITICAL))
    assert levels.passes(logging.DEBUG, "app", "other")


def test_sampling_a_logger_silences_it_and_those_below_it_and_can_be_taken_back(said: Said) -> None:
    below, beside = logs.create_context_logger("shop.cart"), logs.create_context_logger("shopping")
    library = logging.getLogger("shop.lib")
    logs.set_sampling("shop", 0)
    for logger in (below, beside, library):
        logger.info("info %s", 1)
        logger.warning("warning")
        logger.error("error")
    assert events(said) == ["warning", "error", "info 1", "warning", "error", "warning", "error"]
    logs.set_sampling("info %s", 1)
    logs.set_sampling("shop", 1)
    below.info("back")
    library.info("back")
    assert events(said)[7:] == ["back", "back"]


def test_an_event_of_the_standard_library_is_sampled_by_its_text_before_the_arguments(said: Said) -> None:
    logs.set_sampling("poll %d", 0)
    for number in range(10):
        logging.getLogger("lib").info("poll %d", number)
        logging.getLogger("lib").info("kept %d", number)
    assert [event.split()[0] for event in events(said)] == ["kept"] * 10


def test_the_rate_of_an_event_counts_before_the_rate_of_its_logger(said: Said) -> None:
    logger = logs.create_context_logger("app")
    logs.set_sampling("app", 0)
    logs.set_sampling("rare", 0.999999999)
    logger.info("rare")
    logger.info("else")
    assert events(said) == ["rare"]


@pytest.mark.parametrize("level", ["loud", "", 0, -1, 51, True, None, 3.5])
def test_a_level_that_is_none_is_refused_by_name(level: Any) -> None:
    with pytest.raises(ConfigurationError, match="log level"):
        logs.set_level(level)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), "1", None, True])
def test_a_rate_that_is_none_is_refused_by_name(rate: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"sampling rate .* of 'poll'"):
        logs.set_sampling("poll", rate)


def test_a_wrong_setting_is_refused_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.setenv("AG06_LOG_FORMAT", "xml")
    with pytest.raises(ConfigurationError, match="AG06_LOG_FORMAT"):
        logs.configure_logging()
    monkeypatch.setenv("AG06_LOG_FORMAT", "json")
    monkeypatch.setenv("AG06_LOG_LEVEL", "loud")
    with pytest.raises(ConfigurationError, match="AG06_LOG_LEVEL"):
        logs.configure_logging()
    logs.create_context_logger("app").info("still here")
    assert events(said) == ["still here"]


def test_levels_are_numbers_or_names_in_any_case() -> None:
    assert [level_number(level) for level in ("DEBUG", "Info", 25, 50)] == [10, 20, 25, 50]


def test_a_level_between_two_is_filed_under_the_lower_one(said: Said) -> None:
    logging.getLogger("lib").log(25, "between")
    logging.getLogger("lib").log(70, "above all")
    assert [line["level"] for line in said.lines()] == ["info", "critical"]

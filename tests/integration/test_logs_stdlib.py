"""What others log, through the standard library, structlog and asyncio, comes out of the same pipe."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from ag06.monitoring import logs
from ag06.monitoring.log_handler import PipeHandler
from said import Said, listening


@pytest.fixture
def said() -> Iterator[Said]:
    with listening() as heard:
        yield heard


def test_a_record_of_a_library_is_a_line_with_its_extra_fields_and_the_context(said: Said) -> None:
    with logs.context(order=5):
        logging.getLogger("lib.part").warning("took %.1f s", 1.25, extra={"host": "h", "event": "e"})
    line = said.last()
    assert (line["logger"], line["level"], line["event"]) == ("lib.part", "warning", "took 1.2 s")
    assert (line["host"], line["event_"], line["order"]) == ("h", "e", 5)
    assert set(line) == {"time", "level", "logger", "event", "order", "host", "event_"}


def test_an_exception_of_a_library_is_structured(said: Said) -> None:
    try:
        raise OSError(28, "No space left")
    except OSError:
        logging.getLogger("lib").exception("failed", stack_info=True)
    line = said.last()
    assert line["exception"]["type"] == "OSError"
    assert line["exception"]["message"] == "[Errno 28] No space left"
    assert "test_logs_stdlib.py" in line["exception"]["frames"]
    assert "test_an_exception_of_a_library" in line["stack"]


def test_a_wrong_format_string_of_a_library_costs_the_format_and_prints_nothing_elsewhere(
    said: Said, capsys: pytest.CaptureFixture[str]
) -> None:
    (ours,) = [handler for handler in logging.getLogger().handlers if isinstance(handler, PipeHandler)]
    # Not through the logger: a handler of pytest is there as well, and raises.
    ours.handle(logging.LogRecord("lib", logging.WARNING, "f.py", 1, "%d items of %s", ("no number",), None))
    assert said.last()["event"] == "['%d items of %s', 'no number']"
    assert capsys.readouterr() == ("", "")


def test_no_line_is_written_twice_however_often_and_by_whomever_logging_is_set_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = logging.getLogger("lib.with.handler")
    silent = logging.getLogger("lib.silent")
    handlers = [logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)]
    logging.getLogger().addHandler(handlers[0])
    own.addHandler(handlers[1])
    silent.addHandler(handlers[2])
    silent.propagate = False
    kept = io.StringIO()
    file_like = logging.StreamHandler(kept)
    own.addHandler(file_like)
    try:
        with listening() as said:
            logs.configure_logging("info", "json", said)
            logs.configure_logging("info", "json", said)
            own.warning("one")
            silent.warning("two")
            logs.create_context_logger("x").warning("three")
            assert [line["event"] for line in said.lines()] == ["one", "two", "three"]
            assert capsys.readouterr() == ("", "")
            assert kept.getvalue() == "one\n"
        assert handlers[0] in logging.getLogger().handlers
        assert handlers[1] in own.handlers
        assert handlers[2] in silent.handlers
        assert not silent.propagate
        silent.warning("four")
        assert capsys.readouterr().err == "four\n"
    finally:
        logging.getLogger().removeHandler(handlers[0])
        own.removeHandler(handlers[1])
        own.removeHandler(file_like)
        silent.removeHandler(handlers[2])
        silent.propagate = True


def test_after_logging_is_restored_records_go_where_they_went_before() -> None:
    before = list(logging.getLogger().handlers)
    with listening() as said:
        pass
    logging.getLogger("lib").warning("elsewhere")
    assert logging.getLogger().handlers == before
    assert said.rows() == []
    assert not structlog.is_configured()


def test_a_logger_of_structlog_speaks_through_the_same_pipe(said: Said) -> None:
    logger = structlog.get_logger("mine").bind(a=1)
    logger.info("bound", password="hunter2")
    logger.new(b=2).unbind("b").try_unbind("c").debug("too low")
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("failed")
    first, second = said.lines()
    assert (first["logger"], first["event"], first["a"], first["password"]) == ("mine", "bound", 1, "[redacted]")
    assert second["exception"]["message"] == "no"


def test_a_user_who_configured_structlog_keeps_it() -> None:
    own = io.StringIO()
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(own), processors=[structlog.processors.JSONRenderer()]
    )
    try:
        with listening() as said:
            structlog.get_logger().info("theirs")
            logs.create_context_logger("x").info("ours")
        assert own.getvalue() == '{"event": "theirs"}\n'
        assert [line["event"] for line in said.lines()] == ["ours"]
        assert structlog.is_configured()
    finally:
        structlog.reset_defaults()


def test_processors_that_a_user_gives_a_logger_are_run(said: Said) -> None:
    from ag06.monitoring.context_logger import ContextLogger
    from ag06.monitoring.log_pipe import PIPE

    def change(_: object, name: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if fields["event"] == "drop":
            raise structlog.DropEvent
        return {**fields, "event": f"{fields['event']} by {name}", 7: "odd"}

    logger = structlog.wrap_logger(PIPE.levels.gate("x"), processors=[change], wrapper_class=ContextLogger).bind()
    logger.info("drop")
    logger.info("kept %d", 1, event="mine")
    assert (said.last()["event"], said.last()["event_"], said.last()["7"]) == ("kept 1 by info", "mine", "odd")
    assert len(said.rows()) == 1


async def test_what_asyncio_reports_is_a_line(said: Said) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": "lost", "exception": ValueError("no")})
    line = said.last()
    assert (line["logger"], line["level"]) == ("asyncio", "error")
    assert line["event"].startswith("lost")
    assert line["exception"]["type"] == "ValueError"


def test_a_handler_called_while_a_line_is_put_together_may_log_itself(said: Said) -> None:
    class Talks:
        def __repr__(self) -> str:
            logging.getLogger("lib").warning("shown")
            return "talks"

    logs.create_context_logger("x").info("outer", value=Talks())
    assert [line["event"] for line in said.lines()] == ["shown", "outer"]
    assert said.last()["value"] == "talks"


def test_standard_output_is_followed_when_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logs.create_context_logger("app")
    try:
        for turn in range(3):
            logger.info("turn", number=turn)
            assert f'"number":{turn}' in capsys.readouterr().out
            other = io.StringIO()
            before, sys.stdout = sys.stdout, other
            logger.info("other", number=turn)
            sys.stdout = before
            assert f'"event":"other","number":{turn}' in other.getvalue()
            assert capsys.readouterr().out == ""
    finally:
        logs.restore_logging()

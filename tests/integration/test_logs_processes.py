"""Whole processes: what they log is there when they are gone, however they end and whatever became of their output."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

COUNT = 3_000
HEAD = """
import logging, os, sys, time
from ag06.monitoring import logs, observability
"""
SAY = f"""
logger = observability.create_context_logger("app")
for number in range({COUNT}):
    logger.info("said", number=number)
"""


def command(program: str) -> list[str]:
    return [sys.executable, "-c", HEAD + textwrap.dedent(program)]


def environment(**more: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("AG06_LOG") and key != "NO_COLOR"}
    return {**plain, **more}


def run(program: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    options.setdefault("env", environment())
    return subprocess.run(command(program), stdout=subprocess.PIPE, timeout=60, check=False, **options)


def numbers_in(raw: bytes) -> list[int]:
    return [json.loads(row)["number"] for row in raw.splitlines() if b'"event":"said"' in row]


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise ValueError", 1),
        ("os.kill(os.getpid(), 15); time.sleep(30)", -signal.SIGTERM),
        ("os.kill(os.getpid(), 2); time.sleep(30)", -signal.SIGINT),
        ("import threading; threading.Thread(target=lambda: (time.sleep(0.3), logger.info('late'))).start()", 0),
    ],
)
def test_no_line_is_lost_when_a_process_ends(end: str, code: int) -> None:
    done = run(f"logs.configure_logging()\n{SAY}\n{end}", stderr=subprocess.PIPE)
    assert numbers_in(done.stdout) == list(range(COUNT))
    assert done.returncode == code
    assert ("late" not in end) or b'"late"' in done.stdout


def test_a_user_who_configures_nothing_loses_no_line_either() -> None:
    done = run(SAY)
    assert numbers_in(done.stdout) == list(range(COUNT))


def test_what_other_exit_handlers_say_is_written_too() -> None:
    # Handlers run in reverse: the one registered before the log's own runs after it.
    program = (
        "import atexit\natexit.register(lambda: LATE[0]())\n"
        + HEAD
        + SAY
        + "LATE = [lambda: logger.info('last words')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, timeout=60, env=environment()
    )
    assert numbers_in(done.stdout) == list(range(COUNT))
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "last words"


def test_children_made_by_fork_and_by_multiprocessing_write_every_line_once() -> None:
    done = run(
        f"""
        import multiprocessing
        logger = observability.create_context_logger("app")

        def say(base):
            for number in range({COUNT}):
                logger.info("said", number=base + number)

        say(0)
        child = os.fork()
        if child == 0:
            say({COUNT})
            sys.exit(0)
        process = multiprocessing.get_context("fork").Process(target=say, args=(2 * {COUNT},))
        process.start()
        process.join()
        os.waitpid(child, 0)
        """
    )
    assert sorted(numbers_in(done.stdout)) == list(range(3 * COUNT))
    assert done.returncode == 0


def test_a_supervisor_s_handler_of_sigterm_is_left_in_charge() -> None:
    done = run(
        """
        import signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        logs.configure_logging()
        observability.create_context_logger("app").info("said", number=1)
        os.kill(os.getpid(), 15)
        time.sleep(30)
        """
    )
    assert done.returncode == 7
    assert numbers_in(done.stdout) == [1]


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-", "| head -n 1 >/dev/null"])
def test_a_process_whose_output_is_dead_works_on_and_ends_in_order(redirect: str, tmp_path: Path) -> None:
    program = f"logs.configure_logging()\n{SAY}\nopen(sys.argv[1], 'w').write('done')\nsys.stderr.write('ended')"
    script, mark = tmp_path / "program.py", tmp_path / "mark"
    script.write_text(HEAD + program)
    done = subprocess.run(
        f"{sys.executable} {script} {mark} {redirect}",
        shell=True,
        check=False,
        stderr=subprocess.PIPE,
        timeout=60,
        env=environment(),
    )
    assert mark.read_text() == "done"
    assert done.stderr == b"ended"


def test_a_pipe_nobody_reads_neither_slows_the_work_nor_keeps_the_process_from_ending() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb"), os.fdopen(write, "wb") as end:
        # 30,000 lines are more than the pipe and the queue hold together.
        program = (
            f"logs.configure_logging()\n{SAY.replace(str(COUNT), '30_000')}\nsys.stderr.write(str(logs.dropped()))"
        )
        done = subprocess.run(
            command(program), stdout=end, stderr=subprocess.PIPE, timeout=60, check=False, env=environment()
        )
    assert done.returncode == 0
    assert int(done.stderr) > 10_000


def in_a_terminal(program: str, **more: str) -> str:
    """Run a program with a terminal as its output, and return what that showed."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(command(program), stdout=theirs, stderr=subprocess.DEVNULL, env=environment(**more))
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # how Linux says that the other end is closed
                break
            shown += piece
        assert process.wait(60) == 0
    finally:
        os.close(ours)
    return shown.decode()


ONE = 'logs.configure_logging()\nobservability.create_context_logger("app").warning("hello", a="b c")'


def test_a_terminal_shows_coloured_text() -> None:
    shown = in_a_terminal(ONE)
    assert re.fullmatch(r'\S+\+00:00 \x1b\[33mWARNING \x1b\[0m app: hello \x1b\[2ma="b c"\x1b\[0m\r\n', shown)


@pytest.mark.parametrize("more", [{"AG06_LOG_FORMAT": "text"}, {"NO_COLOR": "1"}])
def test_a_terminal_shows_plain_text_where_that_is_asked_for(more: dict[str, str]) -> None:
    assert re.fullmatch(r'\S+\+00:00 WARNING  app: hello a="b c"\r\n', in_a_terminal(ONE, **more))


def test_a_terminal_shows_json_where_that_is_asked_for() -> None:
    line = json.loads(in_a_terminal(ONE, AG06_LOG_FORMAT="json"))
    assert (line["event"], line["a"]) == ("hello", "b c")


def test_settings_choose_level_and_format_of_a_user_who_configures_nothing(tmp_path: Path) -> None:
    program = 'logger = observability.create_context_logger("app")\nlogger.debug("low")\nlogger.info("high")'
    assert [json.loads(row)["event"] for row in run(program).stdout.splitlines()] == ["high"]
    noisy = run(program, env=environment(AG06_LOG_LEVEL="DEBUG", AG06_LOG_FORMAT="TEXT")).stdout.decode()
    assert [row.rpartition(" ")[2] for row in noisy.splitlines()] == ["low", "high"]
    (tmp_path / "ag06.toml").write_text('log_level = "error"\n')
    assert run(program, cwd=tmp_path).stdout == b""


def test_importing_the_facade_imports_no_structlog() -> None:
    done = run("sys.stdout.write(str('structlog' in sys.modules))\nfrom ag06 import Workflow")
    assert done.stdout == b"False"


def test_a_program_s_own_root_logger_is_left_alone_until_logging_is_configured() -> None:
    done = run(
        """
        logging.basicConfig(format="theirs %(message)s", stream=sys.stdout)
        observability.create_context_logger("app").info("ours")
        logs.flush()
        logging.getLogger("x").warning("before")
        logs.configure_logging()
        logging.getLogger("x").warning("after")
        """
    )
    ours, theirs, after = done.stdout.decode().splitlines()
    assert json.loads(ours)["event"] == "ours"
    assert theirs == "theirs before"
    assert json.loads(after)["event"] == "after"

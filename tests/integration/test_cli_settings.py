"""Flags win over the environment, that over `ag06.toml`, that over the defaults; `ag06 doctor` says which one won."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from ag06.persistence import EventStore
from commands import Ended, ag06
from faults import running_server
from servers import ValkeyServer

FLAG = ["--store", "sqlite:///flag.db"]
ENVIRONMENT = {"AG06_STORE": "sqlite:///environment.db"}
FILE = 'store = "sqlite:///file.db"\n'


@pytest.fixture
async def home(tmp_path: Path) -> Path:
    """A directory with a store for each of the three places."""
    for name in ("flag", "environment", "file"):
        events = EventStore(f"sqlite:///{tmp_path}/{name}.db")
        await events.persist_event(name, "test", {})
        await events.close()
    return tmp_path


def _what(ended: Ended, topic: str) -> list[str]:
    return [finding["what"] for finding in ended.json if finding["topic"] == topic]


@pytest.mark.parametrize(
    ("flag", "env", "file", "won"),
    [
        (FLAG, ENVIRONMENT, FILE, "sqlite:///flag.db (from flag)"),
        ([], ENVIRONMENT, FILE, "sqlite:///environment.db (from AG06_STORE)"),
        ([], {}, FILE, "sqlite:///file.db (from ag06.toml)"),
        ([], {}, "", "sqlite:///.ag06/events.db (from default)"),
    ],
)
async def test_doctor_says_which_setting_won(
    home: Path, flag: list[str], env: dict[str, str], file: str, won: str
) -> None:
    (home / "ag06.toml").write_text(file)
    ended = ag06("doctor", "--json", *flag, cwd=home, env=env)
    assert ended.code == 0, ended
    assert _what(ended, "setting store") == [won]


@pytest.mark.parametrize(
    ("flag", "env", "file", "won"),
    [(FLAG, ENVIRONMENT, FILE, "flag"), ([], ENVIRONMENT, FILE, "environment"), ([], {}, FILE, "file")],
)
async def test_commands_take_the_store_that_won(
    home: Path, flag: list[str], env: dict[str, str], file: str, won: str
) -> None:
    (home / "ag06.toml").write_text(file)
    ended = ag06("events", "list", "--json", *flag, cwd=home, env=env)
    assert [event["type"] for event in ended.json] == [won]


async def test_a_misspelt_variable_is_pointed_out(home: Path) -> None:
    ended = ag06("doctor", "--json", *FLAG, cwd=home, env={"AG06_STROE": "x"})
    assert [finding["status"] for finding in ended.json if finding["topic"] == "variable AG06_STROE"] == ["warn"]


async def test_a_store_that_nothing_was_published_to_yet_is_no_failure(tmp_path: Path) -> None:
    ended = ag06("doctor", cwd=tmp_path)
    assert ended.code == 0, ended
    assert "the first publish makes it" in ended.out
    assert not (tmp_path / ".ag06").exists()


async def test_a_store_that_was_named_and_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    ended = ag06("doctor", "--json", "--store", "sqlite:///nowhere.db", cwd=tmp_path)
    assert ended.code == 2
    assert [finding["status"] for finding in ended.json if finding["topic"] == "store"] == ["fail"]
    assert not (tmp_path / "nowhere.db").exists()


async def test_a_step_that_holds_the_log_back_is_named(home: Path) -> None:
    from ag06.persistence.log import StepSpec

    events = EventStore(f"sqlite:///{home}/flag.db")
    await (await events.log()).register("shop", [StepSpec("shop.bill", "flag")])
    await events.close()
    with sqlite3.connect(home / "flag.db") as connection:  # an hour passes
        connection.execute("UPDATE events SET seq = seq - (3600000 << 20)")
    ended = ag06("doctor", "--json", *FLAG, cwd=home)
    (what,) = _what(ended, "step shop.bill")
    assert "1 events behind" in what
    assert "ag06 steps remove shop.bill" in what


async def test_doctor_translates_what_a_crash_of_the_server_would_lose(tmp_path: Path, valkey: ValkeyServer) -> None:
    ended = ag06("doctor", "--json", "--store", f"{valkey.url}?log=doctor-{os.getpid()}", cwd=tmp_path)
    assert ended.code == 0, ended
    assert any("loses the whole log" in what for what in _what(ended, "durability"))


async def test_doctor_warns_of_a_server_that_evicts_and_of_levels_that_it_would_refuse(tmp_path: Path) -> None:
    async with running_server(
        tmp_path / "server", **{"appendonly": "yes", "maxmemory-policy": "allkeys-lru"}
    ) as server:
        ended = ag06("doctor", "--json", "--store", server.url, cwd=tmp_path)
    assert ended.code == 0, ended
    warned = [finding["what"] for finding in ended.json if finding["status"] == "warn"]
    assert any("throws events away" in what for what in warned)
    assert any("'fsync' and 'replicated' are refused here" in what for what in warned)


async def test_no_password_is_shown(tmp_path: Path) -> None:
    url = "redis://clerk:s3cret@127.0.0.1:1/0"
    ended = ag06("doctor", cwd=tmp_path, env={"AG06_STORE": url})
    assert "clerk" not in ended.out.replace("redis://clerk:***@", "")
    assert "s3cret" not in ended.out + ended.err


@pytest.mark.parametrize(
    ("env", "file", "topic", "told"),
    [
        ({"AG06_LOG_LEVEL": "x"}, "", "log_level", "'x' (from AG06_LOG_LEVEL); use debug, info, warning, error"),
        ({}, "log_level = 3", "log_level", "'3' (from ag06.toml)"),
        ({"AG06_LOG_FORMAT": "xml"}, "", "log_format", "use json, text"),
        ({"AG06_HTTP_PORT": ""}, "http_port = 65536", "http_port", "'65536' (from ag06.toml); use a port from 1 to"),
        ({"AG06_HTTP_PORT": "-1"}, "", "http_port", "or off"),
    ],
)
async def test_a_setting_that_is_wrong_fails_and_says_what_is_accepted(
    home: Path, env: dict[str, str], file: str, topic: str, told: str
) -> None:
    (home / "ag06.toml").write_text(file)
    ended = ag06("doctor", "--json", *FLAG, cwd=home, env=env)
    assert ended.code == 2
    assert [f["topic"] for f in ended.json if f["status"] == "fail"] == [f"setting {topic}"]
    assert told in _what(ended, f"setting {topic}")[0]


async def test_settings_that_are_right_in_any_case_pass(home: Path) -> None:
    env = {"AG06_LOG_LEVEL": "WARNING", "AG06_LOG_FORMAT": "Text", "AG06_HTTP_PORT": "off"}
    ended = ag06("doctor", "--json", *FLAG, cwd=home, env=env)
    assert ended.code == 0, ended

"""Every command explains itself, and the shell can complete it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ag06.cli.app import app
from commands import ag06


def _every(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), command
    for name, below in getattr(command, "commands", {}).items():
        yield from _every(below, (*path, name))


COMMANDS = dict(_every(typer.main.get_command(app)))
TABLES = [
    "demo", "validate", "bench", "doctor", "events list", "events tail", "dead-letters list", "dead-letters show",
    "tune status", "tune history",
]  # fmt: skip


def test_the_commands_of_the_contract_are_there() -> None:
    contract = {
        "demo", "validate", "run", "bench", "doctor", "events tail", "events list", "events replay", "events export",
        "dead-letters list", "dead-letters show", "dead-letters retry", "dead-letters discard", "steps list",
        "steps remove", "tune status", "tune history", "tune start", "tune stop", "tune rollback", "tune reset",
        "tune report",
    }  # fmt: skip
    assert contract <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS, ids=[name or "ag06" for name in COMMANDS])
def test_help_shows_an_example_that_the_command_itself_understands(name: str) -> None:
    text = " ".join((COMMANDS[name].help or "").split())
    found = re.search(r"Example: ag06 (.*)", text)
    assert found is not None, text
    words = found[1].split()
    assert " ".join(words).startswith(name)
    path = max((path for path in COMMANDS if f"{found[1]} ".startswith(f"{path} ")), key=len)
    parsed = COMMANDS[path].make_context(path, words[len(path.split()) :])  # raises on what it does not know
    assert parsed.info_name == path


@pytest.mark.parametrize("name", [*TABLES, "steps list"])
def test_whatever_prints_a_table_prints_json_too(name: str) -> None:
    assert "--json" in {option for parameter in COMMANDS[name].params for option in parameter.opts}


def test_help_is_printed_on_standard_output(tmp_path: Path) -> None:
    ended = ag06("events", "tail", "--help", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert "ag06 events tail --type order.placed" in ended.out


def test_the_version_is_the_installed_one(tmp_path: Path) -> None:
    ended = ag06("--version", cwd=tmp_path)
    assert ended.code == 0
    assert re.fullmatch(r"ag06 \d+\.\d+\.\d+\n", ended.out)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_shown_for_the_shell_at_hand(tmp_path: Path, shell: str) -> None:
    ended = ag06("--show-completion", shell, cwd=tmp_path)
    assert ended.code == 0, ended
    assert "complet" in ended.out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("ag06 dea", {"dead-letters"}), ("ag06 events ", {"list", "tail", "replay", "export", "archive"})],
)
def test_the_shell_completes_commands(tmp_path: Path, typed: str, offered: set[str]) -> None:
    position = str(len(typed.split(" ")) - 1)
    variables = {"_AG06_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": position}
    ended = ag06(cwd=tmp_path, env=variables)
    assert set(ended.out.split()) == offered

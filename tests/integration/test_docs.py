"""What the documentation shows must run, and what it links must be there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ag06.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")] if path.is_file()
)
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
_COMMAND = re.compile(r"`(ag06 [^`]+)`|^(?:\$ )?(ag06 .+)$", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])(-[a-z]|--[a-z-]+)(?![\w-])")


def _blocks() -> list[tuple[str, str]]:
    return [
        (f"{page.relative_to(ROOT)}:{number}", block)
        for page in PAGES
        for number, block in enumerate(_BLOCK.findall(page.read_text()), 1)
    ]


def _errors(path: Path, cwd: Path) -> str:
    """Run a script; return what it wrote on the way down, empty if it ended well."""
    done = subprocess.run([sys.executable, str(path)], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    return done.stderr if done.returncode or "Traceback" in done.stderr else ""


@pytest.mark.parametrize(("name", "block"), _blocks(), ids=[name for name, _ in _blocks()])
def test_a_python_block_of_the_docs_runs_as_pasted(name: str, block: str, tmp_path: Path) -> None:
    script = tmp_path / "pasted.py"
    script.write_text(block)
    assert _errors(script, tmp_path) == ""


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    assert _errors(example, tmp_path) == ""


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    targets = [target for target, _ in _LINK.findall(page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def _unknown(text: str, command: Any) -> list[str]:
    """Return the names and options of a command line that do not exist; `list|show` names two commands."""
    words = text.split()[1:]
    while (commands := getattr(command, "commands", None)) and words and words[0][0].isalpha():
        names = words.pop(0).split("|")
        missing = [name for name in names if name not in commands]
        if missing:
            return missing
        command = commands[names[0]]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return [option for option in _OPTION.findall(" ".join(words)) if option not in known]


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_every_command_and_option_that_a_page_names_exists(page: Path) -> None:
    root = typer.main.get_command(app)
    shown = [text or line for text, line in _COMMAND.findall(page.read_text())]
    assert [(text, unknown) for text in shown if (unknown := _unknown(text, root))] == []


def test_a_command_or_option_that_does_not_exist_is_noticed() -> None:
    root = typer.main.get_command(app)
    assert _unknown("ag06 evnts list", root) == ["evnts"]
    assert _unknown("ag06 steps list|discard", root) == ["discard"]
    assert _unknown("ag06 events list -n 5 --colour", root) == ["--colour"]

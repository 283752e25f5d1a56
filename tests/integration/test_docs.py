"""What the documentation shows must run, and what it links must be there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")] if path.is_file()
)
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
_COMMAND = re.compile(r"`?ag06 ([a-z-]+)(?: ([a-z-]+))?")


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


def test_every_command_that_the_docs_name_exists() -> None:
    import typer.main

    from ag06.cli.app import app

    root = typer.main.get_command(app)
    groups: dict[str, set[str]] = {
        name: set(getattr(command, "commands", {}))
        for name, command in root.commands.items()  # type: ignore[attr-defined]
    }
    unknown = []
    for page in PAGES:
        for block in re.findall(r"`(ag06 [^`]+)`|^(ag06 .+)$", page.read_text(), re.MULTILINE):
            text = block[0] or block[1]
            match = _COMMAND.match(text)
            if match is None:
                continue
            name, sub = match.groups()
            if name not in groups or (groups[name] and sub is not None and sub not in groups[name]):
                unknown.append((page.name, text))
    assert unknown == []

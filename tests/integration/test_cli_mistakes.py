"""A user's mistake is told in words, with exit code 2; a store that is away with 1; never with a traceback."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ag06 import ConfigurationError
from ag06.cli.output import moment
from commands import Ended, ag06
from servers import free_port

STEP = "@app.step('a')\ndef step(event): ...\n"
MODULES = {
    "good.py": "from ag06 import Workflow\napp = Workflow('good')\n@app.step('a')\ndef step(event): ...\n",
    "idle.py": "from ag06 import Workflow\napp = Workflow('idle')\n",
    "five.py": "app = 5\n",
    "needy.py": "import no_such_thing\n",
    "broken.py": "\n\n1 / 0\n",
    "unclosed.py": "def broken(:\n",
    "leaving.py": "import sys\nsys.exit(3)\n",
    "kept.py": "from ag06 import Workflow\napp = Workflow('kept', store='memory://')\n" + STEP,
    "lost.py": "from ag06 import Workflow\napp = Workflow('lost', store='nonsense')\n" + STEP,
    "dotted.py": "from ag06 import Workflow\napp = Workflow('a.b')\n",
}


MISTAKES = {
    "nonsense": "No such command",
    "events lst": "No such command",
    "events list --store nonsense": "not a URL",
    "events list --store kafkaesque://x": "unknown scheme",
    "events list --store sqlite:///nowhere.db": "there is no store sqlite:///nowhere.db (from flag)",
    "events list": "there is no store sqlite:///.ag06/events.db (from default)",
    "events list --store memory://": "lives inside the process",
    "events list --store sqlite:///text.db": "not a usable SQLite file",
    "events list -n 0": "--limit",
    "events list -n 99999999999999999999999": "--limit",
    "bench --events 1": "--events",
    "bench --store nonsense": "not a URL",
    "demo --rate nan": "--rate",
    "demo --store memory://": "lives inside the process",
    "validate --store nonsense": "not a URL",
    "validate --store memory://": "lives inside the process",
    "doctor --store nonsense": "not a URL",
    "dead-letters retry": "the ids of events, filters such as --step, or --all",
    "tune status --store sqlite:///nowhere.db": "there is no store sqlite:///nowhere.db (from flag)",
    "tune history -n 0": "--limit",
    "tune stop --timeout 0": "--timeout",
    "run": "MODULE:APP",
    "run good.py": "not MODULE:APP",
    "run .good:app": "not MODULE:APP",
    "run nowhere:app": "no module 'nowhere'",
    "run good:ap": "module good has no name 'ap'; known: app",
    "run kept:app": "lives inside the process",
    "run kept:app --workers 2": "lives inside the process",
    "run good:app --workers 2 --store memory://": "lives inside the process",
    "run lost:app --workers 3": "not a URL",
    "run idle:app --workers 3": "has no steps",
    "run five:app": "not a Workflow",
    "run needy:app": "imports 'no_such_thing'",
    "run broken:app": "broken.py:3: ZeroDivisionError",
    "run unclosed:app": "unclosed.py:1: SyntaxError",
    "run leaving:app": "leaving.py:2: SystemExit: 3",
    "run dotted:app": "dotted.py:2: ConfigurationError",
    "run idle:app": "has no steps",
    "run good:app --workers 0": "--workers",
    "run good:app --log-level loud": "'loud' (from flag)",
}
AWAY = ("events list", "steps list", "dead-letters list", "tune status", "bench", "demo", "validate", "doctor")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store in it that is none, and modules good and bad."""
    home = tmp_path_factory.mktemp("home")
    for name, source in MODULES.items():
        (home / name).write_text(source)
    (home / "text.db").write_text("this is no database, however long one looks at it")
    return home


@pytest.fixture(scope="module")
def ended(home: Path) -> dict[str, Ended]:
    """How each command ended; all of them are run at once, a few at a time."""
    url = f"redis://clerk:s3cret@127.0.0.1:{free_port()}/0"
    commands = {name: name.split() for name in MISTAKES}
    commands |= {f"{name}, away": [*name.split(), "--store", url] for name in AWAY}
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(commands, pool.map(lambda words: ag06(*words, cwd=home), commands.values()), strict=True))


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_told_in_words_and_ends_with_2(ended: dict[str, Ended], command: str) -> None:
    code, out, err = ended[command]
    assert code == 2, err
    assert MISTAKES[command] in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("command", [command for command in MISTAKES if "--workers 3" in command])
def test_a_mistake_that_every_worker_would_make_is_told_once(ended: dict[str, Ended], command: str) -> None:
    assert ended[command].err.count("\n") == 1


@pytest.mark.parametrize("command", AWAY)
def test_a_store_that_is_away_is_named_and_ends_with_1(ended: dict[str, Ended], command: str) -> None:
    code, out, err = ended[f"{command}, away"]
    assert code == 1, err
    assert "cannot reach redis://***@127.0.0.1" in out + err
    assert "Traceback" not in out + err
    assert "s3cret" not in out + err


@pytest.mark.parametrize("text", ["soon", "", "99999-01-01", "99999999d", "9" * 30, "2026-01-01T25:00"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--start '{text}' is not a time"):
        moment("--start", text)


@pytest.mark.parametrize("text", ["15m", "-15m", "1767225600", "2026-01-01", "9999-12-31T23:59:59Z", "0001-01-02"])
def test_a_time_may_be_relative_absolute_or_far_away(text: str) -> None:
    found = moment("--start", text)
    assert found is not None
    assert found.tzinfo is not None


@pytest.mark.parametrize(
    ("content", "told"),
    [("stor = 'x'", "unknown setting 'stor'"), ("store = ", "not valid TOML")],
)
def test_a_settings_file_that_is_wrong_is_named(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "ag06.toml").write_text(content)
    code, _, err = ag06("events", "list", cwd=tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert told in err

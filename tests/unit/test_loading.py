from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ag06 import ConfigurationError, Workflow
from ag06.runtime.loading import load_workflow

_numbers = itertools.count()

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the working directory; return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    written: list[str] = []

    def write_one(source: str) -> str:
        name = f"loaded_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        written.append(name)
        return name

    yield write_one
    for name in written:
        sys.modules.pop(name, None)


ONE = "from ag06 import Workflow\napp = Workflow('shop', store='memory://')\nother = 5\n"
TWO = ONE + "second = Workflow('depot', store='memory://')\n"


def test_a_workflow_is_found_by_module_and_name(write: Write) -> None:
    found = load_workflow(f"{write(TWO)}:second")
    assert isinstance(found, Workflow)
    assert found.name == "depot"


def test_the_module_alone_is_enough_where_it_holds_one_workflow(write: Write) -> None:
    assert load_workflow(write(ONE + "alias = app\n")).name == "shop"


def test_a_workflow_may_be_an_attribute_further_down(write: Write) -> None:
    module = write(ONE + "class flows:\n    main = app\n")
    assert load_workflow(f"{module}:flows.main").name == "shop"


@pytest.mark.parametrize(
    ("source", "suffix", "words"),
    [
        (ONE, ":ap", r"module loaded_\d+ has no name 'ap'; known: app"),
        (ONE, ":other", "other is a int, not a Workflow; known: app"),
        ("x = 1", ":app", "no workflow at all"),
        (TWO, "", r"holds 2 workflows \(app, second\)"),
        ("x = 1", "", "holds 0 workflows"),
        ("import no_such_thing", ":app", "imports 'no_such_thing', which is not installed"),
        ("\n\n1 / 0", ":app", r"failed at .*loaded_\d+\.py:3: ZeroDivisionError"),
        ("def broken(:\n", ":app", r"loaded_\d+.* SyntaxError"),
        ("from ag06 import Retry\nRetry(attempts=0)", ":app", "Retry"),
    ],
)
def test_what_is_wrong_with_a_target_is_said(write: Write, source: str, suffix: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_workflow(write(source) + suffix)


@pytest.mark.parametrize("target", ["shop/flow.py:app", "flow.py", ":app", "", "./flow"])
def test_a_path_is_no_target(target: str) -> None:
    with pytest.raises(ConfigurationError, match="not MODULE:APP"):
        load_workflow(target)


def test_a_module_that_is_not_there_is_named_with_the_place_looked_at(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"no module 'nowhere_at_all.flow' in {tmp_path}"):
        load_workflow("nowhere_at_all.flow:app")

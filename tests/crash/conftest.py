from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own for what waits while a store is away: a test must not find another one's."""
    directory = tmp_path / "journal"
    monkeypatch.setenv("AG06_JOURNAL", str(directory))
    return directory

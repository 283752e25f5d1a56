from __future__ import annotations

from pathlib import Path

import pytest

from ag06 import ConfigurationError
from ag06.settings import DEFAULTS, resolve, resolve_all


def test_a_flag_wins_over_the_environment_the_file_and_the_default(tmp_path: Path) -> None:
    assert resolve("store", environ={}, directory=tmp_path).origin == "default"
    (tmp_path / "ag06.toml").write_text('store = "memory://file"\n')
    environ = {"AG06_STORE": "memory://environment"}
    found = [
        resolve("store", environ={}, directory=tmp_path),
        resolve("store", environ=environ, directory=tmp_path),
        resolve("store", "memory://flag", environ=environ, directory=tmp_path),
    ]
    assert [(setting.value, setting.origin) for setting in found] == [
        ("memory://file", "ag06.toml"),
        ("memory://environment", "AG06_STORE"),
        ("memory://flag", "flag"),
    ]


def test_an_empty_variable_is_as_good_as_none(tmp_path: Path) -> None:
    assert resolve("log_level", environ={"AG06_LOG_LEVEL": ""}, directory=tmp_path).value == "info"


def test_every_setting_has_a_default_and_a_variable_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in DEFAULTS:
        monkeypatch.delenv(f"AG06_{name.upper()}", raising=False)
    assert {setting.name: setting.value for setting in resolve_all()} == dict(DEFAULTS)
    assert DEFAULTS["store"] == "sqlite:///.ag06/events.db"
    for name in DEFAULTS:
        monkeypatch.setenv(f"AG06_{name.upper()}", f"chosen-{name}")
    assert [(s.value, s.origin) for s in resolve_all()] == [(f"chosen-{n}", f"AG06_{n.upper()}") for n in DEFAULTS]
    (first, *_) = resolve_all({"store": "memory://flag"})
    assert (first.value, first.origin) == ("memory://flag", "flag")


def test_a_number_in_the_file_is_taken_as_written(tmp_path: Path) -> None:
    (tmp_path / "ag06.toml").write_text("http_port = 8080\n")
    assert resolve("http_port", environ={}, directory=tmp_path).value == "8080"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"store = ", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b'stor = "x"', "unknown setting 'stor'.*store"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "ag06.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=words) as refused:
        resolve("store", environ={}, directory=tmp_path)
    assert str(tmp_path / "ag06.toml") in str(refused.value)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ag06 import ConfigurationError
from ag06.settings import DEFAULTS, clean, located, resolve, variable


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
    assert {name: resolve(name).value for name in DEFAULTS} == dict(DEFAULTS)
    assert DEFAULTS["store"] == "sqlite:///.ag06/events.db"
    for name in DEFAULTS:
        monkeypatch.setenv(f"AG06_{name.upper()}", f"chosen-{name}")
    chosen = [resolve(name) for name in DEFAULTS]
    assert [(s.value, s.origin) for s in chosen] == [(f"chosen-{n}", f"AG06_{n.upper()}") for n in DEFAULTS]


def test_a_number_in_the_file_is_taken_as_written(tmp_path: Path) -> None:
    (tmp_path / "ag06.toml").write_text("http_port = 8080\n")
    assert resolve("http_port", environ={}, directory=tmp_path).value == "8080"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"store = ", "not valid TOML"),
        (b"\xff\xfe", "UTF-16"),
        ('store = "memory://"'.encode("utf-16"), "UTF-16, not UTF-8.*save it as UTF-8"),
        (b'store = "\xff"', "not valid TOML"),
        (b'stor = "x"', "unknown setting 'stor'.*store"),
        (b"journal = false", "journal is a bool, False; write a text in quotes, or a number"),
        (b'store = ["memory://"]', "store is a list"),
        (b"[store]", "store is a dict"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "ag06.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=words) as refused:
        resolve("store", environ={}, directory=tmp_path)
    assert str(tmp_path / "ag06.toml") in str(refused.value)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "ag06.toml").write_bytes(b'\xef\xbb\xbfstore = "memory://file"\r\n')
    assert resolve("store", environ={}, directory=tmp_path).value == "memory://file"


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("around", [" {}", "{}\n", "{}\r\n", "\t{} ", "\ufeff{}", "\u00a0{}\u00a0"])
def test_white_space_and_a_byte_order_mark_around_any_setting_are_no_part_of_it(
    tmp_path: Path, name: str, around: str
) -> None:
    given = around.format("chosen one")
    variables = {f"AG06_{name.upper()}": given}
    assert resolve(name, given, environ={}, directory=tmp_path).value == "chosen one"
    assert resolve(name, environ=variables, directory=tmp_path).value == "chosen one"
    (tmp_path / "ag06.toml").write_text(f"{name} = {json.dumps(given)}\n")
    assert resolve(name, environ={}, directory=tmp_path).value == "chosen one"


def test_a_variable_of_white_space_alone_is_as_good_as_none(tmp_path: Path) -> None:
    assert resolve("journal", environ={"AG06_JOURNAL": " \n"}, directory=tmp_path).origin == "default"
    assert variable("AG06_WORKER", environ={"AG06_WORKER": "  "}) is None


WRONG_VALUES = [
    ('"chosen"', "is in quotes; write it without them"),
    ("'chosen'", "is in quotes"),
    (' "chosen"\n', "is in quotes"),
    ("\u201cchosen\u201d", "is in quotes"),
    ("a\nb", r"has the character U\+000A at position 1; remove it"),
    ("a\x00b", r"U\+0000"),
    ("a\x1b[31mb", r"U\+001B"),
    ("a\x85b", r"U\+0085"),
    ("a\u200bb", r"U\+200B"),
    ("a\u202eb", r"U\+202E"),
    ("a\udcffb", r"U\+DCFF"),
]


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize(("given", "words"), WRONG_VALUES)
def test_quotes_and_unseen_characters_are_refused_in_any_setting_wherever_it_is_set(
    tmp_path: Path, name: str, given: str, words: str
) -> None:
    variables = {f"AG06_{name.upper()}": given}
    with pytest.raises(ConfigurationError, match=f"from flag.*{words}"):
        resolve(name, given, environ={}, directory=tmp_path)
    with pytest.raises(ConfigurationError, match=f"from AG06_{name.upper()}.*{words}") as refused:
        resolve(name, environ=variables, directory=tmp_path)
    assert str(refused.value).isprintable()
    assert str(refused.value).isascii()
    if "\x00" not in given and "\udcff" not in given:
        (tmp_path / "ag06.toml").write_text(f"{name} = {json.dumps(given)}\n")
        with pytest.raises(ConfigurationError, match=rf"from ag06\.toml.*{words}"):
            resolve(name, environ={}, directory=tmp_path)


def test_quotes_within_a_value_and_joined_letters_are_part_of_it() -> None:
    for value in ('it"s', "'", "/home/o'neil/x", "/data/\u0645\u06cc\u200c\u062e", "a b"):
        assert clean("journal", value, "flag") == value


def test_a_secret_that_is_refused_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match=r"8 characters \(from AG06_HTTP_KEY\) is in quotes") as refused:
        variable("AG06_HTTP_KEY", secret=True, environ={"AG06_HTTP_KEY": '"s3cret"'})
    assert "s3cret" not in str(refused.value)
    for url in ('"redis://clerk:s3cret@host/0"', "'rediss://host/0?ssl_password=s3cret'", "redis://:s3\ncret@host"):
        with pytest.raises(ConfigurationError) as refused:
            resolve("store", url)
        assert "cret" not in str(refused.value)


def test_a_path_is_located_from_where_the_process_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/clerk")
    monkeypatch.chdir(tmp_path)
    assert located("a/../b") == str(tmp_path / "b")
    assert located("~/b") == "/home/clerk/b"
    assert located("/b") == "/b"

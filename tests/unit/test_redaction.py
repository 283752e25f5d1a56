"""What a log may not tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.monitoring import logs
from ag06.monitoring.redaction import HIDDEN, Redaction
from said import listening

REDACTION = Redaction()


@pytest.mark.parametrize(
    "name",
    [
        "password", "PASSWORD", "db_password", "userPassword", "passwd", "password2", "client_secret", "secrets",
        "token", "access_token", "refreshToken", "tokens", "X-Api-Key", "apikey", "api_key", "APIKey", "apiKey",
        "Authorization", "proxy-authorization", "Cookie", "Set-Cookie", "cookies", "credentials", "private_key",
        "aws_secret_access_key", "accessKey", "AG06_HTTP_KEY", "session key",
    ],
)  # fmt: skip
def test_the_value_of_a_secret_field_is_hidden_however_its_name_is_written(name: str) -> None:
    assert REDACTION.hides(name)


@pytest.mark.parametrize(
    "name",
    ["user_id", "tokenizer", "monkey", "key", "author", "passport", "secretary", "compass", "keyboard", "cookiecutter"],
)
def test_a_field_that_only_looks_like_a_secret_is_shown(name: str) -> None:
    assert not REDACTION.hides(name)


def test_a_number_of_tokens_is_no_secret_but_a_password_of_digits_is() -> None:
    assert not REDACTION.hides_value("max_tokens", 500)
    assert not REDACTION.hides_value("password", None)
    assert not REDACTION.hides_value("has_password", True)
    assert REDACTION.hides_value("password", 12345)
    assert REDACTION.hides_value("tokens", ["a"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://u:hunter2@host:6379/0", f"redis://{HIDDEN}@host:6379/0"),
        ("at redis://:hunter2@h, at rediss://x:hunter2@h.", f"at redis://{HIDDEN}@h, at rediss://{HIDDEN}@h."),
        ("https://hunter2@github.com/a", f"https://{HIDDEN}@github.com/a"),
        ("redis://u:hun@ter2@host", f"redis://{HIDDEN}@host"),
        ("redis://:hunt/er2@host:1/0", f"redis://:{HIDDEN}@host:1/0"),
        ("https://host:8080/users/@bob", "https://host:8080/users/@bob"),
        ("https://host/users/@bob", "https://host/users/@bob"),
        ("GET /x?token=hunter2&page=2", f"GET /x?token={HIDDEN}&page=2"),
        ("GET /x?page=2&api_key=hunter2", f"GET /x?page=2&api_key={HIDDEN}"),
        ("host=h password=hunter2 user=u", f"host=h password={HIDDEN} user=u"),
        ("Config(password='hunter2', port=1)", f"Config(password={HIDDEN}, port=1)"),
        ("{'db_password': 'hunter2', 'a': 1}", f"{{'db_password': {HIDDEN}, 'a': 1}}"),
        ('{"client_secret": "hun ter2", "a": 1}', f'{{"client_secret": {HIDDEN}, "a": 1}}'),
        ("password=b'hunter2'", f"password={HIDDEN}"),
        ("Authorization: Bearer hunter2", f"Authorization: {HIDDEN}"),
        ("sent Bearer hunter2hunter2.x-y==", f"sent Bearer {HIDDEN}"),
        ("Cookie: a=hunter2; b=hunter2", f"Cookie: {HIDDEN}"),
        ("basic knowledge: none", "basic knowledge: none"),
        ("the token has no value", "the token has no value"),
        ("12:30:01 took=5ms", "12:30:01 took=5ms"),
    ],
)
def test_a_secret_is_hidden_inside_a_text_and_the_rest_is_kept(text: str, shown: str) -> None:
    assert REDACTION.text(text) == shown


@given(
    before=st.text(max_size=20),
    user=st.text("abc%._-", max_size=8),
    password=st.text("abcXYZ09%._~!$*+-", min_size=6, max_size=30),
    after=st.text(max_size=20),
)
def test_no_password_of_a_url_is_shown_wherever_the_url_stands(
    before: str, user: str, password: str, after: str
) -> None:
    shown = REDACTION.text(f"{before}postgres://{user}:{password}@db.example/x{after}")
    assert f":{password}@" not in shown
    assert "@db.example" in shown


@given(st.text(max_size=300))
def test_a_text_without_anything_that_assigns_or_locates_is_kept_as_it_is(text: str) -> None:
    plain = text.replace(":", "").replace("=", "").replace("earer", "").replace("asic", "").replace("EARER", "")
    assert REDACTION.text(plain) == plain


@pytest.mark.parametrize(
    "piece", ["://", "password=", 'token="', "a" * 50, "://a:", "cookie:", "://:a", "secret='\\", "bearer "]
)
def test_a_text_made_to_be_slow_is_searched_in_time_in_proportion_to_its_length(piece: str) -> None:
    # Much longer than any text of a line, so that a quadratic search does not end before the test's timeout.
    Redaction().text("@ " + piece * (500_000 // len(piece)))  # what a URL needs, where it ends no search


def test_the_key_of_the_http_server_is_hidden_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AG06_HTTP_KEY", "correct horse")
    with listening() as said:
        logger = logs.create_context_logger("test", tried="the correct horse battery")
        logger.info("got correct horse", deep=[{"correct horse": 1}])
        try:
            raise ValueError("no such key: correct horse")
        except ValueError:
            logger.exception("refused")
    assert "correct horse" not in said.getvalue()
    assert said.lines()[0]["event"] == f"got {HIDDEN}"


def test_names_that_the_user_calls_secret_are_hidden_as_well() -> None:
    with listening(secrets=("iban", "Card Number")) as said:
        logs.create_context_logger("test").info("paid iban=DE99", customer_iban="DE99", cardNumber=4111, amount=5)
    line = said.last()
    assert (line["customer_iban"], line["cardNumber"], line["amount"]) == (HIDDEN, HIDDEN, 5)
    assert line["event"] == f"paid iban={HIDDEN}"


def test_secrets_are_hidden_at_every_depth_in_bound_fields_in_context_and_in_what_other_libraries_log() -> None:
    import logging

    with listening() as said:
        with logs.context(session={"cookie": "hunter2"}):
            logger = logs.create_context_logger("test", token="hunter2").bind(a=[{"b": {"api_key": "hunter2"}}])
            logger.info("x", url="redis://u:hunter2@h", raw=b"password=hunter2", error=ValueError("redis://:hunter2@h"))
            logging.getLogger("lib").warning("to %s", "redis://u:hunter2@h", extra={"passwd": "hunter2"})
            try:
                raise ConnectionError("redis://u:hunter2@host refused, password='hunter2'")
            except ConnectionError:
                logging.getLogger("lib").exception("failed")
    assert len(said.lines()) == 3
    assert "hunter2" not in said.getvalue()


def test_a_secret_that_begins_before_the_cut_of_a_long_text_is_hidden() -> None:
    for length in range(8_150, 8_200):
        with listening() as said:
            logs.create_context_logger("test").info("x" * length + " redis://user:hunter2hunter2@host " + "y" * 9_000)
        assert "hunter2" not in said.getvalue(), length

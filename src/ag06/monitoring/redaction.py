"""Secrets do not reach a log: by the name of a field, by their form inside a text, and by their very value."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "[redacted]"

SECRET_WORDS = (
    "access_key",
    "api_key",
    "authorization",
    "cookie",
    "credential",
    "encryption_key",
    "http_key",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "private_key",
    "pwd",
    "secret",
    "session_key",
    "signing_key",
    "token",
)
"""A field is secret if its name has one of these as whole words: `db_password`, `X-Api-Key`, `refreshTokens`."""

_SHORTEST = 4
"""A value shorter than this is not looked for in texts: it would be found in every other word."""
_MOST_NAMES, _LONGEST_NAME = 10_000, 200
"""How many names, and how long ones, are remembered with what they are."""

_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_BETWEEN_WORDS = re.compile(r"[^a-z0-9]+")

# No user, password or token of a URL is kept. The second form is for a password with a slash in it, which no URL may
# have but many do; digits after the colon are a port.
_USER_INFO = re.compile(r"(://)[^\s/?#]{0,2000}@")
_USER_INFO_WITH_SLASH = re.compile(r"(://[^\s/?#@:]{0,200}:)(?!\d{1,5}(?:[/?#]|$))\S{0,200}@")
_BEARER = re.compile(r"\b(bearer|basic)(\s+)[\w.~+/-]{12,}=*", re.IGNORECASE)
_COOKIES = re.compile(r"(cookie[\\\"']{0,4}\s{0,3}[:=]\s{0,3}[\\\"']{0,4})[^\r\n\"'\\]+", re.IGNORECASE)

_ASSIGNS = rf"[\\\"']{{0,4}}\s{{0,3}}(?:=>?|:)\s{{0,3}}(?!{re.escape(HIDDEN)})"
_VALUE = (
    r"[bru]?\"(?:[^\"\\]|\\.)*(?:\"|$)"
    r"|[bru]?'(?:[^'\\]|\\.)*(?:'|$)"
    r"|\\\"[^\"]*(?:\"|$)"
    r"|(?:(?:bearer|basic|digest|token)\s+)?[^\s,;&\"'\\)}\]]+"
)


def _words_of(name: str) -> str:
    """Return a name as its words, singular: `refreshTokens` as `_refresh_token_`."""
    words = _BETWEEN_WORDS.split(_HUMPS.sub("_", name[:_LONGEST_NAME]).lower())
    return f"_{'_'.join(word.rstrip('0123456789').removesuffix('s') for word in words)}_"


class Redaction:
    """Knows what is secret. `words` are added to `SECRET_WORDS`; `values` are hidden wherever they stand."""

    def __init__(self, words: Iterable[str] = (), values: Iterable[str] = ()) -> None:
        """Compile what to look for."""
        known = dict.fromkeys((*SECRET_WORDS, *(word.lower() for word in words)))
        # `apikey` is one word to those who write it so.
        self._names = tuple({_words_of(form) for word in known for form in (word, re.sub(r"[^a-z0-9]", "", word))})
        stems = [re.sub(r"[^a-z0-9]+", "_", word) for word in known]
        self._stems = tuple(stem.partition("_")[0] for stem in stems)
        spelled = "|".join(stem.replace("_", "[_ -]?") for stem in stems)
        name = rf"(?:{spelled})(?![a-z0-9])(?:[_-][\w-]{{0,40}})?"
        self._assigned = re.compile(rf"({name}{_ASSIGNS})(?:{_VALUE})", re.IGNORECASE)
        self._values = tuple(sorted({value for value in values if len(value) >= _SHORTEST}, key=len, reverse=True))
        self._known: dict[str, bool] = {}

    def hides(self, name: str) -> bool:
        """Return whether the value of a field of this name is secret."""
        known = self._known.get(name)
        if known is None:
            words = _words_of(name)
            known = any(secret in words for secret in self._names)
            if len(name) <= _LONGEST_NAME:
                if len(self._known) >= _MOST_NAMES:
                    self._known.clear()
                self._known[name] = known
        return known

    def hides_value(self, name: str, value: object) -> bool:
        """Return whether to hide `value`; what is no value, and how many tokens there are, is no secret."""
        if not self.hides(name) or value is None or isinstance(value, bool):
            return False
        return not (isinstance(value, (int, float)) and "_token_" in _words_of(name))

    def text(self, text: str) -> str:
        """Return `text` without credentials of URLs, `password=...` and its like, and the known values."""
        if "://" in text and "@" in text:
            text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
            text = _USER_INFO_WITH_SLASH.sub(rf"\1{HIDDEN}@", text)
        if "=" in text or ":" in text:
            lowered = text.lower()
            if any(stem in lowered for stem in self._stems):
                text = _COOKIES.sub(rf"\1{HIDDEN}", text)
                text = self._assigned.sub(rf"\1{HIDDEN}", text)
        if "earer " in text or "asic " in text or "EARER " in text or "ASIC " in text:
            text = _BEARER.sub(rf"\1\2{HIDDEN}", text)
        for value in self._values:
            if value in text:
                text = text.replace(value, HIDDEN)
        return text

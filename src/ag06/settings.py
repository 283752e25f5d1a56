"""Where a setting comes from: a flag, then the environment, then `ag06.toml`, then the default. And what it may be."""

from __future__ import annotations

import codecs
import os
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from ag06.errors import ConfigurationError

DEFAULT_STORE = "sqlite:///.ag06/events.db"

DEFAULTS: Mapping[str, str] = {
    "store": DEFAULT_STORE,
    "journal": ".ag06/journal",
    "archive": "",
    "archive_after": "",
    "delete_after": "",
    "http_host": "127.0.0.1",
    "http_port": "9090",
    "log_level": "info",
    "log_format": "json",
    "traces": "",
    "tune": "manual",
    "stall_timeout": "60s",
}
"""Every setting that has a fixed name (`AG06_` and the name in capitals), with its default."""

ACCEPTED: Mapping[str, tuple[str, ...]] = {
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("json", "text"),
    "tune": ("off", "manual", "observe", "on"),
}
"""Settings that are one of a few words, in any case."""

SPANS = ("archive_after", "delete_after")
"""Settings that are a time: a number with its unit, or seconds; not set when empty."""

LONGEST = 100 * 366 * 86_400.0
"""Most seconds that a span may have: a hundred years, which every store can add to the time of day."""


_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d|)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


_QUOTES = ("'", '"', "`", "\u2018\u2019", "\u201c\u201d", "\u201e\u201c")
_JOINERS = "\u200c\u200d"  # part of words in several scripts
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that a screen does not show, or shows as something else."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Setting(msgspec.Struct, frozen=True):
    """The value that won, and the place it came from: `flag`, `AG06_...`, `ag06.toml` or `default`."""

    name: str
    value: str
    origin: str


def clean(name: str, value: str, origin: str, *, secret: bool = False) -> str:
    """Return a value without white space or a byte order mark at its ends: files and shells leave them there.

    Raises `ConfigurationError` for one in quotes (`docker run --env-file` and systemd's `--property` keep them) and for
    one with characters that a screen does not show. The message quotes the value unless it is `secret`.
    """
    cleaned = value.strip().strip("\ufeff").strip()
    shown = f"{len(cleaned)} characters" if secret else ascii(without_login(cleaned))
    if len(cleaned) > 1 and any(cleaned[0] == pair[0] and cleaned[-1] == pair[-1] for pair in _QUOTES):
        raise ConfigurationError(f"{name} {shown} (from {origin}) is in quotes; write it without them")
    for index, character in enumerate(cleaned):
        if unicodedata.category(character) in _UNSEEN and character not in _JOINERS:
            code = f"U+{ord(character):04X}"
            raise ConfigurationError(
                f"{name} {shown} (from {origin}) has the character {code} at position {index}; remove it"
            )
    return cleaned


def without_login(url: str) -> str:
    """Return `url` without user and password, even where an unquoted character in them makes it no URL at all."""
    hidden = re.sub(r"//.*@", "//***@", url, flags=re.DOTALL)
    return re.sub(r"(password=)[^&#]*", r"\1***", hidden)


def variable(name: str, *, secret: bool = False, environ: Mapping[str, str] | None = None) -> str | None:
    """Return an environment variable as `clean` leaves it; `None` if it is not set, or empty."""
    value = (os.environ if environ is None else environ).get(name)
    return (clean("variable", value, name, secret=secret) or None) if value else None


def located(path: str) -> str:
    """Return the absolute path that `path` names from here; `~` is the home directory.

    A setting that is a path is located once, when it is read: the process may change its working directory later.
    """
    return os.path.abspath(os.path.expanduser(path))


def _file_values(path: Path) -> dict[str, str]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); correct it or remove it") from error
    if raw.startswith(_UTF16):
        raise ConfigurationError(f"{path}: not valid TOML (UTF-16, not UTF-8); save it as UTF-8")
    try:
        table = tomllib.loads(raw.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML ({error}); correct it or remove it") from error
    unknown = sorted(set(table) - set(DEFAULTS))
    if unknown:
        raise ConfigurationError(f"{path}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(DEFAULTS))}")
    for name, value in table.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            kind = type(value).__name__
            raise ConfigurationError(f"{path}: {name} is a {kind}, {value!r}; write a text in quotes, or a number")
    return {name: str(value) for name, value in table.items()}


def resolve(
    name: str,
    flag: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Setting:
    """Return the setting `name`, cleaned, with its origin; `flag` is what the user gave on the spot, or `None`.

    Raises `ConfigurationError` for a value that `clean` refuses, and for an `ag06.toml` that is wrong.
    """
    shown = name.replace("_", " ")
    if flag is not None:
        return Setting(name, clean(shown, flag, "flag"), "flag")
    origin = f"AG06_{name.upper()}"
    from_environment = (os.environ if environ is None else environ).get(origin)
    if from_environment and (cleaned := clean(shown, from_environment, origin)):
        return Setting(name, cleaned, origin)
    from_file = _file_values((directory or Path()) / "ag06.toml").get(name)
    if from_file is not None:
        return Setting(name, clean(shown, from_file, "ag06.toml"), "ag06.toml")
    return Setting(name, DEFAULTS[name], "default")


def check_setting(setting: Setting) -> None:
    """Raise `ConfigurationError` unless the value is one that the setting accepts; a store's URL is not looked at."""
    accepted = ACCEPTED.get(setting.name)
    if accepted is not None and setting.value.lower() not in accepted:
        _refuse(setting, ", ".join(accepted))
    if setting.name in SPANS:
        seconds_of(setting)
    if setting.name == "stall_timeout":
        timeout_of(setting)
    if setting.name == "traces" and setting.value.strip().lower() not in {"", "off"}:
        ratio_of(setting)
    if setting.name == "http_port" and setting.value.lower() != "off":
        digits = setting.value.isascii() and setting.value.isdigit() and len(setting.value) <= 5
        if not digits or int(setting.value) > 65_535:
            _refuse(setting, "a port from 1 to 65535, 0 for any that is free, or off")


def seconds_of(setting: Setting) -> float | None:
    """Return a setting such as `30d`, `12h`, `15m` or `90` as seconds, `None` if it is empty."""
    if not setting.value:
        return None
    found = _SPAN.fullmatch(setting.value.strip())
    seconds = LONGEST + 1 if found is None else float(found[1]) * _UNITS[found[2]]
    if seconds > LONGEST:
        _refuse(setting, "seconds, or a number with its unit: 90s, 15m, 12h, 30d")
    return seconds


def timeout_of(setting: Setting) -> float | None:
    """Return a time limit such as `60s` or `2m` in seconds, `None` if it is `off`."""
    if setting.value.strip().lower() == "off":
        return None
    seconds = seconds_of(setting)
    if not seconds:
        _refuse(setting, "seconds, or a number with its unit: 60s, 2m; or off")
    return seconds


def ratio_of(setting: Setting) -> float:
    """Return a setting that is a share, such as `0.01`, as a number from 0 to 1."""
    try:
        ratio = float(setting.value)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        _refuse(setting, "a share from 0 to 1, or off")
    return ratio


def _refuse(setting: Setting, accepted: str) -> NoReturn:
    name = setting.name.replace("_", " ")
    raise ConfigurationError(f"{name} {setting.value!r} (from {setting.origin}); use {accepted}")


def check_seconds(name: str, value: object, meaning: str, *, least: float = 0, longest: float = LONGEST) -> None:
    """Raise `ConfigurationError` unless `value` is a number of seconds from `least` to `longest`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= longest:
        raise ConfigurationError(f"{name}={value!r}: seconds from {least} to {longest:.0f}; {meaning}")


def check_count(name: str, value: object, least: int, meaning: str) -> None:
    """Raise `ConfigurationError` unless `value` is a whole number, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r}: a whole number from {least}; {meaning}")

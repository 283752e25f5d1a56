"""From a store's URL to the adapter that speaks to it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec

from ag06.errors import ConfigurationError
from ag06.persistence.journal.state import JournalState
from ag06.persistence.log import EventLog, LogOptions
from ag06.settings import clean, located

if TYPE_CHECKING:
    from ag06.persistence.journal.dead_letter_file import Letters

_APPEND_SECONDS = 1.0
"""How long nothing may move while a remote store takes an append, before the journal takes it."""

_LOCAL = ("memory:", "sqlite:")
_FILE_OPTIONS = frozenset({"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"})
ACCEPTED = "memory:// sqlite:///PATH redis://HOST:PORT/DB rediss://HOST:PORT/DB"


def open_log(url: str, options: LogOptions) -> EventLog:
    """Return the log that `url` names, not yet opened; the adapter's module is imported only now."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ConfigurationError(f"store {masked(url)!r} is not a URL; accepted: {ACCEPTED}")
    match scheme.lower():
        case "memory":
            from ag06.persistence.memory import MemoryLog

            _refuse_options(url, rest)
            return MemoryLog(rest, options)
        case "sqlite":
            from ag06.persistence.sqlite import SqliteLog

            return SqliteLog(_sqlite_path(url, rest), options)
        case "redis" | "rediss" | "valkey" | "valkeys":
            from ag06.persistence.redis import RedisLog

            if options.journal is not None:
                options = msgspec.structs.replace(options, append_timeout=_APPEND_SECONDS)
            log = RedisLog(re.sub(r"^valkey", "redis", url), options)
            return log if options.journal is None else _journaled(log, log.place, options, options.journal)
        case _:
            raise ConfigurationError(f"store {masked(url)!r}: unknown scheme {scheme!r}; accepted: {ACCEPTED}")


def locate(url: str) -> str:
    """Return `url` with its scheme in lower case and its paths absolute, so that it names one place from now on.

    A URL that `open_log` refuses may come back as it is.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme == "sqlite":
        return f"sqlite:///{quote(located(_sqlite_path(url, rest)))}"
    place, mark, query = rest.partition("?")
    options = parse_qsl(query, keep_blank_values=True)
    if _FILE_OPTIONS.intersection(dict(options)):
        query = urlencode(
            [(key, located(value) if key in _FILE_OPTIONS and value else value) for key, value in options]
        )
    return f"{scheme}{separator}{place}{mark}{query}"


def _journaled(log: EventLog, place: str, options: LogOptions, directory: str) -> EventLog:
    from ag06.persistence.journal.claim import Claims
    from ag06.persistence.journal.log import JournaledLog

    return JournaledLog(log, Claims(directory, place), options)


def journal_letters(url: str, options: LogOptions) -> Letters | None:
    """Return the dead letters of the journals of a store; `None` where there is no journal. Opens nothing."""
    if not is_journaled(url, options):
        return None
    from ag06.persistence.journal.log import JournaledLog

    log = open_log(url, options)
    return log.letters if isinstance(log, JournaledLog) else None


def is_journaled(url: str, options: LogOptions) -> bool:
    """Whether `open_log` puts a journal in front of this store: of a remote one, unless it is switched off."""
    return options.journal is not None and not url.lower().startswith(_LOCAL)


def journal_state(log: EventLog) -> JournalState | None:
    """Return how the journal in front of a log stands; `None` if there is none."""
    from ag06.persistence.journal.log import JournaledLog

    return log.journal_state() if isinstance(log, JournaledLog) else None


def sqlite_file(url: str) -> str | None:
    """Return the path of the file that a `sqlite://` URL names, or `None` for a store that is no file."""
    scheme, _, rest = url.partition("://")
    return _sqlite_path(url, rest) if scheme.lower() == "sqlite" else None


def _sqlite_path(url: str, rest: str) -> str:
    """Return the path after `sqlite://`: `/x.db` is relative to the working directory, `//x.db` is absolute.

    `/~/x.db` is in the home directory.
    """
    if not rest.startswith("/") or rest == "/":
        raise ConfigurationError(f"store {url!r}: write sqlite:///relative.db or sqlite:////absolute.db")
    path = clean("store", unquote(rest[1:].partition("?")[0]), "its URL")
    if path in (":memory:", ""):
        raise ConfigurationError(f"store {url!r}: SQLite needs a file here; for a log in memory use memory://")
    _refuse_options(url, rest)
    return os.path.expanduser(path) if path.startswith("~/") else path


def _refuse_options(url: str, rest: str) -> None:
    """Refuse options, which neither a file nor a log in memory has: they would be ignored without a word."""
    if "?" in rest:
        raise ConfigurationError(f"store {url!r}: takes no options after '?'; write a '?' in a name as %3F")


def masked(url: str) -> str:
    """Return `url` fit for a message or a log: without its password, even where that makes it no URL at all."""
    if url.startswith(_LOCAL):
        return url
    head, at, host = url.rpartition("@")
    user = re.match(r"([\w+.-]*:)?(//)?[^:/@]*", head)
    if user is not None and len(user[0]) < len(head):
        head = f"{user[0]}:***"
    return re.sub(r"(password=)[^&#]*", r"\1***", f"{head}{at}{host}")

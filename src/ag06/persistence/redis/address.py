"""Where the server is: what a store's URL says, and how to show it without its password."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from ag06.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Address(msgspec.Struct, frozen=True):
    """One log on one server.

    Attributes:
        url: for the client library, password included.
        shown: the same without the password, for messages.
        prefix: what every key begins with. It is a hash tag, so that all keys lie in one slot of a cluster.
    """

    url: str
    shown: str
    prefix: str


def read_address(url: str) -> Address:
    """Return the address that `redis://[USER:PASSWORD@]HOST[:PORT][/DB][?log=NAME]` names; `rediss` means TLS."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"store {_masked(url)!r} is not a URL: {error}") from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or port == 0:
        raise ConfigurationError(f"store {_masked(url)!r}: write redis://HOST:PORT/DB or rediss://HOST:PORT/DB")
    if parts.path.strip("/") and not parts.path.strip("/").isdigit():
        raise ConfigurationError(
            f"store {_masked(url)!r}: the path is the number of a database; use ?log=NAME for names"
        )
    query = parse_qsl(parts.query, keep_blank_values=True)
    name = dict(query).get("log", "ag06")
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"store {_masked(url)!r}: log={name!r}; letters, digits, '_', '.', '-', at most 64")
    rest = urlencode([(key, value) for key, value in query if key != "log"])
    clean = parts._replace(query=rest).geturl()
    return Address(clean, _masked(url), f"{{{name}}}:")


def _masked(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" not in authority:
        return url
    host = authority.rpartition("@")[2]
    return f"{scheme}{separator}***@{host}{rest[len(authority) :]}"

"""Where the server is: what a store's URL says, and how to show it without its password."""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from ag06.errors import ConfigurationError
from ag06.settings import without_login

_LOG = "ag06"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_OPTIONS = {
    "ssl_ca_certs": ".+",
    "ssl_ca_path": ".+",
    "ssl_certfile": ".+",
    "ssl_keyfile": ".+",
    "ssl_password": ".+",
    "ssl_cert_reqs": "none|optional|required",
    "ssl_check_hostname": "true|false|yes|no|1|0",
}
"""What a URL with TLS may say beside `log`, and what is accepted."""


class Address(msgspec.Struct, frozen=True):
    """One log on one server.

    Attributes:
        url: for the client library, password included.
        shown: the same without the password, for messages.
        prefix: what every key begins with. It is a hash tag, so that all keys lie in one slot of a cluster.
        used: set once a script ran there for this process, whoever connected: it may work again.
    """

    url: str
    shown: str
    prefix: str
    used: threading.Event = msgspec.field(default_factory=threading.Event)

    @property
    def place(self) -> str:
        """The log's name, the same however its URL is written and whoever logs in."""
        parts = urlsplit(self.url)
        database = parts.path.strip("/") or "0"
        name = self.prefix.strip("{}:")
        log = "" if name == _LOG else f"?log={name}"
        return f"redis://{parts.hostname}:{parts.port or 6379}/{int(database)}{log}"

    def at(self, host: str, port: int) -> Address:
        """Return the same log on another node of its cluster; messages go on naming the one that the user wrote."""
        parts = urlsplit(self.url)
        user, at, _ = parts.netloc.rpartition("@")
        node = f"{user}{at}{f'[{host}]' if ':' in host else host}:{port}"
        return Address(parts._replace(netloc=node).geturl(), self.shown, self.prefix, self.used)


def read_address(url: str) -> Address:
    """Return the address that `redis://[USER:PASSWORD@]HOST[:PORT][/DB][?log=NAME]` names; `rediss` means TLS."""
    shown = without_login(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        # The error may quote a part of the password.
        problem = "write / ? # @ in a user or password as %2F %3F %23 %40" if "@" in url else error
        raise ConfigurationError(f"store {shown!r} is not a URL: {problem}") from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or port == 0:
        raise ConfigurationError(f"store {shown!r}: write redis://HOST:PORT/DB or rediss://HOST:PORT/DB")
    if not re.fullmatch(r"/*[0-9]*/*", parts.path):
        raise ConfigurationError(f"store {shown!r}: the path is the number of a database; use ?log=NAME for names")
    if parts.fragment or url.endswith("#"):
        raise ConfigurationError(f"store {shown!r}: has a part after '#', which no server knows; remove it")
    query = parse_qsl(parts.query, keep_blank_values=True)
    if len(dict(query)) < len(query):
        raise ConfigurationError(f"store {shown!r}: names an option twice; write each once")
    name = dict(query).get("log", _LOG)
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"store {shown!r}: log={name!r}; letters, digits, '_', '.', '-', at most 64")
    options = [(key, value) for key, value in query if key != "log"]
    for key, value in options:
        if parts.scheme != "rediss" or key not in _OPTIONS or not re.fullmatch(_OPTIONS[key], value, re.IGNORECASE):
            raise ConfigurationError(
                f"store {shown!r}: the option {key} is not accepted like that; there are log=NAME and, with "
                f"rediss, {', '.join(_OPTIONS)}"
            )
    rest = urlencode(options)
    clean = parts._replace(query=rest).geturl()
    return Address(clean, shown, f"{{{name}}}:", _used(clean))


@lru_cache(maxsize=1024)
def _used(url: str) -> threading.Event:
    return threading.Event()

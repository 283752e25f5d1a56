"""Who may ask: the key, the names this server answers to, and pages of other sites in a browser."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from ag06.errors import ConfigurationError
from ag06.monitoring.http_messages import Request, Response, problem

SHORTEST_KEY = 16
PUBLIC = frozenset({"/health/live", "/health/ready", "/health/startup"})
"""Paths that need no key: orchestrators probe them, and they tell no more than a status."""

_SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Lets a request pass, or answers it with the refusal."""

    def __init__(self, key: str | None, *, loopback: bool, hosts: Collection[str] = ()) -> None:
        """Ask for `key` where there is one; on the loopback answer to loopback names and `hosts` alone."""
        if key is not None and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key):
            raise ConfigurationError(
                f"AG06_HTTP_KEY: a key of {len(key)} characters that cannot be used; "
                f"take {SHORTEST_KEY} or more letters, digits and signs of ASCII, without spaces"
            )
        self._key = None if key is None else key.encode()
        self._loopback = loopback
        self._hosts = frozenset(host.lower() for host in hosts)

    def refusal(self, request: Request) -> Response | None:
        """Return why the request is refused, or `None`."""
        host = request.headers.get("host")
        # A page of another site can point its own name at 127.0.0.1 (DNS rebinding); only the Host header tells.
        if self._loopback and host is not None and not self._is_ours(host):
            return problem(421, "this server listens on the loopback and does not answer to that host name")
        origin = request.headers.get("origin")
        if origin is not None and request.method not in _SAFE and urlsplit(origin).netloc != host:
            return problem(403, "a page of another site may not change anything here")
        if self._key is None or request.path in PUBLIC:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key):
            return None
        return problem(401, "give the key as 'Authorization: Bearer ...'", {"www-authenticate": "Bearer"})

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name == "localhost" or name in self._hosts or is_loopback_address(name)


def is_loopback_address(text: str) -> bool:
    """Whether this is an IP address of the loopback; a name is none."""
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False

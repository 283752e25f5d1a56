"""The HTTP server of a workflow: small, bounded, on the loopback unless there is a key."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Collection, Mapping
from operator import itemgetter

from ag06.errors import ConfigurationError
from ag06.monitoring.http_connection import Connection, Limits
from ag06.monitoring.http_guard import Guard, is_loopback_address
from ag06.monitoring.http_messages import Request, Response, Routes, problem
from ag06.settings import Setting, check_setting, resolve, variable
from ag06.tasks import start_task

_logger = logging.getLogger("ag06.monitoring")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 9090


KEY_VARIABLE = "AG06_HTTP_KEY"
"""Where the key comes from: the environment alone, since settings are printed."""


async def open_server(
    routes: Routes,
    *,
    host: str | None = None,
    port: str | None = None,
    environ: Mapping[str, str] | None = None,
    hosts: Collection[str] = (),
) -> HttpServer | None:
    """Listen where the settings `http_host` and `http_port` say, unless it is given; `None` where the port is `off`.

    Raises:
        ConfigurationError: as `HttpServer.start`, or for a setting that is no port.
    """
    number = port_of(resolve("http_port", port, environ=environ))
    if number is None:
        return None
    where = resolve("http_host", host, environ=environ).value
    key = variable(KEY_VARIABLE, secret=True, environ=environ)
    server = HttpServer(routes, host=where, port=number, key=key, hosts=hosts)
    await server.start()
    return server


def port_of(setting: Setting) -> int | None:
    """Return the port that the setting `http_port` names, 0 for any that is free, `None` for `off`."""
    check_setting(setting)
    return None if setting.value.lower() == "off" else int(setting.value)


class HttpServer:
    """Answers the routes it is given, in the event loop that starts it.

    Args:
        routes: which `(method, path)` is answered by what.
        host: the address to listen on; beyond the loopback only with a key.
        port: 0 for any that is free.
        key: what callers must give as `Authorization: Bearer ...`, except to the probes (`http_guard.PUBLIC`).
        hosts: host names to answer to on the loopback, besides its own.
        limits: what a peer may cost.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        key: str | None = None,
        hosts: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        """Listen nowhere yet; the class says what the arguments mean."""
        self._routes = dict(routes)
        self._methods: dict[str, list[str]] = {}
        for method, path in self._routes:
            self._methods.setdefault(path, []).append(method)
        self._host = host
        self._port = port
        self._key = key
        self._hosts = hosts
        self._limits = limits or Limits()
        self._guard = Guard(key, loopback=True, hosts=hosts)
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], Connection] = {}

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end; only while it does."""
        if self._server is None or not self._server.sockets:
            raise ConfigurationError("the HTTP server does not listen; start it first")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: the port is taken, the address is none of this machine, or a key is needed.
        """
        loopback = await self._is_loopback()
        if not loopback and self._key is None:
            raise ConfigurationError(
                f"AG06_HTTP_HOST: {self._host!r} can be reached by others; set AG06_HTTP_KEY, or listen on 127.0.0.1"
            )
        self._guard = Guard(self._key, loopback=loopback, hosts=self._hosts)
        try:
            self._server = await asyncio.start_server(self._accept, self._host, self._port)
        except OSError as error:
            raise ConfigurationError(self._why_not(error)) from error
        _logger.info("listening on %s", self.url)

    async def close(self, grace: float = 5.0) -> None:
        """Take no more requests, finish those under way within `grace` seconds, and end."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in self._open.values():
            connection.finish()
        if self._open:
            await asyncio.wait(self._open, timeout=grace)
        late = list(self._open)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await server.wait_closed()

    def forked(self) -> None:
        """Release the port in a child process: it is the parent's, and free when that ends.

        Each descriptor stays open on the null device, so that whoever closes it later closes nothing else. The event
        loop is not asked: its selector is shared with the parent.
        """
        if self._server is None:
            return
        null = os.open(os.devnull, os.O_RDWR)
        for listening in self._server.sockets:
            os.dup2(null, listening.fileno(), inheritable=False)
        os.close(null)

    async def _is_loopback(self) -> bool:
        if is_loopback_address(self._host):
            return True
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                self._host or None, self._port, type=socket.SOCK_STREAM
            )
        except OSError as error:
            raise ConfigurationError(f"AG06_HTTP_HOST: {self._host!r} is not known here ({error})") from error
        return bool(self._host) and all(is_loopback_address(str(address[0])) for *_, address in found)

    def _why_not(self, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE:
            return f"AG06_HTTP_PORT: port {self._port} of {self._host} is taken; use another, 0 for any, or off"
        if error.errno == errno.EACCES:
            return f"AG06_HTTP_PORT: port {self._port} needs rights this process has not; use one above 1023"
        return f"AG06_HTTP_HOST: cannot listen on {self._host} port {self._port} ({error.strerror or error})"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, self._answer, self._limits)
        if len(self._open) >= self._limits.connections and not self._make_room():
            connection.refuse()
            return
        task = start_task(connection.serve(), "http connection")
        self._open[task] = connection
        task.add_done_callback(self._forget)

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a whole request; `False` if all have one."""
        waiting = [(since, task) for task, known in self._open.items() if (since := known.waiting_since) is not None]
        if not waiting:
            return False
        _, oldest = min(waiting, key=itemgetter(0))
        self._open[oldest].finish()
        return True

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._open[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("a connection ended with an error", exc_info=error)

    async def _answer(self, request: Request) -> Response:
        refusal = self._guard.refusal(request)
        if refusal is not None:
            return refusal
        methods = self._methods.get(request.path)
        if methods is None:
            return problem(404, f"there is no {request.path[:200]} here")
        handler = self._routes.get((request.method, request.path))
        if handler is None and request.method == "HEAD":
            handler = self._routes.get(("GET", request.path))
        if handler is None:
            allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
            return problem(405, f"{request.path} takes {allowed}", {"allow": allowed})
        try:
            async with asyncio.timeout(self._limits.handle_seconds) as limit:
                return await handler(request)
        except Exception:
            if limit.expired():
                return problem(503, f"no answer within {self._limits.handle_seconds:g} s", {"retry-after": "1"})
            _logger.exception("%s %s failed", request.method, request.path)
            return problem(500, "the handler failed; the log says why")

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import h11
import msgspec
import pytest

from ag06.errors import ConfigurationError
from ag06.monitoring.health import HealthRegistry
from ag06.monitoring.http_connection import Limits
from ag06.monitoring.http_messages import Request, Response
from ag06.monitoring.metrics import Registry
from ag06.monitoring.realtime_observer import MetricsFacade
from ag06.monitoring.routes import standard_routes, with_added_routes
from ag06.monitoring.server import HttpServer, open_server, port_of
from ag06.settings import Setting
from flows import SECONDS
from records import eventually

KEY = "a-key-of-some-length"
SHORT = Limits(idle_seconds=0.1, read_seconds=0.1, write_seconds=0.1, handle_seconds=0.1)

Serve = Callable[..., Awaitable[HttpServer]]


class Answer(msgspec.Struct):
    """What a client got for one request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Client:
    """One connection to a server, spoken over h11 so that whatever the server sends is checked against the protocol."""

    def __init__(self, server: HttpServer) -> None:
        self._host, port = server.url.removeprefix("http://").rsplit(":", 1)
        self._port = int(port)
        self._http = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection(self._host.strip("[]"), self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):  # the server ended it
            await self.writer.wait_closed()

    async def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        given = {"host": "127.0.0.1", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body and "transfer-encoding" not in given:
            given["content-length"] = str(len(body))
        encoded = [(name, value.encode()) for name, value in given.items()]
        self.send(h11.Request(method=method, target=path, headers=encoded))
        if body:
            self.send(h11.Data(data=body))
        self.send(h11.EndOfMessage())
        return await self.answer()

    def send(self, event: h11.Event) -> None:
        self.writer.write(self._http.send(event) or b"")

    async def answer(self) -> Answer:
        head, body = None, b""
        async with asyncio.timeout(SECONDS):
            while not isinstance(event := await self._event(), h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.ConnectionClosed):
                    raise ConnectionResetError("closed without an answer")
        assert head is not None
        if self._http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            self._http.start_next_cycle()
        return Answer(head.status_code, {name.decode(): value.decode() for name, value in head.headers}, body)

    async def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.reader.read(65_536))
        return event

    async def is_ended(self) -> bool:
        """Read to the end: whether the server closes the connection."""
        async with asyncio.timeout(SECONDS):
            try:
                while await self.reader.read(65_536):
                    pass
            except ConnectionError:
                pass
        return True


async def ask(server: HttpServer, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
    async with Client(server) as client:
        return await client.ask(path, method, body, **headers)


async def raw(server: HttpServer, data: bytes) -> bytes:
    """Send bytes as they are, and nothing more; return all that comes back."""
    async with Client(server) as client, asyncio.timeout(SECONDS):
        client.writer.write(data)
        client.writer.write_eof()
        return await client.reader.read(-1)


@pytest.fixture
async def health() -> AsyncIterator[HealthRegistry]:
    registry = HealthRegistry(ttl=0)
    registry.set_phase("mixer", "running")
    yield registry
    await registry.close()


def exposition(accept: str) -> tuple[str, AsyncIterator[bytes]]:
    async def slices() -> AsyncIterator[bytes]:
        for number in range(3):
            yield f"slice {number} for {accept}\n".encode()

    return "text/plain; version=0.0.4; charset=utf-8", slices()


@pytest.fixture
async def serve(health: HealthRegistry) -> AsyncIterator[Serve]:
    servers: list[HttpServer] = []

    async def start(added: dict[tuple[str, str], Any] | None = None, **settings: Any) -> HttpServer:
        routes = standard_routes(health, exposition, lambda: {"knobs": {"block": 64}}, version="1.2")
        server = HttpServer({**routes, **(added or {})}, port=0, **settings)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.close()


async def test_the_full_report_is_health_json_and_503_when_it_fails(serve: Serve, health: HealthRegistry) -> None:
    server = await serve()
    state: list[str] = ["pass"]
    health.register("store", lambda: state[0])
    for status, code in (("pass", 200), ("warn", 200), ("fail", 503)):
        state[0] = status
        answer = await ask(server, "/health")
        assert (answer.status, answer.json["status"], answer.json["version"]) == (code, status, "1.2")
        assert answer.headers["content-type"] == "application/health+json"
        assert answer.json["checks"]["store:responseTime"][0]["status"] == status


async def test_probes_tell_live_ready_and_started_apart(serve: Serve, health: HealthRegistry) -> None:
    server = await serve()

    async def probes() -> list[int]:
        return [(await ask(server, f"/health/{name}")).status for name in ("live", "ready", "startup")]

    health.set_phase("mixer", "opening")
    assert await probes() == [200, 503, 503]
    health.set_phase("mixer", "running")
    assert await probes() == [200, 200, 200]
    health.register("store", lambda: "fail")
    assert await probes() == [200, 503, 200]
    health.register("store", lambda: "warn")
    health.set_phase("mixer", "stopping")
    assert await probes() == [200, 503, 200]
    assert (await ask(server, "/health/ready")).json == {"status": "fail", "output": "mixer is stopping"}
    health.register("event_loop", lambda: "fail", live=True)
    assert await probes() == [503, 503, 200]


async def test_metrics_are_sent_in_slices_of_the_kind_that_is_asked_for(serve: Serve) -> None:
    answer = await ask(await serve(), "/metrics", accept="text/plain")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.body == b"".join(b"slice %d for text/plain\n" % number for number in range(3))


async def test_what_the_facade_counts_is_scraped_in_the_format_asked_for(health: HealthRegistry) -> None:
    counted = MetricsFacade(Registry())
    counted.increment_counter("scraped", 3)
    server = HttpServer(standard_routes(health, counted.stream, counted.snapshot), port=0)
    await server.start()
    plain = await ask(server, "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"\nag06_workflow_scraped_total 3" in plain.body
    openmetrics = await ask(server, "/metrics", accept="application/openmetrics-text;version=1.0.0")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")
    assert (await ask(server, "/status")).json["ag06_workflow_scraped_total"] == 3
    await server.close()


async def test_old_clients_get_metrics_without_chunks(serve: Serve) -> None:
    head, _, body = (await raw(await serve(), b"GET /metrics HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"chunked" not in head
    assert body.count(b"slice") == 3


async def test_status_is_json(serve: Serve) -> None:
    answer = await ask(await serve(), "/status")
    assert (answer.status, answer.json) == (200, {"knobs": {"block": 64}})


@pytest.mark.parametrize("path", ["/health", "/health/live", "/metrics", "/status"])
async def test_head_answers_as_get_without_a_body(serve: Serve, path: str) -> None:
    async with Client(await serve()) as client:
        head = await client.ask(path, "HEAD")
        whole = await client.ask(path)
    assert (head.status, head.body) == (200, b"")
    assert whole.body
    assert head.headers["content-type"] == whole.headers["content-type"]


async def test_a_connection_takes_one_request_after_the_other(serve: Serve) -> None:
    async with Client(await serve()) as client:
        for path in ("/status", "/metrics", "/nowhere", "/health/live", "/status"):
            assert (await client.ask(path)).status == (404 if path == "/nowhere" else 200)
        assert (await client.ask("/status", "POST", b"x" * 100)).status == 405
        assert (await client.ask("/status", connection="close")).headers["connection"] == "close"
        assert await client.is_ended()


async def test_requests_that_are_sent_at_once_are_answered_in_their_order(serve: Serve) -> None:
    one = b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n"
    got = b""
    async with Client(await serve()) as client, asyncio.timeout(SECONDS):
        client.writer.write(one % b"/status" + one % b"/nowhere" + one % b"/health/live")
        while got.count(b"HTTP/1.1") < 3:
            got += await client.reader.read(65_536)
    assert re.findall(rb"HTTP/1.1 (\d+) ", got) == [b"200", b"404", b"200"]


@pytest.mark.parametrize(
    ("path", "method", "status", "words"),
    [
        ("/nowhere", "GET", 404, "there is no /nowhere"),
        ("/status/", "GET", 404, "there is no /status/"),
        ("/../status", "GET", 404, "there is no"),
        ("/status", "POST", 405, "takes GET, HEAD"),
        ("/status", "BREW", 405, "takes GET, HEAD"),
        ("*", "OPTIONS", 400, "must be a path"),
        ("localhost:1", "CONNECT", 400, "must be a path"),
    ],
)
async def test_what_is_not_served_is_a_problem_in_words(
    serve: Serve, path: str, method: str, status: int, words: str
) -> None:
    answer = await ask(await serve(), path, method)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == status
    assert answer.json["title"]
    assert words in answer.json["detail"]
    assert answer.headers.get("allow") == ("GET, HEAD" if status == 405 else None)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /status HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET /status HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"GET /status HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 40_000, 431),
        (b"POST /status HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3000000\r\n\r\n" + b"x" * 3_000_000, 413),
    ],
)
async def test_what_is_no_request_is_refused_and_the_server_goes_on(serve: Serve, data: bytes, status: int) -> None:
    server = await serve()
    got = await raw(server, data)
    assert got.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in got
    assert (await ask(server, "/status")).status == 200


async def test_a_port_that_is_taken_is_an_error_that_names_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"AG06_HTTP_PORT: port {port} of 127.0.0.1 is taken"):
            await HttpServer({}, port=port).start()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("203.0.113.7", "AG06_HTTP_HOST: cannot listen on 203.0.113.7"),
        ("no.such.host.invalid", "AG06_HTTP_HOST: 'no.such.host.invalid' is not known here"),
    ],
)
async def test_an_address_that_is_not_of_this_machine_is_an_error_that_names_the_setting(host: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        await HttpServer({}, host=host, port=0, key=KEY).start()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "203.0.113.7"])
async def test_it_listens_to_others_only_with_a_key(host: str) -> None:
    with pytest.raises(ConfigurationError, match="set AG06_HTTP_KEY"):
        await HttpServer({}, host=host, port=0).start()


@pytest.mark.parametrize("key", ["", "short", "with a space in it", "not ascii: äöüäöüäöü", "line\nbreak-line-break"])
def test_a_weak_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigurationError, match="AG06_HTTP_KEY") as caught:
        HttpServer({}, key=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
async def test_with_a_key_all_but_the_probes_ask_for_it(serve: Serve, host: str) -> None:
    server = await serve(host=host, key=KEY)
    for path in ("/health", "/metrics", "/status", "/nowhere"):
        for wrong in (
            {},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
            {"authorization": f"Bearer é{KEY}"},
        ):
            answer = await ask(server, path, **wrong)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        expected = 404 if path == "/nowhere" else 200
        for right in (f"Bearer {KEY}", f"bearer  {KEY}"):
            assert (await ask(server, path, authorization=right)).status == expected
    for probe in ("live", "ready", "startup"):
        assert (await ask(server, f"/health/{probe}")).status == 200
    by_name = await ask(server, "/status", host="machine.example", authorization=f"Bearer {KEY}")
    assert by_name.status == (200 if host == "0.0.0.0" else 421)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9090", 200),
        ("localhost", 200),
        ("LOCALHOST:9090", 200),
        ("[::1]:9090", 200),
        ("127.8.8.8", 200),
        ("ours.test:80", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1", 421),
        ("evil.example:80@127.0.0.1", 200),  # what browsers never send
        ("[::1", 421),
        ("", 421),
    ],
)
async def test_a_name_that_was_pointed_at_the_loopback_gets_no_answer(serve: Serve, host: str, status: int) -> None:
    server = await serve(hosts=["Ours.test"])
    assert (await ask(server, "/status", host=host)).status == status


async def test_a_probe_that_sends_no_host_is_answered(serve: Serve) -> None:
    assert (await raw(await serve(), b"GET /health/live HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_target_with_a_host_counts_by_that_host(serve: Serve) -> None:
    server = await serve()
    assert (await ask(server, "http://localhost/status")).status == 200
    assert (await ask(server, "http://evil.example/status")).status == 421


async def echo(request: Request) -> Response:
    return Response(201, msgspec.json.encode(request))


async def test_other_packages_add_routes_that_get_the_whole_request(serve: Serve) -> None:
    server = await serve({("POST", "/v1/events"): echo})
    body = b'{"type": "order.placed"}' * 1000
    answer = await ask(server, "/v1/ev%65nts?a=1&b=%20", "POST", body, x_one="1")
    assert answer.status == 201
    request = msgspec.json.decode(answer.body, type=Request)
    assert (request.method, request.path, request.query) == ("POST", "/v1/events", "a=1&b=%20")
    assert (request.body, request.headers["x-one"]) == (body, "1")
    assert (await ask(server, "/v1/events")).headers["allow"] == "POST"


async def test_a_page_of_another_site_changes_nothing(serve: Serve) -> None:
    server = await serve({("POST", "/v1/events"): echo})
    host = server.url.removeprefix("http://")
    assert (await ask(server, "/v1/events", "POST", host=host, origin=server.url)).status == 201
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        assert (await ask(server, "/v1/events", "POST", host=host, origin=origin)).status == 403


async def test_a_body_is_asked_for_where_the_peer_waits_to_be(serve: Serve) -> None:
    server = await serve({("POST", "/v1/events"): echo})
    async with Client(server) as client, asyncio.timeout(SECONDS):
        head = b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        client.writer.write(head)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        client.writer.write(b"{}")
        assert (await client.reader.readline()).startswith(b"HTTP/1.1 201")


async def test_a_handler_that_fails_or_hangs_is_an_error_without_its_secrets(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(_: Request) -> Response:
        raise ValueError("the secret of the handler")

    async def gives_up(_: Request) -> Response:
        raise TimeoutError("its own")

    async def hangs(_: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    server = await serve(
        {("GET", "/fails"): fails, ("GET", "/hangs"): hangs, ("GET", "/gives-up"): gives_up},
        limits=Limits(handle_seconds=0.1),
    )
    async with Client(server) as client:
        with caplog.at_level(logging.ERROR, "ag06.monitoring"):
            failed = await client.ask("/fails")
        assert (failed.status, b"secret" in failed.body) == (500, False)
        assert "the secret of the handler" in caplog.text
        assert (await client.ask("/hangs")).status == 503
        assert (await client.ask("/gives-up")).status == 500
        assert (await client.ask("/status")).status == 200


@pytest.mark.parametrize("error", [ValueError("no more"), ConnectionResetError("no more"), TimeoutError("no more")])
async def test_an_answer_that_breaks_off_is_seen_to_be_cut(
    serve: Serve, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    closed = asyncio.Event()

    async def half(_: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                yield b"half of it"
                raise error
            finally:
                closed.set()

        return Response(200, pieces())

    server = await serve({("GET", "/half"): half})
    with pytest.raises((h11.RemoteProtocolError, ConnectionError)):
        await ask(server, "/half")
    with pytest.raises(ConnectionError):  # without chunks only a reset tells
        await raw(server, b"GET /half HTTP/1.0\r\n\r\n")
    assert closed.is_set()
    assert "no more" in caplog.text
    assert (await ask(server, "/status")).status == 200


@pytest.mark.parametrize(
    ("begun", "reply"),
    [
        (b"", b""),
        (b"GET /status HT", b"HTTP/1.1 408 "),
        (b"GET /status HTTP/1.1\r\nhost: localhost\r\n", b"HTTP/1.1 408 "),
        (b"POST /status HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nabc", b"HTTP/1.1 408 "),
    ],
)
async def test_a_peer_that_never_ends_its_request_is_left(serve: Serve, begun: bytes, reply: bytes) -> None:
    server = await serve(limits=SHORT)
    async with Client(server) as client, asyncio.timeout(SECONDS):
        client.writer.write(begun)
        got = await client.reader.read(-1)
    assert got[:13] == reply


async def test_a_peer_that_sends_byte_by_byte_does_not_hold_its_connection(serve: Serve) -> None:
    server = await serve(limits=Limits(read_seconds=0.3))
    async with Client(server) as client, asyncio.timeout(SECONDS):
        over = asyncio.create_task(client.reader.read(-1))
        client.writer.write(b"GET / HTTP/1.1\r\n")
        while not over.done():
            client.writer.write(b"x: y\r\n")
            await asyncio.sleep(0.02)
        assert (await over).startswith(b"HTTP/1.1 408")


async def test_an_error_after_a_head_request_has_its_body(serve: Serve) -> None:
    async with Client(await serve()) as client, asyncio.timeout(SECONDS):
        await client.ask("/status", "HEAD")
        client.writer.write(b"garbage\r\n\r\n")
        got = await client.reader.read(-1)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.endswith(b"}")


async def test_a_peer_that_vanishes_is_no_error_of_the_server(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    async def endless(_: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65_536
                    await asyncio.sleep(0)
            finally:
                ended.set()

        return Response(200, pieces())

    server = await serve({("GET", "/endless"): endless})
    async with asyncio.timeout(SECONDS):
        for request in (b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n", b"GET /endless HTTP/1.0\r\n\r\n"):
            ended.clear()
            async with Client(server) as client:
                client.writer.write(request)
                await client.reader.readexactly(1000)
                client.writer.transport.abort()
            await ended.wait()
        async with Client(server) as client:
            client.writer.write(b"POST /status HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nhalf")
        assert (await ask(server, "/status")).status == 200
        await server.close(grace=SECONDS)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_peer_that_does_not_read_its_answer_is_left(serve: Serve) -> None:
    ended = asyncio.Event()

    async def endless(_: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65_536
            finally:
                ended.set()

        return Response(200, pieces())

    server = await serve({("GET", "/endless"): endless}, limits=SHORT)
    async with Client(server) as client, asyncio.timeout(SECONDS):
        client.send(h11.Request(method="GET", target="/endless", headers=[("host", "localhost")]))
        await ended.wait()


async def test_connections_are_bounded_and_those_that_wait_make_room(serve: Serve) -> None:
    go_on = asyncio.Event()
    begun = 0

    async def slow(_: Request) -> Response:
        nonlocal begun
        begun += 1
        await go_on.wait()
        return Response(200, b"done")

    server = await serve({("GET", "/slow"): slow}, limits=Limits(connections=3))

    async def has_begun(number: int) -> bool:
        return begun == number

    async with Client(server) as idle, Client(server) as half, asyncio.timeout(SECONDS):
        assert (await idle.ask("/status")).status == 200
        half.writer.write(b"GET / HT")
        slow_ones = []
        for number in range(1, 4):  # the first takes the free place, the others those of the two that wait
            slow_ones.append(asyncio.create_task(ask(server, "/slow")))
            await eventually(lambda number=number: has_begun(number))
        assert await idle.is_ended()
        assert await half.is_ended()
        assert (await ask(server, "/health/live")).status == 503
        go_on.set()
        assert [answer.body for answer in await asyncio.gather(*slow_ones)] == [b"done"] * 3
        assert (await ask(server, "/health/live")).status == 200


async def test_a_flood_of_peers_that_say_nothing_does_not_keep_a_probe_out(serve: Serve) -> None:
    server = await serve(limits=Limits(connections=5))
    flood = [await Client(server).__aenter__() for _ in range(50)]
    try:
        assert (await ask(server, "/health/live")).status == 200
    finally:
        for client in flood:
            await client.__aexit__()


async def test_closing_finishes_what_is_under_way_and_takes_no_more(serve: Serve) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> Response:
        begun.set()
        await go_on.wait()
        return Response(200, b"done")

    server = await serve({("GET", "/slow"): slow})
    async with Client(server) as idle, Client(server) as busy:
        await idle.ask("/status")
        asked = asyncio.create_task(busy.ask("/slow"))
        await begun.wait()
        late = Client(server)
        closing = asyncio.create_task(server.close(grace=SECONDS))
        assert await idle.is_ended()
        with pytest.raises(ConnectionError):
            await late.__aenter__()
        assert not closing.done()
        go_on.set()
        answer = await asked
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")
        await closing


async def test_closing_waits_no_longer_than_the_grace(serve: Serve) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hangs(_: Request) -> Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    server = await serve({("GET", "/hangs"): hangs})
    async with Client(server) as client, asyncio.timeout(SECONDS):
        client.send(h11.Request(method="GET", target="/hangs", headers=[("host", "localhost")]))
        await begun.wait()
        await server.close(grace=0.01)
        assert cancelled.is_set()
        assert await client.is_ended()
    await server.close()  # again: nothing happens


async def test_it_listens_on_ipv6_where_there_is_an_address(serve: Serve) -> None:
    server = await serve(host="::1")
    assert server.url.startswith("http://[::1]:")
    assert (await ask(server, "/status", host="[::1]")).status == 200


@pytest.mark.parametrize(("value", "port"), [("9090", 9090), ("0", 0), ("off", None), ("OFF", None)])
def test_the_setting_names_a_port_or_none(value: str, port: int | None) -> None:
    assert port_of(Setting("http_port", value, "AG06_HTTP_PORT")) == port


def test_a_setting_that_is_no_port_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'eighty' \(from AG06_HTTP_PORT\)"):
        port_of(Setting("http_port", "eighty", "AG06_HTTP_PORT"))


async def test_settings_say_where_to_listen() -> None:
    settings = {"AG06_HTTP_PORT": "0", "AG06_HTTP_HOST": "0.0.0.0"}
    with pytest.raises(ConfigurationError, match="set AG06_HTTP_KEY"):
        await open_server({}, environ=settings)
    server = await open_server({}, environ={**settings, "AG06_HTTP_KEY": KEY})
    assert server is not None
    assert (await ask(server, "/")).status == 401
    await server.close()
    server = await open_server({}, host="127.0.0.1", environ=settings)
    assert server is not None
    assert server.url.startswith("http://127.0.0.1:")
    assert (await ask(server, "/")).status == 404
    await server.close()
    assert await open_server({}, port="off", environ=settings) is None


@pytest.fixture
def package(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a package that has an entry point for routes."""

    def install(code: str) -> None:
        name = f"added_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[ag06.routes]\nadded = {name}:routes\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


async def hello(_: Request) -> Response:
    return Response(200, b"hello")


async def test_an_installed_package_adds_routes_for_the_workflow_that_runs(
    package: Callable[[str], None], serve: Serve
) -> None:
    package(
        "from ag06.monitoring.http_messages import Response\n"
        "def routes(application):\n"
        "    async def hello(request): return Response(200, application.encode())\n"
        "    return {('GET', '/hello'): hello}\n"
    )
    added = with_added_routes({}, "mixer")
    assert (await ask(await serve(added), "/hello")).body == b"mixer"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('half installed')", r"cannot be added \(ImportError: half installed\)"),
        ("def routes(application): return {('GET', '/status'): None}", "GET /status is taken"),
        ("def routes(application): return None", "cannot be added"),
    ],
)
def test_a_package_whose_routes_cannot_be_added_is_named(package: Callable[[str], None], code: str, words: str) -> None:
    package(code)
    with pytest.raises(ConfigurationError, match=words):
        with_added_routes({("GET", "/status"): hello}, "mixer")


def test_without_such_packages_the_routes_stay_as_they_are() -> None:
    assert not importlib.metadata.entry_points(group="ag06.routes.none")
    assert set(with_added_routes({("GET", "/status"): hello}, "mixer")) >= {("GET", "/status")}

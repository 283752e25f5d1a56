"""Mistakes in a URL that no waiting heals are errors at the start, not an outage with a journal."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ag06 import Context, Event, Retry, Workflow
from ag06.errors import ConfigurationError, StoreUnavailable
from ag06.persistence import EventStore
from ag06.persistence.log import LogOptions
from ag06.persistence.redis import RedisLog
from ag06.persistence.redis.scripts import NAMES, script
from certificates import Authority
from commands import ag06
from faults import configure, running_server
from proxy import Proxy
from records import collect, nothing, record, registered
from servers import ValkeyServer

_serial = itertools.count()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def proxy(valkey: ValkeyServer) -> AsyncIterator[Proxy]:
    network = Proxy(valkey.port)
    yield network
    await network.down()


async def refused(url: str, tmp_path: Path) -> str:
    """Publish to a store with a journal; return the mistake that it names. No event may be left in a journal."""
    unhandled: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    store = EventStore(url, timeout=2.0, journal=str(tmp_path / "journal"))
    try:
        with pytest.raises(ConfigurationError) as error:
            await store.persist_event("placed", "test", 1)
    finally:
        await store.close()
        loop.set_exception_handler(None)
    assert not unhandled
    assert not list((tmp_path / "journal").rglob("*.db"))
    return str(error.value)


async def tls(proxy: Proxy, authority: Authority, alternative: str = "IP:127.0.0.1", days: int = 5) -> str:
    """Let the proxy speak TLS; return its URL."""
    proxy.tls = await asyncio.to_thread(authority.server, f"s{next(_serial)}", alternative, days=days)
    await proxy.up()
    return f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={authority.file}&log=mistakes-{next(_serial)}"


async def test_a_store_with_a_certificate_of_an_own_authority_works(proxy: Proxy, authority: Authority) -> None:
    store = EventStore(await tls(proxy, authority), timeout=2.0)
    assert await store.persist_event("placed", "test", 1) is not None
    await store.close()


async def test_a_certificate_that_has_expired_is_named(proxy: Proxy, authority: Authority, tmp_path: Path) -> None:
    assert "expired" in await refused(await tls(proxy, authority, days=-1), tmp_path)


async def test_a_certificate_for_another_host_is_named(proxy: Proxy, authority: Authority, tmp_path: Path) -> None:
    url = await tls(proxy, authority, "DNS:redis.example")
    assert "ssl_check_hostname" in await refused(url, tmp_path)
    store = EventStore(f"{url}&ssl_check_hostname=false", timeout=2.0)
    assert await store.persist_event("placed", "test", 1) is not None
    await store.close()


async def test_a_certificate_of_an_unknown_authority_is_named(
    proxy: Proxy, authority: Authority, tmp_path: Path
) -> None:
    url = await tls(proxy, authority)
    assert "ssl_ca_certs=FILE" in await refused(url.replace(f"ssl_ca_certs={authority.file}&", ""), tmp_path)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_ca_path", "ssl_certfile"])
async def test_a_file_that_is_not_there_is_named(option: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.pem"
    said = await refused(f"rediss://127.0.0.1:1/0?{option}={missing}", tmp_path)
    assert f"{option}={missing}: No such file" in said


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
async def test_a_file_that_is_no_certificate_is_named(option: str, authority: Authority, tmp_path: Path) -> None:
    url = f"rediss://127.0.0.1:1/0?{option}={authority.key}"
    assert f"{option}={authority.key}" in await refused(url, tmp_path)


async def test_a_url_without_tls_for_a_server_with_tls_is_named(
    proxy: Proxy, authority: Authority, tmp_path: Path
) -> None:
    await tls(proxy, authority)
    assert "write rediss://" in await refused(proxy.url, tmp_path)


async def test_a_url_with_tls_for_a_server_without_is_named(valkey: ValkeyServer, tmp_path: Path) -> None:
    url = f"rediss://127.0.0.1:{valkey.port}/0"
    assert "write redis://" in await refused(url, tmp_path)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_a_server_that_is_no_redis_is_named(scheme: str, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    said = await refused(f"{scheme}://127.0.0.1:{port}/0", tmp_path)
    assert ("does not answer as a Redis" if scheme == "redis" else "does not speak TLS") in said
    server.close()


async def test_a_server_that_wants_a_certificate_of_its_clients_is_named(authority: Authority, tmp_path: Path) -> None:
    context = await asyncio.to_thread(authority.server, "mutual", "IP:127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.file)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_shake_hands, args=(listening, context), daemon=True).start()
        url = f"rediss://127.0.0.1:{listening.getsockname()[1]}/0?ssl_ca_certs={authority.file}"
        assert "CERTIFICATE_REQUIRED" in await refused(url, tmp_path)
        listening.shutdown(socket.SHUT_RDWR)


def _shake_hands(listening: socket.socket, context: ssl.SSLContext) -> None:
    """Accept connections, and close each behind the handshake."""
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with contextlib.suppress(OSError):
            context.wrap_socket(connection, server_side=True)
        connection.close()


async def test_a_wrong_password_user_or_database_is_named(tmp_path: Path) -> None:
    async with running_server(tmp_path / "server") as server:
        configure(server, requirepass="right")
        at = f"127.0.0.1:{server.port}"
        assert "refuses this user" in await refused(f"redis://:wrong@{at}/0", tmp_path)
        assert "refuses this user" in await refused(f"redis://nobody:right@{at}/0", tmp_path)
        assert "refuses this user" in await refused(f"redis://{at}/0", tmp_path)
        assert "the database in the URL" in await refused(f"redis://:right@{at}/99", tmp_path)
    async with running_server(tmp_path / "open") as server:
        assert "refuses this user" in await refused(f"redis://:needless@127.0.0.1:{server.port}/0", tmp_path)


@pytest.mark.parametrize("command", ["xclaim", "xgroup|create", "getex", "client|id", "evalsha", "info"])
async def test_a_command_that_the_user_may_not_run_is_named(command: str, tmp_path: Path) -> None:
    async with running_server(tmp_path / "server") as server:
        assert server.command("ACL", "SETUSER", "default", f"-{command}") == b"+OK\r\n"
        assert command.partition("|")[0].upper() in (await refused(server.url, tmp_path)).upper()


async def test_a_command_that_the_server_does_not_have_is_named(tmp_path: Path) -> None:
    settings = tmp_path / "valkey.conf"
    settings.write_text("rename-command XTRIM SHORTEN\n")
    async with running_server(tmp_path / "server", include=str(settings)) as server:
        assert "XTRIM" in await refused(server.url, tmp_path)


async def test_keys_that_the_user_may_not_use_are_named(tmp_path: Path) -> None:
    async with running_server(tmp_path / "server") as server:
        server.command("ACL", "SETUSER", "shop", "on", ">pw", "~{other}:*", "&*", "+@all")
        assert "refuses this user" in await refused(f"redis://shop:pw@127.0.0.1:{server.port}/0", tmp_path)
        server.command("ACL", "SETUSER", "shop", "~{ag06}:*")
        store = EventStore(f"redis://shop:pw@127.0.0.1:{server.port}/0")
        assert await store.persist_event("placed", "test", 1) is not None
        await store.close()


def test_every_command_that_a_script_runs_is_asked_for() -> None:
    def commands(source: bytes, marks: tuple[bytes, ...]) -> set[bytes]:
        return {part.partition(b"'")[0] for mark in marks for part in source.split(mark)[1:]}

    asked = commands(script("allowed").source, (b"  { '",))
    used = set().union(*(commands(script(name).source, (b".call('", b".pcall('", b"claim = { '")) for name in NAMES))
    assert used <= asked


def _documented() -> list[str]:
    """Return the rules of the user whom the guide gives no more than what is needed."""
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "stores.md").read_text()
    (block,) = [part for part in guide.split("```") if part.startswith("text\nACL SETUSER") and "-@all" in part]
    return block.split()[4:]


def test_the_commands_that_the_guide_lists_are_those_that_the_start_asks_for() -> None:
    words = r"^  \{ '(?:(CLIENT|SCRIPT|XGROUP|XINFO)', ')?(\w+)'"
    needed = re.findall(words, script("allowed").source.decode(), re.MULTILINE)
    listed = {rule[1:] for rule in _documented() if rule.startswith("+")}
    outside = {"client|setinfo", "client|setname", "client|unblock", "config|get", "eval", "evalsha", "info", "select"}
    assert listed == {"|".join(filter(None, each)).lower() for each in needed} | outside | {"wait", "waitaof"}


async def test_a_user_with_the_commands_that_the_guide_lists_can_do_everything(tmp_path: Path) -> None:
    async with running_server(tmp_path / "server", appendonly="yes", appendfsync="always") as server:
        rules = ["on", ">pw", *[rule for rule in _documented() if rule not in ("on", ">password")]]
        assert server.command("ACL", "SETUSER", "shop", *rules) == b"+OK\r\n"
        app = Workflow("shop", store=f"redis://shop:pw@127.0.0.1:{server.port}/1", journal="off", durability="fsync")

        @app.step("placed", retry=Retry(attempts=1))
        async def bill(event: Event, ctx: Context) -> None:
            if event.data == 1:
                raise ValueError("it is the first")
            ctx.publish("billed", event.data, subject="s")

        async with app.running():
            for n in range(3):
                await app.publish("placed", data=n, subject="s", delay=0.01)
            await app.drain(20)
            assert len(await app.dead_letters.list()) == 1
            assert await app.dead_letters.retry() == 1
            await app.drain(20)
            await (await app.events.log()).maintain()
            assert len([event async for event in app.events.replay(types=["billed"])]) == 2
        assert server.command("ACL", "LOG") == b"*0\r\n"  # nothing was refused


async def test_the_doctor_says_it_with_the_code_of_a_mistake(valkey: ValkeyServer, tmp_path: Path) -> None:
    url = f"rediss://127.0.0.1:{valkey.port}/0"
    ended = await asyncio.to_thread(ag06, "doctor", "--json", "--store", url, cwd=tmp_path)
    assert ended.code == 2
    assert any("write redis://" in finding["what"] for finding in ended.json)


async def test_a_password_that_is_changed_later_is_an_outage_with_a_journal(tmp_path: Path) -> None:
    async with running_server(tmp_path / "server") as server:
        configure(server, requirepass="old")
        url = f"redis://:old@127.0.0.1:{server.port}/0"
        store = EventStore(url, timeout=2.0, journal=str(tmp_path / "journal"))
        assert await store.persist_event("placed", "test", 1) is not None
        _change_password(server, "old", "new")
        later = EventStore(url, timeout=2.0, journal=str(tmp_path / "journal"))
        for publishing in (store, later):
            assert await publishing.persist_event("placed", "test", 2, dedup=False) is not None
            state = await publishing.journal_state()
            assert state is not None
            assert state.events == 1
        _change_password(server, "new", "old")
        await store.close()
        await later.close()


def _change_password(server: ValkeyServer, old: str, new: str) -> None:
    """Change the password and end all connections that have logged in with the former one."""
    import redis

    with redis.Redis("127.0.0.1", server.port, password=old) as admin:
        admin.config_set("requirepass", new)
        admin.client_kill_filter(_type="normal", skipme=True)


async def test_leases_are_renewed_through_a_proxy_that_does_not_know_hello(proxy: Proxy) -> None:
    proxy.unknown = b"HELLO"
    await proxy.up()
    log = RedisLog(f"{proxy.url}?log=hello-{next(_serial)}", LogOptions(timeout=2.0))
    await log.open()
    subscription = await registered(log)
    await log.append([record(1)])
    await collect(subscription, 1)
    await asyncio.to_thread(subscription.renew)
    await log.close()


async def test_nothing_is_handed_out_while_leases_cannot_be_renewed(
    valkey: ValkeyServer, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    import redis

    await proxy.up()
    log = RedisLog(f"{proxy.url}?log=renewal-{next(_serial)}", LogOptions(timeout=2.0))
    await log.open()
    subscription = await registered(log)
    await log.append([record(1)])
    await collect(subscription, 1)
    proxy.full = True
    with redis.Redis("127.0.0.1", valkey.port) as admin:
        for client in admin.client_list():
            if client["name"] == "ag06-leases":
                admin.client_kill_filter(_id=client["id"])
    with pytest.raises(StoreUnavailable):
        await asyncio.to_thread(subscription.renew)
    await log.append([record(2)])
    with caplog.at_level(logging.WARNING, "ag06.persistence"):
        assert await nothing(subscription)
    assert "waits for the store" in caplog.text
    proxy.full = False
    assert len(await collect(subscription, 1)) == 1
    await log.close()

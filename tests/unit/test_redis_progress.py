"""Patience with a connection: what moves is not cut off, however long it takes; what stands still is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from ag06.persistence.redis.progress import Meter, Patience, carrying_time

_PATIENCE = 0.25
_TURNS = 30
_TURN_SECONDS = 0.025


class Peer:
    """The other end of a connection, with small buffers: it takes and gives a little at a time."""

    def __init__(self) -> None:
        near, self._far = socket.socketpair()
        for end in (near, self._far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            end.setblocking(False)
        self._near = near
        self.taken = 0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(sock=self._near)

    async def take(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(_TURN_SECONDS)
            self.taken += len(await asyncio.get_running_loop().sock_recv(self._far, 16_384))

    async def give(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(_TURN_SECONDS)
            await asyncio.get_running_loop().sock_sendall(self._far, b"x")

    def close(self) -> None:
        self._far.close()
        self._near.close()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    yield made
    made.close()


async def test_what_is_received_little_by_little_is_not_cut_off(peer: Peer) -> None:
    reader, writer = await peer.connect()
    giving = asyncio.create_task(peer.give())
    async with Patience(Meter(reader, writer), _PATIENCE) as patience:
        assert await reader.readexactly(_TURNS) == b"x" * _TURNS
    assert patience.moved_at > 0
    await giving
    writer.close()


async def test_what_is_sent_little_by_little_is_not_cut_off(peer: Peer) -> None:
    reader, writer = await peer.connect()
    writer.transport.set_write_buffer_limits(high=0)
    taking = asyncio.create_task(peer.take())
    writer.write(b"x" * 16_384 * (_TURNS // 2))
    async with Patience(Meter(reader, writer), _PATIENCE):
        await writer.drain()
    assert peer.taken > 0
    taking.cancel()
    writer.close()


async def test_what_stands_still_is_cut_off(peer: Peer) -> None:
    reader, writer = await peer.connect()
    with pytest.raises(TimeoutError):
        async with Patience(Meter(reader, writer), _PATIENCE):
            await reader.readexactly(1)
    writer.close()


async def test_a_cancellation_passes_through(peer: Peer) -> None:
    reader, writer = await peer.connect()

    async def wait() -> None:
        async with Patience(Meter(reader, writer), 30):
            await reader.readexactly(1)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    writer.close()


def test_a_large_request_has_time_to_be_carried() -> None:
    assert carrying_time(100) < 0.001
    assert carrying_time(1 << 20) == 8.0
    assert carrying_time(1 << 40) == 10.0

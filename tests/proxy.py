"""A network that breaks on demand, between a test and a real server."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress


class Proxy:
    """Forwards connections to a port of the loopback.

    `lose_reply_to`: the next request that contains these bytes is forwarded, and its connection cut instead of passing
    the reply on. `silent`: requests are forwarded, replies kept back. `down`: connections are refused. `latency`:
    seconds that everything takes each way. `rate`: bytes a second each way, 0: no limit. `stalled`: while it is set,
    nothing is passed on in either direction. `passed`: how many bytes of replies were passed on; at `stop_after` of
    them it is stalled. `tls`: what it says to clients is encrypted. `unknown`: a command that contains this is refused.
    `full`: new connections are closed at once.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.lose_reply_to: bytes | None = None
        self.silent = False
        self.latency = 0.0
        self.rate = 0
        self.passed = 0
        self.stop_after: int | None = None
        self.tls: ssl.SSLContext | None = None
        self.unknown: bytes | None = None
        self.full = False
        self.lost = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Proxy:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    @property
    def stalled(self) -> bool:
        return not self._flowing.is_set()

    @stalled.setter
    def stalled(self, value: bool) -> None:
        if value:
            self._flowing.clear()
        else:
            self._flowing.set()

    async def _travel(self, size: int) -> None:
        """Take the time that the network takes for some bytes."""
        await self._flowing.wait()
        if seconds := self.latency + (size / self.rate if self.rate else 0.0):
            await asyncio.sleep(seconds)

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Cut every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Cut every connection; new ones are welcome."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.full:
            writer.transport.abort()
            return
        with suppress(OSError, asyncio.CancelledError):
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers |= {writer, back_writer}
            doomed = asyncio.Event()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._requests(reader, back_writer, doomed, writer))
                    group.create_task(self._replies(back_reader, writer, doomed))
            except* OSError:
                pass
            finally:
                self._writers -= {writer, back_writer}
                writer.transport.abort()
                back_writer.transport.abort()

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        doomed: asyncio.Event,
        front: asyncio.StreamWriter,
    ) -> None:
        while data := await reader.read(1 << 14 if self.rate else 1 << 16):
            if self.unknown is not None and self.unknown in data:
                front.write(b"-ERR unknown command\r\n")
                continue
            if self.lose_reply_to is not None and self.lose_reply_to in data:
                self.lose_reply_to = None
                self.lost += 1
                doomed.set()
            await self._travel(len(data))
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        while data := await reader.read(1 << 14 if self.rate else 1 << 16):
            if doomed.is_set():
                break
            await self._travel(len(data))
            self.passed += len(data)
            if self.stop_after is not None and self.passed >= self.stop_after:
                self.stalled = True
            if not self.silent:
                writer.write(data)
                await writer.drain()
        raise ConnectionResetError

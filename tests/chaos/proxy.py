"""The network between billing and Xendit, which can be cut in four ways. Used by the chaos run only.

A TCP proxy in a thread of its own. Cut as in life: a refused connection tells the caller that nothing was sent, a
lost answer tells it nothing, silence delivers the question after all, when the caller has long given up, and what is
swallowed leaves no trace anywhere.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Any

HOST = "127.0.0.1"
READS = 65_536
LAST_WORDS_SECONDS = 1.0  # Xendit works on what it has got although the caller has gone
_RESET = struct.pack("ii", 1, 0)


class Network(StrEnum):
    OPEN = "open"
    REFUSED = "connections refused"
    ANSWERS_LOST = "answers lost"
    SILENT = "silence, delivered late"
    SWALLOWED = "questions swallowed"


class Proxy:
    """Use through `proxy_to`. `cut` may be called from any thread and returns when the network is like that."""

    def __init__(self, target_port: int) -> None:
        self.network = Network.OPEN
        self.answers_lost = 0
        self.delivered_late = 0
        self.swallowed = 0
        self.port = 0
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._listener: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self, network: Network) -> None:
        self._wait_for(self._become(network))

    def start(self) -> None:
        threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True).start()
        self._wait_for(self._become(Network.OPEN))

    def stop(self) -> None:
        self._wait_for(self._become(Network.REFUSED))
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _become(self, network: Network) -> None:
        self.network = network
        if network is Network.REFUSED and self._listener is not None:
            self._listener.close()
            self._listener = None
            for writer in tuple(self._open):
                _reset(writer)
        elif network is not Network.REFUSED and self._listener is None:
            self._listener = await asyncio.start_server(self._connect, HOST, self.port)
            self.port = self._listener.sockets[0].getsockname()[1]
        if network is Network.SILENT:
            self._flowing.clear()
        else:
            self._flowing.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with suppress(OSError):
                there_reader, there_writer = await asyncio.open_connection(HOST, self._target_port)
                self._open.add(there_writer)
                try:
                    await asyncio.gather(
                        self._questions(reader, there_writer), self._answers(there_reader, there_writer, writer)
                    )
                finally:
                    self._open.discard(there_writer)
                    there_writer.close()
        finally:
            self._open.discard(writer)
            writer.close()

    async def _questions(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while part := await reader.read(READS):
                if self.network is Network.SWALLOWED:
                    self.swallowed += 1
                    continue
                if not self._flowing.is_set():
                    self.delivered_late += 1
                    await self._flowing.wait()
                there.write(part)
                await there.drain()
        with suppress(OSError):
            await asyncio.sleep(LAST_WORDS_SECONDS)
            there.close()

    async def _answers(
        self, there: asyncio.StreamReader, there_writer: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while part := await there.read(READS):
                await self._flowing.wait()
                if self.network is Network.ANSWERS_LOST:
                    self.answers_lost += 1
                    _reset(writer)
                    return
                writer.write(part)
                await writer.drain()
        if not there_writer.is_closing():
            _reset(writer)  # the far end closed: so does this one


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST, not FIN: as a dead machine or a firewall ends a connection."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


@contextmanager
def proxy_to(target_port: int) -> Iterator[Proxy]:
    proxy = Proxy(target_port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()

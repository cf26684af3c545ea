"""POST over one kept connection, bare: a general HTTP client takes more time per webhook than the simulator does.

Used by serve.py, one `Line` per sender. Knows just enough HTTP/1.1 for a receiver's short answer.
"""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_CRLF = "\r\n"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    path: str
    secure: ssl.SSLContext | None

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def read_target(url: str) -> Target:
    """ValueError when nothing can be posted there."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"a webhook URL starts with http:// or https://, got {parts.scheme}://{parts.hostname}")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    return Target(parts.hostname, parts.port or _PORTS[parts.scheme], path, secure)


@dataclass(slots=True)
class Line:
    target: Target
    timeout_seconds: float
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None)

    async def post(self, headers: Mapping[str, str], body: bytes) -> int | None:
        """The status of the answer; None when there was none in time."""
        request = self._head(headers, len(body)) + body
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await self._exchange(request)
        except (OSError, EOFError, ValueError, TimeoutError):
            self.close()
            return None

    def close(self) -> None:
        if self._streams is not None:
            with suppress(OSError):
                self._streams[1].close()
            self._streams = None

    async def _exchange(self, request: bytes) -> int:
        if self._streams is not None:
            # The receiver may have closed the idle connection: then, and only then, once more on a new one.
            with suppress(OSError, EOFError):
                return await self._once(*self._streams, request)
            self.close()
        target = self.target
        self._streams = await asyncio.open_connection(target.host, target.port, ssl=target.secure)
        return await self._once(*self._streams, request)

    async def _once(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status_line, _, rest = head.partition(_CRLF)
        status = int(status_line.split(" ", 2)[1])
        answered = dict(line.split(": ", 1) for line in rest.strip().split(_CRLF) if ": " in line)
        length = answered.get("content-length")
        if length is None or answered.get("connection") == "close":
            self.close()
        else:
            await reader.readexactly(int(length))
        return status

    def _head(self, headers: Mapping[str, str], length: int) -> bytes:
        lines = [f"POST {self.target.path} HTTP/1.1", f"host: {self.target.authority}", f"content-length: {length}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return (_CRLF.join(lines) + _CRLF * 2).encode("latin-1")

"""A small HTTP/1.1 server that does what a script says, on a real socket, and remembers what it saw.

    async with Endpoint(chat("hello")) as endpoint: ...           # in this event loop
    with Endpoint([error(429, "slow down"), chat("ok")]) as endpoint: ...   # in a thread, for programs and sync tests

A script is one reply, a list of replies (the last is repeated) or a function of the request seen,
plain or async. A reply can be late, trickle, or break off.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self


@dataclass(slots=True)
class Seen:
    """A request as it arrived; `number` counts from 0, `dropped` once the client left before the answer's end."""

    number: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)
    dropped: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: `delay` seconds before it, then `piece` bytes at a time with `pause` seconds between.

    `cut` is how many bytes of the body leave before the connection is reset; -1 resets it before the head.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    piece: int = 1 << 20
    pause: float = 0.0
    cut: int | None = None


Script = Reply | Sequence[Reply] | Callable[[Seen], Reply | Awaitable[Reply]]


def chat(
    text: str | None, *, finish_reason: str | None = "stop", usage: Any = (10, 5), delay: float = 0.0, **more: Any
) -> Reply:
    """A chat completion; `more` are fields of the message, and `choice` or `top` to merge further up."""
    choice = {"index": 0, "finish_reason": finish_reason} | more.pop("choice", {})
    top = more.pop("top", {})
    return _completion(choice | {"message": {"role": "assistant", "content": text} | more}, usage, top, delay)


def continuation(
    text: str, *, finish_reason: str = "stop", usage: Any = (10, 5), delay: float = 0.0, **choice: Any
) -> Reply:
    """A raw completion, of /completions."""
    return _completion({"index": 0, "finish_reason": finish_reason, "text": text} | choice, usage, {}, delay)


def error(status: int, message: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
    """OpenAI's error object; `fields` are code, type, param."""
    return as_json({"error": {"message": message} | fields}, status, headers)


def as_json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"} | dict(headers or {}))


def _completion(choice: Mapping[str, Any], usage: Any, top: Mapping[str, Any], delay: float) -> Reply:
    body: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "served",
        "choices": [choice],
    }
    if isinstance(usage, tuple):
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    elif usage is not None:
        body["usage"] = usage
    return replace(as_json(body | dict(top)), delay=delay)


class Endpoint:
    """The server; enter it with `async with` to run it in this event loop, with `with` to run it in a thread."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[Seen] = []
        self.port = port
        self.connections = 0  # accepted so far
        self.failures: list[BaseException] = []  # of the script itself: raised on leaving
        self._script = script
        self._tls = tls
        self._handlers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None

    @property
    def base_url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{'localhost' if self._tls else '127.0.0.1'}:{self.port}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=self._tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()
        if self.failures and value is None:
            raise self.failures[0]

    def __enter__(self) -> Self:
        ready = threading.Event()
        broken: list[BaseException] = []

        async def serve() -> None:
            done = asyncio.Event()
            loop = asyncio.get_running_loop()
            self._stop = lambda: loop.call_soon_threadsafe(done.set)
            async with self:
                ready.set()
                await done.wait()

        def run() -> None:
            try:
                asyncio.run(serve())
            except BaseException as exception:
                broken.append(exception)
                ready.set()

        self._thread = threading.Thread(target=run, name="endpoint")
        self._thread.start()
        ready.wait()
        self._broken = broken
        if broken:
            self._thread.join()
            raise broken[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        self._stop()
        self._thread.join()
        if self._broken and value is None:
            raise self._broken[0]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the server stops
        except BaseException as exception:
            self.failures.append(exception)
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The first byte of the next request is awaited while this one is answered: that tells when the client leaves.
        first = asyncio.ensure_future(reader.read(1))
        try:
            while start := await first:
                seen = await self._read(start, reader)
                first = asyncio.ensure_future(reader.read(1))
                if not await self._answer_unless_left(seen, writer, first):
                    return
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    async def _answer_unless_left(self, seen: Seen, writer: asyncio.StreamWriter, next: asyncio.Future[bytes]) -> bool:
        """Answer; return whether the connection goes on."""
        answering = asyncio.ensure_future(self._answer(seen, writer))
        try:
            both: set[asyncio.Future[Any]] = {answering, next}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and (next.exception() is not None or next.result() == b""):
                seen.dropped = True
                return False
            return await answering
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _read(self, first: bytes, reader: asyncio.StreamReader) -> Seen:
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head.strip().split("\r\n")
        method, path, _ = start.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        seen = Seen(len(self.requests), method, path, headers, body)
        self.requests.append(seen)
        return seen

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        """Send the scripted reply; return whether the connection goes on."""
        reply = await self._reply(seen)
        await asyncio.sleep(reply.delay)
        if reply.cut == -1:
            _reset(writer)
            return False
        headers = {"Content-Length": str(len(reply.body))} | dict(reply.headers)
        head = f"HTTP/1.1 {reply.status} Scripted\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
        body = reply.body if reply.cut is None else reply.body[: reply.cut]
        writer.write(head.encode("latin-1") + body[: reply.piece])
        await writer.drain()
        for start in range(reply.piece, len(body), reply.piece):
            await asyncio.sleep(reply.pause)
            writer.write(body[start : start + reply.piece])
            await writer.drain()
        if reply.cut is not None:
            await asyncio.sleep(0.02)  # a reset overtakes bytes that the other side has not read yet
            _reset(writer)
            return False
        return True

    async def _reply(self, seen: Seen) -> Reply:
        script = self._script
        if isinstance(script, Reply):
            return script
        if isinstance(script, Sequence):
            return script[min(seen.number, len(script) - 1)]
        reply = script(seen)
        return await reply if inspect.isawaitable(reply) else reply


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST instead of a FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

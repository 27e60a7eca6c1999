"""An endpoint that costs almost nothing: OpenAI-compatible, on loopback, a process of its own.

    python benchmarks/mock_endpoint.py --port 8000 --median 0.2            log-normal latency, 200 ms at the median
    python benchmarks/mock_endpoint.py --port 8000 --rate 5                5 requests a second, else 429

It answers `POST .../chat/completions` with a numbered list of Alpaca tasks that nobody has seen before; the
same body always gets the same answer. `GET /stats` tells what was asked (JSON), `POST /reset` forgets it. One
line with the base URL goes to stdout once it listens; it ends when its stdin does, or on SIGTERM.

It is written on bare asyncio streams and knows just enough HTTP/1.1 for the clients measured here (no chunked
requests), so that on a machine with two cores it leaves one to them.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import partial

from novelty import generate

TEXTS = 80_000
REPLY_CHARACTERS = 1000
"""Least length of an answer; the outputs are padded to reach it."""


@dataclass(slots=True)
class Stats:
    """What was asked since the last reset."""

    requests: int = 0
    served: int = 0
    refused: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    first: float = math.nan
    last: float = math.nan
    seen: dict[bytes, int] = field(default_factory=dict)
    answered: set[bytes] = field(default_factory=set)
    asked_again: int = 0

    def summary(self) -> dict[str, float | int]:
        """Return it as JSON's values; `asked_again` counts requests for what had been answered in full."""
        names = ("requests", "served", "refused", "most_in_flight", "asked_again")
        seconds = 0.0 if math.isnan(self.last) else self.last - self.first
        return {name: getattr(self, name) for name in names} | {"distinct": len(self.seen), "seconds": seconds}


class Bucket:
    """Grants `rate` requests a second out of a bucket that holds `size`, full at the start."""

    def __init__(self, rate: float, size: float) -> None:
        self._rate, self._size = rate, size
        self._tokens, self._at = size, time.monotonic()

    def take(self) -> bool:
        """Return whether one more request is granted now."""
        now = time.monotonic()
        self._tokens, self._at = min(self._size, self._tokens + (now - self._at) * self._rate), now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Mock:
    """The server's state: options, random latency, texts, statistics."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stats = Stats()
        self.bucket = self._bucket()
        self._latency = random.Random(1)
        self._texts = generate(TEXTS)

    def _bucket(self) -> Bucket | None:
        return Bucket(self.options.rate, self.options.bucket) if self.options.rate else None

    def reset(self) -> None:
        """Forget what was asked, and fill the bucket."""
        self.stats, self.bucket = Stats(), self._bucket()

    def latency(self) -> float:
        """Return the seconds until the next answer leaves."""
        median: float = self.options.median
        return median * math.exp(self._latency.gauss(0.0, self.options.sigma)) if median else 0.0

    def answer(self, body: bytes) -> bytes:
        """Return the JSON of the completion for a body: the same one for the same body."""
        digest = hashlib.blake2b(body, digest_size=16).digest()
        number = self.stats.seen.setdefault(digest, len(self.stats.seen))
        self.stats.asked_again += digest in self.stats.answered
        count = self.options.tasks
        texts = [self._texts[(number * count + i) % TEXTS] for i in range(count)]
        padding = max(40, REPLY_CHARACTERS // count - 60)
        blocks = [
            f"{n}. Instruction: {text}\n{n}. Input:\n<noinput>\n{n}. Output:\n{self._padding(number + n, padding)}\n"
            for n, text in enumerate(texts, 4)
        ]
        reply = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 1_750_000_000,
            "model": "mock",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "###\n".join(blocks)},
                }
            ],
            "usage": {"prompt_tokens": len(body) // 4, "completion_tokens": 250, "total_tokens": len(body) // 4 + 250},
        }
        return json.dumps(reply).encode()

    def _padding(self, number: int, length: int) -> str:
        text = ""
        while len(text) < length:
            text += self._texts[(number * 7919 + len(text)) % TEXTS] + " "
        return text.strip()

    def note_answered(self, body: bytes) -> None:
        """Take note that an answer has left in full."""
        self.stats.answered.add(hashlib.blake2b(body, digest_size=16).digest())


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it are answered in turn."""

    def __init__(self, mock: Mock) -> None:
        self._mock = mock
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Answer nobody any more."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Read as many whole requests as there are."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            whole = end + 4 + length
            if len(self._data) < whole:
                if b"expect: 100-continue" in head and self._transport is not None:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body, self._data = self._data[end + 4 : whole], self._data[whole:]
            self._handle(head.split(b" ", 2), body)

    def _handle(self, line: list[bytes], body: bytes) -> None:
        mock, stats = self._mock, self._mock.stats
        method, path = line[0], line[1]
        if path == b"/stats":
            return self._send(200, json.dumps(stats.summary()).encode())
        if path == b"/reset":
            mock.reset()
            return self._send(200, b"{}")
        if method != b"post" or not path.endswith(b"/chat/completions"):
            return self._send(404, b'{"error":{"message":"only /chat/completions is served"}}')
        now = time.monotonic()
        stats.requests += 1
        stats.first = now if math.isnan(stats.first) else stats.first
        if mock.bucket is not None and not mock.bucket.take():
            stats.refused += 1
            error = b'{"error":{"message":"slow down","type":"rate_limit_error","code":"rate_limit_exceeded"}}'
            wait = math.ceil(mock.options.retry_after)
            return self._send(429, error, f"Retry-After: {wait}\r\n".encode() if wait else b"")
        stats.in_flight += 1
        stats.most_in_flight = max(stats.most_in_flight, stats.in_flight)
        finish = partial(self._finish, stats, body, mock.answer(body))
        latency = mock.latency()
        if latency:
            asyncio.get_running_loop().call_later(latency, finish)
        else:
            finish()
        return None

    def _finish(self, stats: Stats, body: bytes, reply: bytes) -> None:
        stats.in_flight -= 1
        if self._transport is None or self._transport.is_closing():
            return
        stats.served += 1
        stats.last = time.monotonic()
        self._mock.note_answered(body)
        self._send(200, reply)

    def _send(self, status: int, body: bytes, headers: bytes = b"") -> None:
        if self._transport is not None:
            head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (status, len(body))
            self._transport.write(head + headers + b"\r\n" + body)


async def serve(options: argparse.Namespace) -> None:
    """Serve until stdin ends or SIGTERM."""
    loop = asyncio.get_running_loop()
    mock, stop = Mock(options), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if options.with_stdin:
        loop.add_reader(sys.stdin, stop.set)
    server = await loop.create_server(lambda: Connection(mock), "127.0.0.1", options.port, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await stop.wait()
    server.close()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description="A fast local mock of an OpenAI-compatible endpoint.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed")
    parser.add_argument("--median", type=float, default=0.0, help="median latency in seconds (log-normal)")
    parser.add_argument("--sigma", type=float, default=0.3, help="its sigma; 0.3: one in a thousand waits 2.5 medians")
    parser.add_argument("--tasks", type=int, default=1, help="tasks in each answer")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second that are granted; 0: all")
    parser.add_argument("--bucket", type=float, default=5.0, help="how many may come at once under --rate")
    parser.add_argument("--retry-after", type=float, default=3.0, help="seconds said with 429; 0: nothing is said")
    parser.add_argument("--with-stdin", action="store_true", help="end when stdin ends, for who starts it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asyncio.run(serve(parse()))

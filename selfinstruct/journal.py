"""Ask once: every request is recorded before it leaves, every completion before it is used.

`Journal.complete` answers from the store where it can. Otherwise the request goes through the
backend's wrappers: retry around `metered`, which reserves the budget and records the send, around the
governor, which lets it wait for its turn, around `watched`, which notes that it leaves. It is recorded before it
stands in line: no place at the endpoint stays empty while the disk writes. What comes back is made durable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from selfinstruct.backends import Backend
from selfinstruct.budget import Budget, Worst
from selfinstruct.errors import BackendError, Stopped
from selfinstruct.store import RunStore
from selfinstruct.tools import Tool
from selfinstruct.values import Capabilities, Completion, Request, ToolResult

_T = TypeVar("_T")


@dataclass(slots=True)
class _Ticket:
    """One request on its way: for which draw, in which task, under which key.

    `sent` from when it leaves until its answer is in the journal; `send`, `left`, `cost` and `seconds` are of the
    last time, `left` on the monotonic clock.
    """

    stage: str
    draw: int
    task: asyncio.Task[object] | None
    key: str = ""
    sent: bool = False
    dropped: bool = False
    send: int = 0
    left: float | None = None
    cost: Decimal | None = None
    seconds: float = 0.0


_current: ContextVar[_Ticket] = ContextVar("ticket")


@dataclass(slots=True)
class Journal:
    """Completions of one run, asked for at most once.

    `drain`: on closing, requests under way are waited for, because they are paid. An embedded
    model's are simply dropped.
    """

    store: RunStore
    budget: Budget
    model: str
    drain: bool = True
    backend: Backend = field(init=False)
    _stop: Stopped | None = field(default=None, init=False)
    _pause: Stopped | None = field(default=None, init=False)
    _tickets: dict[int, _Ticket] = field(default_factory=dict, init=False)
    _asking: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary, init=False)

    async def complete(self, stage: str, draw: int, key: str, request: Request) -> Completion:
        """Return the completion of a request with that content key, from the journal or from the backend.

        Raises:
            Stopped: the run is closing, or a budget is spent, and the answer is not in the journal.
            BackendError: the backend gave up on it.
        """
        known = self.store.view.completion(key)
        if known is not None:
            return known
        ticket = _Ticket(stage, draw, asyncio.current_task(), key)
        token = _current.set(ticket)
        try:
            return await self._unless_closed(ticket, lambda: self._ask(ticket, request))
        finally:
            _current.reset(token)

    async def _ask(self, ticket: _Ticket, request: Request) -> Completion:
        """Ask the backend, unless another draw is asking the same: then wait for what it is told."""
        lock = self._asking.setdefault(ticket.key, asyncio.Lock())
        others = lock.locked()
        async with lock:
            known = self.store.view.completion(ticket.key) if others else None
            if known is not None:
                return known
            completion = await self.backend.complete(request)
            # Here and not in `_send`: the next request may leave while the disk writes this answer.
            try:
                await self.store.journal(
                    ticket.send, ticket.key, ticket.stage, ticket.draw, request, completion,
                    cost=_text(ticket.cost), seconds=ticket.seconds,
                )  # fmt: skip
            finally:
                ticket.sent = False
            return completion

    async def use(self, stage: str, draw: int, key: str, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        """Return what a tool gives, from the journal or by running it.

        Raises:
            Stopped: the run is closing and the result is not in the journal.
        """
        known = self.store.view.tool_result(key)
        if known is None:
            known = await self.unless_closed(lambda: tool.call(arguments))
            await self.store.journal_tool(key, stage, draw, tool.name, arguments, known)
        return known

    async def unless_closed(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do something that sends nothing, such as loading a model; closing ends it.

        Raises:
            Stopped: the run is closing.
        """
        return await self._unless_closed(_Ticket("", 0, asyncio.current_task()), work)

    async def _unless_closed(self, ticket: _Ticket, work: Callable[[], Awaitable[_T]]) -> _T:
        self._refuse_when_closed()
        self._tickets[id(ticket)] = ticket
        try:
            return await work()
        except asyncio.CancelledError:
            # close() drops what has not left yet; any other cancellation is somebody else's and goes on.
            stop = self._stop or self._pause
            if stop is None or not ticket.dropped or ticket.task is None or ticket.task.uncancel() > 0:
                raise
            raise stop from None
        finally:
            del self._tickets[id(ticket)]

    def close(self, stop: Stopped) -> None:
        """Ask for nothing more: requests that have left are waited for (see `drain`), the others end with `stop`."""
        if self._stop is None:
            self._stop = stop
            self._drop()

    @contextmanager
    def closed(self, stop: Stopped) -> Iterator[None]:
        """Ask for nothing more within the block, as after `close`; what comes after it may be asked for again."""
        self._pause = stop
        self._drop()
        try:
            yield
        finally:
            self._pause = None

    def _drop(self) -> None:
        for ticket in self._tickets.values():
            if ticket.task is not None and not (ticket.sent and self.drain):
                ticket.dropped = True
                ticket.task.cancel()

    @property
    def in_flight(self) -> int:
        """Requests that have left and are not answered."""
        return sum(ticket.sent for ticket in self._tickets.values())

    def metered(self, governor: Backend) -> _Wrapped:
        """Wrap what lets requests wait for their turn: each is reserved and recorded before it stands in line."""
        return _Wrapped(governor, self._send)

    def watched(self, backend: Backend) -> _Wrapped:
        """Wrap the backend that really sends."""
        return _Wrapped(backend, self._leave)

    def _refuse_when_closed(self) -> None:
        stop = self._stop or self._pause
        if stop is not None:
            raise stop

    async def _send(self, backend: Backend, request: Request) -> Completion:
        ticket = _current.get()
        self._refuse_when_closed()
        worst = Worst.of(request)
        reserved = await self.budget.reserve(worst)
        send = ticket.send = await self._record(ticket, worst, reserved)
        # Whatever ends this without an answer, nobody knows whether it was billed: it stays at its worst case.
        tokens, cost, answered = worst.tokens, reserved, False
        try:
            completion = await backend.complete(request)
            usage = completion.usage
            tokens = usage.prompt_tokens + usage.completion_tokens
            cost = ticket.cost = self.budget.price_of(usage.prompt_tokens, usage.completion_tokens)
            answered = True
            return completion
        except BackendError as error:
            if not error.maybe_billed:
                tokens, cost = 0, None
            await self.store.settle(send, tokens=tokens, cost=_text(cost), error=f"{type(error).__name__}: {error}")
            raise
        finally:
            ticket.sent = answered
            if ticket.left is None:  # it stood in line when the run closed
                self.budget.release(worst, reserved)
                await self.store.withdraw(send)
            else:
                self.budget.settle(worst, reserved, tokens, cost)

    async def _leave(self, backend: Backend, request: Request) -> Completion:
        self._refuse_when_closed()
        ticket = _current.get()
        ticket.sent, ticket.left = True, time.monotonic()
        completion = await backend.complete(request)
        ticket.seconds = time.monotonic() - ticket.left
        return completion

    async def _record(self, ticket: _Ticket, worst: Worst, reserved: Decimal | None) -> int:
        """Make the send durable and return its id; while that lasts the run may close, and nothing leaves."""
        ticket.sent = True
        recording = asyncio.ensure_future(self.store.send(ticket.key, worst.tokens, _text(reserved)))
        try:
            try:
                send = await asyncio.shield(recording)
            except asyncio.CancelledError:
                await self.store.withdraw(await recording)
                raise
            stop = self._stop or self._pause
            if stop is not None:
                await self.store.withdraw(send)
                raise stop
        except BaseException:
            ticket.sent = False
            self.budget.release(worst, reserved)
            raise
        ticket.sent, ticket.left = False, None
        return send


@dataclass(slots=True)
class _Wrapped:
    backend: Backend
    ask: Callable[[Backend, Request], Awaitable[Completion]]

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def capabilities(self) -> Capabilities:
        return self.backend.capabilities

    async def complete(self, request: Request) -> Completion:
        return await self.ask(self.backend, request)

    async def aclose(self) -> None:
        await self.backend.aclose()


def _text(cost: Decimal | None) -> str | None:
    return None if cost is None else str(cost)

"""As many requests as the endpoint likes, and no more: one governor before each endpoint.

Three limits hold together: how many requests are in flight, how fast they leave, and how many
tokens they ask for in a minute. The first two are learnt from the server's refusals.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass, field

from selfinstruct.backends import Backend
from selfinstruct.backends.wire import estimate_prompt_tokens
from selfinstruct.errors import RateLimited, RequestRefused, Unavailable
from selfinstruct.values import Capabilities, Completion, Request

_DECREASE = 0.75  # of the concurrency, once a burst of refusals; with the next line: NVIDIA-NeMo/DataDesigner's
_SUCCESSES = 25  # accepted requests that earn one more in flight
_MINUTE = 60.0
_FEW = 4  # fewer accepted requests than that measure nothing: go half as fast
_BURST = 1.25  # seconds' worth that a server's bucket is first taken to hold
_TRUSTED = 20  # answers without a refusal after which a server hardly has a small bucket
_FASTER = 5.0  # sends a second that each further answer earns at the start; 10 is refused more than 10 times


class Governed:
    """A backend that is asked only when its limits allow it; first come, first served.

    A request that was refused and comes back keeps its place in the line, so that the earliest
    draws, which the commit waits for, go first. Nothing waits with a slot in hand.
    """

    def __init__(
        self, backend: Backend, *, concurrency: int, rpm: int | None = None, tpm: int | None = None, ramp: float = 4.0
    ) -> None:
        """Wrap `backend`; all of one endpoint's requests must pass the same governor.

        Args:
            backend: who is asked.
            concurrency: most requests in flight.
            rpm: most requests that leave in any 60 seconds. Who states it is believed: there is no ramp then.
            tpm: most tokens in any 60 seconds: the prompt's estimate and `max_tokens` when a
                request leaves, what the server counted once it has answered. A request that is
                larger than `tpm` by itself leaves alone.
            ramp: requests a second at the start, doubled every second until the first refusal, and faster
                once the answers show that there is room; `math.inf` for a server that never refuses, such as our own.
        """
        self.backend = backend
        self.in_flight = 0
        self.limit = concurrency
        self._most = concurrency
        self._successes = 0
        self._pace = _Pace(ramp if rpm is None else math.inf, rpm)
        self._tokens = _Minute(tpm) if tpm is not None else None
        self._paused_until = -math.inf
        self._refusals = 0
        self._line: list[_Waiter] = []
        self._tickets = itertools.count()
        self._returning: dict[int, int] = {}

    @property
    def name(self) -> str:
        """The wrapped backend's name."""
        return self.backend.name

    @property
    def capabilities(self) -> Capabilities:
        """The wrapped backend's capabilities."""
        return self.backend.capabilities

    @property
    def waiting(self) -> int:
        """How many requests stand in line."""
        return len(self._line)

    @property
    def paused(self) -> float:
        """Seconds until the server wants to hear from us again; 0 when it does not mind."""
        return max(0.0, self._paused_until - _now())

    async def complete(self, request: Request) -> Completion:
        """Wait in line, ask, and learn from the answer.

        Raises:
            BackendError: as the wrapped backend.
        """
        mark = hash(request)
        ticket = self._returning.pop(mark, None)
        ticket = next(self._tickets) if ticket is None else ticket
        weight = estimate_prompt_tokens(request) + request.sampling.max_tokens if self._tokens is not None else 0
        await self._admit(ticket, weight)
        sent = _now()
        self.in_flight += 1
        spend = self._tokens.take(sent, weight) if self._tokens is not None else None
        self._pace.send(sent)
        try:
            completion = await self.backend.complete(request)
        except RateLimited as error:
            self._settle(spend, 0)
            self._returning[mark] = ticket
            self._refused(sent, error.retry_after)
            raise
        except RequestRefused:
            self._settle(spend, 0)
            raise
        except Unavailable as error:
            self._returning[mark] = ticket
            if error.retry_after is not None:
                self._pause(error.retry_after)
            raise
        else:
            self._settle(spend, completion.usage.prompt_tokens + completion.usage.completion_tokens)
            self._accepted()
            return completion
        finally:
            self.in_flight -= 1
            self._wake()

    async def aclose(self) -> None:
        """Close the wrapped backend."""
        await self.backend.aclose()

    async def _admit(self, ticket: int, weight: int) -> None:
        """Return when it is this request's turn: it stands first in line and no limit objects."""
        me = _Waiter(ticket)
        heapq.heappush(self._line, me)
        self._wake()
        try:
            while (delay := self._delay(me, weight)) > 0:
                me.bell.clear()
                try:
                    async with asyncio.timeout(None if delay == math.inf else delay):
                        await me.bell.wait()
                except TimeoutError:
                    continue  # time has passed: that is what we waited for
        finally:
            if self._line[0] is me:
                heapq.heappop(self._line)
            else:  # given up while waiting
                self._line.remove(me)
                heapq.heapify(self._line)
            self._wake()

    def _delay(self, me: _Waiter, weight: int) -> float:
        """Return the seconds until `me` may leave, infinite when only an event can tell."""
        if self._line[0] is not me or self.in_flight >= self.limit:
            return math.inf
        now = _now()
        delay = max(self._paused_until, self._pace.next_send) - now
        if self._tokens is not None:
            delay = max(delay, self._tokens.delay(now, weight))
        return delay

    def _settle(self, spend: _Spend | None, tokens: int) -> None:
        if self._tokens is not None and spend is not None:
            self._tokens.settle(spend, tokens)

    def _wake(self) -> None:
        if self._line:
            self._line[0].bell.set()

    def _accepted(self) -> None:
        self._refusals = 0
        self._pace.answer(_now())
        self._successes += 1
        if self._successes >= _SUCCESSES and self.limit < self._most:
            self._successes = 0
            self.limit += 1

    def _refused(self, sent: float, retry_after: float | None) -> None:
        """Slow down once for a burst: what had left before we slowed down says nothing new."""
        # Without a word from the server: half a second, doubled with each burst up to half a minute.
        pause = retry_after if retry_after is not None else min(30.0, 0.5 * math.exp2(min(self._refusals, 6)))
        if self._pace.refuse(sent, _now(), pause):
            self.limit = max(1, int(self.limit * _DECREASE))
            self._successes = 0
            self._refusals += 1
        self._pause(pause)

    def _pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, _now() + seconds)
        self._pace.pause(self._paused_until)


@dataclass(slots=True, eq=False)
class _Waiter:
    """A place in line."""

    ticket: int
    bell: asyncio.Event = field(default_factory=asyncio.Event)

    def __lt__(self, other: _Waiter) -> bool:
        return self.ticket < other.ticket


@dataclass(slots=True, eq=False)
class _Spend:
    """Tokens that left at a time."""

    at: float
    tokens: int
    counts: bool = True


class _Minute:
    """Tokens of the last 60 seconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._spends: deque[_Spend] = deque()
        self._total = 0

    def take(self, now: float, tokens: int) -> _Spend:
        """Note that `tokens` leave now."""
        spend = _Spend(now, tokens)
        self._spends.append(spend)
        self._total += tokens
        return spend

    def settle(self, spend: _Spend, tokens: int) -> None:
        """Put the true number in the place of the reserved one."""
        if spend.counts:
            self._total += tokens - spend.tokens
        spend.tokens = tokens

    def delay(self, now: float, tokens: int) -> float:
        """Return the seconds until `tokens` more fit as things stand, or until nothing else counts."""
        while self._spends and self._spends[0].at + _MINUTE <= now:
            gone = self._spends.popleft()
            gone.counts = False
            self._total -= gone.tokens
        excess = self._total + tokens - self._limit
        free_at = now
        for spend in self._spends:
            if excess <= 0:
                break
            excess -= spend.tokens
            free_at = spend.at + _MINUTE
        return free_at - now


class _Pace:
    """Sends a second, doubled every `doubling` seconds, cut when the server refuses.

    Before the first refusal answers speed it up as well, once there are more than a small bucket
    holds: a fast server is then at full load some seconds earlier, and a slow one sees no difference.

    A server that grants r a second out of a bucket of C refuses when C + r t have left. At the
    first refusal C is taken to be about one second's worth, which gives r. Between two refusals
    the bucket went from empty to empty: what was accepted, over all that time, is at most r (some
    may have spilled while we paused), over the time we sent it is at least r; the truth is taken
    to be half way. Constants: least time and refusals in simulation, 5 a second out of 1 to 20.
    """

    def __init__(self, ramp: float, rpm: int | None) -> None:
        self._base = ramp
        self._doubling = 1.0
        # A hair slower than rpm, so that rounding never lets one more into a minute.
        self._most = rpm / _MINUTE / (1 + 1e-9) if rpm is not None else math.inf
        self.next_send = -math.inf
        self._since = math.nan  # when `_base` was right: the first send, or the end of the last pause
        self._emptied = math.nan  # when the server last said that its bucket is empty
        self._cut = -math.inf
        self._sends = 0
        self._sent = -math.inf  # when the last one left
        self._answers = 0

    def at(self, now: float) -> float:
        """Return the sends a second at time `now`."""
        doublings = max(0.0, now - self._since) / self._doubling
        earned = _FASTER * max(0, self._answers - _TRUSTED) if math.isnan(self._emptied) else 0.0
        return min(self._most, self._base * math.exp2(min(doublings, 64.0)) + earned)

    def answer(self, now: float) -> None:
        """Take note that the server has answered."""
        if math.isnan(self._emptied):
            self._answers += 1
            self.next_send = min(self.next_send, self._sent + self._interval(now))

    def send(self, now: float) -> None:
        if math.isnan(self._since):
            self._since = now
        self._sends += 1
        self._sent = now
        self.next_send = now + self._interval(now)

    def _interval(self, now: float) -> float:
        """Return how long it takes until one more may leave, growth included."""
        pace = self.at(now)
        if pace == self._most or pace == math.inf:
            return 1.0 / pace
        growth = math.log(2.0) / self._doubling
        return max(math.log1p(growth / pace) / growth, 1.0 / self._most)

    def pause(self, until: float) -> None:
        self._since = max(self._since, until)

    def refuse(self, sent: float, now: float, pause: float) -> bool:
        """Take note of a refusal of what left at `sent`; return whether it is the first of its burst.

        `pause` is what a refusal costs: the longer, the more slowly the limit is probed.
        """
        self._sends -= 1
        if sent <= self._cut:
            return False
        sending = max(now - self._since, 0.05)
        most = self._sends / sending
        if self._sends < _FEW:
            pace = self.at(now) / 2
            self._doubling = 15.0 * (1.0 + pause)
        elif math.isnan(self._emptied):
            pace = self._sends / (sending + _BURST)
            # From the least that r may be to the most, in a time that a wrong guess is worth.
            self._doubling = (4.0 + 8.0 * pause) / max(0.01, math.log2(most / pace))
        else:
            least = self._sends / max(now - self._emptied, 0.05)
            pace = (least + min(most, self.at(now))) / 2
            self._doubling = 15.0 * (1.0 + pause)
        self._base = max(pace, 1.0 / _MINUTE)
        self._cut = self._emptied = self._since = now
        self._sends = 0
        return True


def _now() -> float:
    """Return the event loop's time, which is that of its timers."""
    return asyncio.get_running_loop().time()

"""When retrying asks again, when it stops, and how long it waits, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import pairwise, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct.backends.retry import Retrying
from selfinstruct.errors import (
    BackendError,
    BadReply,
    ContextTooLong,
    QuotaExhausted,
    RateLimited,
    RequestRefused,
    Unavailable,
    UnknownModel,
    WrongKey,
)
from selfinstruct.values import Capabilities, Completion, Request, Sampling, Usage
from tests.backends.virtual import run

REQUEST = Request(Sampling(max_tokens=5), prompt="x")
OK = Completion("ok", "stop", Usage(1, 1))


class Scripted:
    """Fails as told, then answers."""

    name = "test/scripted"
    capabilities = Capabilities()

    def __init__(self, failures: Iterable[BaseException]) -> None:
        self.failures: Iterator[BaseException] = iter(failures)
        self.asked: list[float] = []

    async def complete(self, request: Request) -> Completion:
        assert request is REQUEST
        self.asked.append(asyncio.get_running_loop().time())
        for failure in self.failures:
            raise failure
        return OK

    async def aclose(self) -> None:
        pass


def attempt(failures: Iterable[BaseException], **bounds: float) -> tuple[Completion | BaseException, list[float]]:
    """Return the outcome and the times at which the backend was asked."""

    async def main() -> tuple[Completion | BaseException, list[float]]:
        backend = Scripted(failures)
        try:
            return await Retrying(backend, **bounds).complete(REQUEST), backend.asked  # type: ignore[arg-type]
        except Exception as failure:
            return failure, backend.asked

    return run(main())


@pytest.mark.parametrize("kind", [WrongKey, UnknownModel, QuotaExhausted, RequestRefused, ContextTooLong, BackendError])
def test_what_waiting_does_not_help_is_raised_at_once(kind: type[BackendError]) -> None:
    failure = kind("no")
    outcome, asked = attempt([failure])
    assert outcome is failure and asked == [0.0]


def test_a_bug_is_not_retried() -> None:
    failure = ZeroDivisionError()
    outcome, asked = attempt([failure])
    assert outcome is failure and len(asked) == 1


@pytest.mark.parametrize(
    "failure",
    [Unavailable("bug", status=500), BadReply("html", status=200), RateLimited("when?", status=429)],
    ids=["500", "bad reply", "429 without a time"],
)
def test_an_endpoint_that_is_up_and_fails_is_asked_a_few_times(failure: BackendError) -> None:
    outcome, asked = attempt(repeat(failure), attempts=4)
    assert outcome is failure and len(asked) == 4
    outcome, asked = attempt(repeat(failure, 3), attempts=4)
    assert outcome is OK and len(asked) == 4


def test_being_told_when_to_come_back_uses_up_nothing() -> None:
    outcome, asked = attempt(repeat(RateLimited("later", status=429, retry_after=7.0), 100), attempts=2, patience=1.0)
    assert outcome is OK
    assert asked == [7.0 * n for n in range(101)]


@pytest.mark.parametrize("status", [None, 502, 503, 504, 529])
def test_a_dead_endpoint_is_retried_for_as_long_as_patience_lasts(status: int | None) -> None:
    failures = (Unavailable(f"down {n}", status=status) for n in range(10_000))
    outcome, asked = attempt(failures, attempts=2, patience=300.0)
    assert isinstance(outcome, Unavailable)
    assert str(outcome) == f"down {len(asked) - 1}", "the last error is the one to show"
    assert 300.0 <= asked[-1] <= 330.0
    assert len(asked) < 100


def test_an_endpoint_that_comes_back_in_time_is_forgiven() -> None:
    outcome, asked = attempt(repeat(Unavailable("down"), 12), patience=600.0)
    assert outcome is OK and len(asked) == 13


def test_patience_starts_with_the_first_failure_not_with_the_request() -> None:
    """A time-out after ten minutes gets a second chance."""

    class Slow(Scripted):
        async def complete(self, request: Request) -> Completion:
            await asyncio.sleep(600.0)
            return await super().complete(request)

    async def main() -> int:
        backend = Slow(repeat(Unavailable("time-out")))
        with pytest.raises(Unavailable):
            await Retrying(backend, patience=300.0).complete(REQUEST)
        return len(backend.asked)

    assert run(main()) == 2


@given(st.lists(st.none() | st.floats(0, 100), max_size=5))
@settings(deadline=None)
def test_never_earlier_than_asked_and_otherwise_soon(waits: list[float | None]) -> None:
    failures = [Unavailable("busy", status=500, retry_after=wait) for wait in waits]
    outcome, asked = attempt(failures)
    assert outcome is OK
    for number, (wait, (before, after)) in enumerate(zip(waits, pairwise(asked), strict=True)):
        assert (wait or 0.0) <= after - before + 1e-6
        assert after - before <= max(wait or 0.0, min(30.0, 0.5 * 2**number)) + 1e-6


def test_waits_differ_so_that_many_do_not_come_back_together() -> None:
    firsts = {attempt([BadReply("html")])[1][1] for _ in range(20)}
    assert len(firsts) > 10


def test_the_person_is_told() -> None:
    told: list[tuple[str, float]] = []

    async def main() -> None:
        backend = Scripted([RateLimited("later", status=429, retry_after=7.0)])
        await Retrying(backend, notify=lambda error, wait: told.append((str(error), wait))).complete(REQUEST)

    run(main())
    assert told == [("later", 7.0)]


def test_cancelling_while_waiting_stops_it() -> None:
    async def main() -> int:
        backend = Scripted(repeat(Unavailable("down")))
        task = asyncio.create_task(Retrying(backend).complete(REQUEST))
        await asyncio.sleep(20.0)
        asked = len(backend.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(100.0)
        assert len(backend.asked) == asked
        return asked

    assert run(main()) > 1

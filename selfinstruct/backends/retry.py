"""Ask again when it may help, never earlier than the server wants, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import tenacity

from selfinstruct.backends import Backend
from selfinstruct.errors import BackendError, RateLimited, Unavailable
from selfinstruct.values import Capabilities, Completion, Request

_LONGEST_WAIT = 30.0
_DOWN = (None, 502, 503, 504, 529)  # nobody there, or a gateway that says so


class Retrying:
    """A backend whose `retryable` errors are answered by asking again.

    Which bound applies depends on what the error says of the endpoint:

    - It tells when to come back (429 with Retry-After): as often as it does, without bound; the
      run's own budget of time is the bound.
    - It is down (no connection, time-out, 502, 503, 504, 529): for `patience` seconds from the
      first such failure of this request.
    - It is up, yet fails this request (other 5xx, a damaged answer, 429 without a time):
      `attempts` times. Some servers answer 500 to a bad parameter, so this must be few.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        attempts: int = 6,
        patience: float = 300.0,
        notify: Callable[[BackendError, float], None] | None = None,
    ) -> None:
        """Wrap `backend`, usually a `Governed` one.

        Args:
            backend: who is asked.
            attempts: most requests for one completion that fail while the endpoint is up.
            patience: seconds.
            notify: called with the error and the seconds until the next attempt, to tell the person.
        """
        self.backend = backend
        self._attempts = attempts
        self._patience = patience
        self._notify = notify

    @property
    def name(self) -> str:
        """The wrapped backend's name."""
        return self.backend.name

    @property
    def capabilities(self) -> Capabilities:
        """The wrapped backend's capabilities."""
        return self.backend.capabilities

    async def complete(self, request: Request) -> Completion:
        """Ask until there is an answer.

        Raises:
            BackendError: the first that is not retryable, or the last when the bound is reached.
        """
        try:
            return await self.backend.complete(request)
        except BackendError as error:
            if not error.retryable:
                raise
            failures = [error]
        # Only now: what watches over attempts costs as much as a quarter of one that goes well.

        async def again() -> Completion:
            if failures:
                raise failures.pop()
            return await self.backend.complete(request)

        course = _Course(self._attempts, self._patience)
        retrying = tenacity.AsyncRetrying(
            sleep=asyncio.sleep,
            retry=tenacity.retry_if_exception(_is_retryable),
            stop=course.over,
            wait=course.wait,
            before_sleep=self._tell if self._notify is not None else None,
            reraise=True,
        )
        return await retrying(again)

    async def aclose(self) -> None:
        """Close the wrapped backend."""
        await self.backend.aclose()

    def _tell(self, state: tenacity.RetryCallState) -> None:
        assert self._notify is not None and state.next_action is not None
        self._notify(_error(state), state.next_action.sleep)


@dataclass(slots=True)
class _Course:
    """How one completion's attempts went so far."""

    attempts: int
    patience: float
    failed: int = 0
    down_since: float | None = None
    backoff: Callable[[tenacity.RetryCallState], float] = field(
        default=tenacity.wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT)
    )

    def over(self, state: tenacity.RetryCallState) -> bool:
        """Count the failure; return whether it was the last that is borne."""
        error = _error(state)
        if isinstance(error, RateLimited) and error.retry_after is not None:
            return False
        if isinstance(error, Unavailable) and error.status in _DOWN:
            now = asyncio.get_running_loop().time()
            if self.down_since is None:
                self.down_since = now
            return now - self.down_since >= self.patience
        self.failed += 1
        return self.failed >= self.attempts

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Return the seconds to wait: what the server asks for, or exponential with full jitter if that is longer."""
        error = _error(state)
        if isinstance(error, RateLimited) and error.retry_after is not None:
            return error.retry_after
        return max(self.backoff(state), error.retry_after or 0.0)


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, BackendError) and error.retryable


def _error(state: tenacity.RetryCallState) -> BackendError:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, BackendError)
    return error

"""Limits on what a run may spend, kept by reserving each request's worst case before it leaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from selfinstruct.errors import ConfigError, Stopped
from selfinstruct.values import Request

PRICES = Path(__file__).with_name("prices.yaml")
_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million prompt and a million completion tokens, as of a day."""

    prompt: Decimal
    completion: Decimal
    as_of: str

    def cost(self, prompt_tokens: int, completion_tokens: int) -> Decimal:
        """Return the dollars of one request."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / _MILLION


def load_price(model: str, path: Path | None = None) -> Price | None:
    """Look a model ("openai/gpt-4o-mini") up in a price file; None when it is not listed.

    The file is YAML: `as_of: DATE` and `models: {PROVIDER/MODEL: {prompt: USD, completion: USD}}`,
    dollars per million tokens. Embedded models cost nothing.

    Raises:
        ConfigError: the file can't be read or an entry is not two prices.
    """
    if model.startswith("llama.cpp/"):
        return Price(Decimal(0), Decimal(0), "always")
    path = path or PRICES
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        entry: Mapping[str, Any] | None = data["models"].get(model)
        if entry is None:
            return None
        as_of = str(entry.get("as_of", data["as_of"]))
        return Price(Decimal(str(entry["prompt"])), Decimal(str(entry["completion"])), as_of)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, InvalidOperation) as error:
        raise ConfigError(
            f"{path}: not a price file ({type(error).__name__}: {error}); expected as_of: DATE and "
            "models: {openai/NAME: {prompt: 0.15, completion: 0.60}}, US dollars per million tokens"
        ) from error


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent over the whole run; None is no limit."""

    requests: int | None = None
    tokens: int | None = None
    cost: Decimal | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Worst:
    """The most that one request can come to."""

    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, request: Request) -> Worst:
        """Bound a request's tokens before it is sent.

        A byte-level vocabulary never makes more tokens than there are UTF-8 bytes; each message
        costs a few more for the chat template. Tool calls count as the JSON a template writes.
        """
        texts = [request.prompt or "", request.schema, *(message.content for message in request.messages)]
        texts += [json.dumps(asdict(call)) for message in request.messages for call in message.tool_calls]
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        return cls(size + 16 * (len(request.messages) + 1), request.sampling.max_tokens)

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Budget:
    """Counts spending over the life of a run and refuses what might exceed a limit.

    While others are in flight a request that does not fit waits for them: they were reserved at
    their worst and usually come to less. Only when nothing is in flight and it still does not fit is
    the budget spent.
    """

    def __init__(
        self,
        limits: Limits,
        price: Price | None,
        *,
        requests: int = 0,
        tokens: int = 0,
        cost: Decimal = Decimal(0),
        seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.price = price
        self.requests = requests
        self.tokens = tokens
        self.cost = cost
        self._before = seconds
        self._clock = clock
        self._started = clock()
        self._in_flight = 0
        self._reserved = 0
        self._settled = asyncio.Event()

    @property
    def seconds(self) -> float:
        """Seconds of running, earlier processes included."""
        return self._before + self._clock() - self._started

    @property
    def settled_tokens(self) -> int:
        """Tokens of answered requests: what is under way stands in `tokens` at its worst."""
        return self.tokens - self._reserved

    def price_of(self, prompt_tokens: int, completion_tokens: int) -> Decimal | None:
        """Return the dollars of so many tokens, None when the price is unknown."""
        return self.price.cost(prompt_tokens, completion_tokens) if self.price else None

    async def reserve(self, worst: Worst) -> Decimal | None:
        """Set a request's worst case aside and return its cost.

        Raises:
            Stopped: it can't be sent without risking a limit; says which and how to go on.
        """
        cost = self.price_of(worst.prompt_tokens, worst.completion_tokens)
        while (short := self._short(worst.tokens, cost)) is not None:
            if not self._in_flight:
                raise Stopped(short)
            self._settled.clear()
            await self._settled.wait()
        self._in_flight += 1
        self.requests += 1
        self.tokens += worst.tokens
        self._reserved += worst.tokens
        self.cost += cost or 0
        return cost

    def settle(self, worst: Worst, reserved: Decimal | None, tokens: int, cost: Decimal | None) -> None:
        """Replace a reservation by what the request came to."""
        self._in_flight -= 1
        self.tokens += tokens - worst.tokens
        self._reserved -= worst.tokens
        self.cost += (cost or 0) - (reserved or 0)
        self._settled.set()

    def release(self, worst: Worst, reserved: Decimal | None) -> None:
        """Take a reservation back: the request did not leave."""
        self.requests -= 1
        self.settle(worst, reserved, 0, None)

    def _short(self, tokens: int, cost: Decimal | None) -> str | None:
        limits = self.limits
        if limits.requests is not None and self.requests + 1 > limits.requests:
            return f"the budget of {limits.requests} requests is spent; go on with --max-requests N"
        if limits.tokens is not None and self.tokens + tokens > limits.tokens:
            return (
                f"the budget of {limits.tokens} tokens is spent: {self.tokens} used, and the next request might need "
                f"{tokens}; go on with --max-tokens N"
            )
        if limits.cost is not None and self.cost + (cost or 0) > limits.cost:
            return (
                f"the budget of ${limits.cost} is spent: ${self.cost:.4f} used, and the next request might cost "
                f"${cost or 0:.4f}; go on with --max-cost USD"
            )
        if limits.seconds is not None and self.seconds >= limits.seconds:
            return f"the time of {limits.seconds:.0f} s is up; go on with --max-time"
        return None

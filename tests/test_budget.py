"""Budgets are never overrun, whatever the answers come to and however many requests are under way."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct.budget import Budget, Limits, Price, Worst, load_price
from selfinstruct.errors import ConfigError, Stopped
from selfinstruct.values import Message, Request, Sampling, ToolCall
from tests.test_store import MORE

PRICE = Price(Decimal("0.15"), Decimal("0.60"), "today")


class Counting:
    """An endpoint that counts what it really bills, and how much was under way at once."""

    def __init__(self, budget: Budget, seed: int) -> None:
        self.budget = budget
        self.requests = 0
        self.tokens = 0
        self.cost = Decimal(0)
        self.under_way = 0
        self.most = 0
        self._rng = random.Random(seed)

    async def ask(self, worst: Worst) -> None:
        reserved = await self.budget.reserve(worst)
        if self._rng.random() < 0.1:
            self.budget.release(worst, reserved)
            return
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        for _ in range(self._rng.randint(0, 5)):
            await asyncio.sleep(0)
        prompt = self._rng.randint(0, worst.prompt_tokens)
        completion = self._rng.choice([0, self._rng.randint(0, worst.completion_tokens), worst.completion_tokens])
        cost = self.budget.price_of(prompt, completion)
        self.requests += 1
        self.tokens += prompt + completion
        self.cost += cost or 0
        self.under_way -= 1
        self.budget.settle(worst, reserved, prompt + completion, cost)


@settings(max_examples=100 * MORE, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    requests=st.none() | st.integers(0, 80),
    tokens=st.none() | st.integers(0, 30_000),
    cost=st.none() | st.decimals("0", "0.02", places=6),
    sizes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2000)), min_size=1, max_size=8),
    spent=st.tuples(st.integers(0, 30), st.integers(0, 5000)),
)
def test_no_limit_is_overrun_with_64_under_way(
    seed: int,
    requests: int | None,
    tokens: int | None,
    cost: Decimal | None,
    sizes: list[tuple[int, int]],
    spent: tuple[int, int],
) -> None:
    async def story() -> tuple[Budget, Counting, list[BaseException | None]]:
        budget = Budget(Limits(requests, tokens, cost), PRICE, requests=spent[0], tokens=spent[1])
        endpoint = Counting(budget, seed)
        slots = asyncio.Semaphore(64)

        async def one(number: int) -> None:
            async with slots:
                await endpoint.ask(Worst(*sizes[number % len(sizes)]))

        results = await asyncio.gather(*(one(number) for number in range(150)), return_exceptions=True)
        return budget, endpoint, results

    budget, endpoint, results = asyncio.run(story())
    assert all(result is None or isinstance(result, Stopped) for result in results), results
    assert endpoint.most <= 64
    assert requests is None or endpoint.requests + min(spent[0], requests) <= requests
    assert tokens is None or endpoint.tokens + min(spent[1], tokens) <= tokens
    assert cost is None or endpoint.cost <= cost
    # What was set aside is given back to the last token.
    assert (budget.requests, budget.tokens) == (spent[0] + endpoint.requests, spent[1] + endpoint.tokens)
    assert budget.cost == endpoint.cost
    # And a refusal was needed: nothing was under way, and one more at its worst would have gone over.
    if any(isinstance(result, Stopped) for result in results):
        largest = Worst(max(size[0] for size in sizes), max(size[1] for size in sizes))
        assert (
            (requests is not None and budget.requests + 1 > requests)
            or (tokens is not None and budget.tokens + largest.tokens > tokens)
            or (cost is not None and budget.cost + PRICE.cost(largest.prompt_tokens, largest.completion_tokens) > cost)
        )


def test_what_does_not_fit_yet_waits_for_what_is_under_way() -> None:
    async def story() -> list[str]:
        budget = Budget(Limits(tokens=100), None)
        worst, told = Worst(0, 60), []

        async def second() -> None:
            await budget.reserve(worst)
            told.append("second may leave")

        await budget.reserve(worst)
        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.01)
        told.append("the first came to little")
        budget.settle(worst, None, 10, None)
        await waiting
        third = asyncio.create_task(budget.reserve(worst))
        await asyncio.sleep(0.01)
        budget.settle(worst, None, 60, None)
        with pytest.raises(Stopped, match="--max-tokens"):
            await third
        return told

    assert asyncio.run(story()) == ["the first came to little", "second may leave"]


def test_one_that_gives_up_waiting_takes_nothing_along() -> None:
    async def story() -> Budget:
        budget = Budget(Limits(requests=1), None)
        worst = Worst(1, 1)
        await budget.reserve(worst)
        waiting = asyncio.create_task(budget.reserve(worst))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        budget.release(worst, None)
        await budget.reserve(worst)
        return budget

    assert asyncio.run(story()).requests == 1


def test_time_counts_over_all_processes_and_only_forwards() -> None:
    now = [1000.0]

    async def story() -> None:
        budget = Budget(Limits(seconds=60), None, seconds=50, clock=lambda: now[0])
        await budget.reserve(Worst(1, 1))
        budget.settle(Worst(1, 1), None, 2, None)
        now[0] += 9.9
        await budget.reserve(Worst(1, 1))
        budget.settle(Worst(1, 1), None, 2, None)
        now[0] += 0.2
        with pytest.raises(Stopped, match="--max-time"):
            await budget.reserve(Worst(1, 1))

    asyncio.run(story())


@given(
    texts=st.lists(st.text(st.characters()), max_size=3),
    arguments=st.text(st.characters()),
    prompt=st.none() | st.text(),
)
def test_the_worst_case_bounds_every_byte_sent(texts: list[str], arguments: str, prompt: str | None) -> None:
    call = ToolCall("tool", arguments, "1")
    messages = (*(Message("user", text) for text in texts), Message("assistant", "", tool_calls=(call,)))
    worst = Worst.of(Request(Sampling(77), messages, prompt))
    said = sum(len(text.encode("utf-8", "replace")) for text in [*texts, arguments, prompt or ""])
    assert worst.prompt_tokens >= said
    assert worst.completion_tokens == 77


def test_a_price_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("as_of: 2026-11-01\nmodels: {openai/x: {prompt: 0.15, completion: 0.6}}\n")
    price = load_price("openai/x", path)
    assert price == Price(Decimal("0.15"), Decimal("0.6"), "2026-11-01")
    assert price.cost(1_000_000, 500_000) == Decimal("0.45")
    assert load_price("openai/unknown", path) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "as_of: x",
        "models: 3",
        "models: {openai/x: {prompt: 1}}",
        "models: {openai/x: {prompt: a, completion: 1}}",
    ],
)
def test_a_price_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("as_of: 2026-11-01\n" * ("openai/x" in text) + text)
    with pytest.raises(ConfigError, match=r"prices\.yaml: not a price file"):
        load_price("openai/x", path)

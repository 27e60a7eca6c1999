"""The forecast's interval holds what it claims."""

from __future__ import annotations

import random

from selfinstruct.forecast import Yield, forecast


def draws(rng: random.Random) -> Yield:
    accepted = sum(rng.random() < 0.4 for _ in range(6))
    return Yield(accepted, 900 + 110 * accepted + rng.randint(0, 600), 1 + (rng.random() < 0.1))


def test_the_interval_covers_the_truth() -> None:
    covered = {"tokens": 0, "requests": 0}
    for seed in range(200):
        rng = random.Random(seed)
        found = forecast([draws(rng) for _ in range(40)], 1000)
        assert found is not None
        accepted, tokens, requests = 0, 0.0, 0.0
        while accepted < 1000:
            more = draws(rng)
            accepted, tokens, requests = accepted + more.accepted, tokens + more.tokens, requests + more.requests
        covered["tokens"] += found.tokens.low <= tokens <= found.tokens.high
        covered["requests"] += found.requests.low <= requests <= found.requests.high
    assert all(170 <= count <= 195 for count in covered.values()), covered


def test_nothing_to_go_by() -> None:
    assert forecast([], 10) is None
    assert forecast([Yield(3, 100, 1)], 10) is None
    assert forecast([Yield(0, 100, 1), Yield(0, 90, 1)], 10) is None


def test_nothing_left_costs_nothing() -> None:
    found = forecast([Yield(3, 100, 1), Yield(2, 90, 1)], 0)
    assert found is not None
    assert (found.tokens.middle, found.tokens.high) == (0, 0)

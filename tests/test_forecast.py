"""The forecast's interval holds what it claims."""

from __future__ import annotations

import random
from pathlib import Path

from selfinstruct.forecast import Seen, Yield, forecast
from selfinstruct.report import outlook, outlook_lines
from selfinstruct.store import RunView
from selfinstruct.testing import Scripted
from tests.pipeline import NAME, answer
from tests.recipes.runs import grow


def draws(rng: random.Random) -> Yield:
    accepted = sum(rng.random() < 0.4 for _ in range(6))
    return Yield(accepted, 900 + 110 * accepted + rng.randint(0, 600), 1 + (rng.random() < 0.1))


def test_the_interval_covers_the_truth() -> None:
    covered = {"tokens": 0, "requests": 0}
    for seed in range(200):
        rng = random.Random(seed)
        found = forecast([Seen("tasks", [draws(rng) for _ in range(40)])], 1000)
        assert found is not None
        accepted, tokens, requests = 0, 0.0, 0.0
        while accepted < 1000:
            more = draws(rng)
            accepted, tokens, requests = accepted + more.accepted, tokens + more.tokens, requests + more.requests
        covered["tokens"] += found.tokens.low <= tokens <= found.tokens.high
        covered["requests"] += found.requests.low <= requests <= found.requests.high
    assert all(170 <= count <= 195 for count in covered.values()), covered


def answers(rng: random.Random) -> Yield:
    accepted = int(rng.random() < 0.6)
    return Yield(accepted, 300 + rng.randint(0, 200), 1)


def test_the_interval_covers_the_truth_of_two_stages_one_of_which_is_ahead() -> None:
    """Ideas are grown ahead of the answers: what they took so far is no measure of what an answer takes."""
    covered, middles = {"tokens": 0, "requests": 0}, []
    for seed in range(200):
        rng = random.Random(seed)
        ideas, tasks = [draws(rng) for _ in range(60)], [answers(rng) for _ in range(60)]
        stock = sum(each.accepted for each in ideas) - len(tasks)
        found = forecast([Seen("ideas", ideas), Seen("tasks", tasks, stock)], 400)
        assert found is not None
        accepted, tokens, requests = 0, 0.0, 0.0
        while accepted < 400:
            if not stock:
                more = draws(rng)
                stock, tokens, requests = more.accepted, tokens + more.tokens, requests + more.requests
                continue
            more, stock = answers(rng), stock - 1
            accepted, tokens, requests = accepted + more.accepted, tokens + more.tokens, requests + more.requests
        covered["tokens"] += found.tokens.low <= tokens <= found.tokens.high
        covered["requests"] += found.requests.low <= requests <= found.requests.high
        middles.append(found.tokens.middle / tokens)
    assert all(170 <= count <= 197 for count in covered.values()), covered
    assert 0.95 <= sum(middles) / len(middles) <= 1.05


def test_what_is_in_stock_is_not_paid_again() -> None:
    ideas, tasks = [Yield(5, 1000, 1)] * 10, [Yield(1, 100, 1)] * 2
    found = forecast([Seen("ideas", ideas), Seen("tasks", tasks, stock=48)], 48)
    assert found is not None
    assert (found.tokens.middle, found.requests.middle) == (4800, 48)
    more = forecast([Seen("ideas", ideas), Seen("tasks", tasks, stock=48)], 58)
    assert more is not None
    assert (more.tokens.middle, more.requests.middle) == (5800 + 2000, 58 + 2)


def test_a_run_of_stages_says_what_it_does_not_know_yet_and_then_what_the_rest_takes(tmp_path: Path) -> None:
    def ahead(commits: int | None) -> dict[str, object]:
        folder = tmp_path / str(commits)
        grow(folder, NAME, Scripted(answer), commits, target=120)
        with RunView.open(folder) as view:
            return outlook(view, None) | {"spent": view.summary().completions}

    early, late, done = ahead(3), ahead(350), ahead(None)
    assert (early["wanted"], early["unknown"]) == (120, ["colours", "tasks"])
    assert outlook_lines(early) == [
        "what 120 more records take can't be told yet: too little has come of colours, tasks"
    ]
    assert (late["unknown"], done["wanted"]) == ([], 0)
    requests = late["requests"]
    assert isinstance(requests, dict)
    assert isinstance(done["spent"], int)
    assert isinstance(late["spent"], int)
    assert requests["low"] <= done["spent"] - late["spent"] <= requests["high"]
    assert requests["high"] < 2 * requests["low"]


def test_nothing_to_go_by() -> None:
    assert forecast([], 10) is None
    assert forecast([Seen("tasks", [])], 10) is None
    assert forecast([Seen("tasks", [Yield(3, 100, 1)])], 10) is None
    assert forecast([Seen("tasks", [Yield(0, 100, 1), Yield(0, 90, 1)])], 10) is None
    known = Seen("ideas", [Yield(3, 100, 1)] * 2)
    assert forecast([known, Seen("tasks", [Yield(1, 100, 1)], stock=5)], 10) is None


def test_nothing_left_costs_nothing() -> None:
    found = forecast([Seen("tasks", [Yield(3, 100, 1), Yield(2, 90, 1)])], 0)
    assert found is not None
    assert (found.tokens.middle, found.tokens.high) == (0, 0)

"""What holds for every run of a recipe of dialogues: luck changes nothing, nothing is paid twice, judging is free."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from selfinstruct import replay
from selfinstruct.plan import resume_plan
from selfinstruct.store import RunStore
from selfinstruct.values import Dialogue
from tests.backends.endpoint import Endpoint
from tests.program import kill, run_options, selfinstruct
from tests.recipes.talk import ask, dialogues, model, work

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "baize v1": ("baize", {"style": "v1"}),
    "baize v2": ("baize", {"style": "v2", "options": {"personas": ["a baker", "a nurse"]}}),
    "vicuna": ("vicuna", {"options": {"turns": 2}}),
    "guanaco": ("guanaco", {"quota": {"en": 0.6, "zh": 0.4}, "options": {"across": ["ja"]}}),
}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")


def settings(case: str, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    recipe, chosen = CASES[case]
    if recipe != "vicuna":
        return recipe, {"target": 8, **chosen}
    rng, data = random.Random(1), tmp_path / "in.jsonl"
    rows = [json.dumps({"messages": [{"role": "user", "content": ask(rng)}]}) for _ in range(12)]
    data.write_text("\n".join(rows), encoding="utf-8")
    return recipe, {"input": str(data), **chosen}


@pytest.mark.parametrize("case", CASES)
def test_concurrency_order_of_arrival_and_replay_change_nothing(case: str, tmp_path: Path) -> None:
    recipe, chosen = settings(case, tmp_path)
    found: list[list[Dialogue]] = []
    for concurrency in (1, 8):
        with Endpoint(model(damage=0.3, delay=lambda rng: rng.random() * 0.02)) as server:
            found.append(work(recipe, server, tmp_path / str(concurrency), chosen, concurrency=concurrency))
            bodies = [request.body for request in server.requests]
            assert len(bodies) == len(set(bodies)), "a request was paid twice"
    assert found[0] == found[1]
    assert len(found[0]) > 3
    rebuilt = asyncio.run(replay.replay(tmp_path / "1", resume_plan(tmp_path / "1", []), tmp_path / "again"))
    assert rebuilt == (len(found[0]), True)


@pytest.mark.parametrize("case", CASES)
def test_judging_again_is_a_fresh_run_for_nothing(case: str, tmp_path: Path) -> None:
    recipe, chosen = settings(case, tmp_path)
    change = {"filters": {"leak": {"marks": ["our landlord", "房东"]}}}
    with Endpoint(model(damage=0.2)) as server:
        before = work(recipe, server, tmp_path / "a", chosen)
        paid = len(server.requests)
        plan = resume_plan(tmp_path / "a", [change])
        with RunStore.open(tmp_path / "a") as store:
            difference = asyncio.run(replay.refilter(plan, store, dry_run=False))
        assert len(server.requests) == paid
        after = dialogues(tmp_path / "a")
        assert difference.leaving, "the change was meant to bite"
        assert after != before
        fresh = work(recipe, server, tmp_path / "b", chosen, change)
    if recipe == "guanaco":  # lanes are filled one after the other: the first has not asked for more yet
        assert [each for each in after if each not in fresh] == []
    else:
        assert fresh[: len(after)] == after


@pytest.mark.slow
def test_killed_in_the_middle_of_a_dialogue_and_resumed(tmp_path: Path) -> None:
    recipe, chosen = settings("baize v2", tmp_path)
    with Endpoint(model(damage=0.2)) as server:
        undisturbed = work(recipe, server, tmp_path / "u", chosen)
    (tmp_path / "config.yaml").write_text(json.dumps(chosen), encoding="utf-8")
    with Endpoint(model(damage=0.2, delay=lambda rng: 0.02 + 0.1 * rng.random())) as server:
        options = [*run_options(server, tmp_path / "r", 8, concurrency=3), "-c", str(tmp_path / "config.yaml"), "-q"]
        for _ in range(2):
            kill("run", recipe, *options, server=server, at=len(server.requests) + 6)
        done = selfinstruct("run", recipe, *options)
        assert done.returncode == 0, done.stderr
        answered = [request.body for request in server.requests if not request.dropped]
    assert dialogues(tmp_path / "r") == undisturbed
    assert len(answered) - len(set(answered)) <= 2 * 3, "more was paid twice than can be in flight at a kill"

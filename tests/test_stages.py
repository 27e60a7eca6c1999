"""Stages that feed each other: the same laws as for one, whatever portions an earlier stage is asked for."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfinstruct import quota
from selfinstruct.errors import ConfigError
from selfinstruct.plan import plan, resume_plan
from selfinstruct.replay import refilter, replay
from selfinstruct.stages import Items
from selfinstruct.store import RunStore, RunView
from selfinstruct.testing import Scripted
from selfinstruct.values import Dialogue, Task
from tests.pipeline import NAME, answer
from tests.program import RPM
from tests.recipes.runs import Dataset, work


def grow(folder: Path, backend: Scripted, stop_after: int | None = None, **settings: Any) -> Dataset:
    """Run until done, or until so many commits are made; return the dataset."""
    return work(
        plan([{"recipe": NAME, "model": "openai/m", "target": 40, "rpm": RPM}, settings]), folder, backend, stop_after
    )


def late(seed: int) -> Callable[[object], float]:
    rng = random.Random(seed)
    return lambda _: rng.random() * 0.004


def test_the_target_is_met_exactly_and_every_candidate_is_accounted_for(tmp_path: Path) -> None:
    backend = Scripted(answer)
    assert len(grow(tmp_path / "r", backend)) == 40
    with RunView.open(tmp_path / "r") as view:
        found = view.summary()
        assert (found.accepted, found.target, found.state) == (40, 40, "done")
        assert found.completions == len(backend.asked)
        for name, stage in found.stages.items():
            rows = view._one("SELECT count(*) FROM candidates WHERE stage = ?", (name,))[0]
            assert rows == stage.accepted + sum(stage.rejected.values())
        assert found.stages["colours"].rejected == {"colour": found.stages["colours"].rejected["colour"]}
        assert found.stages["ideas"].accepted < 130, "an earlier stage makes what the later ones need, not far more"


def test_neither_concurrency_nor_arrival_nor_interruption_changes_the_dataset(tmp_path: Path) -> None:
    plain = grow(tmp_path / "plain", Scripted(answer), concurrency=1)
    for concurrency in (3, 64):
        backend = Scripted(answer, delay=late(concurrency))
        assert grow(tmp_path / f"c{concurrency}", backend, concurrency=concurrency) == plain
    asked = []
    for stop_after in range(9, 400, 31):
        backend = Scripted(answer, delay=late(stop_after))
        found = grow(tmp_path / "cut", backend, stop_after=stop_after, concurrency=8)
        asked += backend.asked
        if len(found) == 40:
            break
    assert found == plain
    assert len(asked) == len({request.nonce for request in asked}), "a completion was asked for twice"


def test_a_raised_target_comes_to_what_a_fresh_run_comes_to(tmp_path: Path) -> None:
    backend = Scripted(answer)
    for target in (7, 8, 25, 40):
        found = grow(tmp_path / "raised", backend, target=target)
        assert len(found) == target
    assert found == grow(tmp_path / "fresh", Scripted(answer))


def test_judged_again_with_the_same_filters_nothing_changes_and_replay_rebuilds_it(tmp_path: Path) -> None:
    before = grow(tmp_path / "r", Scripted(answer))
    with RunStore.open(tmp_path / "r") as store:
        same = asyncio.run(refilter(resume_plan(tmp_path / "r", []), store, dry_run=False))
        assert (same.before, same.after, same.entering, same.leaving) == (40, 40, [], [])
        assert list(store.view.dataset()) == before
    count, equal = asyncio.run(replay(tmp_path / "r", resume_plan(tmp_path / "r", []), tmp_path / "again"))
    assert (count, equal) == (40, True)


def test_a_filter_of_an_early_stage_is_judged_again_through_all_of_them(tmp_path: Path) -> None:
    alone: dict[str, Any] = {"demonstrations": {"machine": 0}}  # else other tasks are shown, and other things asked
    grow(tmp_path / "r", Scripted(answer), **alone)
    strict = alone | {"filters": {"instruction_length": {"minimum": 7}, "blocked_words": {"words": ["kiln"]}}}
    backend = Scripted(answer)
    with RunStore.open(tmp_path / "r") as store:
        found = asyncio.run(refilter(resume_plan(tmp_path / "r", [strict]), store, dry_run=False))
        kept = list(store.view.dataset())
        left = [record.instruction for _, record in store.view.dataset() if isinstance(record, Task)]
    assert found.after == len(left) < 40
    assert not any("kiln" in each for each in left)
    assert {change.id for change in found.leaving}
    resumed = grow(tmp_path / "r", backend, **strict)
    assert len(resumed) == 40
    assert [record for _, record in resumed][: len(kept)] == [record for _, record in kept]
    assert resumed == grow(tmp_path / "fresh", Scripted(answer), **strict)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(1, 200))
def test_shares_are_kept_within_one_after_every_record(weights: list[int], total: int) -> None:
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    counts: Counter[int] = Counter()
    for so_far, chosen in enumerate(islice(quota.order(shares), total), 1):
        counts[chosen] += 1
        assert all(abs(counts[which] - share * so_far) < 1 for which, share in enumerate(shares))
    assert quota.split(shares, total) == [counts[which] for which in range(len(shares))]


def test_a_quota_is_kept_by_language_and_the_dataset_is_in_its_order(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"quota": {"ja": 0.2, "en": "0.5", "sw": 0.3}, "target": 20}
    found = grow(tmp_path / "r", Scripted(answer), **settings)
    lanes = [id.partition("@")[2].partition("-")[0] for id, _ in found]
    assert Counter(lanes) == {"en": 10, "sw": 6, "ja": 4}
    assert set(lanes[:4]) == {"en", "sw", "ja"}, "the shares are mixed, not one after the other"
    assert found == grow(tmp_path / "other", Scripted(answer, delay=late(1)), concurrency=5, **settings)
    assert found == grow(tmp_path / "r", Scripted(answer), **settings | {"target": 30})[:20]


def test_a_quota_of_what_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="quota"):
        plan([{"recipe": "alpaca", "model": "openai/m", "quota": {"cooking": 1}}])
    with pytest.raises(ConfigError, match="above 0"):
        plan([{"recipe": "alpaca", "model": "openai/m", "quota": {"en": 0}}])


def test_options_are_the_recipes_own() -> None:
    with pytest.raises(ConfigError, match=r"options\.turns: .* has no such option"):
        plan([{"recipe": "alpaca", "model": "openai/m", "options": {"turns": 3}}])


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.integers(1, 4))
def test_items_are_told_apart_by_content_and_by_which_of_equal_ones_they_are(names: list[str], rounds: int) -> None:
    items = Items([Dialogue((), topic=name, extra={"category": str(n)}) for n, name in enumerate(names)], rounds)
    identities = [items.identity(number) for number in range(len(items))]
    assert len(set(identities)) == len(items) == len(names) * rounds
    again = Items([Dialogue((), topic=name, id="other") for name in names * rounds])
    assert {again.identity(number) for number in range(len(again))} == set(identities)
    assert items.first_change(identities) is None
    assert items.first_change([*identities[:-1], "gone"]) == len(items) - 1
    assert items.first_change([*identities, "more"]) == len(items)


def test_what_is_near_another_data_set_is_rejected_naming_it(tmp_path: Path) -> None:
    plain = grow(tmp_path / "plain", Scripted(answer))
    outside = tmp_path / "benchmark.jsonl"
    first = plain[0][1]
    assert isinstance(first, Task)
    outside.write_text(json.dumps({"instruction": first.instruction, "input": "", "output": "x"}) + "\n")
    found = grow(tmp_path / "r", Scripted(answer), novelty={"against": [str(outside)]})
    assert len(found) == 40
    assert first.instruction not in {record.instruction for _, record in found if isinstance(record, Task)}
    with RunView.open(tmp_path / "r") as view:
        row = next(iter(view._mappings("SELECT measured FROM candidates WHERE filter = 'against'", ())))
    assert f"{outside}:1" in row["measured"]

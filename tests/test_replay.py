"""Judging again costs nothing, and comes to what a fresh run with the same answers comes to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfinstruct.store import RunView
from tests.backends.endpoint import Endpoint
from tests.model import model
from tests.program import dataset, run_options, selfinstruct

pytestmark = pytest.mark.slow


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint(model()) as server:
        yield server


@pytest.mark.parametrize(
    ("style", "change"),
    [
        ("list", "novelty.threshold=0.65"),
        ("list", "filters.blocked_words.words=[bridge, poem]"),
        ("stepwise", "novelty.threshold=0.65"),
        ("stepwise", "filters.instruction_length.minimum=11"),
    ],
)
def test_refilter_is_a_fresh_run_for_nothing(style: str, change: str, endpoint: Endpoint, tmp_path: Path) -> None:
    common = ["--set", f"style={style}"]
    assert selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "a"), *common).returncode == 0
    before = dataset(tmp_path / "a")
    paid = len(endpoint.requests)
    tried = selfinstruct("refilter", tmp_path / "a", "--set", change, "--dry-run", "--json")
    assert tried.returncode == 0, tried.stderr
    assert dataset(tmp_path / "a") == before, "a dry run changed the run"
    done = selfinstruct("refilter", tmp_path / "a", "--set", change)
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == paid, "judging again asked something"
    after = dataset(tmp_path / "a")
    difference = json.loads(tried.stdout)
    gone = {each["id"] for each in difference["leaving"]}
    new = {each["id"] for each in difference["entering"]}
    assert {id for id, *_ in before} - {id for id, *_ in after} == gone
    assert {id for id, *_ in after} - {id for id, *_ in before} == new
    assert gone, "the change was meant to bite"
    fresh = selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "b"), *common, "--set", change)
    assert fresh.returncode == 0, fresh.stderr
    assert dataset(tmp_path / "b")[: len(after)] == after
    assert selfinstruct("resume", tmp_path / "a").returncode == 0
    assert dataset(tmp_path / "a") == dataset(tmp_path / "b")


def test_a_looser_filter_lets_back_in_what_was_paid(endpoint: Endpoint, tmp_path: Path) -> None:
    strict = ["--set", "filters.instruction_length.minimum=11"]
    assert selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "a", 30), *strict).returncode == 0
    paid = len(endpoint.requests)
    loose = ["--set", "filters.instruction_length.minimum=4"]
    assert selfinstruct("refilter", tmp_path / "a", *loose).returncode == 0
    assert len(dataset(tmp_path / "a")) == 30, "a run holds exactly its target"
    assert selfinstruct("resume", tmp_path / "a", "-n", "33").returncode == 0
    assert len(endpoint.requests) == paid, "what was paid for lay in the journal and was asked for again"
    plain = selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "b", 33), *loose)
    assert plain.returncode == 0
    assert dataset(tmp_path / "a") == dataset(tmp_path / "b")


def test_a_step_that_was_never_asked_for_is_said_to_be_missing(endpoint: Endpoint, tmp_path: Path) -> None:
    common = [*run_options(endpoint, tmp_path / "a", 20), "--set", "style=stepwise"]
    assert selfinstruct("run", "alpaca", *common, "--set", "filters.instruction_length.minimum=11").returncode == 0
    paid = len(endpoint.requests)
    done = selfinstruct("refilter", tmp_path / "a", "--set", "filters.instruction_length.minimum=4", "--json")
    assert done.returncode == 0, done.stderr
    assert len(endpoint.requests) == paid
    with RunView.open(tmp_path / "a") as view:
        assert view.summary().rejected.get("unanswered", 0) > 0


def test_what_changes_the_question_is_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    assert selfinstruct("run", "alpaca", *run_options(endpoint, tmp_path / "a", 10)).returncode == 0
    done = selfinstruct("refilter", tmp_path / "a", "--set", "demonstrations.seed=5")
    assert done.returncode == 2
    assert "demonstrations.seed" in done.stderr


@pytest.mark.parametrize("more", [[], ["--set", "style=stepwise"], ["--set", "demonstrations.machine=2"]])
def test_the_journal_alone_rebuilds_the_dataset(more: list[str], endpoint: Endpoint, tmp_path: Path) -> None:
    options = [*run_options(endpoint, tmp_path / "a", 60), *more, "--set", "window=4"]
    assert selfinstruct("run", "alpaca", *options).returncode == 0
    paid = len(endpoint.requests)
    done = selfinstruct("replay", tmp_path / "a", "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stderr
    assert dataset(tmp_path / "a") == dataset(tmp_path / "b")
    assert len(endpoint.requests) == paid

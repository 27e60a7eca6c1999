"""Ask once: each request is recorded before it leaves, each answer before it is used, and the books always balance."""

from __future__ import annotations

import asyncio
import math
import random
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfinstruct.backends.governor import Governed
from selfinstruct.backends.retry import Retrying
from selfinstruct.budget import Budget, Limits, Price, Worst
from selfinstruct.errors import BackendError, BadReply, Interrupted, RequestRefused, Stopped, StoreError, Unavailable
from selfinstruct.journal import Journal
from selfinstruct.store import RunStore, RunView, Summary
from selfinstruct.testing import Answer, Scripted
from selfinstruct.values import Completion, Message, Request, Sampling, Usage
from tests.test_store import MORE, create

TEN, THIRTY = Decimal(10), Decimal(30)


def question(number: int) -> Request:
    return Request(Sampling(50), messages=(Message("user", f"question {number}"),), nonce=str(number))


def journal_of(store: RunStore, backend: Scripted, limits: Limits | None = None, **options: Any) -> Journal:
    spent = store.view.summary()
    budget = Budget(limits or Limits(), None, requests=spent.requests, tokens=spent.spent_tokens)
    journal = Journal(store, budget, backend.name, **options)
    journal.backend = journal.metered(journal.watched(backend))
    return journal


async def put(journal: Journal, draw: int, number: int) -> Completion:
    """Ask question `number` for a draw."""
    request = question(number)
    return await journal.complete("tasks", draw, request.key(journal.model), request)


async def ask(journal: Journal, numbers: range) -> list[Completion | BaseException]:
    asked = (put(journal, number, number) for number in numbers)
    return await asyncio.gather(*asked, return_exceptions=True)


def balanced(store: RunStore | RunView) -> Summary:
    """Every send is answered, failed, lost or still under way, and the completions are those of the answered."""
    view = store.view if isinstance(store, RunStore) else store
    states = dict(view._rows("SELECT state, count(*) FROM sends GROUP BY state"))
    summary = view.summary()
    assert summary.requests == sum(states.values())
    assert summary.completions == states.get("done", 0)
    assert summary.lost == states.get("lost", 0)
    if isinstance(store, RunView):
        assert "open" not in states, "a closed run has nothing under way"
        assert summary.requests == summary.completions + states.get("failed", 0) + summary.lost
    return summary


faults = st.sampled_from(["answer", "refused", "billed", "broken", "defect"])


@settings(max_examples=60 * MORE, deadline=None)
@given(plan=st.lists(faults, min_size=1, max_size=40), stop_at=st.none() | st.integers(0, 40), drain=st.booleans())
def test_the_books_balance_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, plan: list[str], stop_at: int | None, drain: bool
) -> None:
    folder = tmp_path_factory.mktemp("books") / "r"
    rng = random.Random(len(plan))
    replies: dict[str, Callable[[], Answer]] = {
        "answer": lambda: "fine",
        "refused": lambda: RequestRefused("no", status=400),
        "billed": lambda: Unavailable("timed out", maybe_billed=True),
        "broken": lambda: BadReply("<html>\ud800", status=200),
    }

    async def story(store: RunStore) -> tuple[Scripted, list[Any]]:
        def answer(request: Request) -> Answer:
            if len(backend.asked) == stop_at:
                journal.close(Interrupted("enough"))
            kind = plan[int(request.nonce)]
            if kind == "defect":
                raise KeyError("a defect of a backend")
            return replies[kind]()

        backend = Scripted(answer, delay=lambda _: rng.random() * 0.003)
        journal = journal_of(store, backend, drain=drain)
        results = await ask(journal, range(len(plan)))
        assert journal.in_flight == 0
        await store.put_meta(after="all that was cut off while it was written")
        # Nothing stays reserved: what may have been billed stays at its worst, and the rest is what it came to.
        assert journal.budget.tokens == store.view.summary().spent_tokens
        assert journal.budget.requests == store.view.summary().requests
        return backend, results

    with create(folder) as store:
        backend, results = asyncio.run(story(store))
        balanced(store)
        assert store.view.summary().requests == len(backend.asked), "counted what never left, or left uncounted"
    with RunView.open(folder) as view:
        summary = balanced(view)
        for number, result in enumerate(results):
            stored = view.completion(question(number).key("scripted/model"))
            assert (stored == result) if isinstance(result, Completion) else isinstance(result, BaseException)
        if drain and stop_at is None:
            assert summary.completions == plan.count("answer")
            assert summary.lost == plan.count("defect")


@settings(max_examples=40 * MORE, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(0, 20_000), cents=st.integers(0, 40))
def test_tokens_and_money_are_never_overrun_by_64_at_once(
    tmp_path_factory: pytest.TempPathFactory, seed: int, tokens: int, cents: int
) -> None:
    folder = tmp_path_factory.mktemp("money") / "r"
    rng = random.Random(seed)
    billed: list[Usage] = []
    price = Price(TEN, THIRTY, "today")

    def answer(request: Request) -> Answer:
        worst = Worst.of(request)
        usage = Usage(rng.randint(0, worst.prompt_tokens), rng.randint(0, worst.completion_tokens))
        billed.append(usage)
        if rng.random() < 0.2:
            return Unavailable("gone while answering", maybe_billed=True)
        return Completion("x", "stop", usage)

    async def story(store: RunStore) -> None:
        backend = Scripted(answer, delay=lambda _: rng.random() * 0.002)
        limits = Limits(tokens=tokens, cost=TEN * cents / 1000)
        journal = Journal(store, Budget(limits, price), backend.name)
        journal.backend = Retrying(journal.metered(journal.watched(backend)), attempts=2, patience=0)
        await ask(journal, range(64))
        spent = sum(price.cost(usage.prompt_tokens, usage.completion_tokens) for usage in billed)
        assert sum(usage.prompt_tokens + usage.completion_tokens for usage in billed) <= tokens
        assert spent <= TEN * cents / 1000
        assert len(billed) == len(backend.asked) == store.view.summary().requests

    with create(folder) as store:
        asyncio.run(story(store))


def test_a_request_that_was_answered_is_never_asked_again(tmp_path: Path) -> None:
    backend = Scripted(lambda request: f"answer to {request.nonce}")
    for _ in range(3):
        with RunStore.open(tmp_path / "r") if (tmp_path / "r").exists() else create(tmp_path / "r") as store:
            results = asyncio.run(ask(journal_of(store, backend), range(20)))
            assert [getattr(result, "text", None) for result in results] == [f"answer to {n}" for n in range(20)]
    assert len(backend.asked) == 20


@settings(max_examples=40 * MORE, deadline=None)
@given(seed=st.integers(0, 10**6), refusals=st.integers(0, 3), moment=st.none() | st.integers(0, 30))
def test_draws_that_ask_the_same_at_once_send_it_once(
    tmp_path_factory: pytest.TempPathFactory, seed: int, refusals: int, moment: int | None
) -> None:
    rng = random.Random(seed)

    def answer(request: Request) -> Answer:
        tries = [asked.nonce for asked in backend.asked].count(request.nonce)
        return RequestRefused("not yet", status=400) if tries <= refusals else f"answer {tries}"

    backend = Scripted(answer, delay=lambda _: rng.random() * 0.002)

    async def story(store: RunStore) -> list[Any]:
        journal = journal_of(store, backend)
        asking = asyncio.gather(
            *(put(journal, draw, draw % 3) for draw in range(24)),
            return_exceptions=True,
        )
        if moment is not None:
            for _ in range(moment):
                await asyncio.sleep(0)
            journal.close(Stopped("enough"))
        return list(await asking)

    with create(tmp_path_factory.mktemp("shared") / "r") as store:
        results = asyncio.run(story(store))
        summary = balanced(store)
        assert summary.completions <= 3
        if moment is None:
            assert (summary.completions, len(backend.asked)) == (3, 3 * (refusals + 1))
            # Who asked before it was answered heard the refusal; everybody else the one answer.
            assert [getattr(each, "text", "") for each in results].count(f"answer {refusals + 1}") == 24 - 3 * refusals
        for draw, result in enumerate(results):
            assert isinstance(result, Completion | RequestRefused | Stopped)
            if isinstance(result, Completion):
                assert result == store.view.completion(question(draw % 3).key("scripted/model"))


@settings(max_examples=30 * MORE, deadline=None)
@given(moment=st.integers(0, 30))
def test_closing_at_any_moment_neither_loses_nor_sends_more(
    tmp_path_factory: pytest.TempPathFactory, moment: int
) -> None:
    async def story(store: RunStore) -> None:
        backend = Scripted(lambda _: "fine", delay=lambda _: 0.001)
        journal = journal_of(store, backend)
        asking = asyncio.create_task(ask(journal, range(12)))
        for _ in range(moment):
            await asyncio.sleep(0)
        journal.close(Stopped("enough"))
        left = len(backend.asked)
        results = await asking
        assert len(backend.asked) == left, "a request left after closing"
        assert sum(isinstance(result, Completion) for result in results) == left
        assert all(isinstance(result, Completion) or str(result) == "enough" for result in results)
        summary = balanced(store)
        assert (summary.requests, summary.completions, summary.lost) == (left, left, 0)

    with create(tmp_path_factory.mktemp("closing") / "r") as store:
        asyncio.run(story(store))


def test_a_disk_that_fills_up_takes_in_what_has_left_and_asks_for_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real disk is in test_torture; here the moment is chosen: all twelve are under way."""

    folder = tmp_path / "r"
    attempt = RunStore._attempt
    refused: list[int] = []

    def full(store: RunStore, connection: sqlite3.Connection, jobs: Any) -> BaseException | None:
        if (folder / "run.reserve").exists() and len(backend.asked) == 12:
            refused.append(len(jobs))
            error = StoreError("the disk is full: free some space and resume")
            error.__cause__ = sqlite3.OperationalError("database or disk is full")
            error.__cause__.sqlite_errorcode = sqlite3.SQLITE_FULL
            return error
        return attempt(store, connection, jobs)

    monkeypatch.setattr(RunStore, "_attempt", full)
    backend = Scripted(lambda _: "fine", delay=lambda _: 0.05)
    with create(folder) as store:
        journal = journal_of(store, backend)
        results = asyncio.run(ask(journal, range(12)))
        assert [getattr(result, "text", result) for result in results] == ["fine"] * 12
        assert refused, "the disk was never full"
        with pytest.raises(StoreError, match="free some space"):
            asyncio.run(put(journal, 99, 99))
        assert journal.budget.requests == 12
    assert len(backend.asked) == 12
    monkeypatch.undo()
    with RunStore.open(folder) as store:
        assert balanced(store).completions == 12


def test_the_next_request_leaves_while_the_disk_writes_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal_answer = RunStore.journal
    waiting: list[int] = []

    async def slow(store: RunStore, *arguments: Any, **named: Any) -> None:
        waiting.append(len(backend.asked))
        await asyncio.sleep(0.05)
        await journal_answer(store, *arguments, **named)

    async def story(store: RunStore) -> None:
        journal = journal_of(store, backend)
        journal.backend = journal.metered(Governed(journal.watched(backend), concurrency=1, ramp=math.inf))
        await ask(journal, range(3))

    monkeypatch.setattr(RunStore, "journal", slow)
    backend = Scripted(lambda _: "fine", delay=lambda _: 0.001)
    with create(tmp_path / "r") as store:
        asyncio.run(story(store))
        assert balanced(store).completions == 3
    assert waiting == [1, 2, 3], "one at a time was asked, though all before the first answer was written"


def test_who_stands_in_line_is_on_record_and_is_struck_off_when_the_run_closes(tmp_path: Path) -> None:
    def on_record(store: RunStore) -> int:
        ((count,),) = store.view._rows("SELECT count(*) FROM sends WHERE state = 'open'")
        return int(count)

    async def story(store: RunStore) -> list[Completion | BaseException]:
        journal = journal_of(store, backend)
        governor = Governed(journal.watched(backend), concurrency=1, ramp=math.inf)
        journal.backend = journal.metered(governor)
        asking = asyncio.create_task(ask(journal, range(5)))
        for _ in iter(lambda: governor.waiting, 4):
            await asyncio.sleep(0.001)
        assert (len(backend.asked), on_record(store), journal.in_flight) == (1, 5, 1)
        journal.close(Interrupted("enough"))
        results = await asking
        assert (journal.budget.requests, journal.budget.tokens) == (1, 12)
        return results

    backend = Scripted(lambda _: Completion("fine", "stop", Usage(10, 2)), delay=lambda _: 0.3)
    with create(tmp_path / "r") as store:
        answered, *others = asyncio.run(story(store))
        assert isinstance(answered, Completion)
        assert [type(other) for other in others] == [Interrupted] * 4
        summary = balanced(store)
        assert (summary.requests, summary.completions, summary.lost) == (1, 1, 0)


def test_a_claim_of_absurd_usage_is_kept_and_loses_nothing(tmp_path: Path) -> None:
    absurd = Completion("fine", "stop", Usage(10**30, 2**70))
    with create(tmp_path / "r") as store:
        assert asyncio.run(ask(journal_of(store, Scripted(lambda _: absurd)), range(1))) == [absurd]
        assert balanced(store).completions == 1
        assert store.view.completion(question(0).key("scripted/model")) == absurd


def test_an_error_keeps_its_words_in_the_books(tmp_path: Path) -> None:
    backend = Scripted(lambda _: RequestRefused("no \ud83d such thing", status=400))
    with create(tmp_path / "r") as store:
        (result,) = asyncio.run(ask(journal_of(store, backend), range(1)))
        assert isinstance(result, BackendError)
        assert list(store.view._rows("SELECT error, tokens FROM sends")) == [
            ("RequestRefused: no \ufffd such thing", 0)
        ]

"""The laws of the loop: order of arrival, concurrency, interruption and target change nothing."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfinstruct.budget import Budget, Limits
from selfinstruct.errors import AccessDenied, RequestRefused, Stopped, WrongKey
from selfinstruct.journal import Journal
from selfinstruct.judge import Judge
from selfinstruct.loop import grow
from selfinstruct.novelty import NoveltyIndex
from selfinstruct.stages import Draw, Stage, TaskPool
from selfinstruct.store import Commit, RunStore
from selfinstruct.testing import ONE_STAGE, Answer, Scripted
from selfinstruct.values import Candidate, Instance, Message, Request, Sampling, Task

SEEDS = tuple(Task(f"seed task number {n} about {w}", (Instance("", w),), id=f"s{n}") for n, w in enumerate("abcdef"))
WORDS = "red green blue old new warm cold tall small round river stone bridge garden letter song market".split()


def words(request: Request) -> str:
    """Answer like a model that repeats itself now and then: a function of the prompt alone."""
    rng = random.Random(hashlib.sha256(repr((request.messages, request.seed)).encode()).digest())
    return "\n".join(" ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 5))) for _ in range(rng.randint(0, 4)))


async def listed(draw: Draw) -> list[Candidate]:
    """Show four tasks, ask once, take a task a line."""
    shown = draw.demonstrations(seed=2, machine=2)
    prompt = "\n".join(task.instruction for task in shown)
    completion = await draw.complete(Request(Sampling(64), messages=(Message("user", prompt),)))
    return [Candidate(Task(line, (Instance("", "ok"),)), text=line) for line in completion.text.split("\n") if line]


async def stepwise(draw: Draw) -> list[Candidate]:
    """Ask for a task, screen it, ask for its answer."""
    completion = await draw.complete(Request(Sampling(64), prompt=f"draw {draw.number}"))
    candidate = Candidate(Task(completion.text.replace("\n", " ")), text=completion.text)
    rejection = draw.screen(candidate)
    if rejection:
        return [replace(candidate, rejection=rejection)]
    answer = await draw.complete(Request(Sampling(64), messages=(Message("user", completion.text),)))
    return [replace(candidate, record=Task(completion.text.replace("\n", " "), (Instance("", answer.text),)))]


def create(folder: Path) -> RunStore:
    return RunStore.create(
        folder, config={"target": 0}, config_yaml="", fingerprint={}, seeds={"": SEEDS}, notes=ONE_STAGE
    )


class World:
    """One process's worth of a run."""

    def __init__(self, folder: Path, backend: Scripted, *, limits: Limits = Limits(), drain: bool = True) -> None:  # noqa: B008
        self.store = RunStore.open(folder) if (folder / "run.sqlite").exists() else create(folder)
        spent = self.store.view.summary()
        self.journal = Journal(
            self.store, Budget(limits, None, requests=spent.requests, tokens=spent.spent_tokens), backend.name, drain
        )
        self.journal.backend = self.journal.metered(self.journal.watched(backend))

    async def grow(
        self,
        target: int,
        *,
        draw: Callable[[Draw], object] = listed,
        window: int = 8,
        concurrency: int = 4,
        stop_after: int | None = None,
        check: Callable[[Commit], None] = lambda commit: None,
    ) -> list[Commit]:
        stage = Stage("tasks", draw, expected=2, seeds=SEEDS)  # type: ignore[arg-type]
        pool = TaskPool(stage, self.store.view)
        index = NoveltyIndex(engine="numpy")
        index.add_many((task.id, task.instruction) for task in SEEDS)
        index.add_many((i, r.instruction) for i, r in self.store.view.accepted("tasks") if isinstance(r, Task))
        commits: list[Commit] = []
        run = grow(
            stage,
            seed=1,
            target=target,
            window=window,
            concurrency=concurrency,
            items=None,
            pool=pool,
            judge=Judge([], {"subject": index}),
            journal=self.journal,
            store=self.store,
            check=check,
        )
        async with aclosing(run):
            async for commit in run:
                commits.append(commit)
                if len(commits) == stop_after:
                    break
        return commits

    def dataset(self) -> list[tuple[str, str]]:
        return [(id, r.instruction) for id, r in self.store.view.accepted("tasks") if isinstance(r, Task)]

    def everything(self) -> list[tuple[object, ...]]:
        view = self.store.view
        rows = view._rows("SELECT id, accepted, record, filter, reason, measured, nearest, similarity FROM candidates")
        return sorted(tuple(row) for row in rows)


def run(
    folder: Path,
    answer: Callable[[Request], Answer] = words,
    target: int = 30,
    *,
    draw: object = listed,
    **options: object,
) -> tuple[list[tuple[str, str]], list[tuple[object, ...]], Scripted]:
    backend = Scripted(answer, **options)  # type: ignore[arg-type]
    world = World(folder, backend)
    try:
        asyncio.run(world.grow(target, draw=draw))  # type: ignore[arg-type]
        return world.dataset(), world.everything(), backend
    finally:
        world.store.close()


@pytest.mark.parametrize("draw", [listed, stepwise])
def test_order_of_arrival_changes_nothing(tmp_path: Path, draw: object) -> None:
    plain = run(tmp_path / "plain", draw=draw)
    for attempt in range(3):
        rng = random.Random(attempt)
        shuffled = run(tmp_path / str(attempt), draw=draw, delay=lambda _, rng=rng: rng.random() * 0.01)
        assert shuffled[:2] == plain[:2]
    assert len(plain[0]) == 30


def test_the_pool_a_draw_sees_is_as_of_k_minus_window(tmp_path: Path) -> None:
    seen: dict[int, Sequence[Task]] = {}

    async def remember(draw: Draw) -> list[Candidate]:
        candidates = await listed(draw)
        seen[draw.number] = draw.shown
        return candidates

    world = World(tmp_path / "r", Scripted(words))
    asyncio.run(world.grow(40, draw=remember, window=5))
    world.store.close()
    machine = {n: [t.id for t in shown if t.id.startswith("tasks-")] for n, shown in seen.items()}
    assert all(int(id.split("-")[1]) <= n - 5 for n, ids in machine.items() for id in ids)
    assert any(ids for ids in machine.values()), "no machine task was ever shown"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(1, 6), max_size=5), targets=st.lists(st.integers(1, 30), max_size=3))
def test_stopping_and_raising_the_target_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], targets: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("law")
    whole = run(folder / "whole")
    backend = Scripted(words)
    for stop in stops:
        world = World(folder / "parts", backend)
        asyncio.run(world.grow(30, stop_after=stop))
        world.store.close()
    for target in sorted(targets):
        world = World(folder / "parts", backend)
        asyncio.run(world.grow(target))
        held = len(world.dataset())
        world.store.close()
        assert held >= target, "the target was not reached"
    world = World(folder / "parts", backend)
    asyncio.run(world.grow(30))
    assert world.dataset() == whole[0]
    world.store.close()
    keys = [request.key(backend.name) for request in backend.asked]
    assert len(keys) == len(set(keys)), "a request was asked twice"


def test_exactly_n_and_the_rest_of_the_draw_waits(tmp_path: Path) -> None:
    world = World(tmp_path / "r", Scripted(words))
    commits = asyncio.run(world.grow(7))
    assert len(world.dataset()) == 7
    whole = run(tmp_path / "whole")
    assert world.dataset() == whole[0][:7]
    judged = sum(len(commit.decisions) for commit in commits)
    assert world.everything()[-1] is not None and judged == len(world.everything())
    world.store.close()


def test_a_poisoned_draw_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    def poisoned(request: Request) -> Answer:
        return RequestRefused("no such thing", status=400) if "/3/" in request.nonce else words(request)

    world = World(tmp_path / "r", Scripted(poisoned))
    commits = asyncio.run(world.grow(30))
    assert [c.number for c in commits if c.state == "failed"] == [3]
    assert "no such thing" in (commits[3].error or "")
    assert len(world.dataset()) == 30
    assert world.store.view.summary().failed_draws == 1
    world.store.close()


def test_a_wrong_key_stops_the_run_and_nothing_before_it_is_lost(tmp_path: Path) -> None:
    def denied(request: Request) -> Answer:
        return WrongKey("bad key", status=401) if "/5/" in request.nonce else words(request)

    world = World(tmp_path / "r", Scripted(denied))
    with pytest.raises(AccessDenied):
        asyncio.run(world.grow(30))
    assert world.store.view.next_draw("tasks") == (5, 0)
    world.store.close()
    assert run(tmp_path / "r")[0] == run(tmp_path / "undisturbed")[0]


@pytest.mark.parametrize("limit", [1, 5, 9])
def test_a_budget_of_requests_is_never_overrun_and_can_be_raised(tmp_path: Path, limit: int) -> None:
    backend = Scripted(words)
    world = World(tmp_path / "r", backend, limits=Limits(requests=limit))
    with pytest.raises(Stopped, match="--max-requests"):
        asyncio.run(world.grow(30))
    assert len(backend.asked) == limit
    world.store.close()
    assert run(tmp_path / "r")[0] == run(tmp_path / "undisturbed")[0]


def test_closing_the_journal_waits_for_what_has_left(tmp_path: Path) -> None:
    async def story() -> tuple[int, int]:
        asked = asyncio.Event()

        def delay(request: Request) -> float:
            asked.set()
            return 0.05

        backend = Scripted(words, delay)
        world = World(tmp_path / "r", backend)
        work = asyncio.create_task(world.grow(30))
        await asked.wait()
        sent = len(backend.asked)
        world.journal.close(Stopped("enough"))
        with pytest.raises(Stopped, match="enough"):
            await work
        journaled = world.store.view.summary().completions
        world.store.close()
        return sent, journaled

    sent, journaled = asyncio.run(story())
    assert sent == journaled > 0


def test_an_embedded_models_requests_are_dropped_at_once(tmp_path: Path) -> None:
    async def story() -> int:
        world = World(tmp_path / "r", Scripted(words, delay=lambda _: 3600), drain=False)
        work = asyncio.create_task(world.grow(30))
        await asyncio.sleep(0.02)
        world.journal.close(Stopped("enough"))
        with pytest.raises(Stopped, match="enough"):
            await work
        count = world.store.view.summary().completions
        world.store.close()
        return count

    assert asyncio.run(story()) == 0


@pytest.mark.parametrize("concurrency", [1, 8])
def test_what_a_check_ends_ends_at_the_same_draw_however_many_answers_are_there(
    tmp_path: Path, concurrency: int
) -> None:
    """Draws that have come back meanwhile go into one transaction; none after the one that ends the stage is in it."""

    def fifth(commit: Commit) -> None:
        if commit.number == 5:
            raise Stopped("enough")

    # The first answer comes last: by then all the others are there.
    world = World(tmp_path / "run", Scripted(words, lambda request: 0.2 if "/0/" in request.nonce else 0.0))
    with pytest.raises(Stopped, match="enough"):
        asyncio.run(world.grow(1000, concurrency=concurrency, check=fifth))
    assert world.store.view.next_draw("tasks") == (6, 0)
    world.store.close()


def test_answers_that_are_there_share_a_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / "run", Scripted(words, lambda request: 0.2 if "/0/" in request.nonce else 0.0))
    sizes: list[int] = []
    commit = world.store.commit

    async def counted(*commits: Commit) -> None:
        sizes.append(len(commits))
        await commit(*commits)

    monkeypatch.setattr(world.store, "commit", counted)
    commits = asyncio.run(world.grow(20, concurrency=8))
    assert sum(sizes) == len(commits)
    assert max(sizes) > 4
    world.store.close()

"""The loop: draws run ahead together, are judged and committed one after the other.  Start reading here.

A *draw* is the unit of work: one coroutine of a recipe that asks the backend once or more and
returns candidates. Draw k takes its randomness from (run seed, stage, k) and samples the task pool
as committed by draw k - window. Nothing else goes in, so the dataset is a function of the config
and the completions: any concurrency, any order of arrival and any number of crashes give the same.
"""

from __future__ import annotations

import asyncio
import bisect
import hashlib
import itertools
import json
import math
import random
from array import array
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from selfinstruct.errors import BadReply, RequestRefused, Stopped
from selfinstruct.journal import Journal
from selfinstruct.judge import Judge
from selfinstruct.store import Commit, RunStore, RunView
from selfinstruct.values import Candidate, Completion, Rejection, Request, Task


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a recipe: how a draw is made, and how many records a draw is expected to bring.

    A *growing* stage has no items and goes on for as long as records are wanted. A *mapping* stage
    has one draw per item, known by the item's content: rows put in, taken out or moved about in the
    input leave the answers to all the others as they are.
    """

    name: str
    draw: Callable[[Draw], Awaitable[Sequence[Candidate]]]
    expected: float = 1.0
    items: Sequence[Task] | None = None

    def identities(self) -> list[str]:
        """Return what tells the items apart: a hash of each one's content, and which of several equal ones it is."""
        seen: Counter[str] = Counter()
        found = []
        for item in self.items or ():
            text = json.dumps([item.instruction, [[case.input, case.output] for case in item.instances]])
            digest = hashlib.sha256(text.encode()).hexdigest()[:20]
            found.append(f"{digest}-{seen[digest]}")
            seen[digest] += 1
        return found

    def first_change(self, view: RunView) -> int | None:
        """Return the first committed draw whose item is no longer the one at its place, or None."""
        if self.items is None:
            return None
        pairs = itertools.zip_longest(view.items(self.name), self.identities())
        return next((number for number, (was, now) in enumerate(pairs) if was is not None and was != now), None)


async def grow(
    stage: Stage,
    *,
    seed: int,
    target: int,
    window: int,
    concurrency: int,
    pool: TaskPool,
    judge: Judge,
    journal: Journal,
    store: RunStore,
) -> AsyncGenerator[Commit]:
    """Grow the pool to `target` accepted records, yielding each commit once it is durable.

    Called again on the same store it goes on where the last commit was; answers that are in the
    journal are not asked for again.

    Raises:
        Stopped: a budget is spent or the journal was closed.
        BackendError: the endpoint is gone or denies access. All earlier draws are committed.
    """
    first, decided = store.view.next_draw(stage.name)
    running: dict[int, asyncio.Task[Sequence[Candidate]]] = {}
    draws: dict[int, Draw] = {}
    launched = first
    slots = asyncio.Semaphore(concurrency)
    identities = stage.identities()
    last = math.inf if stage.items is None else len(identities)
    try:
        for number in itertools.count(first):
            if pool.accepted >= target or number == last:
                return
            while launched < min(last, number + _ahead(stage, pool, number, target, window)):
                draw = draws[launched] = Draw(
                    stage.name, launched, seed, pool, pool.as_of(launched - window), judge, journal
                )
                if stage.items is not None:
                    draw.item, draw.identity = stage.items[launched], identities[launched]
                running[launched] = asyncio.create_task(_run(stage, draw, slots))
                launched += 1
            commit = await _outcome(draws.pop(number), running.pop(number), judge, decided, target - pool.accepted)
            await store.commit(commit)
            pool.extend(number, commit.decisions)
            decided = 0
            yield commit
    except asyncio.CancelledError:
        for task in running.values():
            task.cancel()
        raise
    finally:
        # What has left the house is waited for: it is paid, and goes into the journal.
        journal.close(Stopped("the stage has ended"))
        await asyncio.gather(*running.values(), return_exceptions=True)


async def _run(stage: Stage, draw: Draw, slots: asyncio.Semaphore) -> Sequence[Candidate]:
    # First come, first served: an earlier draw's second request goes before a later draw's first.
    async with slots:
        return await stage.draw(draw)


async def _outcome(
    draw: Draw, running: asyncio.Task[Sequence[Candidate]], judge: Judge, decided: int, wanted: int
) -> Commit:
    try:
        candidates = await running
    except (RequestRefused, BadReply) as refused:
        return settle(draw, (), judge, wanted=wanted, error=f"{type(refused).__name__}: {refused}")
    return settle(draw, candidates, judge, decided=decided, wanted=wanted)


def settle(
    draw: Draw,
    candidates: Sequence[Candidate],
    judge: Judge,
    *,
    wanted: int,
    decided: int = 0,
    error: str | None = None,
) -> Commit:
    """Judge what a draw brought, up to the last record wanted; `decided` candidates are settled already."""
    state, decisions = "failed" if error else "done", []
    for position, candidate in enumerate(candidates[decided:], decided):
        if wanted == 0:
            state = "open"
            break
        shown = replace(candidate, demonstrations=draw.shown)
        decisions.append(judge.decide(f"{draw.stage}-{draw.number}-{position}", shown))
        wanted -= decisions[-1].accepted
    return Commit(
        draw.stage,
        draw.number,
        state,
        tuple(decisions),
        item=draw.identity or None,
        error=error,
        demonstrations=tuple(task.id for task in draw.shown),
        requests=tuple(draw.requests),
    )


def _ahead(stage: Stage, pool: TaskPool, number: int, target: int, window: int) -> int:
    """Return how many draws may be under way: the window, less near the target, where few are still needed."""
    rate = (pool.accepted + 3 * stage.expected) / (number + 3)
    return max(1, min(window, math.ceil(1.1 * (target - pool.accepted) / max(rate, 1e-3))))


class Answers(Protocol):
    """Where a draw's completions come from: the journal, or a recording of it."""

    model: str

    async def complete(self, stage: str, draw: int, request: Request) -> Completion:
        """Return the completion of a request of a draw."""


@dataclass
class Draw:
    """What a recipe's coroutine is given: its number, its randomness, its pool, and a way to ask.

    `recorded` demonstrations take the place of sampled ones when an old draw is judged again.
    """

    stage: str
    number: int
    _seed: int
    _pool: TaskPool
    _machine: int
    _judge: Judge
    _journal: Answers
    recorded: tuple[Task, ...] | None = None
    item: Task | None = None
    identity: str = ""
    shown: tuple[Task, ...] = field(default=(), init=False)
    requests: list[str] = field(default_factory=list, init=False)

    @cached_property
    def rng(self) -> random.Random:
        """All randomness of the draw."""
        return random.Random(self._label)

    @property
    def _label(self) -> str:
        return f"{self._seed}/{self.stage}/{self.identity or self.number}"

    def demonstrations(self, *, seed: int, machine: int) -> tuple[Task, ...]:
        """Sample tasks to show: machine tasks first, seed tasks in place of those that do not exist yet, shuffled.

        Self-Instruct, `bootstrap_instructions.py`: 8 in all, of which up to 2 machine tasks.
        """
        if self.recorded is not None:
            self.shown = self.recorded
            return self.shown
        # A generator of its own: judged again, the draw is given recorded tasks, and `rng` must not notice.
        rng = random.Random(f"{self._label}/demonstrations")
        tasks = self._pool.sample_machine(rng, min(machine, self._machine), self._machine)
        tasks += rng.sample(self._pool.seeds, min(seed + machine - len(tasks), len(self._pool.seeds)))
        rng.shuffle(tasks)
        self.shown = tuple(tasks)
        return self.shown

    def show(self, tasks: Iterable[Task]) -> None:
        """Say which tasks the prompt shows, where the recipe chose them itself."""
        self.shown = tuple(tasks)

    async def complete(self, request: Request) -> Completion:
        """Ask the backend; the same call of the same draw is never asked twice."""
        nonce = f"{self._label}/{len(self.requests)}"
        seed = int.from_bytes(hashlib.sha256(nonce.encode()).digest()[:4]) >> 1
        request = replace(request, nonce=nonce, seed=seed)
        self.requests.append(request.key(self._journal.model))
        return await self._journal.complete(self.stage, self.number, request)

    def screen(self, candidate: Candidate) -> Rejection | None:
        """Say whether a candidate is already lost, before more is paid for it."""
        shown = replace(candidate, demonstrations=self.shown)
        return self._judge.screen(shown, as_of=len(self._pool.seeds) + self._machine)


class TaskPool:
    """Seed tasks and accepted machine tasks, each with the draw it was accepted in."""

    def __init__(self, seeds: Sequence[Task], stage: str, view: RunView, draws: Iterable[int]) -> None:
        self.seeds = tuple(seeds)
        self._stage = stage
        self._view = view
        self._draws = array("q", draws)

    @property
    def accepted(self) -> int:
        """Number of machine tasks."""
        return len(self._draws)

    def as_of(self, draw: int) -> int:
        """Return how many machine tasks were accepted up to and including that draw."""
        return bisect.bisect_right(self._draws, draw)

    def extend(self, draw: int, decisions: Iterable[object]) -> None:
        """Count what a committed draw added."""
        self._draws.extend(draw for decision in decisions if getattr(decision, "accepted", False))

    def sample_machine(self, rng: random.Random, count: int, of: int) -> list[Task]:
        """Sample `count` of the first `of` machine tasks; they are read from the store, not kept in memory."""
        tasks = []
        for number in rng.sample(range(1, of + 1), count):
            id, record = self._view.accepted_at(self._stage, number)
            if isinstance(record, Task):
                tasks.append(replace(record, id=id))
        return tasks

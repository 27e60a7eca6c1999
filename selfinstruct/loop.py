"""The loop: draws run ahead together, are judged and committed one after the other.  Start reading here.

A *draw* is the unit of work: one coroutine of a recipe that asks the backend once or more and
returns candidates. Draw k takes its randomness from (run seed, stage, k or its item) and samples the task pool
as committed by draw k - window. Nothing else goes in, so the dataset is a function of the config
and the completions: any concurrency, any order of arrival and any number of crashes give the same.

What a draw is given is in `stages`, how the stages of a recipe feed each other in `run`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace

from selfinstruct.errors import BadReply, RequestRefused, SelfInstructError, Stopped
from selfinstruct.journal import Journal
from selfinstruct.judge import Judge
from selfinstruct.stages import Draw, Items, Stage, TaskPool
from selfinstruct.store import Commit, RunStore
from selfinstruct.values import Candidate

_TOGETHER = 16
"""Most draws in one transaction: no others are launched until it is done."""


async def grow(
    stage: Stage,
    *,
    seed: int,
    target: int,
    window: int,
    concurrency: int,
    items: Items | None,
    pool: TaskPool,
    judge: Judge,
    journal: Journal,
    store: RunStore,
    check: Callable[[Commit], None] = lambda commit: None,
) -> AsyncGenerator[Commit]:
    """Grow the pool to `target` accepted records, yielding each commit once it is durable.

    Called again on the same store it goes on where the last commit was; answers that are in the
    journal are not asked for again. `check` sees each commit before the next draw is judged, and may end the stage.

    Raises:
        Stopped: a budget is spent, the journal was closed, or `check` says so. What came before is committed.
        BackendError: the endpoint is gone or denies access, or `check` says so. What came before is committed.
    """
    number, decided = store.view.next_draw(stage.name)
    running: dict[int, asyncio.Task[Sequence[Candidate]]] = {}
    draws: dict[int, Draw] = {}
    launched = number
    slots = asyncio.Semaphore(concurrency)
    last = math.inf if items is None else len(items)
    end: SelfInstructError | None = None
    try:
        while end is None and pool.accepted < target and number < last:
            while launched < min(last, number + _ahead(stage, pool, number, target, window)):
                draw = draws[launched] = Draw(
                    stage.name, launched, seed, pool, pool.as_of(launched - window), judge, journal
                )
                if items is not None:
                    draw.item, draw.identity = items[launched], items.identity(launched)
                running[launched] = asyncio.create_task(_run(stage, draw, judge, slots))
                launched += 1
            # One transaction takes in what is there: with one for each, the disk's milliseconds would be the limit.
            commits: list[Commit] = []
            try:
                while not commits or (len(commits) < _TOGETHER and pool.accepted < target and _done(running, number)):
                    draw = draws.pop(number)
                    commit = await _outcome(draw, running.pop(number), judge, decided, target - pool.accepted)
                    pool.extend(number, commit.decisions)
                    commits.append(commit)
                    number, decided = number + 1, 0
                    check(commit)
                    await asyncio.sleep(0)  # judging takes its time, and others have answers to read
            except SelfInstructError as error:
                end = error
            if commits:
                await store.commit(*commits)
            for commit in commits:
                yield commit
        if end is not None:
            raise end
    except asyncio.CancelledError:
        for task in running.values():
            task.cancel()
        raise
    finally:
        # What has left the house is waited for: it is paid, and goes into the journal.
        with journal.closed(Stopped("the stage has ended")):
            await asyncio.gather(*running.values(), return_exceptions=True)


def _done(running: Mapping[int, asyncio.Task[Sequence[Candidate]]], number: int) -> bool:
    return number in running and running[number].done()


async def _run(stage: Stage, draw: Draw, judge: Judge, slots: asyncio.Semaphore) -> Sequence[Candidate]:
    # First come, first served: an earlier draw's second request goes before a later draw's first.
    async with slots:
        return await produce(stage, draw, judge)


async def produce(stage: Stage, draw: Draw, judge: Judge) -> Sequence[Candidate]:
    """Make a draw and sift its candidates: all that needs not know what other draws came to."""
    candidates = await stage.draw(draw)
    return [judge.sifted(replace(candidate, demonstrations=draw.shown)) for candidate in candidates]


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
    """Decide on what a draw brought, up to the last record wanted; `decided` candidates are settled already."""
    state, decisions = "failed" if error else "done", []
    for position, candidate in enumerate(candidates[decided:], decided):
        if wanted == 0:
            state = "open"
            break
        decisions.append(judge.decide(f"{draw.stage}-{draw.number}-{position}", candidate))
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

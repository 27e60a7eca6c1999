"""Work on a run: open what it needs, let the loop go, and stop for a reason."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from decimal import Decimal

from selfinstruct import loop, plugins
from selfinstruct.backends import Backend
from selfinstruct.backends.governor import Governed
from selfinstruct.backends.retry import Retrying
from selfinstruct.budget import Budget, Limits
from selfinstruct.config import RunConfig
from selfinstruct.errors import BackendError, SelfInstructError, Stopped
from selfinstruct.journal import Journal
from selfinstruct.judge import Judge, subject
from selfinstruct.novelty import NoveltyIndex
from selfinstruct.plan import Plan, is_metered, make_filters
from selfinstruct.store import Commit, RunStore

Say = Callable[[str], None]

_NOTE_EVERY = 5.0
"""Seconds between two notes of the running time."""


@dataclass(slots=True)
class Session:
    """An open run: ask `work` to go on with it, `stop` to end it early."""

    plan: Plan
    store: RunStore
    say: Say = lambda line: None
    backend: Backend | None = None
    pilot: int | None = None
    budget: Budget = field(init=False)
    journal: Journal = field(init=False)
    governor: Governed = field(init=False)
    pool: loop.TaskPool = field(init=False)
    stage: str = field(init=False, default="tasks")
    _noted: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        """Set the budget up from what the run has spent so far."""
        spent, limits = self.store.view.summary(self.stage), self.plan.config.budget
        cost = None if limits.max_cost is None else Decimal(limits.max_cost)
        requests = limits.max_requests
        if self.pilot is not None:
            requests = min(spent.requests + self.pilot, requests or spent.requests + self.pilot)
        self.budget = Budget(
            Limits(requests, limits.max_tokens, cost, limits.max_time),
            self.plan.price,
            requests=spent.requests,
            tokens=spent.spent_tokens,
            cost=Decimal(spent.spent_cost),
            seconds=spent.seconds,
        )
        self.journal = Journal(self.store, self.budget, self.plan.config.model, drain=is_metered(self.plan))

    def stop(self, reason: Stopped) -> int:
        """Ask for nothing more; what is under way is finished and kept. Returns how many requests that are."""
        self.journal.close(reason)
        return self.journal.in_flight if self.journal.drain else 0

    async def work(self, on_commit: Callable[[Commit], None]) -> None:
        """Run to the target.

        Raises:
            Stopped: short of the target, resumable.
            BackendError: the endpoint is gone or denies access; resumable.
        """
        config, store = self.plan.config, self.store
        store.start()
        reason, state = "", "failed"
        try:
            async with aclosing(await self.journal.unless_closed(self._backend)) as backend:
                await store.put_meta(capabilities=asdict(backend.capabilities))
                stage = self._stage(backend)
                changed = stage.first_change(store.view)
                if changed is not None:  # rows came, went or moved: judge again from there, out of the journal
                    await store.rewind(stage.name, changed)
                accepted = store.view.accepted_draws(stage.name)
                self.pool = loop.TaskPool(self.plan.seeds, stage.name, store.view, accepted)
                judge = self._judge(stage.name)
                guard = _Guard(config)
                commits = loop.grow(
                    stage,
                    seed=config.seed,
                    target=self.plan.target,
                    window=config.window,
                    concurrency=self._concurrency(),
                    pool=self.pool,
                    judge=judge,
                    journal=self.journal,
                    store=store,
                )
                self._end_in_time()
                async with aclosing(commits):
                    async for commit in commits:
                        on_commit(commit)
                        guard.check(commit)
                        await self._keep_time()
            if config.target is not None and self.pool.accepted < config.target:
                raise Stopped(
                    f"the input is used up: {self.pool.accepted} of {config.target} records were accepted; add rows to "
                    f"{config.input}, or look at the rejections with `selfinstruct status`"
                )
            state = "done"
        except Stopped as stopped:
            state, reason = ("interrupted" if stopped.exit_code == 130 else "stopped"), str(stopped)
            raise
        except SelfInstructError as error:
            reason = str(error)
            raise
        except asyncio.CancelledError:
            state, reason = "interrupted", "stopped at once"
            raise
        finally:
            store.set_meta(state={"state": state, "reason": reason}, seconds=self.budget.seconds)

    def _end_in_time(self) -> None:
        """Close the journal when --max-time is up, also while nothing is answered."""
        seconds = self.budget.limits.seconds
        if seconds is not None:
            over = Stopped(f"the time of {seconds:.0f} s is up; go on with --max-time")
            asyncio.get_running_loop().call_later(max(0.0, seconds - self.budget.seconds), self.stop, over)

    async def _keep_time(self) -> None:
        """Note the running time now and then, so that a crash forgets little of what --max-time counts."""
        if self.budget.seconds - self._noted >= _NOTE_EVERY:
            self._noted = self.budget.seconds
            await self.store.put_meta(seconds=self._noted)

    async def _backend(self) -> Backend:
        config = self.plan.config
        provider, model = plugins.split_model(config.model)
        backend: Backend = self.backend or await plugins.load("backends", provider)(model, config)
        self.governor = Governed(
            self.journal.metered(backend),
            concurrency=self._concurrency(),
            rpm=config.rpm,
            tpm=config.tpm,
            # Nobody limits the rate of a model of one's own: it need not be felt for.
            ramp=4.0 if is_metered(self.plan) else math.inf,
        )
        wrapped: Backend = Retrying(
            self.governor, attempts=config.backend.attempts, patience=config.backend.patience, notify=self._waiting
        )
        self.journal.backend = wrapped
        return wrapped

    def _waiting(self, error: BackendError, seconds: float) -> None:
        if seconds >= _NOTE_EVERY:
            self.say(f"waiting {seconds:.0f} s: {error}")

    def _concurrency(self) -> int:
        config = self.plan.config
        slots = config.concurrency if is_metered(self.plan) else config.backend.slots
        return min(config.concurrency, config.window, slots)

    def _stage(self, backend: Backend) -> loop.Stage:
        stages = self.plan.recipe.stages(self.plan.brief(backend.capabilities))
        return stages[-1]

    def _judge(self, stage: str) -> Judge:
        if self.plan.items is not None:
            return Judge(make_filters(self.plan), None)
        index = new_index(self.plan)
        index.add_many((id, subject(record)) for id, record in self.store.view.accepted(stage))
        return Judge(make_filters(self.plan), index)


def new_index(plan: Plan) -> NoveltyIndex:
    """Return a novelty index that holds the plan's seed tasks."""
    chosen = plan.config.novelty
    index = NoveltyIndex(tokenizer=chosen.tokenizer, threshold=chosen.threshold, engine=chosen.engine)
    index.add_many((task.id, task.instruction) for task in plan.seeds)
    return index


class _Guard:
    """Watches commits and stops a run that brings nothing any more."""

    def __init__(self, config: RunConfig) -> None:
        self._limits = config.stop
        self._recent: deque[tuple[int, int]] = deque(maxlen=config.stop.saturation_draws)
        self._failed = 0

    def check(self, commit: Commit) -> None:
        """Take note of a commit.

        Raises:
            Stopped: the yield of the last draws has dried up.
            BackendError: too many draws in a row failed.
        """
        self._failed = self._failed + 1 if commit.state == "failed" else 0
        if self._failed >= self._limits.failed_draws:
            raise BackendError(
                f"the last {self._failed} draws all failed, most recently with: {commit.error}. "
                "Look at the cause, then resume; --set stop.failed_draws=N changes how many are borne"
            )
        self._recent.append((sum(d.accepted for d in commit.decisions), len(commit.decisions)))
        accepted, candidates = (sum(column) for column in zip(*self._recent, strict=True))
        if len(self._recent) == self._recent.maxlen and accepted < self._limits.saturation_yield * max(candidates, 1):
            raise Stopped(
                f"saturated: of the last {candidates} candidates in {len(self._recent)} draws only {accepted} were "
                "accepted. Look at the rejections with `selfinstruct status`. More or other seed tasks, a stronger "
                "model or a higher --set novelty.threshold bring new ones; "
                "--set stop.saturation_yield=0 goes on regardless"
            )

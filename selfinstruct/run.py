"""Work on a run: open what it needs, let the loop go, and stop for a reason."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
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
from selfinstruct.judge import Judge
from selfinstruct.plan import Lane, Plan, is_metered
from selfinstruct.stages import AcceptedRecords, Items, Stage, TaskPool
from selfinstruct.store import Commit, RunStore
from selfinstruct.tools import open_tools

Say = Callable[[str], None]

_MANY, _GATHER = 16, 0.002
"""From so many requests in flight on, what is to be written waits so many seconds for company."""

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
    _opened: dict[str, tuple[TaskPool, Judge]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Set the budget up from what the run has spent so far."""
        spent, limits = self.store.view.summary(), self.plan.config.budget
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
        store.gather = _GATHER if self._concurrency() >= _MANY else 0.0
        reason, state = "", "failed"
        clock = asyncio.create_task(self._keep_time())
        try:
            async with (
                aclosing(await self.journal.unless_closed(self._backend)) as backend,
                open_tools(self.plan.tools) as tools,
            ):
                await store.put_meta(capabilities=asdict(backend.capabilities))
                self._end_in_time()
                for lane, wanted in zip(self.plan.lanes, self.plan.targets, strict=True):
                    await self._fill(lane, self.plan.stages(lane, backend.capabilities, tools), wanted, on_commit)
            accepted = store.view.dataset_count()
            if config.target is not None and accepted < config.target:
                raise Stopped(
                    f"the input is used up: {accepted} of {config.target} records were accepted; add rows to "
                    f"{config.input or 'the input'}, or look at the rejections with `selfinstruct status`"
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
            clock.cancel()
            await asyncio.gather(clock, return_exceptions=True)  # what kept it from writing, the next line meets too
            store.set_meta(state={"state": state, "reason": reason}, seconds=self.budget.seconds)

    async def _fill(
        self, lane: Lane, stages: Sequence[Stage], wanted: int, on_commit: Callable[[Commit], None]
    ) -> None:
        """Bring the last of `stages` to `wanted` records, and the ones before it to what that takes.

        Each stage's records come in an order of their own, whatever is asked of it: so the dataset does not depend
        on how often, or in what portions, an earlier stage is sent for more.
        """
        *before, last = stages
        if not last.source:
            items = None if last.items is None else Items(last.items, last.rounds)
            await self._work_through(lane, last, items, wanted, on_commit)
            return
        view = self.store.view
        while (missing := wanted - view.accepted_count(last.name)) > 0:
            seen = view.next_draw(last.name)[0]
            rate = (view.accepted_count(last.name) + 3 * last.expected) / (seen + 3)
            needed = seen + math.ceil(missing / max(rate, 1e-3))
            await self._fill(lane, before, needed, on_commit)
            items = Items(AcceptedRecords(view, last.source, min(needed, view.accepted_count(last.source))))
            if len(items) <= seen and items.first_change(view.items(last.name)) is None:
                return  # the stage before has nothing more to give
            await self._work_through(lane, last, items, wanted, on_commit)

    async def _work_through(
        self, lane: Lane, stage: Stage, items: Items | None, wanted: int, on_commit: Callable[[Commit], None]
    ) -> None:
        config, view = self.plan.config, self.store.view
        changed = None if items is None else items.first_change(view.items(stage.name))
        unanswered = None if items is None else view.first_unanswered(stage.name)
        again = [number for number in (changed, unanswered) if number is not None]
        if again:  # rows came, went or moved, or were let in by `refilter`: judge again from there, out of the journal
            await self.store.rewind(stage.name, min(again))
            self._opened.pop(stage.name, None)
        if stage.name not in self._opened:
            self._opened[stage.name] = TaskPool(stage, view), self.judge(lane, stage)
        pool, judge = self._opened[stage.name]
        commits = loop.grow(
            stage,
            seed=config.seed,
            target=wanted,
            window=config.window,
            # Some draws are between two requests, or written to the disk; the governor keeps to the concurrency.
            concurrency=self._concurrency() * 5 // 4,
            items=items,
            pool=pool,
            judge=judge,
            journal=self.journal,
            store=self.store,
            check=_Guard(config).check,
        )
        async with aclosing(commits):
            async for commit in commits:
                on_commit(commit)

    def _end_in_time(self) -> None:
        """Close the journal when --max-time is up, also while nothing is answered."""
        seconds = self.budget.limits.seconds
        if seconds is not None:
            over = Stopped(f"the time of {seconds:.0f} s is up; go on with --max-time")
            asyncio.get_running_loop().call_later(max(0.0, seconds - self.budget.seconds), self.stop, over)

    def judge(self, lane: Lane, stage: Stage) -> Judge:
        """Return the judge of a stage, who knows what it has accepted so far."""
        return self.plan.judge(lane, stage, self.store.view)

    async def _keep_time(self) -> None:
        """Note the running time now and then, so that a crash forgets little of what --max-time counts."""
        while True:
            await asyncio.sleep(_NOTE_EVERY)
            await self.store.put_meta(seconds=self.budget.seconds)

    async def _backend(self) -> Backend:
        config = self.plan.config
        provider, model = plugins.split_model(config.model)
        backend: Backend = self.backend or await plugins.load("backends", provider)(model, config)
        self.governor = Governed(
            self.journal.watched(backend),
            concurrency=self._concurrency(),
            rpm=config.rpm,
            tpm=config.tpm,
            # Nobody limits the rate of a model of one's own: it need not be felt for.
            ramp=4.0 if is_metered(self.plan) else math.inf,
        )
        wrapped: Backend = Retrying(
            self.journal.metered(self.governor),
            attempts=config.backend.attempts,
            patience=config.backend.patience,
            notify=self._waiting,
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


class _Guard:
    """Watches commits and stops a run that brings nothing any more."""

    def __init__(self, config: RunConfig) -> None:
        self._limits = config.stop
        self._recent: deque[tuple[int, int]] = deque()
        self._accepted = self._candidates = 0  # in them
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
        self._count(sum(decision.accepted for decision in commit.decisions), len(commit.decisions))
        draws, dry = len(self._recent), self._limits.saturation_yield * max(self._candidates, 1)
        if draws == self._limits.saturation_draws and self._accepted < dry:
            raise Stopped(
                f"saturated: of the last {self._candidates} candidates in {draws} draws only {self._accepted} were "
                "accepted. Look at the rejections with `selfinstruct status`. More or other seed tasks, a stronger "
                "model or a higher --set novelty.threshold bring new ones; "
                "--set stop.saturation_yield=0 goes on regardless"
            )

    def _count(self, accepted: int, candidates: int) -> None:
        self._recent.append((accepted, candidates))
        gone = self._recent.popleft() if len(self._recent) > self._limits.saturation_draws else (0, 0)
        self._accepted += accepted - gone[0]
        self._candidates += candidates - gone[1]

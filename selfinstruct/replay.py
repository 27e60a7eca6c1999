"""Judge a run again from its own journal, asking nothing: other filters, another parser, or the same for proof."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from selfinstruct import config as settings
from selfinstruct.errors import ConfigError, Stopped
from selfinstruct.judge import subject
from selfinstruct.loop import produce, settle
from selfinstruct.plan import Lane, Plan, open_run
from selfinstruct.run import Session
from selfinstruct.stages import Draw, Items, Stage, TaskPool
from selfinstruct.store import Commit, RunStore, RunView, decision_from, record_from
from selfinstruct.tools import Tool, open_tools
from selfinstruct.values import Candidate, Capabilities, Completion, Record, Rejection, Request, Task, ToolResult

_T = TypeVar("_T")

_JUDGING = ("filters", "novelty.", "tokenizer", "content.language_pack")
"""Entries of the fingerprint that decide about answers and not about what is asked."""


@dataclass(frozen=True, slots=True)
class Change:
    """A record that enters or leaves the dataset; `why` says what its rejection is now or was before."""

    id: str
    text: str
    why: str


@dataclass(slots=True)
class Difference:
    """What judging again changes."""

    before: int = 0
    after: int = 0
    entering: list[Change] = field(default_factory=list)
    leaving: list[Change] = field(default_factory=list)


async def refilter(plan: Plan, store: RunStore, *, dry_run: bool) -> Difference:
    """Judge every draw again with the plan's filters and novelty; unless `dry_run`, keep the result.

    The outcome is that of a fresh run that got the same completions. Where a filter used to stop a
    draw before its answer was asked for and now would not, the candidate is rejected as `unanswered`.

    Raises:
        ConfigError: the plan would ask for other things, not only judge them otherwise.
    """
    changed = settings.differences(store.view.meta("fingerprint"), json.loads(json.dumps(plan.fingerprint)))
    asking = [line for line in changed if not line.startswith(_JUDGING)]
    if asking:
        raise ConfigError(
            "refilter judges answers that are there; these settings change what is asked:\n  "
            + "\n  ".join(asking)
            + "\nStart a run in another folder with them"
        )
    difference = Difference(before=store.view.dataset_count())
    commits: list[Commit] = []
    async with open_tools(plan.tools) as tools:
        for lane, wanted in zip(plan.lanes, plan.targets, strict=True):
            stages = plan.stages(lane, _capabilities(store.view), tools)
            commits += await _judge_lane(plan, lane, stages, wanted, store.view, difference)
    if not dry_run:
        store.replace([name for lane in store.view.lanes() for name in lane.stages], commits)
        store.set_meta(fingerprint=plan.fingerprint)
        store.save_config(json.loads(plan.config.model_dump_json()), settings.dump(plan.config))
    return difference


async def replay(folder: Path, plan: Plan, output: Path) -> tuple[int, bool]:
    """Rebuild a run in another folder from the journal alone; return (records, whether they are the same).

    Raises:
        ConfigError: `output` holds something already.
    """
    if (output / "run.sqlite").exists():
        raise ConfigError(f"{output} holds a run already; choose a new folder with --output")
    with RunView.open(folder) as source:
        accepted = source.dataset_count()
        if not accepted:
            return 0, True
        rebuilt = replace(plan, config=plan.config.model_copy(update={"target": accepted}))
        with open_run(output, rebuilt) as store:
            store.copy_journal(source)
            session = Session(rebuilt, store, backend=_Nobody(_capabilities(source)))
            with suppress(Stopped):  # the journal of a run that was stopped may end before the rebuilt one's target
                await session.work(lambda _: None)
            mine = list(store.view.dataset())
            return len(mine), mine == list(source.dataset())


async def _judge_lane(
    plan: Plan, lane: Lane, stages: Sequence[Stage], wanted: int, view: RunView, difference: Difference
) -> list[Commit]:
    """Judge the stages of a lane again, each on what the one before now accepts."""
    records: dict[str, list[Record]] = {}
    commits: list[Commit] = []
    for stage in stages:
        items = None
        if not stage.grows:
            items = Items(records[stage.source] if stage.items is None else stage.items, stage.rounds)
        final = stage is stages[-1]
        accepted = records[stage.name] = []
        judged: set[int] = set()
        async for number, commit in _judged_again(plan, lane, stage, items, wanted if final else sys.maxsize, view):
            commits.append(commit)
            accepted += [d.candidate.record for d in commit.decisions if d.accepted and d.candidate.record is not None]
            if number is not None:
                judged.add(number)
            if final:
                _compare(view, number, commit, difference)
        if final:
            difference.leaving += _past_the_target(view, stage.name, judged)
    return commits


async def _judged_again(
    plan: Plan, lane: Lane, stage: Stage, items: Items | None, wanted: int, view: RunView
) -> AsyncGenerator[tuple[int | None, Commit]]:
    """Run every committed draw of a stage again on its recorded answers and judge what comes out.

    Yields the draw's old number beside its commit: None for an item that was never asked about.
    """
    judge = plan.judge(lane, stage)
    pool = TaskPool(stage, view, ())
    seeds = {task.id: task for task in stage.seeds}
    unsettled, partly = view.next_draw(stage.name)
    count = unsettled + bool(partly)
    old = {item: number for number, item in enumerate(view.items(stage.name))} if items is not None else {}
    if stage.items is not None and items is not None:
        known = {items.identity(number) for number in range(min(len(items), count))}
        for item, number in old.items():
            if item not in known:
                raise ConfigError(f"draw {number}: its row is no longer in the input; resume the run first")
    for number in range(count if not stage.source or items is None else len(items)):
        was: int | None = number if items is None else old.get(items.identity(number))
        row = None if was is None else view.draw(stage.name, was)
        recorded = row or {"state": "done", "error": None, "demonstrations": [], "requests": []}
        shown = tuple(seeds.get(id) or _machine_task(view, id) for id in recorded["demonstrations"])
        answers = _Recording(plan.config.model, view, tuple(recorded["requests"]))
        visible = pool.as_of(number - plan.config.window)
        draw = Draw(stage.name, number, plan.config.seed, pool, visible, judge, answers, recorded=shown)
        if items is not None:
            draw.item, draw.identity = items[number], items.identity(number)
        candidates: Sequence[Candidate] = ()
        if recorded["state"] != "failed":
            try:
                candidates = await produce(stage, draw, judge)
            except _Unanswered:
                before = [] if was is None else [decision_from(each) for each in view.decisions(stage.name, was)]
                unanswered = [each.candidate for each in before] or [Candidate(draw.item)]
                candidates = [replace(each, rejection=_UNANSWERED) for each in unanswered]
        commit = settle(draw, candidates, judge, wanted=wanted - pool.accepted, error=recorded["error"])
        pool.extend(number, commit.decisions)
        yield was, replace(commit, demonstrations=tuple(recorded["demonstrations"]), requests=answers.requests)
        if pool.accepted == wanted:
            return


def _compare(view: RunView, number: int | None, commit: Commit, difference: Difference) -> None:
    rows = [] if number is None else view.decisions(commit.stage, number)
    was = {row["position"]: row for row in rows}
    for position, decision in enumerate(commit.decisions):
        difference.after += decision.accepted
        old = was.pop(position, None)
        before = old is not None and old["accepted"] is not None
        text = decision.candidate.text if decision.candidate.record is None else subject(decision.candidate.record)
        if decision.accepted and not before:
            why = "new: not read before" if old is None else f"was rejected by {old['filter']}: {old['reason']}"
            difference.entering.append(Change(decision.id, text, why))
        elif before and decision.rejection is not None:
            why = f"{decision.rejection.filter}: {decision.rejection.reason}"
            difference.leaving.append(Change(old["id"] if old else decision.id, text, why))
    for row in was.values():
        if row["accepted"] is not None:
            text = subject(record_from(row["record"]))
            difference.leaving.append(Change(row["id"], text, "read otherwise, or past the target"))


def _past_the_target(view: RunView, stage: str, judged: Set[int]) -> Iterator[Change]:
    for id, record in view.accepted(stage):
        if int(id.rsplit("-", 2)[1]) not in judged:
            yield Change(id, subject(record), "the target is reached before it, or its item is no longer accepted")


_UNANSWERED = Rejection("unanswered", "its answer was never asked for")


class _Unanswered(Exception):
    """The draw, judged by other filters, would go on to a request that was never sent."""


@dataclass(slots=True)
class _Recording:
    """The answers one draw got, handed out again in their order, whatever is asked."""

    model: str
    view: RunView
    requests: tuple[str, ...]
    _given: int = 0

    async def complete(self, stage: str, draw: int, key: str, request: Request) -> Completion:
        return self._next(self.view.completion)

    async def use(self, stage: str, draw: int, key: str, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        return self._next(self.view.tool_result)

    def _next(self, recorded: Callable[[str], _T | None]) -> _T:
        if self._given == len(self.requests):
            raise _Unanswered
        found = recorded(self.requests[self._given])
        self._given += 1
        if found is None:
            raise _Unanswered
        return found


@dataclass(frozen=True, slots=True)
class _Nobody:
    """A backend that answers nothing: what the journal does not hold is not to be had."""

    capabilities: Capabilities
    name: str = "nobody"

    async def complete(self, request: Request) -> Completion:
        raise Stopped("the journal ends here")

    async def aclose(self) -> None:
        """Nothing to let go of."""


def _machine_task(view: RunView, id: str) -> Task:
    row = view.decision(id)
    record = record_from(row["record"]) if row and row["record"] else None
    return replace(record, id=id) if isinstance(record, Task) else Task(id, id=id)


def _capabilities(view: RunView) -> Capabilities:
    return Capabilities(**(view.meta("capabilities") or {}))

"""Judge a run again from its own journal, asking nothing: other filters, another parser, or the same for proof."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from selfinstruct import config as settings
from selfinstruct.errors import ConfigError, Stopped
from selfinstruct.judge import Judge, subject
from selfinstruct.loop import Draw, TaskPool, settle
from selfinstruct.plan import Plan, make_filters, open_run
from selfinstruct.run import Session, new_index
from selfinstruct.store import Commit, RunStore, RunView, decision_from, record_from
from selfinstruct.values import Candidate, Capabilities, Completion, Rejection, Request, Task

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
    changed = settings.differences(store.view.meta("fingerprint"), dict(plan.fingerprint))
    asking = [line for line in changed if not line.startswith(_JUDGING)]
    if asking:
        raise ConfigError(
            "refilter judges answers that are there; these settings change what is asked:\n  "
            + "\n  ".join(asking)
            + "\nStart a run in another folder with them"
        )
    difference = Difference(before=store.view.accepted_count("tasks"))
    commits = []
    async for commit in _judged_again(plan, store.view):
        _compare(store.view, commit, difference)
        commits.append(commit)
    difference.leaving += _past_the_target(store.view, "tasks", commits[-1].number if commits else -1)
    if not dry_run:
        store.replace("tasks", commits)
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
        accepted = source.accepted_count("tasks")
        if not accepted:
            return 0, True
        rebuilt = replace(plan, config=plan.config.model_copy(update={"target": accepted}))
        with open_run(output, rebuilt) as store:
            store.copy_journal(source)
            session = Session(rebuilt, store, backend=_Nobody(_capabilities(source)))
            await session.work(lambda _: None)
            mine = [(id, record) for id, record in store.view.accepted("tasks")]
            return len(mine), mine == list(source.accepted("tasks"))


async def _judged_again(plan: Plan, view: RunView) -> AsyncGenerator[Commit]:
    """Run every committed draw again on its recorded answers and judge what comes out, up to the target."""
    stage = plan.recipe.stages(plan.brief(_capabilities(view)))[-1]
    judge = Judge(make_filters(plan), None if plan.items is not None else new_index(plan))
    items = dict(zip(stage.identities(), stage.items or (), strict=True))
    pool = TaskPool(plan.seeds, stage.name, view, ())
    seeds = {task.id: task for task in plan.seeds}
    unsettled, partly = view.next_draw(stage.name)
    for number in range(unsettled + bool(partly)):
        row = view.draw(stage.name, number)
        assert row is not None, f"draw {number} is missing between others"
        shown = tuple(seeds.get(id) or _machine_task(view, id) for id in row["demonstrations"])
        answers = _Recording(plan.config.model, view, tuple(row["requests"]))
        visible = pool.as_of(number - plan.config.window)
        draw = Draw(stage.name, number, plan.config.seed, pool, visible, judge, answers, recorded=shown)
        if row["item"] is not None:
            if row["item"] not in items:
                raise ConfigError(f"draw {number}: its row is no longer in the input; resume the run first")
            draw.item, draw.identity = items[row["item"]], row["item"]
        candidates: Sequence[Candidate] = ()
        if row["state"] != "failed":
            try:
                candidates = await stage.draw(draw)
            except _Unanswered:
                old = [decision_from(each).candidate for each in view.decisions(stage.name, number)]
                candidates = [replace(each, rejection=_UNANSWERED) for each in old]
        wanted = plan.target - pool.accepted
        commit = settle(draw, candidates, judge, wanted=wanted, error=row["error"])
        pool.extend(number, commit.decisions)
        yield replace(commit, item=row["item"], demonstrations=tuple(row["demonstrations"]), requests=answers.requests)
        if pool.accepted == plan.target:
            return


def _compare(view: RunView, commit: Commit, difference: Difference) -> None:
    was = {row["id"]: row for row in view.decisions(commit.stage, commit.number)}
    for decision in commit.decisions:
        difference.after += decision.accepted
        old = was.pop(decision.id, None)
        before = old is not None and old["accepted"] is not None
        text = decision.candidate.text if decision.candidate.record is None else subject(decision.candidate.record)
        if decision.accepted and not before:
            why = "new: not read before" if old is None else f"was rejected by {old['filter']}: {old['reason']}"
            difference.entering.append(Change(decision.id, text, why))
        elif before and decision.rejection is not None:
            why = f"{decision.rejection.filter}: {decision.rejection.reason}"
            difference.leaving.append(Change(decision.id, text, why))
    for id, row in was.items():
        if row["accepted"] is not None:
            difference.leaving.append(
                Change(id, subject(record_from(row["record"])), "read otherwise, or past the target")
            )


def _past_the_target(view: RunView, stage: str, last: int) -> Iterator[Change]:
    for id, record in view.accepted(stage):
        if int(id.rsplit("-", 2)[1]) > last:
            yield Change(id, subject(record), "the target is reached before it")


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

    async def complete(self, stage: str, draw: int, request: Request) -> Completion:
        if self._given == len(self.requests):
            raise _Unanswered
        completion = self.view.completion(self.requests[self._given])
        self._given += 1
        if completion is None:
            raise _Unanswered
        return completion


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

"""Runs of a recipe for tests: in this process on a scripted backend, or by the command line over a socket."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfinstruct import formats
from selfinstruct.errors import Stopped
from selfinstruct.plan import Plan, open_run, plan, resume_plan
from selfinstruct.replay import refilter, replay
from selfinstruct.run import Session
from selfinstruct.store import RunStore, RunView
from selfinstruct.testing import Scripted
from selfinstruct.values import Completion, Message, Record, Request, Usage
from tests.backends.endpoint import Reply, Seen, chat
from tests.program import RPM

Dataset = list[tuple[str, Record]]
Speak = Callable[[tuple[Message, ...], random.Random], str | tuple[str, str]]
"""What a model says to messages: its text, or text and finish reason. The generator depends on them and the seed."""


def scripted(speak: Speak, *, late: bool = False) -> Scripted:
    """Return a backend that answers as `speak` says, `late` by a little that no text depends on."""

    def answer(request: Request) -> Completion:
        text, reason = _said(speak, request.messages, request.seed)
        return Completion(text, reason, Usage(10, 5), "m")

    rng = random.Random(5)
    return Scripted(answer, delay=(lambda _: rng.random() * 0.003) if late else None)


def served(speak: Speak) -> Callable[[Seen], Reply]:
    """Return the script of an endpoint that answers as `speak` says."""

    def answer(seen: Seen) -> Reply:
        messages = tuple(Message(each["role"], each["content"]) for each in seen.json["messages"])
        text, reason = _said(speak, messages, seen.json.get("seed"))
        return chat(text, finish_reason=reason)

    return answer


def _said(speak: Speak, messages: tuple[Message, ...], seed: int | None) -> tuple[str, str]:
    said = speak(messages, random.Random(json.dumps([[m.role, m.content] for m in messages] + [seed])))
    return (said, "stop") if isinstance(said, str) else said


def grow(folder: Path, recipe: str, backend: Scripted, stop_after: int | None = None, **settings: Any) -> Dataset:
    """Run a recipe until done, or until so many commits are made; return the dataset."""
    base = {"recipe": recipe, "model": "openai/test", "rpm": RPM, "novelty": {"engine": "numpy"}}
    return work(plan([base, settings]), folder, backend, stop_after)


def work(planned: Plan, folder: Path, backend: Scripted, stop_after: int | None = None) -> Dataset:
    """Run a plan until done, or until so many commits are made; return the dataset."""

    async def until_done(store: RunStore) -> None:
        session, commits = Session(planned, store, backend=backend), 0

        def count(_: object) -> None:
            nonlocal commits
            commits += 1
            if commits == stop_after:
                session.stop(Stopped("enough"))

        await session.work(count)

    with open_run(folder, planned) as store:
        try:
            asyncio.run(until_done(store))
        except Stopped:
            if stop_after is None:
                raise
        return list(store.view.dataset())


def judged_again(folder: Path, **settings: Any) -> Dataset:
    """Refilter a run and return its dataset."""
    with RunStore.open(folder) as store:
        asyncio.run(refilter(resume_plan(folder, [settings], fetch=False), store, dry_run=False))
        return list(store.view.dataset())


def rebuilt(folder: Path, output: Path) -> bool:
    """Replay a run into another folder and tell whether it comes out the same."""
    return asyncio.run(replay(folder, resume_plan(folder, [], fetch=False), output))[1]


def rejected(folder: Path, stage: str) -> Mapping[str, int]:
    """Return how many candidates of a stage each filter rejected."""
    with RunView.open(folder) as view:
        return view.summary().stages[stage].rejected


def written(format: str, dataset: Dataset, path: Path) -> list[Any]:
    """Write a dataset as `export` does and return the rows; only records of kinds that it holds may be refused."""
    from dataclasses import replace

    chosen = formats.get(format)
    fitting = [replace(record, id=record.id or id) for id, record in dataset if type(record) in chosen.kinds]
    report = formats.write(chosen, fitting, path)
    assert (report.written, report.refused) == (len(fitting), [])
    text = path.read_text(encoding="utf-8")
    if chosen.layout == "jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text) if chosen.layout == "json" else [text]

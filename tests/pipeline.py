"""A recipe of three stages for tests: ideas grow, each idea gets a colour, each coloured idea becomes a task."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path

from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.recipes import Brief, Recipe
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import Candidate, Instance, Message, Rejection, Request, Sampling, Task

_ANY = Sampling(max_tokens=60)
_IDEAS = ("instruction_length",)
_THINGS = (
    "lantern compass loom ferry kettle quarry harbour orchard bellows anvil tannery mill forge kiln bridge poem canal "
    "market garden letter recipe river village clock engine library museum station theatre workshop island tower cellar"
).split()
_VERBS = "Describe Compare Sketch Outline Explain Summarise Rewrite Continue Question".split()


def answer(request: Request) -> str:
    """Answer like a model: a function of what is asked and of the seed."""
    text = request.messages[-1].content
    rng = random.Random(hashlib.sha256(f"{text}{request.seed}".encode()).digest())
    if text.startswith("ideas"):
        lines = []
        for _ in range(rng.randint(0, 5)):
            a, b, c, d = rng.sample(_THINGS, 4)
            lines.append(f"{rng.choice(_VERBS)} {a}, {b}, {c} and {d}{rng.choice(['', ' in short', ' to a friend'])}.")
        return "\n".join(lines)
    if text.startswith("colour"):
        return rng.choice(["red", "green", "blue", "none"])
    return f"It is {text.rpartition(' ')[2]} and stands at number {rng.randint(1, 99)}." if rng.random() > 0.2 else ""


def _stages(brief: Brief) -> tuple[Stage, ...]:
    count = brief.config.demonstrations

    async def ideas(draw: Draw) -> list[Candidate]:
        shown = draw.demonstrations(seed=count.seed, machine=count.machine)
        text = "ideas " + " | ".join(task.instruction for task in shown)
        completion = await draw.complete(Request(_ANY, messages=(Message("user", text),)))
        return [Candidate(Task(line), text=line) for line in completion.text.split("\n") if line]

    async def colours(draw: Draw) -> list[Candidate]:
        assert isinstance(draw.item, Task)
        completion = await draw.complete(Request(_ANY, messages=(Message("user", f"colour {draw.item.instruction}"),)))
        if completion.text == "none":
            return [Candidate(draw.item, completion.text, Rejection("colour", "none"))]
        return [Candidate(replace(draw.item, name=completion.text), completion.text)]

    async def tasks(draw: Draw) -> list[Candidate]:
        assert isinstance(draw.item, Task)
        text = f"task {draw.item.instruction} {draw.item.name}"
        completion = await draw.complete(Request(_ANY, messages=(Message("user", text),)))
        cases = (Instance("", completion.text),)
        return [Candidate(replace(draw.item, instances=cases), completion.text)]

    return (
        Stage("ideas", ideas, 2.0, seeds=brief.seeds, filters=_IDEAS, novelty=("subject",), whole=False),
        Stage("colours", colours, source="ideas", whole=False),
        Stage("tasks", tasks, source="colours", filters=DEFAULT_FILTERS["answers"]),
    )


RECIPE = Recipe(
    name="pipeline",
    summary="ideas, their colours, and tasks",
    source="the tests",
    styles=("list",),
    prompts=("alpaca",),
    variables={"list": {}},
    stages=_stages,
    preview=lambda brief: "ideas",
    export="alpaca",
    defaults={"demonstrations": {"seed": 2, "machine": 2}, "novelty": {"engine": "numpy"}},
)
NAME = f"{Path(__file__).resolve()}:RECIPE"

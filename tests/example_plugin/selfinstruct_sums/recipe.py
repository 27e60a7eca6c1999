"""The recipe: draw two numbers, ask for a word problem about their sum, read question and answer."""

from __future__ import annotations

import re
from pathlib import Path

from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.recipes import Brief, Recipe
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import Candidate, Instance, Message, Rejection, Request, Sampling, Task

_SAMPLING = Sampling(max_tokens=200, temperature=0.9)


def read(text: str, *, truncated: bool = False) -> Candidate:
    """Read one completion; what is not a question with an answer is a rejection, never an error."""
    found = re.search(r"Question:\s*(.+?)\s*\n\s*Answer:\s*(.+)", text, re.DOTALL)
    if found is None:
        return Candidate(None, text, Rejection("parse", "no question and answer"), truncated)
    return Candidate(Task(found[1], (Instance("", found[2].strip()),)), text, truncated=truncated)


def _render(brief: Brief, first: int, second: int, shown: tuple[Task, ...]) -> str:
    return brief.prompt.render(first=first, second=second, shown=[task.instruction for task in shown])


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the one stage."""
    sampling, count = brief.sampling(_SAMPLING), brief.config.demonstrations

    async def draw(draw: Draw) -> list[Candidate]:
        first, second = draw.rng.randint(2, 999), draw.rng.randint(2, 999)
        shown = draw.demonstrations(seed=count.seed, machine=count.machine)
        request = Request(sampling, messages=(Message("user", _render(brief, first, second, shown)),))
        completion = await draw.complete(request)
        return [read(completion.text, truncated=completion.finish_reason == "length")]

    kept = DEFAULT_FILTERS["list"]
    return (Stage("tasks", draw, expected=0.8, seeds=brief.seeds, filters=kept, novelty=("subject",)),)


def preview(brief: Brief) -> str:
    """Render the prompt that a first draw could send."""
    return _render(brief, 17, 25, brief.seeds[: brief.config.demonstrations.machine])


SUMS = Recipe(
    name="sums",
    summary="word problems about sums, with the answers checked",
    source="the example plugin",
    styles=("list",),
    prompts=(str(Path(__file__).parent / "prompts"),),
    variables={"list": {"": frozenset({"first", "second", "shown"})}},
    stages=stages,
    preview=preview,
    export="question-answer",
    defaults={"style": "list", "demonstrations": {"seed": 0, "machine": 2}, "filters": {"right_sum": True}},
)

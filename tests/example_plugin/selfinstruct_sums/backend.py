"""The backend: answers the recipe's prompt from a function, with no network; `-m abacus/hasty` errs now and then."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from selfinstruct.config import RunConfig
from selfinstruct.errors import RequestRefused, UnknownModel
from selfinstruct.values import Capabilities, Completion, Request, Usage

_MISTAKES = {"careful": 0.0, "hasty": 0.3}
_WHO = "A baker|A librarian|The night shift|My neighbour|A football club|The harbour office|A choir".split("|")
_DOES = "counts|orders|finds|mends|sells|stores|hands out|paints".split("|")
_WHAT = "loaves|atlases|lamps|bicycles|shirts|crates|songbooks|kettles|ropes|tulips|tickets|clocks".split("|")
_WHEN = "on Monday|before lunch|in the cellar|during the storm|at the fair|near the canal|in spring".split("|")
_ASK = "How many is that together?|What is the total?|How many are there in all?".split("|")


@dataclass(slots=True)
class Abacus:
    """A backend of selfinstruct; its answer is a function of the request alone."""

    name: str
    mistakes: float
    capabilities: Capabilities = field(default=Capabilities())

    async def complete(self, request: Request) -> Completion:
        """Write the word problem that the prompt asks for.

        Raises:
            RequestRefused: the prompt names no two numbers.
        """
        text = "".join(message.content for message in request.messages)
        asked = re.search(r"sum of (\d+) and (\d+)", text)
        if asked is None:
            raise RequestRefused("the abacus only knows prompts about the sum of two numbers", status=400)
        rng = random.Random(f"{text}/{request.seed}")
        things, total = rng.sample(_WHAT, 2), int(asked[1]) + int(asked[2])
        if rng.random() < self.mistakes:
            total += rng.choice((-1, 1, 10))
        answer = (
            f"Question: {rng.choice(_WHO)} {rng.choice(_DOES)} {asked[1]} {things[0]} {rng.choice(_WHEN)} and "
            f"{rng.choice(_DOES)} {asked[2]} {things[1]} {rng.choice(_WHEN)}. {rng.choice(_ASK)}\n"
            f"Answer: Together there are {total}."
        )
        if rng.random() < self.mistakes / 3:
            answer = answer.replace("Answer:", "So")
        return Completion(answer, "stop", Usage(len(text) // 4, len(answer) // 4, estimated=True), self.name)

    async def aclose(self) -> None:
        """Nothing to let go of."""


async def abacus(model: str, config: RunConfig) -> Abacus:
    """Word problems from a function: careful is right, hasty not always."""
    if model not in _MISTAKES:
        raise UnknownModel(f"abacus: there is no model {model!r}; there are: {', '.join(_MISTAKES)}")
    return Abacus(config.model, _MISTAKES[model])

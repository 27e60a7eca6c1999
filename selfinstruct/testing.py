"""A backend that answers from a function: for tests of recipes, filters and plugins, ours and yours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from selfinstruct.errors import BackendError
from selfinstruct.values import Capabilities, Completion, Request, Usage

Answer = str | Completion | BackendError

ONE_STAGE = {"lanes": [{"key": "", "share": "1", "stages": ["tasks"]}], "export": "alpaca"}
"""What `RunStore.create` notes of a run whose only stage is called "tasks" and whose format is Alpaca's."""


@dataclass(slots=True)
class Scripted:
    """Answers each request with what `answer` returns for it; a BackendError is raised.

    `asked` keeps every request in the order they came. `delay` gives the seconds to wait before
    answering, so that a test can shuffle the order of arrival.
    """

    answer: Callable[[Request], Answer]
    delay: Callable[[Request], float] | None = None
    name: str = "scripted/model"
    capabilities: Capabilities = field(
        default=Capabilities(completions=True, json_schema=True, logprobs=True, llama_sampling=True)
    )
    asked: list[Request] = field(default_factory=list)

    async def complete(self, request: Request) -> Completion:
        """Answer from the script."""
        self.asked.append(request)
        if self.delay is not None:
            await asyncio.sleep(self.delay(request))
        answer = self.answer(request)
        if isinstance(answer, BackendError):
            raise answer
        if isinstance(answer, Completion):
            return answer
        return Completion(answer, "stop", Usage(len(str(request)) // 4, max(1, len(answer) // 4)), self.name)

    async def aclose(self) -> None:
        """Nothing to let go of."""

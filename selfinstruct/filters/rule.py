"""What a filter is, how its rule is entered under a name, and what of a record a rule looks at."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from selfinstruct.values import Candidate, Dialogue, Rejection, Task

Filter = Callable[[Candidate], Rejection | None]
Factory = Callable[..., Filter]
Verdict = tuple[str, Mapping[str, float | str]] | None


@dataclass(frozen=True, slots=True)
class FilterSpec:
    """A filter one can ask for by name: what makes it, where its rule comes from, what can be set."""

    name: str
    factory: Factory
    source: str
    summary: str
    parameters: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Names and default values."""


def spec_of(name: str, factory: Factory, source: str) -> FilterSpec:
    """Return the entry for a factory: summary from its docstring, parameters from its signature."""
    parameters = list(inspect.signature(factory).parameters.values())[1:]
    summary = (inspect.getdoc(factory) or "").partition("\n")[0]
    return FilterSpec(name, factory, source, summary, {each.name: each.default for each in parameters})


class Rules(dict[str, FilterSpec]):
    """The filters of a module by name, in the order in which they stand there."""

    def add(self, source: str) -> Callable[[Factory], Factory]:
        """Enter the factory that is decorated under its own name; `source` says where its rule comes from."""

        def enter(factory: Factory) -> Factory:
            self[factory.__name__] = spec_of(factory.__name__, factory, source)
            return factory

        return enter


def of_record(name: str, judge: Callable[[Task | Dialogue, Candidate], Verdict]) -> Filter:
    """Return the filter that asks `judge` about tasks and dialogues."""

    def check(candidate: Candidate) -> Rejection | None:
        if not isinstance(candidate.record, (Task, Dialogue)):
            return None
        verdict = judge(candidate.record, candidate)
        return None if verdict is None else Rejection(name, *verdict)

    check.__name__ = check.__qualname__ = name
    return check


def of_task(name: str, judge: Callable[[Task], Verdict]) -> Filter:
    """Return the filter that asks `judge` about tasks."""
    return of_record(name, lambda record, candidate: judge(record) if isinstance(record, Task) else None)


def of_dialogue(name: str, judge: Callable[[Dialogue], Verdict]) -> Filter:
    """Return the filter that asks `judge` about dialogues."""
    return of_record(name, lambda record, candidate: judge(record) if isinstance(record, Dialogue) else None)


def texts_of(record: Task | Dialogue) -> Iterator[tuple[str, str]]:
    """Yield every text of a record with the name of its field, or the number of the message from 1."""
    if isinstance(record, Dialogue):
        yield from ((f"message {number}", each.content) for number, each in enumerate(record.messages, 1))
        return
    yield "instruction", record.instruction
    for case in record.instances:
        yield "input", case.input
        yield "output", case.output


def answers_of(record: Task | Dialogue) -> Iterator[str]:
    """Yield the outputs of a task, the replies of a dialogue."""
    if isinstance(record, Dialogue):
        yield from (each.content for each in record.messages if each.role == "assistant" and not each.tool_calls)
    else:
        yield from (case.output for case in record.instances)


def asked_of(record: Task | Dialogue) -> str:
    """Return a task's instruction, a dialogue's first words of the person."""
    if isinstance(record, Dialogue):
        return next((message.content for message in record.messages if message.role == "user"), "")
    return record.instruction


def exchanges_of(record: Task | Dialogue) -> Iterator[tuple[str, str, str]]:
    """Yield each (what is asked, a task's input, what is answered)."""
    if not isinstance(record, Dialogue):
        yield from ((record.instruction, case.input, case.output) for case in record.instances)
        return
    asked = ""
    for message in record.messages:
        if message.role == "user":
            asked = message.content
        elif message.role == "assistant" and not message.tool_calls:
            yield asked, "", message.content

"""Between the kinds of record, and what was lost on the way: measured, never declared.

A record is written only if the rows read back as the same record. `compare` tells the differences:
`corrupt` (reads back as something else: never written), `content` (parts that a model would learn
from: written only when losses are allowed) and `labels` (ids, names, scores: counted).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.values import Comparison, Dialogue, Instance, Message, Record, Response, Task, ToolCall


@dataclass(frozen=True, slots=True)
class Loss:
    """What a record's rows do not give back."""

    corrupt: str = ""
    content: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def user_text(instruction: str, input: str) -> str:
    """Join instruction and input the way LLaMA-Factory's alpaca converter and BELLE do: with a newline."""
    return f"{instruction}\n{input}" if input else instruction


def dialogues(task: Task) -> list[Dialogue]:
    """Return the task as one-turn dialogues, one per instance."""
    return [
        Dialogue(
            messages=(
                Message("user", user_text(task.instruction, instance.input)),
                Message("assistant", instance.output),
            ),
            id=task.id if len(task.instances) == 1 else f"{task.id}-{index}" if task.id else "",
        )
        for index, instance in enumerate(task.instances)
    ]


def single_turn(dialogue: Dialogue) -> Task | None:
    """Return the dialogue as a task when it is one question and one plain answer, else None."""
    match dialogue.messages:
        case (Message(role="user") as asked, Message(role="assistant", tool_calls=()) as answered):
            return Task(asked.content, (Instance("", answered.content),), id=dialogue.id)
    return None


def tiers(comparison: Comparison) -> list[list[Response]]:
    """Return the responses from best to worst, ties together, by rank when every one has it, else by score.

    Responses with neither are left out; `compare` notices.
    """
    ranked = [response for response in comparison.responses if response.rank is not None]
    if ranked and len(ranked) == len(comparison.responses):
        keyed = [(float(response.rank or 0), response) for response in ranked]
    elif scored := [response for response in comparison.responses if response.score is not None]:
        keyed = [(-(response.score or 0.0), response) for response in scored]
    else:
        keyed = [(float(response.rank or 0), response) for response in ranked]
    levels: dict[float, list[Response]] = {}
    for level, response in keyed:
        levels.setdefault(level, []).append(response)
    return [levels[level] for level in sorted(levels)]


def pairs(comparison: Comparison, limit: int = 10) -> list[tuple[Response, Response]]:
    """Return (better, worse) pairs, strictly better, ties left out, at most `limit` (StackExchange's rule).

    Neighbouring tiers come first, so that the limit leaves every response in some pair where it can.

    Raises:
        InputError: no response is better than another.
    """
    levels = tiers(comparison)
    found = [
        (better, worse)
        for distance in range(1, len(levels))
        for low in range(len(levels) - distance)
        for better in levels[low]
        for worse in levels[low + distance]
    ]
    if not found:
        raise InputError("no response is better than another: needs two with different ranks or scores")
    return found[:limit]


def prompt_dialogue(prompt: str | Dialogue) -> Dialogue:
    """Return the prompt as a dialogue."""
    return Dialogue((Message("user", prompt),)) if isinstance(prompt, str) else prompt


def plain_prompt(prompt: Dialogue) -> str | Dialogue:
    """Return a prompt of one bare user message as its text: the way back from `prompt_dialogue`."""
    text = prompt.messages[0].content if len(prompt.messages) == 1 else ""
    return text if prompt == prompt_dialogue(text) else prompt


def two(better: str, worse: str) -> tuple[Response, Response]:
    """Return a better and a worse response, ranked."""
    return Response(better, rank=0), Response(worse, rank=1)


def rated(content: str, good: bool) -> Response:
    """Return a response that stands alone, good or bad: its score is 1 or -1."""
    return Response(content, score=1.0 if good else -1.0)


def said(response: Response) -> str:
    """Return the text of a response that a trainer learns from or against.

    Raises:
        InputError: it is empty.
    """
    if not response.content.strip():
        raise InputError("a response is empty")
    return response.content


def reshape(record: Record, kinds: Iterable[type[Record]]) -> Record:
    """Return the record in a kind that the format holds: itself when it can.

    A task becomes a dialogue (one instance), a one-turn dialogue a task. Preferences are never
    invented or thrown away: a comparison stays one.

    Raises:
        InputError: the format holds no kind that this record can become.
    """
    wanted = frozenset(kinds)
    if type(record) in wanted:
        return record
    if isinstance(record, Task) and Dialogue in wanted:
        if len(record.instances) == 1:
            return dialogues(record)[0]
        raise InputError(
            f"a task needs exactly one instance to become a dialogue, this one has {len(record.instances)}"
        )
    if isinstance(record, Dialogue) and Task in wanted:
        task = single_turn(record)
        if task is None:
            raise InputError(f"a dialogue of {len(record.messages)} messages is not one question and one answer")
        return task
    names = " or ".join(sorted(kind.__name__.lower() for kind in wanted))
    raise InputError(f"a {type(record).__name__.lower()} can't become a {names}")


def split(record: Record, kinds: Iterable[type[Record]]) -> list[Record]:
    """Return the records to encode for one record: several instances become several dialogues."""
    wanted = frozenset(kinds)
    if isinstance(record, Task) and Task not in wanted and Dialogue in wanted and len(record.instances) > 1:
        return list(dialogues(record))
    return [reshape(record, wanted)]


def compare(record: Record, back: Sequence[Record]) -> Loss:
    """Return what `back`, the records read from the record's own rows, does not hold of it."""
    if isinstance(record, Task):
        return _compare_task(record, back)
    if isinstance(record, Dialogue):
        return _compare_dialogue(record, back)
    return _compare_comparison(record, back)


def _compare_task(task: Task, back: Sequence[Record]) -> Loss:
    tasks = [other for other in back if isinstance(other, Task)]
    labels: list[str] = []
    if len(tasks) == len(back):
        want = [(task.instruction, instance.input, instance.output) for instance in task.instances]
        got = [(other.instruction, instance.input, instance.output) for other in tasks for instance in other.instances]
        if want == got and all(other.instruction == task.instruction for other in tasks):
            same = True
        else:
            same = [(user_text(i, x), y) for i, x, y in want] == [(user_text(i, x), y) for i, x, y in got]
            labels.append("the line between instruction and input")
        if not same:
            return Loss(corrupt="the instruction or an instance reads back differently")
    else:
        wanted = [spoken(dialogue.messages) for dialogue in dialogues(task)]
        if wanted != [spoken(other.messages) for other in back if isinstance(other, Dialogue)] or tasks:
            return Loss(corrupt="the instruction or an instance reads back differently")
        if any(instance.input for instance in task.instances):
            labels.append("the line between instruction and input")
    if task.name and not any(other.name == task.name for other in tasks):
        labels.append("name")
    if task.is_classification is not None and not any(
        other.is_classification == task.is_classification for other in tasks
    ):
        labels.append("is_classification")
    if task.id and not any(other.id == task.id for other in back):
        labels.append("id")
    labels += _missing_extra(task.extra, [other.extra for other in tasks])
    return Loss(labels=tuple(labels))


def spoken(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Return who said what."""
    return [(message.role, message.content) for message in messages]


def _calls(calls: Sequence[ToolCall]) -> list[tuple[str, Any]]:
    return [(call.name, _value(call.arguments)) for call in calls]


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


# How the source spelled a record, kept to write it back byte for byte: means nothing to another format.
_SPELLING = frozenset({"id_is_number", "moss_turns", "opening", "closed"})


def _missing_extra(extra: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        key
        for key, value in extra.items()
        if key not in _SPELLING and not any(key in other and _within(value, other[key]) for other in others)
    ]


def _within(value: Any, other: Any) -> bool:
    if isinstance(value, dict) and isinstance(other, dict):
        return all(key in other and _within(inner, other[key]) for key, inner in value.items())
    return bool(value == other)


def _as_dialogue(record: Record) -> Dialogue | None:
    if isinstance(record, Task):
        return dialogues(record)[0] if len(record.instances) == 1 else None
    return record if isinstance(record, Dialogue) else None


def _compare_dialogue(dialogue: Dialogue, back: Sequence[Record]) -> Loss:
    others = [other for other in map(_as_dialogue, back) if other is not None]
    if len(others) != len(back) or not others:
        return Loss(corrupt="the dialogue reads back as something else")
    other = next((other for other in others if spoken(other.messages) == spoken(dialogue.messages)), None)
    if other is None:
        return Loss(corrupt="the turns read back differently (a marker of the format inside a message?)")
    content: list[str] = []
    labels: list[str] = []
    if other.system != dialogue.system:
        if other.system:
            return Loss(corrupt="the system prompt reads back differently")
        content.append("system prompt")
    for mine, theirs in zip(dialogue.messages, other.messages, strict=True):
        if mine.thoughts != theirs.thoughts:
            if theirs.thoughts:
                return Loss(corrupt="the thoughts read back differently")
            content.append("thoughts")
        if _calls(mine.tool_calls) != _calls(theirs.tool_calls):
            if theirs.tool_calls:
                return Loss(corrupt="the tool calls read back differently")
            content.append("tool calls")
        if any(
            call.id and call.id != other.id for call, other in zip(mine.tool_calls, theirs.tool_calls, strict=False)
        ):
            labels.append("tool call ids")
        if mine.name and mine.name != theirs.name:
            labels.append("tool names")
        if mine.tool_call_id and mine.tool_call_id != theirs.tool_call_id:
            labels.append("tool call ids")
    for key in _missing_extra(dialogue.extra, [other.extra]):
        if key == "tools":
            # MOSS's meta instruction names each tool that may be called.
            named = all(name in other.system for name in _tool_names(dialogue.extra[key]))
            (labels if named else content).append("tool schemas")
        else:
            labels.append(key)
    if dialogue.topic and dialogue.topic != other.topic:
        labels.append("topic")
    if dialogue.id and dialogue.id != other.id:
        labels.append("id")
    return Loss(content=tuple(dict.fromkeys(content)), labels=tuple(dict.fromkeys(labels)))


def _tool_names(schemas: object) -> list[str]:
    """Return what the tools of a list of schemas are called; a list that is none counts as one that nobody names."""
    try:
        return [str(schema.get("function", schema)["name"]) for schema in schemas]  # type: ignore[attr-defined]
    except (TypeError, AttributeError, KeyError):
        return ["\0"]


def _compare_comparison(comparison: Comparison, back: Sequence[Record]) -> Loss:
    asked = prompt_dialogue(comparison.prompt)
    content: list[str] = []
    labels: list[str] = []
    seen: list[Response] = []
    found = [other for other in back if isinstance(other, Comparison)]
    for other in found:
        loss = _compare_dialogue(asked, [prompt_dialogue(other.prompt)])
        if loss.corrupt:
            return Loss(corrupt="the prompt reads back differently")
        content += loss.content
        labels += loss.labels
        seen += other.responses
    for thread in back:
        if isinstance(thread, Dialogue):
            if spoken(thread.messages[:-1]) != spoken(asked.messages):
                return Loss(corrupt="the prompt reads back differently")
            seen.append(Response(thread.messages[-1].content))
        elif isinstance(thread, Task):
            return Loss(corrupt="the comparison reads back as a task")
    mine = {response.content for response in comparison.responses}
    theirs = {response.content for response in seen}
    if theirs - mine:
        return Loss(corrupt="a response reads back differently")
    if mine - theirs:
        content.append(f"{len(mine - theirs)} of {len(mine)} responses")
    if reversed_pair(comparison, found):
        return Loss(corrupt="the preference reads back differently")
    if list(comparison.responses) != seen:
        for label, values in (
            ("scores", {(r.content, r.score) for r in comparison.responses if r.score is not None}),
            ("ranks", {(r.content, r.rank) for r in comparison.responses if r.rank is not None}),
            ("response ids", {(r.content, r.id) for r in comparison.responses if r.id}),
        ):
            attribute = {"scores": "score", "ranks": "rank", "response ids": "id"}[label]
            if not values <= {(r.content, getattr(r, attribute)) for r in seen}:
                labels.append(label)
    labels += _missing_extra(comparison.extra, [other.extra for other in found])
    if comparison.id and not any(other.id == comparison.id for other in back):
        labels.append("id")
    return Loss(content=tuple(dict.fromkeys(content)), labels=tuple(dict.fromkeys(labels)))


def reversed_pair(comparison: Comparison, others: Sequence[Comparison]) -> bool:
    """Tell whether one of the others prefers a response over one that `comparison` strictly prefers."""
    level = {response.content: index for index, tier in enumerate(tiers(comparison)) for response in tier}
    for other in others:
        order = [level[r.content] for tier in tiers(other) for r in tier if r.content in level]
        if order != sorted(order) and len(level) == len(comparison.responses):
            return True
    return False

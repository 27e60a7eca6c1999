"""The format: JSON lines of question and answer."""

from __future__ import annotations

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, fields, strings, text
from selfinstruct.values import Instance, Record, Task


def decode(row: Row) -> list[Record]:
    """Read one row.

    Raises:
        InputError: a key is missing, or its value is no string.
    """
    row = fields(row)
    return [Task(text(row, "question"), (Instance("", text(row, "answer")),))]


def encode(task: Task) -> list[Row]:
    """Write one row per instance.

    Raises:
        InputError: there is no answer, or an input, for which the format has no place.
    """
    if not task.instances:
        raise InputError("the task has no answer")
    if any(instance.input for instance in task.instances):
        raise InputError("the format has no place for an input")
    return [{"question": task.instruction, "answer": instance.output} for instance in task.instances]


QUESTION_ANSWER = Format(
    name="question-answer",
    summary="JSON lines of question and answer",
    source="the example plugin",
    layout="jsonl",
    kinds=frozenset({Task}),
    keys=("question", "answer"),
    decode=decode,
    encode=encode,
    matches=lambda row: int(strings(row, "question", "answer")),
    example=Task("How many are 2 apples and 3 apples?", (Instance("", "They are 5."),)),
)

"""pCLUE (CLUEbenchmark/pCLUE): prompts over nine Chinese tasks, as JSON lines."""

from __future__ import annotations

from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats import alpaca
from selfinstruct.formats.format import Format, Row, fields, kind, rest, strings, text
from selfinstruct.formats.shape import user_text
from selfinstruct.values import Instance, Record, Task

TYPES = {"classify": True, "nli": True, "anaphora_resolution": True, "mrc": False, "generate": False}
"""Task type -> is it a classification."""


def _decode(row: Row) -> list[Record]:
    row = fields(row)
    # The evaluator takes a list of answers as well as one.
    target = row.get("target")
    answers = target if isinstance(target, list) and target else [text(row, "target")]
    if not all(isinstance(answer, str) for answer in answers):
        raise InputError('"target" must be a string or an array of strings')
    # 50 rows of train_9 have no answer_choices and two have a string: kept as they are, never read as a list.
    choices = row.get("answer_choices")
    if choices is not None and not isinstance(choices, str | list):
        raise InputError(f'"answer_choices" must be an array or a string, found {kind(choices)}')
    is_classification = TYPES.get(text(row, "type", ""))
    instances = tuple(Instance("", answer) for answer in answers)
    extra = rest(row, "type", "answer_choices")
    return [Task(text(row, "input"), instances, is_classification, extra=extra)]


def _encode(task: Task) -> list[Row]:
    extra = rest(task.extra, "type", "answer_choices")
    if "type" not in extra and task.is_classification is not None:
        extra["type"] = "classify" if task.is_classification else "generate"
    instances = alpaca.answered(task)
    rows: list[dict[str, Any]] = []
    for given in dict.fromkeys(instance.input for instance in instances):
        answers = [instance.output for instance in instances if instance.input == given]
        target = answers[0] if len(answers) == 1 else answers
        rows.append({"input": user_text(task.instruction, given), "target": target} | extra)
    return rows


def off_list(task: Task) -> bool:
    """Tell whether an answer is not among the listed choices (32 rows of train_9)."""
    choices = task.extra.get("answer_choices")
    return isinstance(choices, list) and bool(choices) and any(i.output not in choices for i in task.instances)


FORMATS = (
    Format(
        name="pclue",
        summary="pCLUE: JSONL of input, target (string or list), type, answer_choices",
        source="CLUEbenchmark/pCLUE README and evaluate_pclue.py",
        layout="jsonl",
        kinds=frozenset({Task}),
        keys=("input", "target", "type", "answer_choices"),
        decode=_decode,
        encode=_encode,
        matches=lambda row: (
            3
            * (
                strings(row, "input", "type")
                and "target" in row
                and row["type"] in TYPES
                and "answer_choice" not in row
            )
        ),
        example=Task(
            "这条新闻属于哪一类：球队赢得了冠军。选项：体育，财经\n答案：",
            (Instance("", "体育"),),
            is_classification=True,
            extra={"type": "classify", "answer_choices": ["体育", "财经"]},
        ),
        works="input and target not empty; a target that is no listed choice is kept, and flagged by verify",
    ),
)

"""Alpaca and the single-turn sets beside it: one row is one instruction with one answer."""

from __future__ import annotations

from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, fields, has, rest, strings, text
from selfinstruct.values import Instance, Record, Task

_TASK = frozenset({Task})


def decode(row: Row) -> list[Record]:
    """Read one Alpaca row; a missing or null `input` is "".

    Raises:
        InputError: `instruction` or `output` is missing, or a value is not a string.
    """
    row = fields(row)
    return [Task(text(row, "instruction"), (Instance(text(row, "input", ""), text(row, "output")),))]


def encode(task: Task) -> list[Row]:
    """Write one row per instance, exactly three string keys (AlpacaDataCleaned's schema).

    Raises:
        InputError: the task has no instance, an empty instruction or an empty output.
    """
    return [
        {"instruction": task.instruction, "input": instance.input, "output": instance.output}
        for instance in answered(task)
    ]


def answered(task: Task) -> tuple[Instance, ...]:
    """Return the instances that every single-turn target asks for: at least one, no empty field.

    Raises:
        InputError: what is missing.
    """
    if not task.instances:
        raise InputError("the task has no instance, so there is no output to write")
    if not task.instruction.strip():
        raise InputError("the instruction is empty")
    if any(not instance.output.strip() for instance in task.instances):
        raise InputError("an output is empty")
    return task.instances


def plain(row: Row) -> int:
    """Score a row of Alpaca's three keys (input may be missing)."""
    return int(strings(row, "instruction", "output") and isinstance(row.get("input", ""), str | None))


def _hugging_face(row: Row) -> int:
    return plain(row) + (has(row, "text") and plain(row))


def _decode_chatdoctor(row: Row) -> list[Record]:
    records = decode(row)
    if not fields(row).get("input"):
        raise InputError('"input" (the patient) must not be empty')
    return records


def _encode_chatdoctor(task: Task) -> list[Row]:
    if any(not instance.input.strip() for instance in task.instances):
        raise InputError("ChatDoctor's input (the patient) must not be empty")
    return encode(task)


def _decode_dolly(row: Row) -> list[Record]:
    row = fields(row)
    instance = Instance(text(row, "context", ""), text(row, "response"))
    return [Task(text(row, "instruction"), (instance,), extra=rest(row, "category"))]


def _encode_dolly(task: Task) -> list[Row]:
    # Their loader has four columns, so the category is there even when nobody knows it.
    category = str(task.extra.get("category", ""))
    return [
        {
            "instruction": task.instruction,
            "context": instance.input,
            "response": instance.output,
            "category": category,
        }
        for instance in answered(task)
    ]


def _decode_gpteacher(row: Row) -> list[Record]:
    row = fields(row)
    return [Task(text(row, "instruction"), (Instance(text(row, "input", ""), text(row, "response")),))]


def _encode_gpteacher(task: Task) -> list[Row]:
    return [
        {"instruction": task.instruction, "input": instance.input, "response": instance.output}
        for instance in answered(task)
    ]


_ALPACA_KEYS = ("instruction", "input", "output")
_CREPES = Task("Name the primary colours.", (Instance("", "Red, yellow and blue."),))
_RULES = "exactly three string keys; instruction and output not empty"


def _like_alpaca(**changes: Any) -> Format:
    base: dict[str, Any] = {
        "layout": "json",
        "kinds": _TASK,
        "keys": _ALPACA_KEYS,
        "decode": decode,
        "encode": encode,
        "matches": plain,
        "example": _CREPES,
        "works": _RULES,
        "indent": 4,
    }
    return Format(**(base | changes))


FORMATS = (
    _like_alpaca(
        name="alpaca",
        summary="Stanford Alpaca: array of instruction, input, output",
        source="tatsu-lab/stanford_alpaca alpaca_data.json; gururise/AlpacaDataCleaned schema.json",
        matches=_hugging_face,
    ),
    _like_alpaca(
        name="alpaca-jsonl",
        summary="Alpaca's three keys, one object per line",
        source="KoAlpaca, Chinese-Vicuna instruct sample",
        layout="jsonl",
    ),
    _like_alpaca(
        name="cot",
        summary="Alpaca-CoT: Alpaca's array; the rationale stays in output, literal backslash-n is kept (see cleaning)",
        source="PhoebusSi/Alpaca-CoT",
        example=Task("Is the sky blue at night?", (Instance("", "Little light scatters. So the answer is no."),)),
    ),
    _like_alpaca(
        name="chatdoctor",
        summary="ChatDoctor: Alpaca's array, a constant instruction, the patient in input, the doctor in output",
        source="Kent0n-Li/ChatDoctor chatdoctor5k.json",
        decode=_decode_chatdoctor,
        encode=_encode_chatdoctor,
        matches=lambda row: int(plain(row) and bool(row.get("input"))),
        example=Task(
            "Answer the patient as a doctor would.",
            (Instance("I have had a cough for a week.", "Drink enough and see a doctor if it lasts."),),
        ),
        works=_RULES + "; input not empty",
    ),
    _like_alpaca(
        name="dolly",
        summary="Dolly 15k: JSONL of instruction, context, response, category",
        source="databrickslabs/dolly; card of databricks-dolly-15k",
        layout="jsonl",
        keys=("instruction", "context", "response", "category"),
        decode=_decode_dolly,
        encode=_encode_dolly,
        matches=lambda row: 3 * (strings(row, "instruction", "response") and has(row, "context", "category")),
        example=Task(
            "When was the bridge opened?",
            (Instance("The bridge was opened in 1932.", "In 1932."),),
            extra={"category": "closed_qa"},
        ),
        works='four string keys; context "" and never null; instruction and response not empty',
    ),
    _like_alpaca(
        name="gpteacher",
        summary="GPTeacher (Axolotl type gpteacher): instruction, input, response",
        source="axolotl docs/dataset-formats/inst_tune",
        keys=("instruction", "input", "response"),
        decode=_decode_gpteacher,
        encode=_encode_gpteacher,
        matches=lambda row: 2 * (strings(row, "instruction", "response") and not has(row, "context")),
        works="three string keys; instruction and response not empty",
    ),
)

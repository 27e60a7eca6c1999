"""LLaMA-Factory's files and the dataset_info.json that makes it load all of them.

Source: hiyouga/LLaMA-Factory data/README.md, src/llamafactory/data/{parser,converter,formatter}.py. Its
two traps are why every column and tag is written out: an entry that lists some leaves the others unread,
and a row that breaks a rule is emptied and dropped with a warning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfinstruct.errors import InputError
from selfinstruct.formats import alpaca
from selfinstruct.formats.format import Format, Row, boolean, fields, has, items, kind, strings, text
from selfinstruct.formats.messages import argument_text, arguments, tool_schemas
from selfinstruct.formats.preferences import labelled
from selfinstruct.formats.shape import pairs, plain_prompt, prompt_dialogue, rated, said, two, user_text
from selfinstruct.formats.sharegpt import TURN_KEYS
from selfinstruct.formats.turns import alternating, checked
from selfinstruct.values import Comparison, Dialogue, Message, Record, Response, Task, ToolCall

_THOUGHTS = re.compile(r"<think>\n(?P<thoughts>.+?)\n</think>\n\n(?P<rest>.*)", re.DOTALL)
_ENDINGS = (".json", ".jsonl", ".parquet")
_NEXT_RESULT = "\n</tool_response>\n<tool_response>\n"
"""Between the results of parallel calls in one observation (converter.py OpenAIDatasetConverter)."""
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


def _info(entry: Mapping[str, Any]) -> Any:
    def beside(path: Path) -> Mapping[str, str]:
        if path.suffix not in _ENDINGS:
            raise InputError(f"{path}: LLaMA-Factory loads files named {', '.join(_ENDINGS)} only")
        listed = path.parent / "dataset_info.json"
        if path.name == listed.name:
            raise InputError(f"{path}: LLaMA-Factory keeps its list of data sets there; name another file")
        known: dict[str, Any] = {}
        if listed.exists():
            try:
                known = json.loads(listed.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(f"{listed}: can't add the new file to it: {error}") from None
            if not isinstance(known, dict):
                raise InputError(f"{listed}: must be a JSON object, found {kind(known)}")
        # A data set's name is the file's, so that one file is one entry however often it is written.
        known[path.name.split(".")[0]] = {"file_name": path.name, **entry}
        return {listed.name: json.dumps(known, ensure_ascii=False, indent=2) + "\n"}

    return beside


# --- alpaca columns, with system and history


def _decode_alpaca(row: Row) -> list[Record]:
    row = fields(row)
    if not row.get("history") and not text(row, "system", ""):
        return alpaca.decode(row)
    prompt = _asked_alpaca(row)
    return [replace(prompt, messages=(*prompt.messages, Message("assistant", text(row, "output"))))]


def _asked_alpaca(row: Mapping[str, Any]) -> Dialogue:
    """Read what a row of alpaca columns asks: system, history, and the question."""
    messages: list[Message] = []
    for pair in items(row, "history") if row.get("history") else []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(turn, str) for turn in pair):
            raise InputError('"history" must hold pairs of strings: what the user said, what was answered')
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    question = user_text(text(row, "instruction"), text(row, "input", ""))
    return Dialogue((*messages, Message("user", question)), text(row, "system", ""))


def _in_alpaca_columns(row: Mapping[str, Any]) -> bool:
    return "instruction" in row and "conversations" not in row


def _encode_alpaca(record: Task | Dialogue) -> list[Row]:
    if isinstance(record, Task):
        return [row | {"system": "", "history": []} for row in alpaca.encode(record)]
    messages = alternating(record)
    said = [message.content for message in messages]
    history = [[said[index], said[index + 1]] for index in range(0, len(said) - 2, 2)]
    row = {"instruction": said[-2], "input": "", "output": said[-1], "system": record.system, "history": history}
    return [row]


# --- sharegpt turns, with tools


def _turn_rows(messages: Sequence[Message]) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for number, message in enumerate(messages, 1):
        if message.role == "user":
            rows.append({"from": "human", "value": message.content})
        elif message.role == "tool":
            if rows and rows[-1]["from"] == "observation":
                rows[-1]["value"] += _NEXT_RESULT + message.content
            else:
                rows.append({"from": "observation", "value": message.content})
        elif message.tool_calls:
            if message.content.strip():
                raise InputError(f"message {number}: a function_call turn can't hold text beside the call")
            calls = [{"name": call.name, "arguments": arguments(call)} for call in message.tool_calls]
            value = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
            rows.append({"from": "function_call", "value": _thinking(message) + value})
        else:
            rows.append({"from": "gpt", "value": _thinking(message) + message.content})
    return rows


def _thinking(message: Message) -> str:
    return f"<think>\n{message.thoughts}\n</think>\n\n" if message.thoughts else ""


def _read_turns(rows: Sequence[Any]) -> tuple[str, tuple[Message, ...]]:
    system = ""
    messages: list[Message] = []
    for number, row in enumerate(map(fields, rows), 1):
        name, value = text(row, "from"), text(row, "value")
        thoughts = ""
        if name in ("gpt", "function_call") and (thinking := _THOUGHTS.fullmatch(value)):
            thoughts, value = thinking["thoughts"], thinking["rest"]
        if name == "system" and number == 1:
            system = value
        elif name == "human":
            messages.append(Message("user", value))
        elif name == "observation":
            messages += _read_results(messages[-1].tool_calls if messages else (), value)
        elif name == "gpt":
            messages.append(Message("assistant", value, thoughts))
        elif name == "function_call":
            messages.append(Message("assistant", "", thoughts, _read_calls(value, number)))
        else:
            raise InputError(f'turn {number}: "from" must be human, gpt, function_call or observation, found "{name}"')
    return system, tuple(messages)


def _read_results(calls: Sequence[ToolCall], value: str) -> list[Message]:
    """Read an observation as one message for each call, named after its tool; as one when the numbers differ."""
    results = value.split(_NEXT_RESULT)
    if len(results) == len(calls):
        return [Message("tool", result, name=call.name) for call, result in zip(calls, results, strict=True)]
    return [Message("tool", value, name=calls[0].name if len(calls) == 1 else "")]


def _read_calls(value: str, number: int) -> tuple[ToolCall, ...]:
    try:
        calls = json.loads(value)
    except (ValueError, RecursionError):
        raise InputError(f"turn {number}: the value of a function_call must be JSON") from None
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        call = fields(call)
        found.append(ToolCall(text(call, "name"), argument_text(call.get("arguments"))))
    if not found:
        raise InputError(f"turn {number}: a function_call without a call")
    return tuple(found)


def _head(row: Mapping[str, Any]) -> tuple[str, tuple[Message, ...], dict[str, Any]]:
    system, messages = _read_turns(items(row, "conversations"))
    schemas = tool_schemas(row.get("tools"))
    return system or text(row, "system", ""), messages, {"tools": schemas} if schemas else {}


def _tail(dialogue: Dialogue) -> dict[str, str]:
    schemas = tool_schemas(dialogue.extra.get("tools"))
    return {"system": dialogue.system, "tools": json.dumps(schemas, ensure_ascii=False) if schemas else ""}


def _decode_sharegpt(row: Row) -> list[Record]:
    system, messages, extra = _head(fields(row))
    return [Dialogue(messages, system, extra=extra)]


def _encode_sharegpt(dialogue: Dialogue) -> list[Row]:
    return [{"conversations": _turn_rows(checked(dialogue))} | _tail(dialogue)]


def _answer(row: Mapping[str, Any], key: str) -> str:
    turn = fields(row.get(key))
    if text(turn, "from") != "gpt":
        raise InputError(f'"{key}" must be an object from gpt')
    return text(turn, "value")


def _decode_ranking(row: Row) -> list[Record]:
    row = fields(row)
    if _in_alpaca_columns(row):
        return [Comparison(plain_prompt(_asked_alpaca(row)), two(text(row, "chosen"), text(row, "rejected")))]
    system, messages, extra = _head(row)
    responses = two(_answer(row, "chosen"), _answer(row, "rejected"))
    return [Comparison(plain_prompt(Dialogue(messages, system, extra=extra)), responses)]


def _gpt(response: Response) -> dict[str, str]:
    return {"from": "gpt", "value": said(response)}


def _encode_ranking(comparison: Comparison) -> list[Row]:
    prompt = prompt_dialogue(comparison.prompt)
    asked = {"conversations": _turn_rows(checked(prompt, "user"))}
    return [
        asked | {"chosen": _gpt(better), "rejected": _gpt(worse)} | _tail(prompt) for better, worse in pairs(comparison)
    ]


def _decode_kto(row: Row) -> list[Record]:
    row = fields(row)
    if _in_alpaca_columns(row):
        answer = rated(text(row, "output"), boolean(row, "kto_tag"))
        return [Comparison(plain_prompt(_asked_alpaca(row)), (answer,))]
    system, messages, extra = _head(row)
    good = boolean(row, "kto_tag")
    if not messages or messages[-1].role != "assistant" or messages[-1].tool_calls:
        raise InputError("the conversation must end on gpt")
    prompt = plain_prompt(Dialogue(messages[:-1], system, extra=extra))
    return [Comparison(prompt, (rated(messages[-1].content, good),))]


def _encode_kto(comparison: Comparison) -> list[Row]:
    prompt = prompt_dialogue(comparison.prompt)
    asked = _turn_rows(checked(prompt, "user"))
    return [
        {"conversations": [*asked, _gpt(response)], "kto_tag": good} | _tail(prompt)
        for response, good in labelled(comparison)
    ]


def _turns_of(row: Row) -> set[str] | None:
    if not has(row, "conversations") or not isinstance(row["conversations"], list):
        return None
    turns = row["conversations"]
    if not all(has(turn, "from", "value") for turn in turns):
        return None
    names = {turn["from"] for turn in turns if isinstance(turn["from"], str)}
    return names if names <= {"human", "gpt", "function_call", "observation", "system"} else None


def _matches_sharegpt(row: Row) -> int:
    names = _turns_of(row)
    if names is None or any(key in row for key in ("chosen", "rejected", "kto_tag", "id")):
        return 0
    return 4 if "tools" in row or names & {"function_call", "observation"} else 1


_COLUMNS = {"messages": "conversations", "system": "system", "tools": "tools"}
_BETTER = Comparison("Name a planet.", two("Mars.", "The Sun."))
_RULES = (
    "human and observation on odd places, gpt and function_call on even ones, gpt last; no empty turn; "
    "every column there in every row and listed in dataset_info.json"
)

FORMATS = (
    Format(
        name="llama-factory",
        summary="LLaMA-Factory alpaca formatting: instruction, input, output, system, history, and dataset_info.json",
        source="hiyouga/LLaMA-Factory data/README.md, converter.py AlpacaDatasetConverter",
        layout="json",
        kinds=frozenset({Task, Dialogue}),
        keys=("instruction", "input", "output", "system", "history"),
        decode=_decode_alpaca,
        encode=_encode_alpaca,
        matches=lambda row: (
            2 * (alpaca.plain(row) and (has(row, "system") or has(row, "history")) and not has(row, "kto_tag"))
        ),
        example=Dialogue(
            (
                Message("user", "Name a planet."),
                Message("assistant", "Mars."),
                Message("user", "Another?"),
                Message("assistant", "Venus."),
            ),
            system="Be brief.",
        ),
        works="input always there; "
        + "user first, assistant last, strictly in turn (answers in history are learned too)",
        beside=_info(
            {
                "columns": {
                    "prompt": "instruction",
                    "query": "input",
                    "response": "output",
                    "system": "system",
                    "history": "history",
                }
            }
        ),
    ),
    Format(
        name="llama-factory-sharegpt",
        summary="LLaMA-Factory sharegpt formatting: conversations with function_call and observation, system, tools",
        source="hiyouga/LLaMA-Factory data/README.md, converter.py SharegptDatasetConverter",
        layout="json",
        kinds=frozenset({Dialogue}),
        keys=(*TURN_KEYS, "system", "tools"),
        decode=_decode_sharegpt,
        encode=_encode_sharegpt,
        matches=_matches_sharegpt,
        example=Dialogue(
            (
                Message("user", "How warm is it in Oslo?"),
                Message("assistant", "", "I need the weather.", (ToolCall("weather", '{"city": "Oslo"}'),)),
                Message("tool", '{"celsius": 4}', name="weather"),
                Message("assistant", "It is 4 degrees Celsius."),
            ),
            extra={
                "tools": [
                    {"name": "weather", "description": "Temperature of a city.", "parameters": {"properties": {}}}
                ]
            },
        ),
        works=_RULES,
        beside=_info({"formatting": "sharegpt", "columns": _COLUMNS, "tags": _TAGS}),
    ),
    Format(
        name="llama-factory-ranking",
        summary="LLaMA-Factory sharegpt preference: conversations ending on human, chosen and rejected objects "
        "(alpaca columns with chosen and rejected are read too)",
        source="hiyouga/LLaMA-Factory data/README.md, converter.py SharegptDatasetConverter (ranking)",
        layout="json",
        kinds=frozenset({Comparison}),
        keys=(
            *TURN_KEYS,
            *("chosen", "chosen.from", "chosen.value", "rejected", "rejected.from", "rejected.value"),
            *("system", "tools"),
            *("instruction", "input", "history"),
        ),
        decode=_decode_ranking,
        encode=_encode_ranking,
        matches=lambda row: (
            4
            * (
                strings(row, "instruction", "chosen", "rejected")
                or (_turns_of(row) is not None and has(row, "chosen", "rejected"))
            )
        ),
        example=_BETTER,
        works="an odd number of turns, chosen strictly better; train with stage rm or dpo, never sft",
        beside=_info(
            {
                "formatting": "sharegpt",
                "ranking": True,
                "columns": {**_COLUMNS, "chosen": "chosen", "rejected": "rejected"},
                "tags": _TAGS,
            }
        ),
    ),
    Format(
        name="llama-factory-kto",
        summary="LLaMA-Factory KTO: conversations ending on gpt, kto_tag (alpaca columns with kto_tag are read too)",
        source="hiyouga/LLaMA-Factory data/README.md, converter.py SharegptDatasetConverter (kto)",
        layout="json",
        kinds=frozenset({Comparison}),
        keys=(*TURN_KEYS, "kto_tag", "system", "tools", "instruction", "input", "output", "history"),
        decode=_decode_kto,
        encode=_encode_kto,
        matches=lambda row: (
            4
            * (
                (_turns_of(row) is not None or strings(row, "instruction", "output"))
                and isinstance(row.get("kto_tag"), bool)
            )
        ),
        example=Comparison("Name a planet.", (Response("Mars.", score=1.0),)),
        works=_RULES + "; kto_tag a boolean",
        beside=_info(
            {"formatting": "sharegpt", "columns": {**_COLUMNS, "kto_tag": "kto_tag"}, "tags": _TAGS},
        ),
    ),
)

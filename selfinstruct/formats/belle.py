"""BELLE's releases (LianjiaTech/BELLE, cards of BelleGroup/*): JSONL, whatever the file is called."""

from __future__ import annotations

import re

from selfinstruct.errors import InputError
from selfinstruct.formats import alpaca
from selfinstruct.formats.format import Format, Row, fields, has, identity, strings, text
from selfinstruct.formats.shape import pairs, two, user_text
from selfinstruct.formats.sharegpt import TURN_KEYS, content_id, conversation, turn_rows
from selfinstruct.formats.turns import alternating, turns
from selfinstruct.values import Comparison, Dialogue, Instance, Message, Record, Task

_TURN = re.compile(r"(?:\A|\n)(Human|Assistant)[:：]")


def _decode(row: Row) -> list[Record]:
    row = fields(row)
    if "instruction" not in row and "target" in row:
        return _decode_first(row)
    return alpaca.decode(row)


def _encode(task: Task) -> list[Row]:
    return [
        {"instruction": user_text(task.instruction, instance.input), "input": "", "output": instance.output}
        for instance in alpaca.answered(task)
    ]


def _matches(row: Row) -> int:
    if strings(row, "input", "target") and "instruction" not in row:
        return 1
    return int(alpaca.plain(row) and not row.get("input"))


def _decode_first(row: Row) -> list[Record]:
    row = fields(row)
    # Renaming target to output broke InstructGLM (#16): both are read.
    answer = text(row, "target") if "target" in row else text(row, "output")
    return [Task(text(row, "input"), (Instance("", answer),))]


def _encode_first(task: Task) -> list[Row]:
    return [
        {"input": user_text(task.instruction, instance.input), "target": instance.output}
        for instance in alpaca.answered(task)
    ]


def _decode_multiturn(row: Row) -> list[Record]:
    row = fields(row)
    messages = turns(text(row, "instruction"), _TURN, ("Human",))
    if messages is None or messages[-1].role != "assistant" or messages[-1].content.strip():
        raise InputError('"instruction" must start with "Human:" and end with an open "Assistant:"')
    messages[-1] = Message("assistant", text(row, "output"))
    return [Dialogue(tuple(messages))]


def _encode_multiturn(dialogue: Dialogue) -> list[Row]:
    messages = alternating(dialogue)
    names = {"user": "Human", "assistant": "Assistant"}
    history = "".join(f"{names[message.role]}:{message.content}\n" for message in messages[:-1])
    return [{"instruction": history + "Assistant:", "input": "", "output": messages[-1].content}]


def _matches_multiturn(row: Row) -> int:
    if not alpaca.plain(row) or row.get("input"):
        return 0
    instruction = row["instruction"]
    return 3 * bool(_TURN.match(instruction) and instruction.rstrip().endswith(("Assistant:", "Assistant：")))


def _decode_conversations(row: Row) -> list[Record]:
    row = fields(row)
    return [Dialogue(conversation(row, {"human": "user", "assistant": "assistant"}), id=identity(row, "id"))]


def _encode_conversations(dialogue: Dialogue) -> list[Row]:
    turns = turn_rows(alternating(dialogue), {"user": "human", "assistant": "assistant"})
    return [{"id": dialogue.id or content_id(turns), "conversations": turns}]


def _matches_conversations(row: Row) -> int:
    if not has(row, "conversations") or not isinstance(row["conversations"], list):
        return 0
    roles = {str(turn.get("from")) for turn in row["conversations"] if isinstance(turn, dict)}
    return 4 * ("assistant" in roles and roles <= {"human", "assistant"})


def _decode_reward(row: Row) -> list[Record]:
    row = fields(row)
    return [Comparison(text(row, "prompt", ""), two(text(row, "chosen"), text(row, "rejected")))]


def _encode_reward(comparison: Comparison) -> list[Row]:
    if not isinstance(comparison.prompt, str):
        raise InputError("BELLE's reward data holds a plain prompt, not a dialogue")
    prompt = {"prompt": comparison.prompt} if comparison.prompt else {}
    return [prompt | {"chosen": better.content, "rejected": worse.content} for better, worse in pairs(comparison)]


_TASK = Task("把下面的句子翻译成英文。\n今天天气很好。", (Instance("", "The weather is nice today."),))

FORMATS = (
    Format(
        name="belle",
        summary="BELLE 0.5M to 2M, school_math, generated_chat: the input appended to instruction, input empty, output",
        source="cards of BelleGroup/train_1M_CN and generated_chat_0.4M; LianjiaTech/BELLE data/1.5M",
        layout="jsonl",
        kinds=frozenset({Task}),
        keys=("instruction", "input", "output", "target"),
        decode=_decode,
        encode=_encode,
        matches=_matches,
        example=_TASK,
        works='input ""; instruction and output not empty',
    ),
    Format(
        name="belle-0.5m",
        summary="BELLE's first 0.5M release: input (instruction, newline, input) and target",
        source="card of BelleGroup/train_0.5M_CN; InstructGLM #16 on the renamed key",
        layout="jsonl",
        kinds=frozenset({Task}),
        keys=("input", "target", "output"),
        decode=_decode_first,
        encode=_encode_first,
        matches=lambda row: int(strings(row, "input", "target") and "instruction" not in row and "type" not in row),
        example=_TASK,
        works="input and target not empty",
    ),
    Format(
        name="belle-multiturn",
        summary="BELLE multiturn_chat 0.8M: Human:/Assistant: history in instruction, ending with an open Assistant:",
        source="card of BelleGroup/multiturn_chat_0.8M",
        layout="jsonl",
        kinds=frozenset({Dialogue}),
        keys=("instruction", "input", "output"),
        decode=_decode_multiturn,
        encode=_encode_multiturn,
        matches=_matches_multiturn,
        example=Dialogue(
            (
                Message("user", "推荐一本书。"),
                Message("assistant", "可以读《西游记》。"),
                Message("user", "为什么？"),
                Message("assistant", "故事有趣，想象丰富。"),
            )
        ),
        works="user first, assistant last, strictly in turn, no empty turn, no label inside a turn",
    ),
    Format(
        name="belle-3.5m",
        summary="BELLE train_3.5M: id and conversations with from human or assistant (not gpt)",
        source="card of BelleGroup/train_3.5M_CN",
        layout="jsonl",
        kinds=frozenset({Dialogue}),
        keys=("id", *TURN_KEYS),
        decode=_decode_conversations,
        encode=_encode_conversations,
        matches=_matches_conversations,
        example=Dialogue((Message("user", "你好"), Message("assistant", "你好！")), id="66182880"),
        works="unique ids (made of content when missing, numbered when there before); user first, assistant last, "
        "strictly in turn, no empty turn",
        unique="id",
    ),
    Format(
        name="belle-reward",
        summary="BELLE reward data: chosen and rejected strings (and prompt when there is one)",
        source="LianjiaTech/BELLE reward data",
        layout="jsonl",
        kinds=frozenset({Comparison}),
        keys=("prompt", "chosen", "rejected"),
        decode=_decode_reward,
        encode=_encode_reward,
        # What was asked may be under a key that is not read here: then the row is not BELLE's.
        matches=lambda row: 2 * (strings(row, "chosen", "rejected") and set(row) <= {"prompt", "chosen", "rejected"}),
        example=Comparison("写一句问候。", two("您好，很高兴见到您。", "喂")),
        works="one response strictly better than the other",
    ),
)

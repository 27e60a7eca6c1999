"""Dialogues written inside one string, with a label before each turn: Guanaco, HuaTuo, BianQue, Baize."""

from __future__ import annotations

import re

from selfinstruct.errors import InputError
from selfinstruct.formats import alpaca
from selfinstruct.formats.format import Format, Row, fields, identity, rest, strings, text
from selfinstruct.formats.turns import alternating, turns
from selfinstruct.values import Dialogue, Instance, Message, Record, Task

# --- Guanaco (JosephusCheung/GuanacoDataset): history in instruction, last user turn in input

_GUANACO = re.compile(r"(?:\A|\n)(User|Assistant): ?")
_GUANACO_INPUT = re.compile(r"\A(?:System: ?(?P<system>.*?)\n)?User: ?(?P<user>.*)\Z", re.DOTALL)


def _decode_guanaco(row: Row) -> list[Record]:
    row = fields(row)
    asked = _GUANACO_INPUT.match(text(row, "input", ""))
    if asked is None:
        return alpaca.decode(row)
    instruction = text(row, "instruction", "")
    history = turns(instruction, _GUANACO, ("User",)) if instruction else []
    if history is None:
        return alpaca.decode(row)
    messages = (*history, Message("user", asked["user"]), Message("assistant", text(row, "output")))
    return [Dialogue(messages, system=asked["system"] or "")]


def _encode_guanaco(record: Task | Dialogue) -> list[Row]:
    if isinstance(record, Task):
        return alpaca.encode(record)
    messages = alternating(record)
    names = {"user": "User", "assistant": "Assistant"}
    history = "\n".join(f"{names[message.role]}: {message.content}" for message in messages[:-2])
    system = f"System: {record.system}\n" if record.system else ""
    return [{"instruction": history, "input": f"{system}User: {messages[-2].content}", "output": messages[-1].content}]


def _matches_guanaco(row: Row) -> int:
    if not alpaca.plain(row):
        return 0
    return 2 if _GUANACO_INPUT.match(row.get("input") or "") else 1


# --- HuaTuo (SCIR-HI/Huatuo-Llama-Med-Chinese): " <user>: ... <bot>: ..." packed in instruction

_HUATUO = re.compile(r"(?:\A\s*|\s)<(user|bot)>: ?")


def _decode_huatuo(row: Row) -> list[Record]:
    row = fields(row)
    packed = turns(text(row, "instruction"), _HUATUO, ("user",))
    if packed is None:
        return alpaca.decode(row)
    if packed[-1].role == "assistant" and not packed[-1].content.strip():
        packed.pop()
    return [Dialogue((*packed, Message("assistant", text(row, "output"))), id=identity(row, "id"))]


def _encode_huatuo(record: Task | Dialogue) -> list[Row]:
    if isinstance(record, Task):
        if any(instance.input for instance in record.instances):
            raise InputError('HuaTuo\'s input is always "": this task has an input of its own')
        return alpaca.encode(record)
    messages = alternating(record)
    names = {"user": "user", "assistant": "bot"}
    packed = "".join(f" <{names[message.role]}>: {message.content}" for message in messages[:-1])
    row = {"instruction": packed, "input": "", "output": messages[-1].content}
    return [row | ({"id": record.id} if record.id else {})]


def _matches_huatuo(row: Row) -> int:
    if not alpaca.plain(row) or row.get("input"):
        return 0
    return 3 if _HUATUO.match(row["instruction"]) else 1


# --- BianQue (scutcyr/BianQue): turns joined by a literal backslash-n, in CSV

_BIANQUE = re.compile(r"(?:\A|\\n)(病人|医生)[：:]")


def _decode_bianque(row: Row) -> list[Record]:
    row = fields(row)
    messages = turns(text(row, "input"), _BIANQUE, ("病人",))
    if messages is None:
        raise InputError('"input" must start with 病人： or 医生：')
    if messages[-1].role == "assistant" and not messages[-1].content.strip():
        messages.pop()
    messages.append(Message("assistant", text(row, "target")))
    return [Dialogue(tuple(messages), extra=rest(row, "answer_choice", "answer_choices", "type"))]


def _encode_bianque(dialogue: Dialogue) -> list[Row]:
    names = {"user": "病人", "assistant": "医生"}
    messages = alternating(dialogue)
    packed = r"\n".join(f"{names[message.role]}：{message.content}" for message in messages[:-1])
    extra = {"answer_choice": "[]", "type": "medical_qa"} | rest(dialogue.extra, "answer_choice", "type")
    return [{"input": packed + r"\n医生：", "target": messages[-1].content} | extra]


# --- Baize (project-baize/baize-chatbot preprocess.py): two markers in one string, a dangling last one

BAIZE_OPENING = "The conversation between human and AI assistant.\n"
_BAIZE = re.compile(r"(?:\A|\n)\[\|(Human|AI)\|\] ")


def _decode_baize(row: Row) -> list[Record]:
    row = fields(row)
    transcript = text(row, "input")
    opening, found, body = transcript.partition("[|Human|]")
    if not found or (opening and not opening.endswith("\n")):
        raise InputError('"input" holds no line starting with the marker [|Human|]')
    messages = turns(found + body, _BAIZE, ("Human",))
    if messages is None:
        raise InputError('"input" must have a space after each marker')
    dangling = messages[-1].role == "user" and not messages[-1].content
    extra: dict[str, object] = {} if opening == BAIZE_OPENING else {"opening": opening}
    if dangling:
        messages.pop()
    else:
        extra["closed"] = True
    return [Dialogue(tuple(messages), topic=text(row, "topic", ""), extra=extra)]


def _encode_baize(dialogue: Dialogue) -> list[Row]:
    messages = alternating(dialogue)
    names = {"user": "Human", "assistant": "AI"}
    body = "\n".join(f"[|{names[message.role]}|] {message.content}" for message in messages)
    # The dangling marker is the stop cue that a Baize model learns; #57 took it for a bug.
    tail = "" if dialogue.extra.get("closed") else "\n[|Human|] "
    return [{"topic": dialogue.topic, "input": f"{dialogue.extra.get('opening', BAIZE_OPENING)}{body}{tail}"}]


_CHAT = Dialogue(
    (
        Message("user", "What is a prime number?"),
        Message("assistant", "A whole number above one with no divisor but one and itself."),
        Message("user", "Is two prime?"),
        Message("assistant", "Yes, and it is the only even one."),
    )
)
_RULES = "user first, assistant last, strictly in turn, no empty turn; no marker of the format inside a turn"
_BOTH: frozenset[type[Record]] = frozenset({Task, Dialogue})

FORMATS = (
    Format(
        name="guanaco",
        summary="Guanaco: Alpaca's keys; earlier turns in instruction, the last user turn in input",
        source="card of JosephusCheung/GuanacoDataset",
        layout="json",
        kinds=_BOTH,
        keys=("instruction", "input", "output"),
        decode=_decode_guanaco,
        encode=_encode_guanaco,
        matches=_matches_guanaco,
        example=_CHAT,
        works=_RULES,
    ),
    Format(
        name="huatuo",
        summary="HuaTuo: JSONL of Alpaca's keys, input always empty; dialogues packed with <user>: and <bot>:",
        source="SCIR-HI/Huatuo-Llama-Med-Chinese data/llama_data.json, liver_cancer.json",
        layout="jsonl",
        kinds=_BOTH,
        keys=("instruction", "input", "output", "id"),
        decode=_decode_huatuo,
        encode=_encode_huatuo,
        matches=_matches_huatuo,
        example=Task("肝癌早期有哪些症状？", (Instance("", "早期常无明显症状，可能出现乏力和食欲下降。"),)),
        works="input empty; " + _RULES,
    ),
    Format(
        name="bianque",
        summary="BianQue: CSV of input, target, answer_choice, type; turns joined by a literal backslash-n",
        source="scutcyr/BianQue data sample",
        layout="csv",
        kinds=frozenset({Dialogue}),
        keys=("input", "target", "answer_choice", "answer_choices", "type"),
        decode=_decode_bianque,
        encode=_encode_bianque,
        matches=lambda row: 4 * (strings(row, "input", "target") and bool(_BIANQUE.match(row["input"]))),
        example=Dialogue(
            (
                Message("user", "我咳嗽一周了。"),
                Message("assistant", "有发烧吗？"),
                Message("user", "没有。"),
                Message("assistant", "多喝水，若不见好转请就医。"),
            ),
            extra={"answer_choice": "[]", "type": "medical_qa"},
        ),
        works=_RULES,
        uniform=True,
    ),
    Format(
        name="baize",
        summary="Baize: array of topic, input; markers [|Human|] and [|AI|], a dangling [|Human|] at the end",
        source="project-baize/baize-chatbot preprocess.py",
        layout="json",
        kinds=frozenset({Dialogue}),
        keys=("topic", "input"),
        decode=_decode_baize,
        encode=_encode_baize,
        matches=lambda row: 4 * (strings(row, "input") and "[|Human|]" in row["input"] and "output" not in row),
        example=Dialogue(_CHAT.messages, topic="What is a prime number?"),
        works=_RULES + "; byte-exact for their files, trailing marker included",
        indent=None,
        ascii=True,
    ),
)

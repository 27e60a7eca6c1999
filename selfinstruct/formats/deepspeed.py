"""DeepSpeed-Chat: a flat prompt in two files; its loader puts the spaces and the end marker.

Source: DeepSpeedExamples applications/DeepSpeed-Chat, dschat/utils/data/raw_datasets.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfinstruct.errors import InputError
from selfinstruct.formats.format import Format, Row, fields, strings, text
from selfinstruct.formats.shape import pairs, plain_prompt, prompt_dialogue, said, two
from selfinstruct.formats.turns import alternating, turns
from selfinstruct.values import Comparison, Dialogue, Message, Record

_DEEPSPEED = re.compile(r"(?:\A\s*|\n\n| )(Human|Assistant):(?: |\Z)")


def _decode_deepspeed(row: Row) -> list[Record]:
    row = fields(row)
    messages = turns(text(row, "prompt"), _DEEPSPEED, ("Human",))
    if messages is None or messages[-1].role != "assistant" or messages[-1].content:
        raise InputError('"prompt" must start with "Human:" and end with "Assistant:"')
    asked, chosen = tuple(messages[:-1]), text(row, "chosen")
    if row.get("rejected") is None:
        return [Dialogue((*asked, Message("assistant", chosen)))]
    return [Comparison(plain_prompt(Dialogue(asked)), two(chosen, text(row, "rejected")))]


def _flat(messages: Sequence[Message]) -> str:
    # With spaces between, as its comments say; the sets it was made with have blank lines, which are read too.
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"{names[message.role]}: {message.content} " for message in messages) + "Assistant:"


def _encode_deepspeed(record: Dialogue | Comparison) -> list[Row]:
    if isinstance(record, Dialogue):
        messages = alternating(record)
        return [{"prompt": _flat(messages[:-1]), "chosen": messages[-1].content, "rejected": None}]
    asked = _flat(alternating(prompt_dialogue(record.prompt), "user"))
    return [{"prompt": asked, "chosen": said(better), "rejected": said(worse)} for better, worse in pairs(record)]


def _matches_deepspeed(row: Row) -> int:
    if not strings(row, "prompt", "chosen") or "rejected" not in row:
        return 0
    return 4 * bool(_DEEPSPEED.match(row["prompt"]) and row["prompt"].endswith("Assistant:"))


_BETTER = Comparison("Name a planet.", two("Mars.", "The Sun."))

FORMATS = (
    Format(
        name="deepspeed-chat",
        summary="DeepSpeed-Chat local/jsonfile: a folder with train.json and eval.json of prompt, chosen, rejected",
        source="DeepSpeedExamples applications/DeepSpeed-Chat dschat/utils/data/raw_datasets.py",
        layout="json",
        kinds=frozenset({Dialogue, Comparison}),
        keys=("prompt", "chosen", "rejected"),
        decode=_decode_deepspeed,
        encode=_encode_deepspeed,
        matches=_matches_deepspeed,
        example=_BETTER,
        works='prompt from "Human:" to "Assistant:"; rejected null for SFT, text for all rows or none; both files hold '
        "rows (every 20th is for evaluation). Train with --data_split 10,0,0 and a new --data_output_path: its cache "
        "does not notice new content",
        uniform=True,
        directory="train/eval",
    ),
)

# ruff: noqa: T201
"""Write the files that the trainers are run on: a hundred records of each kind, Chinese and English, with tools."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selfinstruct import formats
from selfinstruct.values import Comparison, Dialogue, Instance, Message, Record, Response, Task, ToolCall

COUNT = 100
SCHEMAS = [
    {
        "name": "multiply",
        "description": "Multiply two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
    {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string"}, "exact": {"type": "boolean"}},
            "required": ["word"],
        },
    },
]


def tasks() -> list[Record]:
    """Tasks with and without input, in two languages."""
    return [
        Task(f"把数字{n}写成英文。", (Instance("", f"The number is {n}."),))
        if n % 2
        else Task("Double the number.", (Instance(str(n), f"{2 * n}"),))
        for n in range(COUNT)
    ]


def dialogues() -> list[Record]:
    """Dialogues of one to three turns."""
    found: list[Record] = []
    for n in range(COUNT):
        turns = [(f"What comes after {n + i}?", f"{n + i + 1} comes after it.") for i in range(n % 3 + 1)]
        messages = [m for asked, said in turns for m in (Message("user", asked), Message("assistant", said))]
        found.append(Dialogue(tuple(messages), id=f"d{n}"))
    return found


def tool_dialogues() -> list[Record]:
    """Dialogues in which the assistant thinks, calls one tool or two at once, or none, and answers."""
    found: list[Record] = []
    for n in range(COUNT):
        calls = (
            ToolCall("multiply", json.dumps({"a": n, "b": 7}), f"call_{n}_0"),
            ToolCall("look_up", json.dumps({"word": f"product {n}", "exact": True}), f"call_{n}_1"),
        )[: n % 3]
        said = (json.dumps({"product": 7 * n}), f"The product of {n} and 7.")
        reply = Message("assistant", f"It is {7 * n}.", "" if calls else "No tool is needed.")
        asking = (Message("assistant", "", "A product: I use the tool." if n % 2 else "", calls),) if calls else ()
        results = (Message("tool", text, "", (), c.name, c.id) for text, c in zip(said, calls, strict=False))
        messages = (Message("user", f"What is {n} times 7?"), *asking, *results, reply)
        found.append(Dialogue(messages, "You are careful." if n % 2 else "", extra={"tools": SCHEMAS}))
    return found


def comparisons() -> list[Record]:
    """Comparisons after a question or a dialogue."""
    found: list[Record] = []
    for n in range(COUNT):
        responses = (Response(f"{n + 1}.", rank=0), Response("I would rather not count.", rank=1))
        before = (Message("user", "Can you count?"), Message("assistant", "Yes."), Message("user", f"After {n}?"))
        found.append(Comparison(f"What comes after {n}?" if n % 2 else Dialogue(before), responses))
    return found


def plain_comparisons() -> list[Record]:
    """Comparisons after a question."""
    return [record for record in comparisons() if isinstance(record, Comparison) and isinstance(record.prompt, str)]


def main(folder: Path) -> None:
    """Write everything; a single refused record is a failure."""
    plan: Sequence[tuple[str, str, list[Record]]] = (
        ("messages", "trl/messages.jsonl", dialogues()),
        ("messages", "trl/tools.jsonl", tool_dialogues()),
        ("prompt-completion", "trl/prompt_completion.jsonl", tasks()),
        ("preference", "trl/preference.jsonl", comparisons()),
        ("kto", "trl/kto.jsonl", comparisons()),
        ("messages", "trl/messages.parquet", dialogues()),
        ("messages", "trl/tools.parquet", tool_dialogues()),
        ("preference-text", "trl/preference_text.jsonl", plain_comparisons()),
        ("kto-text", "trl/kto_text.jsonl", plain_comparisons()),
        ("llama-factory", "llama-factory/alpaca.json", tasks() + dialogues()),
        ("llama-factory-sharegpt", "llama-factory/tools.json", tool_dialogues()),
        ("llama-factory-sharegpt", "llama-factory/columns.parquet", tool_dialogues()),
        ("llama-factory-ranking", "llama-factory/ranking.json", comparisons()),
        ("llama-factory-kto", "llama-factory/kto.json", comparisons()),
        ("axolotl", "axolotl/tools.jsonl", tool_dialogues()),
        ("axolotl-dpo", "axolotl/dpo.jsonl", comparisons()),
        ("alpaca", "axolotl/alpaca.json", tasks()),
        ("gpteacher", "axolotl/gpteacher.json", tasks()),
        ("sharegpt", "fastchat/sharegpt.json", dialogues()),
        ("deepspeed-chat", "deepspeed-chat/sft", dialogues()),
        ("deepspeed-chat", "deepspeed-chat/ranking", comparisons()),
    )
    for name, path, records in plan:
        report = formats.write(name, records, folder / path)
        assert report.written == len(records), (name, report.refused[:3])
        assert not report.refused, report.refused
        print(f"{path}: {report.written} records, {report.rows} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Hypothesis strategies of records: anything at all, and what each format promises to hold whole."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from selfinstruct.formats.moss import ARGUMENTS
from selfinstruct.values import Comparison, Dialogue, Instance, Message, Record, Response, Task, ToolCall

# Every format's markers, to be met inside texts.
MARKERS = (
    "Human:",
    "\nHuman: ",
    "\nAssistant:",
    "User: ",
    "\nUser: ",
    "\nAssistant: ",
    "System: x\n",
    "[|Human|] ",
    "\n[|AI|] ",
    "<eoh>",
    "<eoh>\n",
    "<eom>\n",
    "<|Results|>: ",
    " <user>: ",
    " <bot>: ",
    "\\n",
    "\\n医生：",
    "病人：",
    "###",
    "<think>\n",
    "\n</think>\n\n",
    "Output:",
    "Class label:",
    "<|endoftext|>",
    "\u2028",
    "\r",
    "\r\n",
    "\x00",
    '"',
    "\\",
    "]",
    "}",
    ",",
    "None",
    "<noinput>",
    "\ud800",
    "\ufeff",
    "\n\nHuman: ",
)
anything = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(MARKERS)), max_size=4).map("".join)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_extra = st.dictionaries(
    st.sampled_from(["tools", "model", "category", "type", "moss_turns", "oasst", "opening"]), _json
)

any_task = st.builds(
    Task,
    instruction=anything,
    instances=st.lists(st.builds(Instance, anything, anything), max_size=3).map(tuple),
    is_classification=st.none() | st.booleans(),
    id=anything,
    name=anything,
    extra=_extra,
)
_call = st.builds(ToolCall, name=anything, arguments=anything | st.just('{"query": "x"}'), id=anything)
_any_message = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=anything,
    thoughts=anything,
    tool_calls=st.lists(_call, max_size=2).map(tuple),
    name=anything,
    tool_call_id=anything,
)


def _paired(contents: list[str], **more: Any) -> Dialogue:
    roles = ("user", "assistant")
    return Dialogue(tuple(Message(roles[i % 2], text) for i, text in enumerate(contents)), **more)  # type: ignore[arg-type]


any_dialogue = st.one_of(
    st.builds(
        Dialogue, messages=st.lists(_any_message, max_size=5).map(tuple), system=anything, id=anything, extra=_extra
    ),
    st.builds(lambda contents, system: _paired(contents, system=system), st.lists(anything, max_size=4), anything),
)
any_comparison = st.builds(
    Comparison,
    prompt=anything | any_dialogue,
    responses=st.lists(
        st.builds(
            Response,
            content=anything,
            score=st.none() | st.floats(-2, 2),
            rank=st.none() | st.integers(0, 3),
            id=anything,
        ),
        max_size=4,
    ).map(tuple),
    id=anything,
    extra=_extra,
)
any_record: st.SearchStrategy[Record] = st.one_of(any_task, any_dialogue, any_comparison)

# --- texts without a marker: what nobody can object to

plain = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"], exclude_characters="<[\\:：病医#"),
    min_size=1,
    max_size=12,
)
prose = st.lists(plain, min_size=1, max_size=4).map(" ".join) | st.lists(plain, min_size=2, max_size=3).map("\n".join)

tasks = st.builds(lambda i, x, y: Task(i, (Instance(x, y),)), prose, st.just("") | prose, prose)
bare_tasks = st.builds(lambda i, y: Task(i, (Instance("", y),)), prose, prose)


def dialogues(least: int = 1, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Dialogue]:
    pairs = st.lists(st.tuples(prose, prose), min_size=least, max_size=3)
    contents = pairs.map(lambda found: [text for pair in found for text in pair])
    return st.builds(_paired, contents, **more)


prompts = prose | st.builds(
    lambda contents, last, system: _paired([*contents, last], system=system),
    st.lists(st.tuples(prose, prose), min_size=1, max_size=2).map(lambda found: [t for pair in found for t in pair]),
    prose,
    st.just(""),
)
_two = st.lists(prose, min_size=2, max_size=2, unique=True).map(
    lambda c: (Response(c[0], rank=0), Response(c[1], rank=1))
)
preferences = st.builds(Comparison, prompts, _two)
plain_preferences = st.builds(Comparison, prose, _two)
good_or_bad = st.builds(
    lambda p, c, s: Comparison(p, (Response(c, score=s),)), prompts, prose, st.sampled_from([1.0, -1.0])
)
plain_good_or_bad = st.builds(
    lambda p, c, s: Comparison(p, (Response(c, score=s),)), prose, prose, st.sampled_from([1.0, -1.0])
)
_schemas = st.lists(st.builds(lambda name: {"name": name, "parameters": {"properties": {}}}, plain), max_size=2)
_arguments = st.dictionaries(plain, prose | st.integers(), max_size=2).map(lambda v: json.dumps(v, ensure_ascii=False))


def tool_dialogues(ids: bool, most: int = 2) -> st.SearchStrategy[Dialogue]:
    """Dialogues of turns without and with tool calls, each answered by a message of the tool's name.

    `ids`: calls and answers carry ids.
    """

    def turn(asked: str, thoughts: str, calls: list[tuple[str, str, str]], reply: str) -> list[Message]:
        if not calls:
            return [Message("user", asked), Message("assistant", reply, thoughts)]
        numbers = [f"c{i}" if ids else "" for i, _ in enumerate(calls)]
        made = tuple(ToolCall(name, args, id) for id, (name, args, _) in zip(numbers, calls, strict=True))
        results = [
            Message("tool", said, name=name, tool_call_id=id)
            for id, (name, _, said) in zip(numbers, calls, strict=True)
        ]
        return [Message("user", asked), Message("assistant", "", thoughts, made), *results, Message("assistant", reply)]

    calls = st.lists(st.tuples(plain, _arguments, st.just("") | prose), max_size=most)
    turns = st.lists(st.builds(turn, prose, st.just("") | prose, calls, prose), min_size=1, max_size=3)
    return st.builds(
        lambda found, system, tools: Dialogue(
            tuple(message for turn in found for message in turn), system, extra={"tools": tools} if tools else {}
        ),
        turns,
        st.just("") | prose,
        _schemas,
    )


unicode = st.text(st.characters(codec="utf-8"), max_size=12)
"""Any text that is Unicode: quotes, backslashes, line breaks."""


def _moss_turn(asked: str, thoughts: str, calls: list[tuple[str, str, str]], reply: str) -> list[Message]:
    made = tuple(ToolCall(n, json.dumps({ARGUMENTS.get(n, "input"): a}, ensure_ascii=False)) for n, a, _ in calls)
    if not made:
        return [Message("user", asked), Message("assistant", reply, thoughts)]
    results = [Message("tool", said, name=name) for name, _, said in calls]
    return [Message("user", asked), Message("assistant", "", thoughts, made), *results, Message("assistant", reply)]


moss_dialogues = st.builds(
    lambda turns, plugins, id, category: Dialogue(
        tuple(message for turn in turns for message in turn),
        "You are MOSS.\n- Inner thoughts: enabled.\n" if plugins else "You are MOSS.\n",
        id=str(id),
        extra={"category": category} | ({"id_is_number": True} if isinstance(id, int) else {}),
    ),
    st.lists(
        st.builds(
            _moss_turn,
            prose,
            st.just("") | prose,
            st.lists(st.tuples(st.sampled_from([*ARGUMENTS, "Weather"]), unicode, prose), max_size=3),
            prose,
        ),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
    st.integers(0, 9999) | plain,
    plain,
)
_scored = st.lists(
    st.builds(Response, prose, score=st.integers(-1, 9).map(float), id=st.integers(1, 10**9).map(str)),
    min_size=1,
    max_size=4,
    unique_by=lambda response: response.content,
).map(tuple)


HELD: dict[str, st.SearchStrategy[Record]] = {
    "alpaca": tasks,
    "alpaca-jsonl": tasks,
    "cot": tasks,
    "chatdoctor": st.builds(lambda i, x, y: Task(i, (Instance(x, y),)), prose, prose, prose),
    "dolly": st.builds(
        lambda i, x, y, c: Task(i, (Instance(x, y),), extra={"category": c}), prose, prose, prose, plain
    ),
    "gpteacher": tasks,
    "self-instruct": st.builds(
        Task,
        prose,
        st.lists(st.builds(Instance, st.just("") | prose, prose), max_size=3).map(tuple),
        st.none() | st.booleans(),
        st.just("") | plain,
        st.just("") | plain,
    ),
    "self-instruct-instructions": st.builds(lambda i, n: Task(i, extra={"request_idx": n}), prose, st.integers(0, 99)),
    "self-instruct-classification": st.builds(lambda i, c: Task(i, is_classification=c), prose, st.booleans()),
    "self-instruct-raw-instances": st.builds(
        lambda i, found, c: Task(i, tuple(Instance(x, y) for x, y in found), c),
        plain,
        st.lists(st.tuples(st.just("") | plain, plain), min_size=1, max_size=3),
        st.booleans(),
    ),
    "self-instruct-instances": tasks,
    "self-instruct-gpt3": bare_tasks,
    "belle": bare_tasks,
    "belle-0.5m": bare_tasks,
    "belle-multiturn": dialogues(),
    "belle-3.5m": dialogues(id=plain),
    "belle-reward": plain_preferences,
    "guanaco": st.one_of(tasks, dialogues(system=st.just("") | plain)),
    "huatuo": st.one_of(bare_tasks, dialogues(id=st.just("") | plain)),
    "bianque": dialogues(extra=st.just({"answer_choice": "[]", "type": "medical_qa"})),
    "baize": dialogues(topic=prose),
    "sharegpt": dialogues(id=plain, extra=st.just({}) | st.just({"model": "m"})),
    "koala": dialogues(),
    "webgpt": st.builds(
        lambda p, a, b, s, i: Comparison(p, (Response(a, score=s), Response(b, score=-s)), i),
        prose,
        prose,
        prose,
        st.floats(-1, 1),
        plain,
    ),
    "summarize-feedback": st.builds(
        lambda p, found, i: Comparison(p, found, i, {"info": {"from": "post"}}), prose, _two, plain
    ),
    "moss": moss_dialogues,
    "moss-object": moss_dialogues,
    "pclue": st.builds(
        lambda i, ys, kind: Task(
            i, tuple(Instance("", y) for y in ys), kind == "nli", extra={"type": kind, "answer_choices": ys}
        ),
        prose,
        st.lists(prose, min_size=1, max_size=3),
        st.sampled_from(["nli", "mrc"]),
    ),
    "stackllama": st.builds(lambda p, found, i: Comparison(p, found, str(i)), prose, _two, st.integers(0, 10**9)),
    "stackexchange": st.builds(lambda p, found, i: Comparison(p, found, str(i)), prose, _scored, st.integers(0, 10**9)),
    "messages": tool_dialogues(ids=True),
    "axolotl": tool_dialogues(ids=True),
    "parquet": tool_dialogues(ids=True),
    "prompt-completion": bare_tasks,
    "preference": preferences,
    "preference-text": plain_preferences,
    "kto": good_or_bad,
    "kto-text": plain_good_or_bad,
    "axolotl-dpo": preferences,
    "deepspeed-chat": preferences,
    "colossalai": dialogues(system=st.just("") | prose),
    "colossalai-preference": preferences,
    "colossalai-kto": good_or_bad,
    "colossalai-lora": dialogues(system=st.just("") | prose),
    "llama-factory": st.one_of(tasks, dialogues(least=2, system=st.just("") | prose), dialogues(system=prose)),
    "llama-factory-sharegpt": tool_dialogues(ids=False),
    "llama-factory-ranking": preferences,
    "llama-factory-kto": good_or_bad,
}
"""What each format holds whole: written and read back it is equal, with nothing to report."""

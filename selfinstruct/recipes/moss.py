"""MOSS: dialogues whose assistant thinks, calls tools that really run, and answers from what they gave.

A turn is what the person says, the inner thoughts with the commands, the results, and the reply: two completions with
the tools between them (OpenLMLab/MOSS, `SFT_data` and the inference code of its README; how the data was made was never
published). Style `text` writes MOSS's own grammar, `native` uses the tool calling of the endpoint; both come to the
same record. A command that can't be read, or a tool that fails, is tried again and then rejected: in MOSS's own samples
38 of 100 solver turns keep a failed call, and 24 of them state a number all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.languages import LanguagePack
from selfinstruct.markers import voices
from selfinstruct.recipes import Brief, Recipe, Rehearsal, truncated
from selfinstruct.recipes.dialogue import (
    Limits,
    about,
    as_topic,
    candidate,
    fitted,
    is_cut,
    limits_of,
    read_topics,
    read_turn,
    rehearsed,
    render,
    tokens_of,
    topics,
    whole_sentences,
)
from selfinstruct.stages import Draw, Stage
from selfinstruct.tools import Call, Tool, citations, parse_commands, render_command, render_results
from selfinstruct.tools.answers import check_answer
from selfinstruct.tools.rendering import plain, render_items, render_sentence
from selfinstruct.tools.search import passages
from selfinstruct.values import (
    Candidate,
    Comparison,
    Completion,
    Dialogue,
    Message,
    Rejection,
    Request,
    Sampling,
    Task,
    ToolCall,
    ToolResult,
    Usage,
)

QUESTION = Sampling(max_tokens=200, temperature=1.0, top_p=0.95)
THINK = Sampling(max_tokens=400, temperature=0.7, top_p=0.8, stop=("<eoc>",))
"""MOSS's inference decodes at temperature 0.7 and top_p 0.8."""
ANSWER = Sampling(max_tokens=600, temperature=0.7, top_p=0.8, stop=("<eom>",))

CAPABILITIES = (
    "Inner thoughts",
    "Web search",
    "Calculator",
    "Equation solver",
    "Text-to-image",
    "Image edition",
    "Text-to-speech",
)
"""The lines of MOSS's meta instruction, in their order; tools of one's own follow."""

_MARK = r"[*_`]*(?:<\|)?{}(?:\|>)?[*_`]*\s*[:：][*_`]*"
_THOUGHTS = re.compile(_MARK.format(r"(?:Inner[ _])?Thoughts?"), re.IGNORECASE)
_COMMANDS = re.compile(r"^[ \t]*" + _MARK.format("Commands?"), re.IGNORECASE | re.MULTILINE)
_REPLY = re.compile(r"^[ \t]*" + _MARK.format("MOSS"), re.IGNORECASE | re.MULTILINE)
_ENDS = re.compile(r"<eo[htcrm]>")
_LEAK = re.compile(r"<\|(?:Human|Inner Thoughts|Commands|Results|MOSS)\|>|<eo[htcrm]>")


@dataclass(frozen=True, slots=True)
class _Turn:
    """What came of a message of the person: the assistant's messages, or why there are none; `said` is all of it."""

    messages: tuple[Message, ...] = ()
    rejection: Rejection | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class _Scene:
    """What is the same for all draws of a run."""

    brief: Brief
    meta: str
    told: str
    limits: Limits
    question: Sampling
    think: Sampling
    answer: Sampling


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the one stage: a dialogue for each topic, or for each first message of an input."""
    question, think, answer = fitted(brief, QUESTION, 0.1), fitted(brief, THINK, 0.15), fitted(brief, ANSWER, 0.2)
    meta = _meta(brief)
    told = _told(brief, meta)
    scene = _Scene(brief, meta, told, limits_of(brief, answer, told), question, think, answer)

    async def draw(draw: Draw) -> list[Candidate]:
        return [await _dialogue(scene, draw)]

    return (
        Stage(
            "dialogues",
            draw,
            0.6,
            items=topics(brief),
            rounds=brief.rounds,
            filters=DEFAULT_FILTERS["dialogues"],
            novelty=("subject", "whole"),
        ),
    )


def preview(brief: Brief) -> str:
    """Render what the assistant is told."""
    return _told(brief, _meta(brief))


async def _dialogue(scene: _Scene, draw: Draw) -> Candidate:
    brief, limits = scene.brief, scene.limits
    assert draw.item is not None
    topic = as_topic(draw.item, brief.options["field"])
    begun = replace(about(draw.item, topic), system=scene.meta)
    messages: tuple[Message, ...] = ()
    said: list[str] = []
    stop = "max_turns"
    for number in range(draw.rng.randint(limits.min_turns, limits.turns)):
        asked = topic if number == 0 and brief.config.input else await _next_message(scene, draw, topic, messages)
        said.append(asked)
        if not asked or any(message.role == "user" and message.content == asked for message in messages):
            stop = "repeated_turn" if asked else "empty_turn"
            break
        alone = replace(begun, messages=(Message("user", asked),))
        lost = draw.screen(Candidate(alone)) if number == 0 else None
        if lost is not None:
            return Candidate(alone, asked, lost)
        turn = await _answered(scene, draw, number, messages, asked)
        said.append(turn.said)
        if turn.rejection is not None:
            if number == 0:
                return Candidate(alone, "\n".join(said), turn.rejection)
            stop = "rejected_turn"  # what was said before it stands
            break
        messages = (*messages, Message("user", asked), *turn.messages)
    schemas = [schema(tool, tool.api) for tool in brief.tools]
    return candidate(replace(begun, messages=messages), stop, "\n".join(said), limits, tools=schemas)


async def _next_message(scene: _Scene, draw: Draw, topic: str, history: Sequence[Message]) -> str:
    """Let the model play the person, most of the time with something on their mind that needs a tool."""
    brief, tool = scene.brief, None
    if brief.tools and draw.rng.random() >= brief.options["no_tool"]:
        tool = draw.rng.choice(brief.tools)
    spoken = [message for message in history if message.role != "tool" and message.content]
    text = brief.prompts["question"].render(
        topic=topic,
        tool={"name": tool.name, "description": tool.description} if tool else None,
        history=render(spoken, voices(brief.pack)),
        pick=draw.rng.randrange(1000),
        language=_language(brief),
    )
    completion = await draw.complete(Request(scene.question, messages=(Message("user", text.strip()),)))
    said = read_turn(completion.text, "user", voices(brief.pack)).content
    return whole_sentences(said, brief.pack) if is_cut(completion, [said], brief.pack) else said


async def _answered(scene: _Scene, draw: Draw, number: int, history: Sequence[Message], asked: str) -> _Turn:
    """Let the assistant work on a message, again where a command or a tool fails, up to `options.attempts` times."""
    attempt = _native if scene.brief.style == "native" else _in_text
    turn = await attempt(scene, draw, number, history, asked)
    for _ in range(scene.brief.options["attempts"] - 1):
        if turn.rejection is None:
            break
        again = await attempt(scene, draw, number, history, asked)
        turn = replace(again, said=f"{turn.said}\n{again.said}")
    return turn


async def _in_text(scene: _Scene, draw: Draw, number: int, history: Sequence[Message], asked: str) -> _Turn:
    """Ask for thoughts and commands, run these, then ask for the reply, all in MOSS's grammar."""
    brief = scene.brief
    past = [message for turn in recent(history, scene.limits.history_tokens) for message in in_grammar(turn)]
    shown = (Message("system", scene.told), *past, Message("user", f"<|Human|>: {asked}<eoh>"))
    first = await draw.complete(_ask(brief, scene.think, shown, "<|Inner Thoughts|>:"))
    read = read_commands(first)
    if isinstance(read, Rejection):
        return _Turn(rejection=read, said=first.text)
    thoughts, commands = read
    calls = parse_commands(commands, brief.tools)
    if isinstance(calls, Rejection):
        return _Turn(rejection=calls, said=first.text)
    results = [(call, await draw.use(call.tool, call.arguments)) for call in calls]
    failed = _failure(results)
    if failed is not None:
        return _Turn(rejection=failed, said=first.text)
    written = f"<|Inner Thoughts|>: {thoughts or 'None'}<eot>\n<|Commands|>: {commands}<eoc>"
    wanted = brief.prompts["answer"].render(
        results=render_results(results) if results else "",
        cites=any(call.tool.style == "items" for call, _ in results),
        language=_language(brief),
    )
    shown = (*shown, Message("assistant", written), Message("user", wanted.strip()))
    second = await draw.complete(_ask(brief, scene.answer, shown, "<|MOSS|>:"))
    return _checked(number, history, asked, thoughts, results, second, f"{first.text}\n{second.text}")


async def _native(scene: _Scene, draw: Draw, number: int, history: Sequence[Message], asked: str) -> _Turn:
    """Offer the tools to the endpoint, run what the model calls, and let it answer."""
    brief = scene.brief
    past = [message for turn in recent(history, scene.limits.history_tokens) for message in turn]
    shown = (Message("system", scene.told), *past, Message("user", asked))
    sampling = replace(scene.answer, stop=())
    tools = json.dumps([schema(tool, tool.name) for tool in brief.tools], ensure_ascii=False)
    first = last = await draw.complete(Request(sampling, messages=shown, tools=tools))
    said = "\n".join([first.text, *(f"{call.name} {call.arguments}" for call in first.tool_calls)]).strip()
    calls = native_calls(first.tool_calls, brief.tools)
    if isinstance(calls, Rejection):
        return _Turn(rejection=calls, said=said)
    results = [(call, await draw.use(call.tool, call.arguments)) for call in calls]
    failed = _failure(results)
    if failed is not None:
        return _Turn(rejection=failed, said=said)
    if results:
        made = _messages(number, "", results, "", native=True)[:-1]
        last = await draw.complete(Request(sampling, messages=(*shown, *made)))
        said = f"{said}\n{last.text}"
    thoughts = first.reasoning or (first.text if results else "")
    return _checked(number, history, asked, thoughts.strip(), results, last, said)


def _checked(
    number: int,
    history: Sequence[Message],
    asked: str,
    thoughts: str,
    results: Sequence[tuple[Call, ToolResult]],
    last: Completion,
    said: str,
) -> _Turn:
    """Return the turn, unless its reply says other than the tools did."""
    reply = read_reply(last)
    if isinstance(reply, Rejection):
        return _Turn(rejection=reply, said=said)
    known = "\n".join([*(message.content for message in history), asked])
    wrong = check_reply(reply, results, known)
    if wrong is not None:
        return _Turn(rejection=wrong, said=said)
    return _Turn(_messages(number, thoughts, results, reply), said=said)


# --- reading what came back


def read_commands(completion: Completion) -> tuple[str, str] | Rejection:
    """Read thoughts and commands; the markers may be written otherwise, and the end marks may be missing."""
    text = completion.text.strip()
    found = _COMMANDS.search(text)
    if found is None:
        return Rejection("parse", "truncated" if truncated(completion) else "no commands")
    head = _THOUGHTS.sub("", text[: found.start()], count=1)
    ends = _ENDS.search(text, found.end())
    commands = text[found.end() : ends.start() if ends else len(text)].strip()
    if ends is None and truncated(completion):
        return Rejection("parse", "truncated")
    # Behind the commands some models go on to invent results: what stands on the next line is not theirs to say.
    return _ENDS.sub("", head).strip(), commands.partition("\n<|")[0].strip()


def read_reply(completion: Completion) -> str | Rejection:
    """Read the reply up to its end mark; one with markers of other parts in it is rejected."""
    text = completion.text
    found = _REPLY.search(text)
    body = text[found.end() :] if found else text
    body, end, _ = body.partition("<eom>")
    if truncated(completion) and not end:
        return Rejection("parse", "truncated")
    if leaked := _LEAK.search(body):
        return Rejection("leak", "marker", {"marker": leaked[0]})
    return body.strip() or Rejection("parse", "no reply")


def native_calls(calls: Sequence[ToolCall], tools: Sequence[Tool]) -> tuple[Call, ...] | Rejection:
    """Read the calls that an endpoint handed over: each a known tool with a JSON object."""
    found = []
    # A history in which the calls go by MOSS's names leads models to use these.
    by_name = {tool.api: tool for tool in tools} | {tool.name: tool for tool in tools}
    for call in calls:
        tool = by_name.get(call.name)
        if tool is None:
            return Rejection("commands", "unknown API", {"text": call.name[:80]})
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            return Rejection("commands", "arguments are no JSON object", {"text": call.arguments[:80]})
        found.append(Call(tool, arguments))
    return tuple(found)


def check_reply(reply: str, results: Sequence[tuple[Call, ToolResult]], known: str) -> Rejection | None:
    """Reject a reply that leaves out what a tool gave, or has numbers and citations that nothing stands behind."""
    hits = sum(len(result.items) for call, result in results if call.tool.style == "items")
    wrong = [number for number in citations(reply) if not 1 <= number <= hits]
    if wrong:
        return Rejection("reply", "no such result", {"cited": wrong[0], "results": hits})
    return check_answer(reply, results, known)


def _failure(results: Sequence[tuple[Call, ToolResult]]) -> Rejection | None:
    for call, result in results:
        if result.failed:
            return Rejection("tool_failed", result.reason, {"tool": call.tool.name, "call": call.text[:200]})
    return None


# --- records and requests


def _messages(
    number: int, thoughts: str, results: Sequence[tuple[Call, ToolResult]], reply: str, *, native: bool = False
) -> tuple[Message, ...]:
    """Return a turn's messages; ids of calls count turns and calls. In `native` calls tools go by their own names."""
    if not results:
        return (Message("assistant", reply, thoughts),)
    calls, said, cited = [], [], 0
    for place, (call, result) in enumerate(results, 1):
        id, name = f"call_{number + 1}_{place}", call.tool.name if native else call.tool.api
        calls.append(ToolCall(name, json.dumps(dict(call.arguments), ensure_ascii=False), id))
        said.append(Message("tool", tool_text(call, result, cited + 1), name=name, tool_call_id=id))
        cited += len(result.items) if call.tool.style == "items" else 0
    return (Message("assistant", "", thoughts, tuple(calls)), *said, Message("assistant", reply))


def tool_text(call: Call, result: ToolResult, first: int) -> str:
    """Return what a tool message holds: the result as MOSS writes it, below or behind its command."""
    if call.tool.style == "items":
        return render_items(call.text, result, first).partition("\n")[2]
    return render_sentence(result) if call.tool.style == "sentence" else plain(result.text)


def recent(history: Sequence[Message], tokens: int) -> list[list[Message]]:
    """Return the newest turns that fit into `tokens` (0: all), each from a message of the person's on."""
    turns: list[list[Message]] = []
    for message in history:
        if message.role == "user":
            turns.append([])
        turns[-1].append(message)
    while tokens and len(turns) > 1 and tokens_of([message for turn in turns for message in turn]) > tokens:
        turns.pop(0)
    return turns


def in_grammar(turn: Sequence[Message]) -> list[Message]:
    """Return a turn as it was written in MOSS's grammar, for the history of a chat."""
    asked, first, reply = turn[0], turn[1], turn[-1]
    commands = ", ".join(f"{call.name}({', '.join(_arguments(call))})" for call in first.tool_calls) or "None"
    results = "\n".join(message.content for message in turn if message.role == "tool") or "None"
    return [
        Message("user", f"<|Human|>: {asked.content}<eoh>"),
        Message("assistant", f"<|Inner Thoughts|>: {first.thoughts or 'None'}<eot>\n<|Commands|>: {commands}<eoc>"),
        Message("user", f"<|Results|>:\n{results}\n<eor>"),
        Message("assistant", f"<|MOSS|>: {reply.content}<eom>"),
    ]


def _arguments(call: ToolCall) -> list[str]:
    return [json.dumps(value, ensure_ascii=False) for value in json.loads(call.arguments).values()]


def schema(tool: Tool, name: str) -> dict[str, Any]:
    """Return a tool as OpenAI's `tools` list it: by its own name where it is offered, by MOSS's in a record."""
    function = {"name": name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _ask(brief: Brief, sampling: Sampling, messages: Sequence[Message], go_on: str) -> Request:
    """Return the request; a raw completion goes on behind `go_on`, a chat answers."""
    if brief.config.backend.endpoint != "completions":
        return Request(sampling, messages=tuple(messages))
    return Request(sampling, prompt="\n".join([*(message.content for message in messages), go_on]))


def _meta(brief: Brief) -> str:
    """Return the meta instruction: who the assistant is, and a line for each tool that it may or may not call."""
    by_title = {tool.title: tool for tool in brief.tools}
    lines = ["Inner thoughts: enabled."]
    for title in [*CAPABILITIES[1:], *(title for title in by_title if title not in CAPABILITIES)]:
        tool = by_title.get(title)
        lines.append(f"{title}: enabled. API: {tool.signature}" if tool else f"{title}: disabled.")
    return brief.prompts[""].render(capabilities=lines, language=_language(brief)).strip() + "\n"


def _told(brief: Brief, meta: str) -> str:
    """Return what the assistant is told: the meta instruction and how to call tools."""
    if brief.style == "native":
        return brief.prompts["native"].render(meta=meta, language=_language(brief)).strip()
    tools = [
        {"signature": tool.signature, "description": tool.description, "argument": _described(tool)}
        for tool in brief.tools
    ]
    names = [tool.name for tool in brief.tools]
    told = brief.prompts["think"].render(meta=meta, tools=tools, names=names, none="None", language=_language(brief))
    return told.strip()


def _described(tool: Tool) -> str:
    texts = (value.get("description", "") for value in tool.parameters.get("properties", {}).values())
    return " ".join(text for text in texts if text)


def _language(brief: Brief) -> dict[str, str]:
    return {"tag": brief.pack.tag, "name": brief.pack.name}


_ASIDE = {
    "": frozenset({"capabilities", "language"}),
    "question": frozenset({"topic", "tool", "history", "pick", "language"}),
}
_TEXT = _ASIDE | {
    "think": frozenset({"meta", "tools", "names", "none", "language"}),
    "answer": frozenset({"results", "cites", "language"}),
}


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Let the person say the given instructions and the assistant their outputs, the first after a search for them.

    What is searched are the tasks themselves. The calculator is left alone: starting it takes longer than all the rest.
    """
    talks = rehearsed(pack, tasks)[:3]
    documents = [{"title": "", "text": f"{talk[0].content}\n{talk[1].content}"} for talk in talks]
    made: dict[str, tuple[str, str]] = {}
    expected = []
    for talk, document in zip(talks, documents, strict=True):
        asked, found, again, more = (message.content for message in talk)
        ((_, passage),) = passages("", document["text"], len(document["text"]) + 1)
        reply = f"{found} <sup><|1|></sup>"
        made |= {asked: (asked, reply), again: ("", more)}
        call = ToolCall("Search", json.dumps({"query": asked}, ensure_ascii=False), "call_1_1")
        result = Message("tool", f"<|1|>: {passage!r}", name="Search", tool_call_id="call_1_1")
        told = (Message("assistant", "", asked, (call,)), result, Message("assistant", reply))
        expected.append(Dialogue((talk[0], *told, talk[2], Message("assistant", more, again))))
    questions = iter(made)

    def reply_to(request: Request) -> str | Completion:
        if len(request.messages) == 1:
            return next(questions, "")
        asked = next(message.content for message in reversed(request.messages) if _asks(message))
        asked = asked.removeprefix("<|Human|>: ").removesuffix("<eoh>")
        query, said = made[asked]
        results = request.messages[-1].role == "tool" or request.messages[-1].content.startswith("<|Results|>")
        if style == "text":
            commands = render_command("Search", {"query": query}) if query else "None"
            thoughts = f"<|Inner Thoughts|>: {asked}<eot>\n<|Commands|>: {commands}<eoc>"
            return f"<|MOSS|>: {said}<eom>" if results else thoughts
        if results or not query:
            return Completion(said, "stop", Usage(0, 0), reasoning=asked)
        call = ToolCall("search", json.dumps({"query": query}), "1")
        return Completion("", "tool_calls", Usage(0, 0), reasoning=asked, tool_calls=(call,))

    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in documents)
    return Rehearsal(reply_to, tuple(expected), corpus=rows, settings={"options": {"min_turns": 2}})


def _asks(message: Message) -> bool:
    return message.role == "user" and not message.content.startswith("<|Results|>")


RECIPE = Recipe(
    name="moss",
    summary="dialogues with inner thoughts, commands to tools that really run, and answers from their results",
    source="OpenLMLab/MOSS",
    styles=("text", "native"),
    prompts=("moss",),
    variables={"text": _TEXT, "native": _ASIDE | {"native": frozenset({"meta", "language"})}},
    stages=stages,
    preview=preview,
    export="moss",
    starts="topics",
    accepts=(Task, Dialogue, Comparison),
    read=read_topics,
    options={"turns": 2, "min_turns": 1, "history_tokens": 0, "attempts": 2, "no_tool": 0.2, "field": ""},
    tools=("calculator", "solver"),
    rehearse=rehearse,
)

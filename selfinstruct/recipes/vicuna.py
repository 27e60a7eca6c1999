"""Vicuna: answers over several turns to prompts that people gave (ShareGPT's shape, lm-sys/FastChat `fastchat/data`).

ShareGPT was collected, not generated. Here a first prompt or a dialogue of yours is gone on with: the assistant
answers, another model plays the person, and so on. A dialogue that ends on a question gets its answer first. In the
style `stepwise`, for small models, the person's lines go on with a transcript as in `baize`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.formats.shape import prompt_dialogue, user_text
from selfinstruct.languages import LanguagePack
from selfinstruct.markers import END, Speaker, voices
from selfinstruct.recipes import Brief, Recipe, Rehearsal
from selfinstruct.recipes.dialogue import (
    PERSON,
    REPLY,
    TRANSCRIPT,
    about,
    chat_candidate,
    fitted,
    in_turn,
    limits_of,
    next_line,
    read_topics,
    rehearsed,
    render,
    self_chat,
    short_reply,
    stepwise_filters,
    transcript,
)
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import Candidate, Capabilities, Comparison, Dialogue, Message, Record, Rejection, Request, Task


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the one stage: each row of the input is gone on with."""
    stepwise = brief.style == "stepwise"
    who, reply = voices(brief.pack), short_reply(brief) if stepwise else fitted(brief, REPLY, 0.25)
    stop = (f"\n{who.marker('assistant')}",)
    person = replace(brief.sampling(PERSON), max_tokens=PERSON.max_tokens, stop=stop)
    limits = limits_of(brief, reply, preview(brief))
    personas = brief.options["personas"]

    async def draw(draw: Draw) -> list[Candidate]:
        assert draw.item is not None
        given = opening(draw.item)
        persona = str(draw.rng.choice(personas)) if personas else ""
        rejection = _unfit(given) or draw.screen(Candidate(given))
        if rejection is not None:
            return [Candidate(given, rejection=rejection)]
        system = (Message("system", given.system),) if given.system else ()

        def ask(speaker: Speaker, history: Sequence[Message], turns: int) -> Request:
            if speaker == "assistant":
                return Request(reply, messages=(*system, *history))
            if stepwise:
                return next_line(brief, transcript(brief, who, _topic(given), history, persona=persona))
            text = _next(brief, persona, draw.rng.randrange(1000), history, turns)
            return Request(person, messages=(Message("user", text),))

        chat = await self_chat(draw, ask, limits, who, brief.pack, given.messages)
        return [chat_candidate(given, chat, limits, given=len(given.messages), persona=persona)]

    filters = DEFAULT_FILTERS["dialogues"]
    return (
        Stage("dialogues", draw, items=brief.items or (), filters=stepwise_filters(filters) if stepwise else filters),
    )


def preview(brief: Brief) -> str:
    """Render the prompt for the person's next words."""
    asked, persona = (Message("user", "..."), Message("assistant", "...")), next(iter(brief.options["personas"]), "")
    if brief.style == "stepwise":
        return transcript(brief, voices(brief.pack), "...", asked, persona=persona)
    return _next(brief, persona, 0, asked, brief.options["min_turns"])


def opening(item: Record) -> Dialogue:
    """Return the dialogue so far: a task's instruction is the person's first turn, and so is a topic."""
    if isinstance(item, Task):
        given = item.instances[0].input if item.instances else ""
        messages: tuple[Message, ...] = (Message("user", user_text(item.instruction, given)),)
        return replace(about(item, ""), messages=messages, id=item.id)
    dialogue = prompt_dialogue(item.prompt) if isinstance(item, Comparison) else item
    messages = dialogue.messages or (Message("user", dialogue.topic),)
    known = about(dialogue, dialogue.topic)
    return replace(known, messages=messages, system=dialogue.system, id=item.id or dialogue.id)


def _topic(given: Dialogue) -> str:
    """Return what a dialogue is about: its topic, else what the person asked first."""
    return given.topic or next((message.content for message in given.messages if message.role == "user"), "")


def _unfit(given: Dialogue) -> Rejection | None:
    if any(message.role not in ("user", "assistant") or message.tool_calls for message in given.messages):
        return Rejection("parse", "tool_turns")
    return None


def _next(brief: Brief, persona: str, pick: int, history: Sequence[Message], turns: int) -> str:
    return brief.prompts["user"].render(
        persona=persona,
        pick=pick,
        history=render(history, voices(brief.pack)),
        may_end=turns >= brief.options["min_turns"],
        end=END,
        language={"tag": brief.pack.tag, "name": brief.pack.name},
    )


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Go on with the first questions of talks made of the given tasks."""
    talks = rehearsed(pack, tasks)
    lines = [json.dumps({"messages": [{"role": "user", "content": talk[0].content}]}) for talk in talks]
    can = Capabilities(completions=style == "stepwise")
    return Rehearsal(in_turn(talks, given=2), tuple(map(Dialogue, talks)), "\n".join(lines), can)


RECIPE = Recipe(
    name="vicuna",
    summary="go on with given prompts or dialogues over several turns (ShareGPT's shape)",
    source="lm-sys/FastChat",
    styles=("chat", "stepwise"),
    prompts=("vicuna", "baize"),
    variables={
        "chat": {"user": frozenset({"persona", "pick", "history", "may_end", "end", "language"})},
        "stepwise": {"stepwise": TRANSCRIPT},
    },
    stages=stages,
    preview=preview,
    export="sharegpt",
    starts="input",
    accepts=(Task, Dialogue, Comparison),
    read=read_topics,
    rehearse=rehearse,
    options={"turns": 3, "min_turns": 1, "history_tokens": 0, "dialogue_tokens": 0, "personas": []},
)

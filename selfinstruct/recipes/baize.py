"""Baize: self-chat about topics (project-baize/baize-chatbot, `collect.py` and `collect_v2.py`).

Three styles: `v1`, where one completion holds the talk of both sides; `v2`, where two models talk in turn, one of
which plays the person; and `stepwise`, v2 for models too small to play somebody when told to: they go on with a
transcript. The originals' defects are gone: the last complete exchange is kept, a dialogue of one is one, the person
may end the talk in v2 too, and why it ended is on record.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.languages import LanguagePack
from selfinstruct.markers import END, Speaker, voices
from selfinstruct.recipes import Brief, Recipe, Rehearsal
from selfinstruct.recipes.dialogue import (
    BOTH,
    PERSON,
    REPLY,
    TRANSCRIPT,
    about,
    as_topic,
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
    topics,
    transcript,
    transcript_candidate,
)
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import Candidate, Capabilities, Comparison, Dialogue, Message, Request, Task

_WHO = frozenset({"topic", "persona", "language"})
_VARIABLES = {
    "v1": {"": _WHO | {"pick", "user", "assistant", "end", "turns", "min_turns"}},
    "v2": {"user": _WHO | {"pick", "history", "may_end", "end"}},
    "stepwise": {"stepwise": TRANSCRIPT},
}


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the one stage: a dialogue for each topic."""
    filters = DEFAULT_FILTERS["dialogues"]
    if brief.style == "stepwise":
        filters = stepwise_filters(filters)
    return (
        Stage(
            "dialogues",
            _both_sides(brief) if brief.style == "v1" else _in_turn(brief),
            0.7,
            items=topics(brief),
            rounds=brief.rounds,
            filters=filters,
            novelty=("subject", "whole"),
        ),
    )


def preview(brief: Brief) -> str:
    """Render the prompt about the first topic."""
    topic = as_topic(brief.items[0], brief.options["field"]) if brief.items else ""
    persona = str(next(iter(brief.options["personas"]), ""))
    if brief.style == "v1":
        return _both(brief, topic, persona, 0)
    if brief.style == "v2":
        return _next(brief, topic, persona, 0, (), 0)
    return transcript(brief, voices(brief.pack), topic, (), persona=persona)


def _both_sides(brief: Brief) -> Callable[[Draw], Awaitable[Sequence[Candidate]]]:
    who, sampling = voices(brief.pack), fitted(brief, BOTH, 0.6)
    limits = limits_of(brief, sampling)
    raw = brief.config.backend.endpoint == "completions"

    async def draw(draw: Draw) -> list[Candidate]:
        dialogue, persona, pick = _opening(brief, draw)
        text = _both(brief, dialogue.topic, persona, pick)
        request = Request(sampling, messages=(Message("user", text),))
        if raw:
            request = Request(sampling, prompt=f"{text}\n{who.marker('user')}")
        completion = await draw.complete(request)
        opened: Speaker | None = "user" if raw else None
        return [transcript_candidate(dialogue, completion, limits, who, brief.pack, opened=opened, persona=persona)]

    return draw


def _in_turn(brief: Brief) -> Callable[[Draw], Awaitable[Sequence[Candidate]]]:
    stepwise = brief.style == "stepwise"
    who, reply = voices(brief.pack), short_reply(brief) if stepwise else fitted(brief, REPLY, 0.25)
    stop = (f"\n{who.marker('assistant')}",)
    person = replace(brief.sampling(PERSON), max_tokens=PERSON.max_tokens, stop=stop)
    limits = limits_of(brief, reply, preview(brief))

    async def draw(draw: Draw) -> list[Candidate]:
        dialogue, persona, pick = _opening(brief, draw)

        def ask(speaker: Speaker, history: Sequence[Message], turns: int) -> Request:
            if speaker == "assistant":
                return Request(reply, messages=tuple(history))
            if stepwise:
                return next_line(brief, transcript(brief, who, dialogue.topic, history, persona=persona))
            text = _next(brief, dialogue.topic, persona, pick, history, turns)
            return Request(person, messages=(Message("user", text),))

        chat = await self_chat(draw, ask, limits, who, brief.pack)
        return [chat_candidate(dialogue, chat, limits, persona=persona)]

    return draw


def _opening(brief: Brief, draw: Draw) -> tuple[Dialogue, str, int]:
    """Return the dialogue that a draw begins, the person's persona, and a number that picks their manner."""
    assert draw.item is not None
    topic = as_topic(draw.item, brief.options["field"])
    personas = brief.options["personas"]
    persona = str(draw.rng.choice(personas)) if personas else ""
    return about(draw.item, topic), persona, draw.rng.randrange(1000)


def _both(brief: Brief, topic: str, persona: str, pick: int) -> str:
    who, options = voices(brief.pack), brief.options
    return brief.prompt.render(
        topic=topic,
        persona=persona,
        pick=pick,
        user=who.marker("user"),
        assistant=who.marker("assistant"),
        end=END,
        turns=options["turns"],
        min_turns=options["min_turns"],
        language={"tag": brief.pack.tag, "name": brief.pack.name},
    )


def _next(brief: Brief, topic: str, persona: str, pick: int, history: Sequence[Message], turns: int) -> str:
    return brief.prompt.render(
        topic=topic,
        persona=persona,
        pick=pick,
        history=render(history, voices(brief.pack)),
        may_end=turns >= brief.options["min_turns"],
        end=END,
        language={"tag": brief.pack.tag, "name": brief.pack.name},
    )


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Say talks made of the given tasks, about the first question of each."""
    talks, who = rehearsed(pack, tasks), voices(pack)
    lines = [json.dumps({"messages": [{"role": "user", "content": talk[0].content}]}) for talk in talks]
    expected = tuple(Dialogue(talk, topic=talk[0].content) for talk in talks)
    transcripts = iter([f"{render(talk, who)}\n{END}" for talk in talks])
    reply = in_turn(talks) if style != "v1" else lambda request: next(transcripts, END)
    return Rehearsal(reply, expected, "\n".join(lines), Capabilities(completions=style == "stepwise"))


RECIPE = Recipe(
    name="baize",
    summary="self-chat about topics: one model writes both sides (v1), or two talk in turn (v2, stepwise)",
    source="project-baize/baize-chatbot",
    styles=("v1", "v2", "stepwise"),
    prompts=("baize",),
    variables=_VARIABLES,
    stages=stages,
    preview=preview,
    export="baize",
    starts="topics",
    accepts=(Task, Dialogue, Comparison),
    read=read_topics,
    rehearse=rehearse,
    options={"turns": 4, "min_turns": 1, "history_tokens": 0, "dialogue_tokens": 0, "personas": [], "field": ""},
)

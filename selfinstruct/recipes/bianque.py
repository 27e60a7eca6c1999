"""BianQue: a chain of questioning, in which the doctor asks several times before advising (scutcyr/BianQue).

How its data was made is not published; here two sides speak in turn. The patient begins with a little of what is wrong,
the doctor asks in every reply but the last and then advises, and how many exchanges there are is drawn for each
consultation. Chinese by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfinstruct.errors import ConfigError
from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.languages import LanguagePack
from selfinstruct.markers import END, Speaker, voices
from selfinstruct.recipes import Brief, Recipe, Rehearsal
from selfinstruct.recipes.alpaca import ANSWER
from selfinstruct.recipes.chatdoctor import (
    ABOUT,
    NAMED,
    REPLIED,
    about,
    begun,
    consultations,
    doctor_part,
    grounded,
    read_knowledge,
    rehearsed,
)
from selfinstruct.recipes.dialogue import (
    PERSON,
    REPLY,
    TRANSCRIPT,
    chat_candidate,
    fitted,
    limits_of,
    next_line,
    render,
    self_chat,
    stepwise_filters,
    transcript,
)
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import Candidate, Dialogue, Message, Rejection, Request, Task

_ASKED = frozenset({"history", "language"})
VARIABLES = {
    "chain": {
        "patient": ABOUT | {"history"},
        "doctor": _ASKED,
        "advice": _ASKED | {"facts"},
        "named": NAMED,
        "note": frozenset[str](),
    },
    "stepwise": {
        "stepwise": TRANSCRIPT | {"facts", "next", "pick", "chat"},
        "reply": REPLIED,
        "named": NAMED,
        "note": frozenset[str](),
    },
}


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the one stage: a consultation for each topic or knowledge row.

    Raises:
        ConfigError: an option is out of range, or leaves the doctor fewer questions than `advises_first` wants.
    """
    who, options, stepwise = voices(brief.pack, "patient", "doctor"), brief.options, brief.style == "stepwise"
    reply, person = fitted(brief, ANSWER if stepwise else REPLY, 0.2), fitted(brief, PERSON, 0.1)
    person = replace(person, stop=(f"\n{who.marker('assistant')}",))
    limits = limits_of(brief, reply, preview(brief))
    _enough_questions(brief)

    async def draw(draw: Draw) -> list[Candidate]:
        assert draw.item is not None
        told = about(brief, draw.item, draw.rng.randrange(1000))
        wanted = draw.rng.randint(options["min_turns"], options["turns"])

        def ask(speaker: Speaker, history: Sequence[Message], turns: int) -> Request:
            if stepwise and speaker == "assistant" and turns + 1 == wanted:
                return Request(reply, messages=(doctor_part(brief, told["facts"]), *history))
            if stepwise:
                return next_line(brief, _transcript(brief, told, history, speaker, turns))
            part = "patient" if speaker == "user" else "doctor" if turns + 1 < wanted else "advice"
            known = {name: told[name] for name in VARIABLES["chain"][part] if name in told}
            text = brief.prompts[part].render(**known, history=render(history, who))
            return Request(person if speaker == "user" else reply, messages=(Message("user", text),))

        chat = await self_chat(draw, ask, replace(limits, turns=wanted), who, brief.pack)
        candidate = chat_candidate(begun(brief, draw.item), chat, limits)
        if candidate.rejection is None and chat.stop != "max_turns":
            # It broke off where the doctor was still asking.
            candidate = replace(candidate, rejection=Rejection("unfinished", "no_advice", {"stop": chat.stop}))
        return [await grounded(draw, brief, candidate)]

    filters = (*DEFAULT_FILTERS["dialogues"], "advises_first")
    if stepwise:
        filters = stepwise_filters(filters)
    return (consultations(brief, "dialogues", draw, filters, ("subject", "whole")),)


def _enough_questions(brief: Brief) -> None:
    chosen = brief.config.filters.get("advises_first")
    wanted = chosen.get("minimum", 1) if isinstance(chosen, dict) else 0 if chosen is False else 1
    turns = brief.options["min_turns"]
    if isinstance(wanted, int) and turns <= wanted:
        raise ConfigError(
            f"options.min_turns: in {turns} exchanges the doctor asks in {turns - 1} at most, and "
            f"filters.advises_first.minimum wants {wanted}; change one of them"
        )


def preview(brief: Brief) -> str:
    """Render the prompts of a consultation's turns."""
    who = voices(brief.pack, "patient", "doctor")
    told = about(brief, (brief.items or (Dialogue((), topic="..."),))[0], 0)
    if brief.style == "stepwise":
        said = (Message("user", "..."),)
        lines = _transcript(brief, told, (), "user", 0), _transcript(brief, told, said, "assistant", 0)
        return "\n\n---\n\n".join((*lines, doctor_part(brief, told["facts"]).content))
    talk = (Message("user", "..."), Message("assistant", "..."), Message("user", "..."))
    texts = []
    for part, history in (("patient", ()), ("doctor", talk[:1]), ("advice", talk)):
        known = {name: told[name] for name in VARIABLES["chain"][part] if name in told}
        texts.append(brief.prompts[part].render(**known, history=render(history, who)))
    return "\n\n---\n\n".join(texts)


def _transcript(brief: Brief, told: Mapping[str, Any], history: Sequence[Message], speaker: Speaker, turns: int) -> str:
    """Render the consultation so far for the next line of either side.

    Of a row of knowledge the doctor who asks is shown nothing, nor what it is called: only the complaint. A prompt that
    is continued raw begins the doctor's question, each time in another way: else a small model soon forgets to ask.
    """
    who, topic, facts = voices(brief.pack, "patient", "doctor"), told["topic"], told["facts"]
    if facts and speaker == "assistant":
        topic, facts = history[0].content, ()
    known = {"pick": told["pick"] + turns, "chat": not brief.capabilities.completions, "next": who.marker(speaker)}
    return transcript(brief, who, topic, history, persona="", facts=facts, **known)


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Let both sides say the given tasks in turn; the doctor asks in every reply but the last."""
    talks, who = rehearsed(pack, tasks, asking=2), voices(pack, "patient", "doctor")
    openings = iter(talks)

    def reply(request: Request) -> str:
        text = render(request.messages, who)
        said = [(text.rfind(render(talk[at : at + 1], who)), at, talk) for talk in talks for at in range(len(talk))]
        place, last, talk = max(said, key=lambda each: each[:2])
        if place < 0:
            talk, last = next(openings, ()), -1
        return talk[last + 1].content if last + 1 < len(talk) else END

    return Rehearsal(reply, tuple(Dialogue(talk) for talk in talks), settings={"options": {"turns": 3}})


RECIPE = Recipe(
    name="bianque",
    summary="a doctor who asks in every reply but the last, then advises; Chinese by default (BianQue)",
    source="scutcyr/BianQue",
    styles=("chain", "stepwise"),
    prompts=("bianque", "chatdoctor"),
    variables=VARIABLES,
    stages=stages,
    preview=preview,
    export="bianque",
    starts="topics",
    topics="medical",
    accepts=(Task, Dialogue),
    read=read_knowledge,
    options={"turns": 5, "min_turns": 3, "history_tokens": 0, "dialogue_tokens": 0},
    rehearse=rehearse,
    defaults={"language": "zh", "filters": {"advises_first": {"minimum": 2}}},
)

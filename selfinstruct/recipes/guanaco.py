"""Guanaco: seed tasks become conversations in several languages (JosephusCheung/GuanacoDataset).

Its card says what was done, not how: the 175 seed tasks of Alpaca rewritten in several languages, with tasks of
grammar, of language understanding and across languages, many of them over several turns. Here one completion holds a
conversation of one of these kinds. Several languages share a dataset by `--quota en=0.4,zh=0.3,ja=0.3`; its export
packs the earlier turns into the instruction. In the style `stepwise`, for small models, two sides talk in turn as in
`baize`, about the seed task's matter; that is the kind "chat", and there is no other.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Sequence

from selfinstruct.errors import ConfigError
from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.languages import LanguagePack, load_pack
from selfinstruct.markers import END, Speaker, voices
from selfinstruct.recipes import Brief, Recipe, Rehearsal
from selfinstruct.recipes.dialogue import (
    BOTH,
    TRANSCRIPT,
    chat_candidate,
    fitted,
    in_turn,
    limits_of,
    next_line,
    rehearsed,
    render,
    self_chat,
    short_reply,
    stepwise_filters,
    transcript,
    transcript_candidate,
)
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import Candidate, Dialogue, Message, Request, Task

KINDS = ("chat", "grammar", "understanding", "crosslingual")
"""What a conversation is about: the seed task's own matter, the language itself, a text, or two languages."""

_TALK = frozenset({"kind", "seeds", "other", "pick", "user", "assistant", "end", "turns", "min_turns", "language"})


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the one growing stage: a conversation out of a seed task."""
    filters, novelty = DEFAULT_FILTERS["dialogues"], ("subject", "whole")
    if brief.style == "stepwise":
        return (
            Stage("dialogues", _in_turn(brief), 0.7, brief.seeds, filters=stepwise_filters(filters), novelty=novelty),
        )
    return (Stage("dialogues", _both(brief), 0.7, seeds=brief.seeds, filters=filters, novelty=novelty),)


def _both(brief: Brief) -> Callable[[Draw], Awaitable[Sequence[Candidate]]]:
    who, sampling = voices(brief.pack), fitted(brief, BOTH, 0.5)
    limits = limits_of(brief, sampling)
    others = _others(brief)
    kinds = _kinds(brief)

    async def draw(draw: Draw) -> list[Candidate]:
        shown = draw.demonstrations(seed=max(1, brief.config.demonstrations.seed), machine=0)
        kind, pick = draw.rng.choice(kinds), draw.rng.randrange(1000)
        other = draw.rng.choice(others) if kind == "crosslingual" else None
        text = _render(brief, shown, kind, other, pick)
        completion = await draw.complete(Request(sampling, messages=(Message("user", text),)))
        begun = Dialogue((), extra={"kind": kind, "language": brief.pack.tag})
        across = other.tag if other else ""
        return [transcript_candidate(begun, completion, limits, who, brief.pack, across=across)]

    return draw


def _in_turn(brief: Brief) -> Callable[[Draw], Awaitable[Sequence[Candidate]]]:
    who, reply = voices(brief.pack), short_reply(brief)
    limits = limits_of(brief, reply, preview(brief))
    (kind,) = _kinds(brief)
    words, alone = brief.pack.first_words or ("",), _alone(brief)

    async def draw(draw: Draw) -> list[Candidate]:
        shown, word = draw.rng.choice(alone), words[draw.number % len(words)]
        draw.show((shown,))

        def ask(speaker: Speaker, history: Sequence[Message], turns: int) -> Request:
            if speaker == "assistant":
                return Request(reply, messages=tuple(history))
            return next_line(brief, _transcript(brief, shown, history, word))

        chat = await self_chat(draw, ask, limits, who, brief.pack)
        return [chat_candidate(Dialogue((), extra={"kind": kind, "language": brief.pack.tag}), chat, limits)]

    return draw


def preview(brief: Brief) -> str:
    """Render the prompt out of the first seed task."""
    if brief.style == "stepwise":
        return _transcript(brief, _alone(brief)[0], (), next(iter(brief.pack.first_words), ""))
    others = _others(brief)
    return _render(brief, brief.seeds[:1], _kinds(brief)[0], others[0] if others else None, 0)


def _alone(brief: Brief) -> list[Task]:
    """Return the seed tasks without an input: a small model has the instruction alone to go by."""
    return [task for task in brief.seeds if not any(case.input for case in task.instances)] or list(brief.seeds)


def _transcript(brief: Brief, shown: Task, history: Sequence[Message], word: str) -> str:
    """Render the talk so far; the person's first line begins with `word` where it is gone on with raw."""
    text = transcript(brief, voices(brief.pack), shown.instruction, history, persona="")
    return text if history or not brief.capabilities.completions else f"{text} {word}".rstrip()


def _render(brief: Brief, shown: tuple[Task, ...], kind: str, other: LanguagePack | None, pick: int) -> str:
    who, pack = voices(brief.pack), brief.pack
    return brief.prompt.render(
        kind=kind,
        seeds=shown,
        other={"tag": other.tag, "name": other.name, "native_name": other.native_name} if other else None,
        pick=pick,
        user=who.marker("user"),
        assistant=who.marker("assistant"),
        end=END,
        turns=brief.options["turns"],
        min_turns=brief.options["min_turns"],
        language={"tag": pack.tag, "name": pack.name, "native_name": pack.native_name},
    )


def _kinds(brief: Brief) -> list[str]:
    """Return the kinds that are wanted.

    Raises:
        ConfigError: there is no such kind, or none is left.
    """
    for kind in brief.options["kinds"]:
        if kind not in KINDS:
            close = difflib.get_close_matches(str(kind), KINDS, n=1) or [", ".join(KINDS)]
            raise ConfigError(f"options.kinds: there is no {kind!r}; did you mean {close[0]}?")
    others = _others(brief)
    kinds = [kind for kind in brief.options["kinds"] if others or kind != "crosslingual"]
    if brief.style == "stepwise":
        if "chat" not in kinds:
            raise ConfigError("options.kinds: the style stepwise knows only chat; take --set style=chat for the others")
        return ["chat"]
    if not kinds:
        raise ConfigError(
            f"options.kinds: name at least one of {', '.join(KINDS)}; crosslingual also needs another language in "
            "options.across"
        )
    return kinds


def _others(brief: Brief) -> list[LanguagePack]:
    """Return the other languages that conversations may go across to."""
    packs = [load_pack(str(tag)) for tag in brief.options["across"]]
    return [pack for pack in packs if pack.tag != brief.pack.tag]


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Say talks made of the given tasks."""
    talks = rehearsed(pack, tasks)
    if style == "stepwise":
        return Rehearsal(in_turn(talks), tuple(map(Dialogue, talks)))
    transcripts = iter([f"{render(talk, voices(pack))}\n{END}" for talk in talks])
    return Rehearsal(lambda request: next(transcripts, END), tuple(map(Dialogue, talks)))


RECIPE = Recipe(
    name="guanaco",
    summary="seed tasks become conversations of several kinds, in several languages at once (Guanaco)",
    source="JosephusCheung/GuanacoDataset",
    styles=("chat", "stepwise"),
    prompts=("guanaco", "baize"),
    variables={"chat": {"": _TALK}, "stepwise": {"stepwise": TRANSCRIPT}},
    stages=stages,
    preview=preview,
    export="guanaco",
    rehearse=rehearse,
    options={
        "turns": 4,
        "min_turns": 1,
        "dialogue_tokens": 0,
        "kinds": list(KINDS),
        "across": ["en", "zh", "ja", "es", "ar"],
    },
    defaults={"demonstrations": {"seed": 1, "machine": 0}},
)

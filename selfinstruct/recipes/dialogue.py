"""What the recipes of dialogues share: a conversation as text and back, its limits, and two models talking.

A *turn* of the options (`turns`, `min_turns`) is an exchange: what the person says and the reply. Everything here is a
pure function but `self_chat`, which asks. Nothing here raises for what a model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfinstruct import formats, seeds
from selfinstruct.backends.wire import estimate_tokens
from selfinstruct.errors import ConfigError, InputError
from selfinstruct.filters import repeats
from selfinstruct.formats.shape import user_text
from selfinstruct.languages import LanguagePack
from selfinstruct.markers import END, Marker, Speaker, Voices, end_mark, markers_in
from selfinstruct.parsing import cleaned, looks_cut
from selfinstruct.recipes import Brief, truncated
from selfinstruct.recipes.alpaca import ANSWER
from selfinstruct.stages import Draw
from selfinstruct.values import (
    Candidate,
    Completion,
    Dialogue,
    Message,
    Record,
    Rejection,
    Request,
    Sampling,
    Task,
)

HISTORY = 6000
"""Tokens of history shown to a model of which nothing is known: with a reply they fit a context of 8,192."""

REPLY = Sampling(
    max_tokens=512, temperature=0.7, top_p=0.95, min_p=0.05, top_k=0, repeat_penalty=1.1, repeat_last_n=128
)
"""What the assistant says next; without the penalty on repetition small models loop."""

BOTH = Sampling(max_tokens=2048, temperature=1.0, top_p=1.0, min_p=0.05, top_k=0)
"""Both sides in one completion: the API's defaults as in Baize's `collect.py`, less the improbable tail."""

PERSON = Sampling(max_tokens=160, temperature=1.0, top_p=1.0, min_p=0.05, top_k=0)
"""What the person says next; `sampling.max_tokens` is meant for replies and does not change it."""

LINE = Sampling(max_tokens=64, temperature=0.6, top_p=0.95, min_p=0.05, top_k=0, stop=("\n",), logprobs=True)
"""The person's next line in a transcript that a small model goes on with; the topic brings variety enough."""

STOPS = ("end_marker", "natural_close", "max_turns", "token_budget", "repeated_turn", "empty_turn", "unsure_turn")
"""Why a dialogue ended, as its `extra["stop"]` says:

end_marker      the writer put the agreed mark, or an empty turn of the person's (Baize's stop cue), at the end
natural_close   the person took leave, or a model that wrote both sides just ended
max_turns       as many exchanges as wanted
token_budget    a reply was cut off, or the dialogue grew to `dialogue_tokens`
repeated_turn   a side said again what it had said
empty_turn      a side said nothing, or spoke as the other, or ended its line in a colon
unsure_turn     the model was unsure of what the person says next (`low_logprob`); what was said before stands
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a dialogue may get: in exchanges, and in estimated tokens (0: no limit) of its history and in all."""

    turns: int
    min_turns: int = 1
    history_tokens: int = 0
    dialogue_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation read from text: the user first, strictly in turn. `stop` is "" where the text just ends."""

    messages: tuple[Message, ...]
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One side's words; `ended`: the end mark stood behind them, `leaked`: they went on as the other side's."""

    content: str
    ended: bool = False
    leaked: bool = False


@dataclass(frozen=True, slots=True)
class Chat:
    """What two models said to each other.

    `text` is all of it as it came. `trimmed` is how many of the oldest messages a model did not see at most,
    `shortened` how many turns were cut off by the token limit and kept up to their last whole sentence. `logprob` is
    that of the person's least likely turn. `rejection` is set where the opening was lost already, so that nothing more
    was asked.
    """

    messages: tuple[Message, ...]
    stop: str
    text: str
    trimmed: int = 0
    shortened: int = 0
    logprob: float | None = None
    rejection: Rejection | None = None


# --- a conversation as text


def render(messages: Sequence[Message], voices: Voices) -> str:
    """Return the conversation with a marker before each turn; `read_transcript` reads it back.

    Exactly so for turns that alternate, the user's first, are stripped and not empty, and hold neither a marker nor an
    end mark.
    """
    return "\n".join(f"{_marker(message, voices)} {message.content}" for message in messages)


def _marker(message: Message, voices: Voices) -> str:
    return voices.marker("user" if message.role == "user" else "assistant")


def read_transcript(text: str, voices: Voices, *, opened: Speaker | None = None) -> Transcript:
    """Read a conversation that a model wrote for both sides; never raises.

    `opened` is whose marker the prompt ended with: the text before the first marker is then that side's. Talk before
    the first marker, and the assistant's greeting before the person has spoken, are left out. Turns of one side in a
    row are one. Reading ends at the end mark and at an empty turn; an empty last turn of the person's is Baize's own
    way to say the end.
    """
    body = cleaned(text)
    over = end_mark(body)
    body = body[: over[0]] if over else body
    spoken: list[tuple[Speaker, str]] = []
    markers = _structure(body, markers_in(body, voices))
    head = body[: markers[0].start if markers else len(body)].strip()
    if opened and head:
        spoken.append((opened, head))
    ends = [*(marker.start for marker in markers[1:]), len(body)]
    spoken += [(marker.speaker, body[marker.end : end].strip()) for marker, end in zip(markers, ends, strict=False)]

    messages: list[Message] = []
    stop = "end_marker" if over else ""
    for at, (speaker, content) in enumerate(spoken):
        last = at == len(spoken) - 1
        doubled = not last and spoken[at + 1][0] == speaker
        if not content and not doubled:
            stop = "end_marker" if last and speaker == "user" else "empty_turn"
            break
        if messages and messages[-1].role == speaker:
            messages[-1] = replace(messages[-1], content=f"{messages[-1].content}\n\n{content}".strip())
        elif content and (messages or speaker == "user"):
            messages.append(Message(speaker, content))
    return Transcript(tuple(messages), stop)


def read_turn(text: str, speaker: Speaker, voices: Voices) -> Turn:
    """Read what one side said: without its own marker, up to the end mark or the first marker of the other side.

    A bare marker (`User:`) right behind a colon or comma is part of what is said, such as a dialogue as an example.
    """
    body = cleaned(text).strip()
    over = end_mark(body)
    body = body[: over[0]].rstrip() if over else body
    markers = markers_in(body, voices)
    if markers and markers[0].start == 0 and markers[0].speaker == speaker:
        own = markers.pop(0).end
        body, markers = body[own:], [replace(each, start=each.start - own) for each in markers]
    for marker in markers:
        before = body[: marker.start].rstrip()
        if marker.speaker != speaker and (marker.strong or not _introduces(before)):
            return Turn(_unquoted(before, speaker), leaked=True)
    return Turn(_unquoted(body, speaker), ended=over is not None)


def _structure(text: str, markers: Sequence[Marker]) -> list[Marker]:
    """Return the markers that separate turns: the strong ones, and weak ones where these leave a turn out."""
    if not any(marker.strong for marker in markers):
        return list(markers)
    result: list[Marker] = []
    between: list[Marker] = []
    for marker in markers:
        if not marker.strong:
            between.append(marker)
            continue
        if not result:
            result += [each for each in between[:1] if marker.speaker == "assistant" and each.speaker == "user"]
        elif result[-1].speaker == marker.speaker:
            result += [each for each in between if each.speaker != marker.speaker][:1]
        result.append(marker)
        between = []
    # Behind the last strong one the model may have gone over to another kind of marker.
    rest = result[-1:]
    for marker in between:
        if marker.speaker != rest[-1].speaker and not _introduces(text[: marker.start].rstrip()):
            rest.append(marker)
    turns = len(rest) - 1
    # One "User: root" in a reply is a line of a config; with an answer to it, it is a turn.
    return result + rest[1 : turns + (rest[-1].speaker == "assistant")]


def _introduces(before: str) -> bool:
    return before.endswith((":", "：", ",", "，", "```"))


def _unquoted(text: str, speaker: Speaker) -> str:
    """Take the quotation marks off that a model puts around the words of a person it plays."""
    text = text.strip()
    pairs = {'"': '"', "“": "”", "「": "」", "«": "»", "„": "“"}
    closing = pairs.get(text[:1])
    if speaker == "user" and closing and len(text) > 2 and text.endswith(closing):
        inner = text[1:-1]
        return inner.strip() if text[0] not in inner and closing not in inner else text
    return text


# --- limits


def complete_pairs(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages without an unanswered tail; the last pair is kept where it is complete.

    Baize's `preprocess.py` always dropped the last exchange, so a dialogue of one vanished.
    """
    kept = tuple(messages)
    while kept and kept[-1].role != "assistant":
        kept = kept[:-1]
    return kept


def exchanges(messages: Sequence[Message]) -> int:
    """Return how many replies there are."""
    return sum(message.role == "assistant" and not message.tool_calls for message in messages)


def tokens_of(messages: Sequence[Message]) -> int:
    """Return about how many tokens the messages are, four each for what a chat template puts around them."""
    return sum(4 + estimate_tokens(message.content) for message in messages)


def capped(messages: Sequence[Message], limits: Limits, *, given: int = 0) -> tuple[tuple[Message, ...], str]:
    """Return the conversation up to where it has to end, and why: "" where it may go on.

    The first `given` messages are not the model's and stand as they are; exchanges are counted from there.
    """
    for at in range(given, len(messages)):
        message = messages[at]
        earlier = (each.content for each in messages[:at] if each.role == message.role)
        if any(repeats(message.content, each) for each in earlier):
            return tuple(messages[:at]), "repeated_turn"
        if message.role != "assistant":
            continue
        if limits.dialogue_tokens and tokens_of(messages[: at + 1]) > limits.dialogue_tokens:
            return tuple(messages[:at]), "token_budget"
        if exchanges(messages[given : at + 1]) == limits.turns:
            return tuple(messages[: at + 1]), "max_turns"
    return tuple(messages), ""


def trimmed(messages: Sequence[Message], tokens: int) -> tuple[tuple[Message, ...], int]:
    """Return the newest messages that fit into `tokens` (0: all), and how many were left out.

    The oldest go in pairs, so that the user's stands first; the last message, or the last pair where the assistant has
    spoken last, always stays.
    """
    kept = tuple(messages)
    while tokens and len(kept) > 2 and tokens_of(kept) > tokens:
        kept = kept[2:]
    return kept, len(messages) - len(kept)


def whole_sentences(text: str, pack: LanguagePack) -> str:
    """Return a text that was cut off up to its last whole sentence; "" where that is less than half of it."""
    end = max((text.rfind(mark) + len(mark) for mark in pack.sentence_ends if mark in text), default=0)
    kept = text[:end].rstrip()
    return kept if 2 * len(kept) >= len(text) and kept.count("```") % 2 == 0 else ""


def limits_of(brief: Brief, reply: Sampling, frame: str = "") -> Limits:
    """Return the limits that the options set: `turns`, `min_turns`, `history_tokens`, `dialogue_tokens`.

    `history_tokens` 0 is what fits beside `reply` and the rest of the prompt (`frame`).

    Raises:
        ConfigError: a number below its least value, or `min_turns` above `turns`.
    """
    options = brief.options
    for name, least in (("turns", 1), ("min_turns", 1), ("history_tokens", 0), ("dialogue_tokens", 0)):
        if options.get(name, least) < least:
            raise ConfigError(f"options.{name}: expected a number of at least {least}, got {options[name]}")
    turns, min_turns = options["turns"], options.get("min_turns", 1)
    if min_turns > turns:
        raise ConfigError(f"options.min_turns: {min_turns} is above options.turns, {turns}")
    history = options.get("history_tokens", 0)
    if not history:
        window = _window(brief)
        history = max(1, window - reply.max_tokens - estimate_tokens(frame) - 64) if window else HISTORY
    return Limits(turns, min_turns, history, options.get("dialogue_tokens", 0))


def fitted(brief: Brief, preset: Sampling, share: float) -> Sampling:
    """Return a preset with the person's overrides; without one of `max_tokens` it takes at most `share` of a small
    model's context.
    """  # noqa: D205
    window = _window(brief)
    if window:
        preset = replace(preset, max_tokens=min(preset.max_tokens, int(window * share)))
    return brief.sampling(preset)


def _window(brief: Brief) -> int:
    """Return the context of an embedded model in tokens; 0 where it is not known."""
    return brief.config.backend.context if brief.config.model.startswith("llama.cpp/") else 0


# --- topics


def as_topic(record: Record, field: str = "") -> str:
    """Return what a dialogue is to be about, out of a record of any kind.

    `field` is "topic", "user", "assistant" or "system" of a dialogue, "instruction", "input", "output" or "name" of a
    task, "prompt" of a comparison, or a key that the format kept (Dolly's "category"). By default the topic or what
    the person asks.

    Raises:
        ConfigError: the record has no such field, or nothing in it.
    """
    if isinstance(record, Task):
        case = record.instances[0] if record.instances else None
        found = {"": user_text(record.instruction, case.input if case else ""), "instruction": record.instruction}
        found |= {"name": record.name, "input": case.input if case else "", "output": case.output if case else ""}
    elif isinstance(record, Dialogue):
        said = {message.role: message.content for message in reversed(record.messages)}
        found = {"": record.topic or said.get("user", ""), "topic": record.topic, "system": record.system}
        found |= {"user": said.get("user", ""), "assistant": said.get("assistant", "")}
    else:
        prompt = record.prompt if isinstance(record.prompt, str) else as_topic(record.prompt, "")
        found = {"": prompt, "prompt": prompt}
    value = found.get(field, record.extra.get(field))
    if not isinstance(value, str) or not value.strip():
        kind = type(record).__name__.lower()
        known = sorted(name for name, text in {**found, **record.extra}.items() if name and text)
        where = f" {record.id}" if record.id else ""
        raise ConfigError(f"options.field: the {kind}{where} has no text under {field!r}; it has {', '.join(known)}")
    return value.strip()


def topics(brief: Brief) -> tuple[Record, ...]:
    """Return the items of a recipe that starts from topics, each checked to have one.

    Raises:
        ConfigError: an item has nothing under `options.field`.
    """
    items = brief.items or ()
    for item in items:
        as_topic(item, brief.options.get("field", ""))
    return items


def read_topics(path: str) -> Iterator[Record]:
    """Read topics: one a line of a .txt file, JSON lines of topic and category, or records of any format.

    Raises:
        InputError: it can't be read as any of them.
    """
    if path.lower().endswith(".txt"):
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: can't be read as text in UTF-8: {error}") from error
        return (Dialogue((), topic=line.strip()) for line in lines if line.strip())
    if path.lower().endswith(".jsonl") and Path(path).is_file():
        with Path(path).open("rb") as file:
            first = file.readline(1 << 20)
        if re.match(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:topic|category)"\s*:', first) and b'"input"' not in first:
            return iter(seeds.load_topics(Path(path)))
    return iter(formats.read(path))


# --- two models talking


async def self_chat(
    draw: Draw,
    ask: Callable[[Speaker, Sequence[Message], int], Request],
    limits: Limits,
    voices: Voices,
    pack: LanguagePack,
    opening: Sequence[Message] = (),
) -> Chat:
    """Let both sides speak in turn until there is a reason to stop.

    `ask(speaker, history, turns)` returns the request for the next turn of a side; the history it is given fits
    `limits.history_tokens`, and there have been `turns` exchanges since the `opening`. The first words of a dialogue
    that nothing opens are screened before more is paid for it; later ones only end it where the model was unsure of
    them.
    """
    messages = tuple(opening)
    said: list[str] = []
    most = shortened = 0
    logprob: float | None = None
    while True:
        speaker: Speaker = "assistant" if messages and messages[-1].role == "user" else "user"
        shown, left_out = trimmed(messages, limits.history_tokens)
        most = max(most, left_out)
        request = ask(speaker, shown, exchanges(messages[len(opening) :]))
        completion = await draw.complete(request)
        text = f"{_begun(request, voices.marker(speaker))}{completion.text}"
        said.append(f"{voices.marker(speaker)} {text}")
        turn = read_turn(text, speaker, voices)
        if request.prompt is not None and turn.content.endswith((":", "：")):
            turn = Turn("")  # a line behind which more was to follow
        content = turn.content
        if speaker == "user" and content and completion.logprob is not None:
            if messages and draw.screen(Candidate(Dialogue(messages[:1]), logprob=completion.logprob)) is not None:
                return Chat(messages, "unsure_turn", "\n".join(said), most, shortened, logprob)
            logprob = min(completion.logprob, 0.0 if logprob is None else logprob)
        if content and not turn.leaked and not turn.ended and is_cut(completion, [content], pack):
            content = whole_sentences(content, pack)
            shortened += bool(content)
            stop = "" if content else "token_budget"
        else:
            stop = _stop(turn, speaker)
        if not stop or (turn.ended and speaker == "assistant" and content):
            messages, reached = capped((*messages, Message(speaker, content)), limits, given=len(opening))
            stop = reached or stop
        if stop:
            return Chat(messages, stop, "\n".join(said), most, shortened, logprob)
        if len(messages) == 1:
            rejection = draw.screen(Candidate(Dialogue(messages), logprob=logprob))
            if rejection is not None:
                return Chat(messages, "", "\n".join(said), logprob=logprob, rejection=rejection)


def _begun(request: Request, marker: str) -> str:
    """Return the words of a turn that a raw prompt puts into the mouth of the side whose turn it is."""
    return request.prompt.rpartition(marker)[2] if request.prompt is not None and marker in request.prompt else ""


def _stop(turn: Turn, speaker: Speaker) -> str:
    if not turn.content:
        return "end_marker" if turn.ended else "empty_turn"
    if turn.ended:
        return "natural_close" if speaker == "user" else "end_marker"
    return ""


def is_cut(completion: Completion, texts: Sequence[str], pack: LanguagePack) -> bool:
    """Tell whether a completion was cut off; where the server does not say, by plain signs in the last of `texts`."""
    cut = truncated(completion)
    return looks_cut(texts, pack) if cut is None and texts else bool(cut)


# --- a transcript that a small model goes on with

TRANSCRIPT = frozenset({"topic", "persona", "history", "user", "assistant", "language"})
"""What the prompt of the style `stepwise` may use."""

_TOPIC_LENGTH = 200


def transcript(brief: Brief, voices: Voices, topic: str, history: Sequence[Message], **known: Any) -> str:
    """Render a transcript that ends with a marker, so that one side's line comes next: the person's, by most prompts.

    The topic is shown in one line and up to 200 characters; `known` is what else a prompt may use.
    """
    return (
        brief.prompts["stepwise"]
        .render(
            topic=" ".join(topic.split())[:_TOPIC_LENGTH].rstrip(),
            history=render(history, voices),
            user=voices.marker("user"),
            assistant=voices.marker("assistant"),
            language={"tag": brief.pack.tag, "name": brief.pack.name},
            **known,
        )
        .rstrip()
    )


def next_line(brief: Brief, text: str, preset: Sampling = LINE) -> Request:
    """Return the request for the next line of a transcript, raw where the endpoint goes on with prompts.

    Models of some hundred million parameters can't play somebody when told to; they do go on with a transcript.
    """
    line = replace(brief.sampling(preset), max_tokens=preset.max_tokens)  # `sampling.max_tokens` is meant for replies
    if brief.capabilities.completions:
        return Request(line, prompt=text)
    return Request(line, messages=(Message("user", text),))


def short_reply(brief: Brief) -> Sampling:
    """Return how a small model's assistant replies: cool, and so short that some exchanges fit its context.

    A reply that is cut off is kept up to its last whole sentence.
    """
    return fitted(brief, ANSWER, 0.125)


def stepwise_filters(names: Sequence[str]) -> tuple[str, ...]:
    """Return the filters of a recipe with the one for what a model was unsure of behind the first."""
    return (*names[:1], "low_logprob", *names[1:])


# --- what comes out


def candidate(dialogue: Dialogue, stop: str, text: str, limits: Limits, *, given: int = 0, **notes: Any) -> Candidate:
    """Return the candidate for what was said: complete pairs, with why it ended and how many exchanges it has.

    The first `given` messages were there before. `notes` are further entries of `extra`; empty ones are left out. A
    dialogue to which no complete pair came is rejected by "parse", one with fewer than `min_turns` by "min_turns".
    """
    messages = complete_pairs(dialogue.messages)
    turns = exchanges(messages[given:])
    if not turns:
        reason = "truncated" if stop == "token_budget" else "no_reply" if dialogue.messages else "no_turns"
        return Candidate(None, text, Rejection("parse", reason))
    known = {"given": given, **notes}
    extra = {"stop": stop, "turns": exchanges(messages), **{name: value for name, value in known.items() if value}}
    rejection = None
    if turns < limits.min_turns:
        rejection = Rejection("min_turns", "too_few_turns", {"turns": turns, "minimum": limits.min_turns})
    return Candidate(replace(dialogue, messages=messages, extra={**dialogue.extra, **extra}), text, rejection)


def chat_candidate(dialogue: Dialogue, chat: Chat, limits: Limits, *, given: int = 0, **notes: Any) -> Candidate:
    """Return the candidate for a chat; `dialogue` says what is known of it but its messages."""
    record = replace(dialogue, messages=chat.messages)
    if chat.rejection is not None:
        return Candidate(record, chat.text, chat.rejection, logprob=chat.logprob)
    notes |= {"history_trimmed": chat.trimmed, "shortened": chat.shortened}
    return replace(candidate(record, chat.stop, chat.text, limits, given=given, **notes), logprob=chat.logprob)


def transcript_candidate(
    dialogue: Dialogue,
    completion: Completion,
    limits: Limits,
    voices: Voices,
    pack: LanguagePack,
    *,
    opened: Speaker | None = None,
    **notes: Any,
) -> Candidate:
    """Return the candidate for a conversation that one completion holds; of one cut off the last turn is dropped."""
    found = read_transcript(completion.text, voices, opened=opened)
    messages, stop = found.messages, found.stop
    if messages and not stop and is_cut(completion, [message.content for message in messages], pack):
        messages, stop = messages[:-1], "token_budget"
    messages, reached = capped(messages, limits)
    record = replace(dialogue, messages=messages)
    return candidate(record, reached or stop or "natural_close", completion.text, limits, **notes)


def about(item: Record, topic: str) -> Dialogue:
    """Return the dialogue that has not begun: its topic, and the category that a quota may share it out by."""
    category = item.extra.get("category")
    return Dialogue((), topic=topic, extra={"category": category} if isinstance(category, str) and category else {})


# --- without a model


def rehearsed(pack: LanguagePack, tasks: Sequence[Task]) -> list[tuple[Message, ...]]:
    """Return talks of two exchanges made of seed tasks, which a rehearsal of a recipe says."""
    cases = [(task.instruction, task.instances[0]) for task in tasks if not pack.other_language.find(task.instruction)]
    said = [(Message("user", user_text(asked, case.input)), Message("assistant", case.output)) for asked, case in cases]
    return [(*one, *two) for one, two in zip(said[::2], said[1::2], strict=False)]


def in_turn(talks: Sequence[Sequence[Message]], given: int = 0) -> Callable[[Request], str]:
    """Return a model for `self_chat` that replies as the talks have it, and as the person says the end after each.

    It answers one request at a time, in the order of the talks; the first `given` messages of each are there already.
    """
    answers = {
        asked.content: reply.content for talk in talks for asked, reply in zip(talk[::2], talk[1::2], strict=True)
    }
    questions = iter([text for talk in talks for text in (*(each.content for each in talk[given::2]), END)])

    def reply(request: Request) -> str:
        asked = request.messages[-1].content if request.prompt is None else ""
        return answers[asked] if asked in answers else next(questions, END)

    return reply

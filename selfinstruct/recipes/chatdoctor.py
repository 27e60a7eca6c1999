"""ChatDoctor: a patient asks, a doctor answers, out of one row of medical knowledge (Kent0n-Li/ChatDoctor).

There each disease of a table (`format_dataset.csv`) made one prompt and one record, and nothing was checked. Here the
rows may have any columns, the model is asked what the doctor named, and a filter holds that against the row. Style
`single` is the original's question and answer, `dialogue` a consultation in which the doctor asks before advising.
Without rows the recipe starts from topics of health. What `bianque` shares with it is here too.
"""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfinstruct import prompts
from selfinstruct.backends.wire import estimate_tokens
from selfinstruct.errors import InputError
from selfinstruct.filters import DEFAULT_FILTERS
from selfinstruct.formats.inputs import opened
from selfinstruct.languages import LanguagePack
from selfinstruct.markers import END, Speaker, voices
from selfinstruct.recipes import Brief, Recipe, Rehearsal
from selfinstruct.recipes.alpaca import ANSWER
from selfinstruct.recipes.dialogue import (
    BOTH,
    LINE,
    TRANSCRIPT,
    Limits,
    as_topic,
    chat_candidate,
    fitted,
    in_turn,
    limits_of,
    next_line,
    read_topics,
    render,
    self_chat,
    stepwise_filters,
    transcript,
    transcript_candidate,
)
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import Candidate, Capabilities, Dialogue, Instance, Message, Record, Request, Sampling, Task

ABOUT = frozenset({"topic", "facts", "pick", "language"})
_PAIR = ABOUT | {"patient", "doctor"}
NAMED = frozenset({"reply"})
REPLIED = frozenset({"facts", "language"})
VARIABLES = {
    "single": {"": _PAIR, "instruction": frozenset({"language"}), "named": NAMED, "note": frozenset[str]()},
    "stepwise": {
        "stepwise": TRANSCRIPT | {"facts"},
        "reply": REPLIED,
        "instruction": frozenset({"language"}),
        "named": NAMED,
        "note": frozenset[str](),
    },
    "dialogue": {"dialogue": _PAIR | {"turns", "min_turns", "end"}, "named": NAMED, "note": frozenset[str]()},
}

NAMING = Sampling(max_tokens=256, temperature=0.0)
"""The list of what a doctor named."""

LETTER = replace(LINE, max_tokens=120)
"""The patient's words, where a small model goes on with letters of others."""

FACT_TOKENS = 1500
"""Most tokens of a row that a prompt shows; a long column gives way to the others."""

_NUMBERS = frozenset({"", "id", "idx", "index", "no", "unnamed: 0"})
"""Names of columns that only number the rows."""

_LONGEST_CELL = 100_000


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the one stage: a record for each knowledge row, or for each topic as often as it is gone through."""
    single = brief.style != "dialogue"
    consult = _in_turn(brief) if brief.style == "stepwise" else _both(brief)

    async def draw(draw: Draw) -> list[Candidate]:
        assert draw.item is not None
        candidate = await grounded(draw, brief, await consult(draw, draw.item))
        return [await _as_task(draw, brief, candidate) if single else candidate]

    filters = DEFAULT_FILTERS["instances"] if single else (*DEFAULT_FILTERS["dialogues"], "advises_first")
    if brief.style == "stepwise":
        filters = stepwise_filters(filters)
    # A task's subject is its instruction, which is the same in every record: what is told has to be new as a whole.
    novelty = ("whole",) if single else ("subject", "whole")
    return (consultations(brief, "tasks" if single else "dialogues", draw, filters, novelty),)


def _both(brief: Brief) -> Callable[[Draw, Record], Awaitable[Candidate]]:
    who, sampling = voices(brief.pack, "patient", "doctor"), fitted(brief, BOTH, 0.5)
    limits = Limits(1) if brief.style == "single" else limits_of(brief, sampling)

    async def consult(draw: Draw, item: Record) -> Candidate:
        text = _frame(brief, item, draw.rng.randrange(1000))
        completion = await draw.complete(Request(sampling, messages=(Message("user", text),)))
        return transcript_candidate(begun(brief, item), completion, limits, who, brief.pack)

    return consult


def _in_turn(brief: Brief) -> Callable[[Draw, Record], Awaitable[Candidate]]:
    """Let the patient's words be gone on with behind letters of others, and the doctor reply as in any chat."""
    who, sampling, limits = voices(brief.pack, "patient", "doctor"), fitted(brief, ANSWER, 0.25), Limits(1)

    async def consult(draw: Draw, item: Record) -> Candidate:
        told = about(brief, item, 0)

        def ask(speaker: Speaker, history: Sequence[Message], turns: int) -> Request:
            if speaker == "user":
                letters = transcript(brief, who, told["topic"], history, persona="", facts=told["facts"])
                return next_line(brief, letters, LETTER)
            return Request(sampling, messages=(doctor_part(brief, told["facts"]), *history))

        chat = await self_chat(draw, ask, limits, who, brief.pack)
        return chat_candidate(begun(brief, item), chat, limits)

    return consult


def doctor_part(brief: Brief, facts: Sequence[Mapping[str, Any]]) -> Message:
    """Return the system message that tells a model to reply as a doctor."""
    language = {"tag": brief.pack.tag, "name": brief.pack.name}
    return Message("system", brief.prompts["reply"].render(facts=facts, language=language).strip())


def consultations(
    brief: Brief,
    name: str,
    draw: Callable[[Draw], Awaitable[Sequence[Candidate]]],
    filters: tuple[str, ...],
    novelty: tuple[str, ...],
) -> Stage:
    """Return a stage over the brief's items; rows of knowledge are the person's own, however alike."""
    items = brief.items or ()
    for item in items:
        topic_of(brief, item)
    given = brief.config.input is not None
    return Stage(
        name,
        draw,
        0.7,
        items=items,
        rounds=brief.rounds,
        filters=(*filters, "ungrounded"),
        novelty=() if given else novelty,
    )


def preview(brief: Brief) -> str:
    """Render the prompt about the first item."""
    if brief.style == "stepwise":
        who, told = voices(brief.pack, "patient", "doctor"), about(brief, _first(brief), 0)
        letters = transcript(brief, who, told["topic"], (), persona="", facts=told["facts"])
        return f"{letters}\n\n---\n\n{doctor_part(brief, told['facts']).content}"
    return _frame(brief, _first(brief), 0)


def _first(brief: Brief) -> Record:
    return (brief.items or (Dialogue((), topic="..."),))[0]


def _frame(brief: Brief, item: Record, pick: int) -> str:
    who = voices(brief.pack, "patient", "doctor")
    told = about(brief, item, pick) | {"patient": who.marker("user"), "doctor": who.marker("assistant")}
    if brief.style == "single":
        return brief.prompts[""].render(**told)
    options = brief.options
    return brief.prompts["dialogue"].render(**told, turns=options["turns"], min_turns=options["min_turns"], end=END)


async def _as_task(draw: Draw, brief: Brief, candidate: Candidate) -> Candidate:
    """Turn a dialogue of one exchange into a task: ChatDoctor's constant instruction, the patient, the doctor."""
    if not isinstance(candidate.record, Dialogue) or len(candidate.record.messages) < 2:
        return candidate  # the opening was lost already
    asked, answered = candidate.record.messages
    instruction = await _instruction(draw, brief)
    extra = {key: value for key, value in candidate.record.extra.items() if key not in ("stop", "turns")}
    case = Instance(asked.content, answered.content)
    record = Task(instruction, (case,), extra={"topic": candidate.record.topic, **extra})
    return replace(candidate, record=record)


async def _instruction(draw: Draw, brief: Brief) -> str:
    """Return the constant instruction; where it is not worded in the language, as the model translates it, once."""
    prompt, pack = brief.prompts["instruction"], brief.pack
    text = prompt.render(language={"tag": pack.tag, "name": pack.name}).strip()
    if prompt.language == pack.tag:
        return text
    completion = await draw.complete(Request(NAMING, messages=(Message("user", text),)), shared=True)
    return next((line.strip(' "“”「」') for line in completion.text.splitlines() if line.strip()), text)


# --- what a consultation is about


def topic_of(brief: Brief, item: Record) -> str:
    """Return a topic, or what a knowledge row is about: its first cell.

    Raises:
        ConfigError: the item holds neither.
    """
    return as_topic(item, "instruction" if isinstance(item, Task) else "")


def facts_of(item: Record) -> dict[str, list[str]]:
    """Return a knowledge row's columns with their entries; nothing of a topic."""
    found: dict[str, list[str]] = {}
    for cell in item.instances if isinstance(item, Task) else ():
        found.setdefault(cell.input, []).append(cell.output)
    return found


def about(brief: Brief, item: Record, pick: int) -> dict[str, Any]:
    """Return the variables that tell a prompt what the consultation is about, and who the patient is this time."""
    window = brief.config.backend.context if brief.config.model.startswith("llama.cpp/") else 0
    facts = _shown(facts_of(item), window // 4 or FACT_TOKENS)
    return {
        "topic": topic_of(brief, item),
        "facts": [{"name": name, "entries": entries} for name, entries in facts.items()],
        "pick": pick,
        "language": {"tag": brief.pack.tag, "name": brief.pack.name},
    }


def _shown(facts: Mapping[str, Sequence[str]], tokens: int) -> dict[str, list[str]]:
    """Return as much of each column as fits: short ones whole, long ones up to an equal share of the rest."""
    sizes = {name: sum(map(estimate_tokens, entries)) for name, entries in facts.items()}
    shown: dict[str, list[str]] = {}
    left = tokens
    for count, name in enumerate(sorted(facts, key=lambda name: sizes[name])):
        share = max(0, left) // (len(facts) - count)
        shown[name] = _cut(facts[name], share)
        left -= sum(map(estimate_tokens, shown[name]))
    return {name: shown[name] for name in facts if shown[name]}


def _cut(entries: Sequence[str], tokens: int) -> list[str]:
    kept: list[str] = []
    for entry in entries:
        tokens -= estimate_tokens(entry)
        if tokens < 0:
            return kept or [entry[: max(1, len(entry) * (tokens + estimate_tokens(entry)) // estimate_tokens(entry))]]
        kept.append(entry)
    return kept


def begun(brief: Brief, item: Record) -> Dialogue:
    """Return the consultation that has not begun, with the note that every record of it carries."""
    extra: dict[str, Any] = {"note": brief.prompts["note"].render().strip()}
    if isinstance(category := item.extra.get("category"), str) and category:
        extra["category"] = category
    if facts := facts_of(item):
        extra["knowledge"] = facts
    return Dialogue((), topic=topic_of(brief, item), extra=extra)


# --- grounding


async def grounded(draw: Draw, brief: Brief, candidate: Candidate) -> Candidate:
    """Ask what medicines and tests the doctor of a row's consultation names, for the filter `ungrounded`.

    Nothing is asked about a candidate that is lost already, or with the filter switched off.
    """
    record = candidate.record
    if not isinstance(record, Dialogue) or candidate.rejection is not None or "knowledge" not in record.extra:
        return candidate
    if brief.config.filters.get("ungrounded") is False or draw.screen(candidate) is not None:
        return candidate
    said = "\n\n".join(message.content for message in record.messages if message.role == "assistant")
    text = brief.prompts["named"].render(reply=said)
    completion = await draw.complete(Request(fitted(brief, NAMING, 0.25), messages=(Message("user", text),)))
    extra = {**record.extra, "named": read_names(completion.text, said)}
    return replace(candidate, record=replace(record, extra=extra))


def read_names(text: str, said: str) -> list[str]:
    """Read a list of names, one a line; only what does occur in what was said is one."""
    spoken = " ".join(said.casefold().split())
    found: dict[str, str] = {}
    for line in text.splitlines():
        bare = " ".join(line.strip().lstrip("-*•·0123456789.)、 ").split()).rstrip(".,;。，；")
        for part in (bare, *(bare.partition(mark)[0] for mark in (":", "：", "(", "（", " - ", " – "))):
            name = part.strip(" *_`\"'“”「」")
            if name and name.casefold() in spoken:
                found.setdefault(name.casefold(), name)
                break
    return list(found.values())


# --- knowledge rows


def read_knowledge(path: str) -> Iterator[Record]:
    """Read rows of knowledge of any columns, or topics: each row is a task of its first cell, its cells the instances.

    A cell may hold a list, as JSON or as Python prints it (ChatDoctor's table): each entry is then an instance. Columns
    that only number the rows are left out.

    Raises:
        InputError: a row can't be read, is no object, or holds nothing, with file:line.
    """
    if path.lower().endswith(".txt"):
        yield from read_topics(path)
        return
    with opened(path) as file:
        for item in file.items():
            where = f"{path}:{item.place}"
            if item.fault:
                raise InputError(f"{where}: {item.fault}")
            if not isinstance(item.value, dict):
                raise InputError(f"{where}: expected an object of columns, found {type(item.value).__name__}")
            yield _row(item.value, where)


def _row(row: Mapping[str, Any], where: str) -> Record:
    if set(row) <= {"topic", "category"} and isinstance(row.get("topic"), str) and row["topic"].strip():
        return Dialogue((), topic=row["topic"].strip(), extra={"category": str(row.get("category", ""))})
    cells = [
        Instance(str(column).strip(), entry)
        for column, cell in row.items()
        if str(column).strip().casefold() not in _NUMBERS
        for entry in _entries(cell)
    ]
    if not cells:
        raise InputError(
            f"{where}: the row holds nothing; expected columns such as disease, symptoms, tests, medicines"
        )
    return Task(cells[0].output, tuple(cells))


def _entries(cell: Any) -> list[str]:
    """Return the texts in a cell: of a list each entry, of an object one for each key."""
    if isinstance(cell, str):
        inner = _literal(cell)
        return [" ".join(cell.split())] * bool(cell.strip()) if inner is None else _entries(inner)
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return []
    if isinstance(cell, Mapping):
        return [f"{key}: {'; '.join(texts)}" for key, value in cell.items() if (texts := _entries(value))]
    if isinstance(cell, Iterable):
        return list(dict.fromkeys(text for entry in cell for text in _entries(entry)))
    return [str(cell)]


def _literal(text: str) -> Any:
    """Return the list or object that a cell's text is, as JSON or as a Python literal; None of any other text.

    Nothing is run: `ast.literal_eval` knows literals only.
    """
    text = text.strip()
    if len(text) > _LONGEST_CELL or (text[:1], text[-1:]) not in {("[", "]"), ("(", ")"), ("{", "}")}:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d", which are kept as they are
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return (
        sorted(value, key=str) if isinstance(value, set) else value if isinstance(value, list | tuple | dict) else None
    )


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Let the patient say the given instructions and the doctor their outputs; in a dialogue the doctor asks first."""
    talks = rehearsed(pack, tasks, asking=1 if style == "dialogue" else 0)
    texts = iter(render(talk, voices(pack, "patient", "doctor")) for talk in talks)
    answer = in_turn(talks)
    if style == "dialogue":
        return Rehearsal(lambda request: next(texts, ""), tuple(Dialogue(talk) for talk in talks))
    prompt = prompts.load(RECIPE.prompts, pack.tag, {"instruction": frozenset({"language"})})["instruction"]
    text = prompt.render(language={"tag": pack.tag, "name": pack.name}).strip()
    instruction = text if prompt.language == pack.tag else talks[0][0].content

    def reply(request: Request) -> str:
        if request.prompt is None and request.messages[0].content == text:
            return instruction
        return answer(request) if style == "stepwise" else next(texts, "")

    pairs = (Instance(asked.content, answered.content) for asked, answered in talks)
    can = Capabilities(completions=style == "stepwise")
    return Rehearsal(reply, tuple(Task(instruction, (pair,)) for pair in pairs), capabilities=can)


def rehearsed(pack: LanguagePack, tasks: Sequence[Task], *, asking: int) -> list[tuple[Message, ...]]:
    """Return consultations made of tasks: `asking` replies end in a question, the last one does not."""
    alone = [task for task in tasks if not pack.other_language.find(task.instruction)]
    talks = []
    for at in range(0, len(alone) - asking, asking + 1)[:3]:
        messages: list[Message] = []
        for number, task in enumerate(alone[at : at + asking + 1]):
            output = task.instances[0].output
            reply = f"{output} {pack.question_ends[0]}" if number < asking else output
            messages += [Message("user", " ".join(task.instruction.split())), Message("assistant", reply)]
        talks.append(tuple(messages))
    return talks


RECIPE = Recipe(
    name="chatdoctor",
    summary="a patient and a doctor out of rows of medical knowledge, or of topics of health (ChatDoctor)",
    source="Kent0n-Li/ChatDoctor",
    styles=("single", "dialogue", "stepwise"),
    prompts=("chatdoctor",),
    variables=VARIABLES,
    stages=stages,
    preview=preview,
    export="chatdoctor",
    starts="topics",
    topics="medical",
    accepts=(Task, Dialogue),
    read=read_knowledge,
    options={"turns": 4, "min_turns": 2, "history_tokens": 0, "dialogue_tokens": 0},
    rehearse=rehearse,
)

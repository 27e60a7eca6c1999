"""Translate: a dataset of any kind into another language, field by field.

Japanese-Alpaca-LoRA translated each field of Alpaca by itself, between tags and at temperature 0; Luotuo likewise;
KoAlpaca translated instruction and input and had the outputs written anew. Here what must not change is masked before
a text is asked for and checked when it comes back (`selfinstruct.masking`). A translation with a fault is asked for
once more with the fault named, then the record is rejected.

A request is shared by the whole run: the same words in the same place are translated once, however many rows have them.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from selfinstruct import identification
from selfinstruct.errors import ConfigError
from selfinstruct.filters import DEFAULT_FILTERS, Filter, build_filters
from selfinstruct.languages import LanguagePack, Match, Phrases, is_unspaced, load_pack, own_scripts, tokens
from selfinstruct.masking import Fault, Masked, mask, number_fault, unmarked, unmask
from selfinstruct.recipes import Brief, Recipe, Rehearsal, truncated
from selfinstruct.stages import Draw, Stage
from selfinstruct.values import (
    Candidate,
    Comparison,
    Dialogue,
    Instance,
    Message,
    Record,
    Rejection,
    Request,
    Response,
    Sampling,
    Task,
)

VARIABLES = {
    "fields": {
        "": frozenset({"language", "field", "text", "context", "terms", "marked"}),
        "label": frozenset({"language", "text", "context", "others", "marked"}),
        "again": frozenset({"language", "faults"}),
    }
}

TRANSLATION = Sampling(max_tokens=128, temperature=0.0)
"""Japanese-Alpaca-LoRA's temperature; to `max_tokens` comes one for each byte of the text."""

ANSWER = Sampling(max_tokens=1024, temperature=0.7, top_p=0.95)
"""An output written anew."""

LABEL_LENGTH = 40
"""Characters of the longest output that is taken for a label where the data does not say what is a classification."""

CONTEXT_LENGTH = 600
"""Characters of the text that a field belongs to, shown with it."""

LANGUAGE_FILTERS = ("language_script", "script_variant", "language")

_OPTIONS = {"outputs": "translate", "glossary": {}, "source": "en", "split_tokens": 1500}
_BLANK_LINE = re.compile(r"(\n[ \t]*\n\s*)")
_REPLY = re.compile(r"<text>(.*)</text>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Term:
    """A word and the translation that it must have; a label of the record's own should have it in its instruction."""

    source: str
    translation: str
    label: bool = False


@dataclass(frozen=True)
class _Setting:
    """What all draws of a run have in common."""

    brief: Brief
    items: Sequence[Record]
    source: LanguagePack
    glossary: tuple[_Term, ...]
    checks: tuple[Filter, ...]
    language: Mapping[str, str]
    regenerate: bool

    @cached_property
    def labels(self) -> Mapping[str, Task]:
        """The task that each label is first met in."""
        found: dict[str, Task] = {}
        for task in self.items:
            if isinstance(task, Task):
                for label in labels_of(task):
                    found.setdefault(label, task)
        return found


class _Spoilt(Exception):
    """A field that can't be had: the record is rejected."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.reason)
        self.rejection = rejection


def stages(brief: Brief) -> tuple[Stage, ...]:
    """Lay out the one mapping stage.

    Raises:
        ConfigError: an option is not what it should be.
    """
    items = brief.items or ()
    setting = _setting(brief, items)

    async def draw(draw: Draw) -> list[Candidate]:
        assert draw.item is not None
        translator = _Translator(setting, draw)
        try:
            record = await translator.record(draw.item)
        except _Spoilt as spoilt:
            return [Candidate(None, "\n\n".join(translator.replies), spoilt.rejection)]
        return [Candidate(record, "\n\n".join(translator.replies))]

    kinds = {Task: "tasks", Dialogue: "dialogues", Comparison: "comparisons"}
    name = kinds[type(items[0])] if items else "tasks"
    filters = (*DEFAULT_FILTERS["answers"], *LANGUAGE_FILTERS) if setting.regenerate else ("control_characters",)
    return (Stage(name, draw, items=items, filters=filters),)


def preview(brief: Brief) -> str:
    """Render the prompt for the first text of the input, or for one of our own."""
    items = brief.items or (Task("Name three rivers of Spain.", (Instance("", "The Ebro, the Tagus and the Duero."),)),)
    setting = _setting(brief, items)
    first = items[0].prompt if isinstance(items[0], Comparison) else items[0]
    if isinstance(first, Dialogue):
        return _prompt(setting, "user message", next((m.content for m in first.messages), first.topic))
    return _prompt(setting, "instruction", first if isinstance(first, str) else first.instruction)


def _setting(brief: Brief, items: Sequence[Record]) -> _Setting:
    options = brief.options
    if options["outputs"] not in ("translate", "regenerate"):
        raise ConfigError(f"options.outputs: expected translate or regenerate, got {options['outputs']!r}")
    if options["split_tokens"] < 1:
        raise ConfigError("options.split_tokens: expected a whole number of at least 1")
    for term, translation in options["glossary"].items():
        if not isinstance(translation, str) or not translation.strip() or not str(term).strip():
            raise ConfigError(f"options.glossary: expected words and their translations, got {term!r}: {translation!r}")
    pack = brief.pack
    return _Setting(
        brief,
        items,
        load_pack(options["source"]),
        tuple(_Term(str(term), translation) for term, translation in options["glossary"].items()),
        tuple(check for _, check in build_filters([(name, {}) for name in LANGUAGE_FILTERS], pack)),
        {"tag": pack.tag, "name": pack.name if pack.shipped else unnamed(pack.tag)},
        options["outputs"] == "regenerate",
    )


def unnamed(tag: str) -> str:
    """Return what prompts call a language that nobody has described yet."""
    return f'"{tag}" (a BCP 47 language tag)'


def _prompt(
    setting: _Setting, field: str, text: str, context: str = "", terms: Sequence[_Term] = (), *, marked: bool = False
) -> str:
    return setting.brief.prompts[""].render(
        language=setting.language,
        field=field,
        text=text,
        context=_short(context),
        terms=[{"source": term.source, "translation": term.translation} for term in terms],
        marked=marked,
    )


@dataclass(slots=True)
class _Translator:
    """Translates the record of one draw; `replies` is what the model said on the way."""

    setting: _Setting
    draw: Draw
    replies: list[str] = field(default_factory=list)

    async def record(self, record: Record) -> Record:
        """Return the record with its texts in the other language, and all else as it was."""
        if isinstance(record, Task):
            return await self._task(record)
        if isinstance(record, Dialogue):
            return await self._dialogue(record)
        return await self._comparison(record)

    async def _task(self, task: Task) -> Task:
        labels = {label: await self._label(label) for label in labels_of(task)}
        if len(set(map(_plain, labels.values()))) < len(set(map(_plain, labels))):
            raise _Spoilt(Rejection("translation", "labels_alike", {"about": "; ".join(labels.values())}))
        own = [_Term(*pair, label=True) for pair in labels.items()]
        instruction = await self.text("instruction", task.instruction, terms=own)
        instances = []
        for case in task.instances:
            given = await self.text("input", case.input, asked=(task.instruction, instruction))
            if case.output in labels:
                output = labels[case.output]
            elif self.setting.regenerate:
                output = await self._answer((Message("user", f"{instruction}\n\n{given}" if given else instruction),))
            else:
                output = await self.text("output", case.output, asked=(task.instruction, instruction))
            instances.append(Instance(given, output))
        extra = dict(task.extra)
        if choices := _choices(task):
            extra["answer_choices"] = [labels[choice] for choice in choices]
        return replace(task, instruction=instruction, instances=tuple(instances), extra=extra)

    async def _dialogue(self, dialogue: Dialogue) -> Dialogue:
        system = await self.text("system prompt", dialogue.system)
        # A tool's results can't be had anew in another language: what rests on them is translated.
        anew = self.setting.regenerate and not any(message.role == "tool" for message in dialogue.messages)
        messages: list[Message] = []
        said = ("", "")
        for message in dialogue.messages:
            if message.role == "assistant" and anew and not message.tool_calls:
                before = (Message("system", system), *messages) if system else tuple(messages)
                content = await self._answer(before)
            elif message.role == "tool":
                content = message.content
            else:
                content = await self.text(f"{message.role} message", message.content, asked=said)
            thoughts = "" if anew else await self.text("thoughts", message.thoughts, asked=said)
            messages.append(replace(message, content=content, thoughts=thoughts))
            if message.role == "user":
                said = (message.content, content)
        known = {old.content: new.content for old, new in zip(dialogue.messages, messages, strict=True)}
        topic = known.get(dialogue.topic) or await self.text("topic", dialogue.topic)
        return replace(dialogue, system=system, messages=tuple(messages), topic=topic)

    async def _comparison(self, comparison: Comparison) -> Comparison:
        prompt: str | Dialogue
        if isinstance(comparison.prompt, str):
            prompt = await self.text("user message", comparison.prompt)
            said = comparison.prompt, prompt
        else:
            # What was scored can't be written anew, nor what it answers.
            given = _Translator(replace(self.setting, regenerate=False), self.draw, self.replies)
            prompt = await given._dialogue(comparison.prompt)
            said = _last_said(comparison.prompt), _last_said(prompt)
        responses: list[Response] = []
        for response in comparison.responses:
            content = await self.text("assistant message", response.content, asked=said)
            responses.append(replace(response, content=content))
        return replace(comparison, prompt=prompt, responses=tuple(responses))

    async def text(
        self, name: str, text: str, *, asked: tuple[str, str] = ("", ""), terms: Sequence[_Term] = ()
    ) -> str:
        """Return the translation of a field; `asked` is what it answers, before and after its own translation.

        A text that says nothing, or is in the language already, comes back as it is.
        """
        if is_in(text, self.setting.brief.pack, self.setting.source):
            return text
        masked = mask(text)
        pieces = _split(masked.text, self.setting.brief.options["split_tokens"])
        return "".join([await self._piece(name, Masked(piece, masked.spans), asked, terms) for piece in pieces])

    async def _piece(self, name: str, piece: Masked, asked: tuple[str, str], terms: Sequence[_Term]) -> str:
        core = piece.text.strip()
        if not any(map(str.isalpha, unmarked(core))):
            return str(unmask(piece.text, piece))
        start, end = piece.text[: piece.text.index(core)], piece.text[piece.text.index(core) + len(core) :]
        mine = [term for term in (*self.setting.glossary, *terms) if _occurs(term.source, core)]
        prompt = _prompt(self.setting, name, core, asked[0], mine, marked=core != unmarked(core))
        return start + await self._ask(name, Masked(core, piece.spans), prompt, asked, mine) + end

    async def _label(self, label: str) -> str:
        """Return the translation of a label: the same one in every record, by the task that it is first met in."""
        setting, masked = self.setting, mask(label)
        for term in setting.glossary:
            if term.source.casefold() == label.strip().casefold():
                return term.translation
        if is_in(label, setting.brief.pack, setting.source):
            return label
        first = setting.labels.get(label)
        prompt = setting.brief.prompts["label"].render(
            language=setting.language,
            text=masked.text.strip(),
            context=_short(first.instruction if first else ""),
            others=[each for each in labels_of(first) if each != label] if first else [],
            marked=bool(masked.spans),
        )
        return await self._ask("label", replace(masked, text=masked.text.strip()), prompt, ("", ""), ())

    async def _ask(self, name: str, masked: Masked, prompt: str, asked: tuple[str, str], terms: Sequence[_Term]) -> str:
        """Ask, and once more with the faults named."""
        setting = self.setting
        preset = replace(TRANSLATION, max_tokens=TRANSLATION.max_tokens + len(masked.text.encode("utf-8", "replace")))
        sampling = setting.brief.sampling(preset)
        said: tuple[Message, ...] = (Message("user", prompt),)
        faults: list[Fault] = []
        for _ in range(2):
            completion = await self.draw.complete(Request(sampling, messages=said), shared=True)
            self.replies.append(completion.text)
            if truncated(completion):
                faults = [Fault("truncated")]
                sampling = replace(sampling, max_tokens=2 * sampling.max_tokens)
                continue
            reply = _reply(completion.text, masked.text)
            translation, faults = (
                (reply, [Fault("unmarked")]) if reply is None else self._check(name, masked, reply, asked, terms)
            )
            if translation is not None and not faults:
                return translation
            again = setting.brief.prompts["again"].render(
                language=setting.language, faults=[{"reason": fault.reason, "about": fault.about} for fault in faults]
            )
            said = (*said[:1], Message("assistant", completion.text), Message("user", again))
        # Words change their endings in a sentence: a label that is missing from the instruction is borne.
        serious = [fault for fault in faults if fault.reason != "label_missing"]
        if serious or translation is None:
            raise _Spoilt(Rejection("translation", serious[0].reason, {"field": name, "about": serious[0].about}))
        return translation

    def _check(
        self, name: str, masked: Masked, reply: str, asked: tuple[str, str], terms: Sequence[_Term]
    ) -> tuple[str | None, list[Fault]]:
        """Return the translation with its spans back in, and its faults."""
        if not reply:
            return None, [Fault("empty")]
        translation = unmask(reply, masked)
        if isinstance(translation, Fault):
            return None, [translation]
        source, bare = unmarked(masked.text), unmarked(reply)
        faults = [fault for fault in (number_fault(source, bare), _length_fault(source, bare)) if fault]
        faults += [
            Fault("label_missing" if term.label else "term_missing", f"{term.source} → {term.translation}")
            for term in terms
            if _plain(term.translation) not in _plain(translation)
        ]
        if name == "label":
            return translation, faults + ([Fault("several_lines")] if "\n" in translation else [])
        # What belongs to a task about another language may have to stay in that.
        if not (asked[0] and self.setting.source.other_language.find(asked[0])):
            faults += self._language_faults(name, source, bare, asked[1])
        return translation, faults

    def _language_faults(self, name: str, source: str, reply: str, asked: str) -> list[Fault]:
        words = tokens(source)
        if words == tokens(reply):
            return [Fault("untranslated")] if len(words) > 3 else []
        if name == "input":
            return []
        # The filters look at what is asked and at what answers it; the former has passed them by now.
        task = Task(asked, (Instance("", reply),)) if asked else Task(reply)
        found = next(filter(None, (check(Candidate(task)) for check in self.setting.checks)), None)
        return [Fault("other_language", str(found.measured.get("likeliest", "")))] if found else []

    async def _answer(self, messages: Sequence[Message]) -> str:
        """Have an output written anew."""
        sampling = self.setting.brief.sampling(ANSWER)
        completion = await self.draw.complete(Request(sampling, messages=tuple(messages)))
        self.replies.append(completion.text)
        text = completion.text.rpartition("</think>")[2].strip()
        if truncated(completion) or not text:
            reason = "truncated" if truncated(completion) else "empty"
            raise _Spoilt(Rejection("translation", reason, {"field": "output", "about": ""}))
        return text


# Labels


def labels_of(task: Task) -> list[str]:
    """Return the labels of a classification: its answer choices, and its outputs.

    Where the data does not say that it is one, a short output that the instruction names is taken for a label.
    """
    choices = _choices(task)
    outputs = [case.output for case in task.instances if case.output.strip()]
    if not task.is_classification:
        known = task.is_classification is False or bool(choices)
        outputs = [
            output for output in outputs if output in choices or (not known and _named(output, task.instruction))
        ]
    return list(dict.fromkeys((*choices, *outputs)))


def _named(output: str, instruction: str) -> bool:
    return len(output) <= LABEL_LENGTH and "\n" not in output and _occurs(output, instruction)


def _choices(task: Task) -> list[str]:
    choices = task.extra.get("answer_choices")
    whole = isinstance(choices, list) and all(isinstance(choice, str) and choice.strip() for choice in choices)
    return choices if isinstance(choices, list) and whole else []


def _occurs(term: str, text: str) -> bool:
    """Tell whether a text holds a term as words of their own."""
    match: Match = "substring" if any(map(is_unspaced, term)) else "word"
    return Phrases(match, (term,)).find(text) is not None


# Texts


def is_in(text: str, pack: LanguagePack, source: LanguagePack) -> bool:
    """Tell whether a text needs no translation: there are no words in it, or they are in the pack's language already.

    Letters decide where it shares no script with the data's own language, the national standard between ways of writing
    Chinese, and the statistical model (extra `lang`) elsewhere. Without an opinion a text is translated.
    """
    bare = unmarked(mask(text).text)
    if not any(map(str.isalpha, bare)):
        return True
    own, theirs = own_scripts(pack.scripts), own_scripts(source.scripts)
    if own and theirs and not own & theirs:
        return identification.script_shares(bare, pack).own > 0.8
    if pack.tag.split("-")[0] == source.tag.split("-")[0]:
        right, wrong = identification.variant_counts(bare, pack)
        return right > 0 and not wrong
    bare = identification.prose(bare)
    if not pack.confusions or identification.letters(bare) < 20:
        return False
    model = identification.identifier(replace(pack, confusions=(*pack.confusions, source.tag.split("-")[0])))
    if model is None:
        return False
    switched, _ = model.foreign(bare, pack, maximum=0.5, minimum_letters=12)
    return model.identify(bare).own > 0.95 and not switched


def _split(text: str, limit: int) -> list[str]:
    """Cut a text at paragraph borders into pieces of at most `limit` tokens, about 3 bytes each, where it is longer."""
    paragraphs = _BLANK_LINE.split(text)
    pieces, size = [""], 0
    for paragraph in paragraphs:
        length = len(paragraph.encode("utf-8", "replace"))
        if size and size + length > 3 * limit and paragraph.strip():
            pieces.append("")
            size = 0
        pieces[-1] += paragraph
        size += length
    return pieces


def _reply(text: str, source: str) -> str | None:
    """Return what stands between the tags; without tags all of it, if it has as many lines as the source."""
    text = text.rpartition("</think>")[2]
    if found := _REPLY.search(text):
        return found[1].strip()
    bare = re.sub(r"</?text>", "", text).strip()
    return bare if len(bare.split("\n")) == len(source.split("\n")) else None


def _length_fault(source: str, reply: str) -> Fault | None:
    """Compare lengths in bytes, in which most languages say the same at about the same length."""
    was, now = (len(text.encode("utf-8", "replace")) for text in (source, reply))
    if was >= 80 and now < was / 4:
        return Fault("too_short")
    return Fault("too_long") if now > 6 * was + 200 else None


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _short(text: str) -> str:
    return text if len(text) <= CONTEXT_LENGTH else text[:CONTEXT_LENGTH] + " …"


def _last_said(dialogue: Dialogue) -> str:
    return next((message.content for message in reversed(dialogue.messages) if message.role == "user"), "")


# Rehearsal

_ENGLISH = (
    "the old teacher went back to her house by the river because it was raining and the market had closed".split()
)


def rehearse(pack: LanguagePack, style: str, tasks: Sequence[Task]) -> Rehearsal:
    """Translate what English words make of the given tasks back into them."""
    texts = dict.fromkeys(
        text for task in tasks for text in (task.instruction, *(t for c in task.instances for t in (c.input, c.output)))
    )
    english = {text: _in_english(text, number) for number, text in enumerate(texts)}
    originals = {mask(english[text]).text.strip(): mask(text).text.strip() for text in texts}
    rows = [
        {
            "instruction": english[task.instruction],
            "instances": [{"input": english[case.input], "output": english[case.output]} for case in task.instances],
            "is_classification": bool(task.is_classification),
        }
        for task in tasks
    ]

    def reply(request: Request) -> str:
        asked = re.search(r"^<text>\n(.*?)\n</text>$", request.messages[0].content, re.DOTALL | re.MULTILINE)
        return f"<text>{originals.get(asked[1], '') if asked else ''}</text>"

    return Rehearsal(reply, tuple(tasks), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _in_english(text: str, number: int) -> str:
    """Put English words in the place of a text's own, the first of them one that no other text has."""
    masked = mask(text)
    name = "".join("bdfgklmnrt"[int(digit)] + "aeiouyaeio"[int(digit)] for digit in str(number))
    words = itertools.chain([name], itertools.cycle(_ENGLISH))
    return str(unmask(re.sub(r"[^\W\d_]+", lambda _: next(words), masked.text), masked))


RECIPE = Recipe(
    name="translate",
    summary="a dataset into another language, field by field (as Japanese-Alpaca, Luotuo, KoAlpaca)",
    source="masa3141/japanese-alpaca-lora; LC1332/Luotuo-Chinese-LLM; Beomi/KoAlpaca",
    styles=("fields",),
    prompts=("translate",),
    variables=VARIABLES,
    stages=stages,
    preview=preview,
    export="",
    starts="input",
    accepts=(Task, Dialogue, Comparison),
    options=_OPTIONS,
    rehearse=rehearse,
)

"""The heuristic filters: small functions that reject a candidate, saying why and what they measured.

A filter is `Callable[[Candidate], Rejection | None]`. Each function below named like a filter is its factory:
`factory(pack, **parameters) -> Filter`, entered in `FILTERS` with the source of its rule. The rules of the
English originals hold in every language because their units, word lists and marks come from the language pack.
Filters look at tasks, and where the rule makes sense for them at dialogues: what holds for an instruction holds for
the person's first words, what holds for an output for each reply. Of any other record they have no opinion.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice, pairwise

from rapidfuzz.distance import LCSseq

from selfinstruct.errors import ConfigError
from selfinstruct.identification import identifier, letters, prose, script_shares, variant_counts
from selfinstruct.labels import NUMBERED_TEXT, Kind, label_kinds, labels_in
from selfinstruct.languages import (
    LanguagePack,
    Phrases,
    closest,
    is_unspaced,
    own_scripts,
    script_counts,
    telling_scripts,
    tokens,
)
from selfinstruct.markers import markers_in, voices
from selfinstruct.values import Candidate, Comparison, Dialogue, Record, Rejection, Task

Filter = Callable[[Candidate], Rejection | None]
Factory = Callable[..., Filter]
Verdict = tuple[str, Mapping[str, float | str]] | None


@dataclass(frozen=True, slots=True)
class FilterSpec:
    """A filter one can ask for by name: what makes it, where its rule comes from, what can be set."""

    name: str
    factory: Factory
    source: str
    summary: str
    parameters: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Names and default values."""


FILTERS: dict[str, FilterSpec] = {}
"""Every filter the package brings, by name."""


def _filter(source: str) -> Callable[[Factory], Factory]:
    def enter(factory: Factory) -> Factory:
        name = factory.__name__
        FILTERS[name] = spec_of(name, factory, source)
        return factory

    return enter


def spec_of(name: str, factory: Factory, source: str) -> FilterSpec:
    """Return the entry for a factory: summary from its docstring, parameters from its signature."""
    parameters = list(inspect.signature(factory).parameters.values())[1:]
    summary = (inspect.getdoc(factory) or "").partition("\n")[0]
    return FilterSpec(name, factory, source, summary, {each.name: each.default for each in parameters})


def build_filters(
    wanted: Iterable[str | tuple[str, Mapping[str, object]]],
    pack: LanguagePack,
    known: Mapping[str, FilterSpec] = FILTERS,
) -> list[tuple[str, Filter]]:
    """Return the named filters in order; an item is a name, or a name with parameters (`mapping.items()` fits).

    Raises:
        ConfigError: no filter or parameter of that name (names the closest), or a value of the wrong type.
    """
    built: list[tuple[str, Filter]] = []
    for item in wanted:
        name, parameters = (item, {}) if isinstance(item, str) else item
        spec = known.get(name)
        if spec is None:
            raise ConfigError(f"no filter named {name!r}: {closest(str(name), sorted(known))}")
        types_of = typing.get_type_hints(spec.factory)
        for key, value in parameters.items():
            if key not in spec.parameters:
                valid = list(spec.parameters)
                hint = closest(str(key), valid) if valid else "it has no parameters"
                raise ConfigError(f"filter {name!r} has no parameter {key!r}: {hint}")
            if not _fits(value, types_of.get(key)):
                expected = _shown(types_of[key])
                raise ConfigError(f"filter {name!r}: {key}: expected {expected}, found {value!r}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
        built.append((name, spec.factory(pack, **values)))
    return built


def _fits(value: object, wanted: object) -> bool:
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(wanted))
    if typing.get_origin(wanted) is tuple:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(wanted, type) or isinstance(value, wanted)


def _shown(wanted: object) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return " or ".join(_shown(each) for each in typing.get_args(wanted))
    return words.get(wanted, "a list of texts") if isinstance(wanted, type) else "a list of texts"


def _of_task(name: str, judge: Callable[[Task, Candidate], Verdict]) -> Filter:
    """Return the filter that asks `judge` about tasks."""

    def check(candidate: Candidate) -> Rejection | None:
        if not isinstance(candidate.record, Task):
            return None
        verdict = judge(candidate.record, candidate)
        return None if verdict is None else Rejection(name, *verdict)

    check.__name__ = check.__qualname__ = name
    return check


def _of_record(name: str, judge: Callable[[Task | Dialogue, Candidate], Verdict]) -> Filter:
    """Return the filter that asks `judge` about tasks and dialogues."""

    def check(candidate: Candidate) -> Rejection | None:
        if not isinstance(candidate.record, Task | Dialogue):
            return None
        verdict = judge(candidate.record, candidate)
        return None if verdict is None else Rejection(name, *verdict)

    check.__name__ = check.__qualname__ = name
    return check


def _of_dialogue(name: str, judge: Callable[[Dialogue], Verdict]) -> Filter:
    """Return the filter that asks `judge` about dialogues."""
    return _of_record(name, lambda record, candidate: judge(record) if isinstance(record, Dialogue) else None)


def _texts(record: Task | Dialogue) -> Iterator[tuple[str, str]]:
    """Yield every text of a record with the name of its field, or the number of the message from 1."""
    if isinstance(record, Dialogue):
        yield from ((f"message {number}", each.content) for number, each in enumerate(record.messages, 1))
        return
    yield "instruction", record.instruction
    for case in record.instances:
        yield "input", case.input
        yield "output", case.output


def _answers(record: Task | Dialogue) -> Iterator[str]:
    """Yield the outputs of a task, the replies of a dialogue."""
    if isinstance(record, Dialogue):
        yield from (each.content for each in record.messages if each.role == "assistant" and not each.tool_calls)
    else:
        yield from (case.output for case in record.instances)


def _asked(record: Task | Dialogue) -> str:
    """Return a task's instruction, a dialogue's first words of the person."""
    if isinstance(record, Dialogue):
        return next((message.content for message in record.messages if message.role == "user"), "")
    return record.instruction


def _exchanges(record: Task | Dialogue) -> Iterator[tuple[str, str, str]]:
    """Yield each (what is asked, a task's input, what is answered)."""
    if not isinstance(record, Dialogue):
        yield from ((record.instruction, case.input, case.output) for case in record.instances)
        return
    asked = ""
    for message in record.messages:
        if message.role == "user":
            asked = message.content
        elif message.role == "assistant" and not message.tool_calls:
            yield asked, "", message.content


# What the completion tells


@_filter("Self-Instruct prepare_for_finetuning.py and Alpaca generate_instruction.py: the piece cut off is dropped")
def truncated(pack: LanguagePack) -> Filter:
    """Reject a record whose completion was cut off at the token limit."""
    return _of_record("truncated", lambda record, candidate: ("truncated", {}) if candidate.truncated else None)


@_filter("our measurement on SmolLM2-135M: -1.75 lifts sensible instructions from 70 % to 86 %; Qwen2.5-0.5B: -2.1")
def low_logprob(pack: LanguagePack, *, minimum: float | None = None) -> Filter:
    """Reject a record the model was unsure of: mean log-probability (nats per token) below a minimum.

    Without a minimum, which depends on the model, or without log-probabilities there is no opinion.
    """

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        if minimum is None or candidate.logprob is None or candidate.logprob >= minimum:
            return None
        return "unsure", {"logprob": candidate.logprob, "minimum": minimum}

    return _of_record("low_logprob", judge)


# The instruction


@_filter(
    "Self-Instruct bootstrap_instructions.py, Alpaca: more than 3 and at most 150 words; BELLE: more than 3 characters"
)
def instruction_length(pack: LanguagePack, *, minimum: int | None = None, maximum: int | None = None) -> Filter:
    """Reject an instruction that is too short or too long, in the language's unit (words or characters)."""
    least = pack.minimum_length if minimum is None else minimum
    most = pack.maximum_length if maximum is None else maximum

    def judge(task: Task, candidate: Candidate) -> Verdict:
        length = pack.length(task.instruction)
        if least <= length <= most:
            return None
        reason = "too_short" if length < least else "too_long"
        return reason, {"length": length, "minimum": least, "maximum": most, "unit": pack.unit}

    return _of_task("instruction_length", judge)


@_filter("Self-Instruct and Alpaca: whole words in any case; BELLE: substrings, there wrongly of the output too")
def blocked_words(pack: LanguagePack, *, words: tuple[str, ...] | None = None) -> Filter:
    """Reject an instruction with a word of the pack's block list, such as "image": a text model can't do it."""
    return _instruction_phrase("blocked_words", "blocked_word", pack.blocked_words, words, Phrases.find)


@_filter("Self-Instruct: instructions that start with 'Write a program' asked for what GPT-3 did badly")
def blocked_opening(pack: LanguagePack, *, openings: tuple[str, ...] | None = None) -> Filter:
    """Reject an instruction that starts with a blocked phrase, such as "Write a program"."""
    return _instruction_phrase("blocked_opening", "blocked_opening", pack.blocked_openings, openings, Phrases.opens)


@_filter("Self-Instruct and Alpaca: first character in string.punctuation; corrected, they dropped opening quotes too")
def leading_punctuation(pack: LanguagePack) -> Filter:
    """Reject an instruction that starts in mid-air: with a dash, a comma, a bullet, a stray mark.

    Quotes and opening brackets of any script, inverted marks, currency signs and non-ASCII symbols (the square root
    or triangle of a mathematical question) open real instructions, so they pass.
    """

    def judge(task: Task, candidate: Candidate) -> Verdict:
        first = task.instruction[:1]
        category = unicodedata.category(first) if first else ""
        symbol = category[:1] == "S" and first.isascii() and category != "Sc"
        mark = category[:1] == "P" and category not in ("Ps", "Pi", "Pf") and first not in "\"'¿¡"
        if first != "`" and (symbol or mark):
            return "leading_punctuation", {"character": first}
        return None

    return _of_task("leading_punctuation", judge)


@_filter(
    "Self-Instruct and Alpaca: first character must be ASCII; it drops every Chinese instruction, so off by default"
)
def leading_non_ascii(pack: LanguagePack) -> Filter:
    """Reject an instruction whose first character is not ASCII: the originals' rule, for exact reproductions."""

    def judge(task: Task, candidate: Candidate) -> Verdict:
        first = task.instruction[:1]
        return ("leading_non_ascii", {"character": first}) if first and not first.isascii() else None

    return _of_task("leading_non_ascii", judge)


@_filter("our measurement: an instruction that needs an unseen text is the commonest defect of a 135M model")
def needs_context(pack: LanguagePack, *, extra: tuple[str, ...] = ()) -> Filter:
    """Reject an instruction without input that points at a text nobody can see, such as "the given article".

    A task without instances yet counts as one without input. Where a colon, a dash, a quotation mark or another
    sentence follows the phrase, the instruction brings the text itself and passes. `extra` adds phrases; for very small
    models words such as "my" and "this" pay.
    """
    phrases = Phrases(pack.needs_context.match, (*pack.needs_context.phrases, *extra))

    def judge(task: Task, candidate: Candidate) -> Verdict:
        if any(case.input for case in task.instances):
            return None
        found = phrases.find(task.instruction)
        if found is None:
            return None
        behind = task.instruction.casefold().rpartition(found.casefold())[2]
        ends = "".join(map(re.escape, pack.sentence_ends))
        if re.search(rf"[:：;；\n\"“”«»「『《`]|\s[-–—]|——|[{ends}][\"'”’」』]*\s*\w", behind):
            return None
        return "needs_context", {"phrase": found}

    return _of_task("needs_context", judge)


@_filter("ours: a text without a letter or digit has nothing that novelty could compare")
def no_tokens(pack: LanguagePack) -> Filter:
    """Reject an instruction, or first words of a dialogue, without a single letter or digit."""

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        return None if any(char.isalnum() for char in _asked(record)) else ("no_tokens", {})

    return _of_record("no_tokens", judge)


# The output


@_filter("AlpacaDataCleaned: 28 empty outputs in Alpaca's release, and N/A outputs")
def empty_output(pack: LanguagePack) -> Filter:
    """Reject an empty output or reply, or one that only says "N/A" where that was no answer to choose."""
    none = {_plain(spelling) for spelling in pack.no_output}
    longest = max(map(len, none), default=0)

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        for asked, given, answer in _exchanges(record):
            if not answer.strip():
                return "empty", {}
            said = _plain(answer, longest + 1)
            if said and said in none and said not in _plain(asked + given):
                return "says_none", {"output": answer[:40]}
        return None

    return _of_record("empty_output", judge)


@_filter("AlpacaDataCleaned, and our measurement of small chat models")
def refusal(pack: LanguagePack) -> Filter:
    """Reject an output or reply that opens by declining, such as "I'm sorry, but I can't"."""

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        for answer in _answers(record):
            found = pack.refusals.opens(answer)
            if found is not None:
                return "refusal", {"phrase": found}
        return None

    return _of_record("refusal", judge)


@_filter("BELLE generate_instruction.py: phrases that address the model are taken out or the record is dropped")
def self_reference(pack: LanguagePack) -> Filter:
    """Reject a text in which the model speaks of itself, such as "as an AI language model"."""

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        for where, text in _texts(record):
            found = pack.self_reference.find(text)
            if found is not None:
                return "self_reference", {"phrase": found, "field": where}
        return None

    return _of_record("self_reference", judge)


@_filter("our measurement of small models: answers that loop repeat over 40 % of their 3-grams")
def repetition(
    pack: LanguagePack, *, maximum: float = 0.4, minimum_tokens: int = 24, line_run: int = 5, character_run: int = 40
) -> Filter:
    """Reject an output or turn that loops: repeated word groups, one line again and again, one letter without end.

    The grams are three words, or five characters of a script without spaces, where three are hardly more than a word
    (a sound legal text in BELLE's seeds repeats 46 % of them). An output of fewer than `minimum_tokens` words or
    characters is only looked at for the runs.
    """
    same = re.compile(rf"([^\W_])\1{{{max(character_run, 1) - 1},}}")

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        said = [text for _, text in _texts(record)] if isinstance(record, Dialogue) else _answers(record)
        for text in said:
            words = tokens(text)
            unspaced = 0 if text.isascii() else sum(map(is_unspaced, words))
            size = 5 if 2 * unspaced > len(words) else 3
            grams = set(zip(*(words[at:] for at in range(size)), strict=False))
            share = 1 - len(grams) / (len(words) - size + 1) if grams else 0.0
            if len(words) >= minimum_tokens and share > maximum:
                return "repeated_grams", {"share": round(share, 4), "maximum": maximum, "gram": size}
            lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
            if (run := _longest_run(lines)) >= line_run:
                return "repeated_line", {"run": run, "maximum": line_run - 1}
            if run := max((len(found[0]) for found in same.finditer(text)), default=0):
                return "repeated_character", {"run": run, "maximum": character_run - 1}
        return None

    return _of_record("repetition", judge)


# The fields against each other and against the prompt


@_filter("Self-Instruct prepare_for_finetuning.py: input equal to output")
def output_equals_input(pack: LanguagePack) -> Filter:
    """Reject a task whose output is its input, white space aside.

    Letter case and punctuation count: there are tasks that mend just these.
    """

    def judge(task: Task, candidate: Candidate) -> Verdict:
        for case in task.instances:
            if case.input and case.input.split() == case.output.split():
                return "output_equals_input", {}
        return None

    return _of_task("output_equals_input", judge)


@_filter("our measurement of small models: answers that restate the question, there by ROUGE-L F > 0.7")
def output_repeats_instruction(pack: LanguagePack, *, minimum_share: float = 0.8, minimum_tokens: int = 5) -> Filter:
    """Reject an output or reply that is what was asked again: equal, or most of its words in its order and no other.

    `minimum_share` is how many of the instruction's words must come back. One word more passes: "The product of 9 and 5
    is 45." answers, though ROUGE-L F would be high. Outputs of fewer than `minimum_tokens` words must be equal.
    """

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        for question, _, answer in _exchanges(record):
            asked, answered = tokens(question), tokens(answer)
            if not asked or not answered or len(answered) > len(asked):
                continue
            share = len(answered) / len(asked)
            nothing_new = len(answered) >= minimum_tokens and share >= minimum_share and _within(answered, asked)
            if asked == answered or nothing_new:
                return "output_repeats_instruction", {"share": round(share, 4), "minimum": minimum_share}
        return None

    return _of_record("output_repeats_instruction", judge)


@_filter("Self-Instruct prepare_for_finetuning.py: an instance whose input or output ends with a colon is unfinished")
def ends_with_colon(pack: LanguagePack, *, input: bool = True, output: bool = True) -> Filter:
    """Reject a record of which an input, an output or a reply ends with a colon: something was to follow."""

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        given = [case.input for case in record.instances] if isinstance(record, Task) else []
        for where, texts in (("input", given if input else []), ("output", _answers(record) if output else [])):
            if any(text.rstrip().endswith((":", "：")) for text in texts):
                return "ends_with_colon", {"field": where}
        return None

    return _of_record("ends_with_colon", judge)


@_filter("Self-Instruct prepare_for_finetuning.py: one input with several outputs drops all instances of its task")
def conflicting_outputs(pack: LanguagePack) -> Filter:
    """Reject a task that answers one input in several ways; without input several answers are no conflict."""

    def judge(task: Task, candidate: Candidate) -> Verdict:
        answers: dict[str, str] = {}
        for case in task.instances:
            if case.input and answers.setdefault(case.input, case.output) != case.output:
                return "conflicting_outputs", {"input": case.input[:60]}
        return None

    return _of_task("conflicting_outputs", judge)


@_filter("ours: a small model copies the tasks it was shown")
def copied_demonstration(pack: LanguagePack, *, minimum_tokens: int = 8) -> Filter:
    """Reject a task or dialogue that repeats the instruction or the output of a demonstration in its prompt.

    Outputs of fewer than `minimum_tokens` words (labels, numbers) agree by chance and are not compared.
    """

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        if not candidate.demonstrations:
            return None
        own_outputs = [words for answer in _answers(record) if len(words := tokens(answer)) >= minimum_tokens]
        for shown in candidate.demonstrations:
            if _same(_asked(record), shown.instruction):
                return "copied_demonstration", {"field": "instruction", "demonstration": shown.id}
            if any(tokens(case.output) in own_outputs for case in shown.instances):
                return "copied_demonstration", {"field": "output", "demonstration": shown.id}
        return None

    return _of_record("copied_demonstration", judge)


@_filter("Alpaca's released data: merged instructions, separators and no-input markers inside texts")
def leak(pack: LanguagePack, *, marks: tuple[str, ...] = ()) -> Filter:
    """Reject a text into which the format leaked: a label, a separator, "<noinput>", "Task 7:", chat-template marks.

    Bare "Input:" and "Output:" lines within a text are no leak: outputs show worked cases. In a turn of a dialogue a
    marker such as "[User]" leaks, and a reply that goes on as both sides. `marks` adds texts of one's own prompt.
    """
    printed = (*pack.no_input[:1], *pack.no_output[:1], "<noinput>")
    markers = tuple(mark for mark in dict.fromkeys(printed) if mark[:1] == "<")

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        for where, text in _texts(record):
            low = text.casefold()
            found = next((mark for mark in markers if mark.casefold() in low), None)
            found = found or next((mark for mark in marks if mark and mark in text), None)
            found = found or (_leaked(where, text, pack) if isinstance(record, Task) else _leaked_role(text, pack))
            if found:
                return "leak", {"field": where, "mark": found[:60]}
        return None

    return _of_record("leak", judge)


_SEPARATOR_LINE = re.compile(r"^[ \t]*#{2,3}[ \t]*$", re.MULTILINE)
_TEMPLATE_MARK = re.compile(
    r"<\|[a-z_]{2,30}\|>|<｜[^｜\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?think>|<(?:start|end)_of_turn>|</s>\s*\Z",
    re.IGNORECASE,
)


_MARK_BEGINS = re.compile(r"[<\[]")
_DIGIT = re.compile(r"\d")


def _leaked(where: str, text: str, pack: LanguagePack) -> str | None:
    found = _SEPARATOR_LINE.search(text) or (_MARK_BEGINS.search(text) and _TEMPLATE_MARK.search(text))
    if found:
        return found[0].strip()
    lines = text.split("\n")
    labels = labels_in(text, pack)
    first_task = min((label.number or 0 for label in labels if label.task), default=0)
    items = {int(match[1]) for match in map(NUMBERED_TEXT.fullmatch, lines) if match} if labels else set()
    for label in labels:
        begins = label.line == 0 and (where == "instruction" or where == label.kind == "output")
        # A plan that lists "Task 1:", "Task 2:" is an answer; one that starts with "Task 7:" is our list.
        if begins or (label.kind == "instruction" and (not label.task or first_task != 1)):
            return lines[label.line].strip()
        # "1. Input: ... 2. Processing: ... 3. Output: ..." explains a machine; "5. Input:" out of nowhere is ours.
        if label.number is not None and label.number > 1 and label.number - 1 not in items and not label.task:
            return lines[label.line].strip()
    if _DIGIT.search(text) is None:
        return None
    seen: set[tuple[str, Kind]] = set()
    for match in _numbered_label(pack).finditer(text):
        number, kind = match["number"], label_kinds(pack).get(match["label"].casefold(), "instruction")
        if kind == "instruction" or (number, "output" if kind == "input" else "input") in seen:
            return match[0].strip()
        seen.add((number, kind))
    return None


def _leaked_role(text: str, pack: LanguagePack) -> str | None:
    """Return a chat template's mark or a role's marker in a turn; bare ones where both sides speak behind a sentence.

    A dialogue that was asked for stands behind a colon.
    """
    found = _TEMPLATE_MARK.search(text)
    if found:
        return found[0].strip()
    asking = False
    for user, assistant in (("user", "assistant"), ("patient", "doctor")):
        for marker in markers_in(text, voices(pack, user, assistant)):
            before = text[: marker.start].rstrip()
            if marker.strong or (asking and marker.speaker == "assistant"):
                return text[marker.start : marker.end].strip()
            asking = asking or (marker.speaker == "user" and bool(before) and not before.endswith((":", "：")))
    return None


@lru_cache(maxsize=64)
def _numbered_label(pack: LanguagePack) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in sorted(label_kinds(pack), key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?P<number>\d{{1,4}})[ ]?[.．、)）][ ]*(?P<label>{names})[ ]*[:：]", re.IGNORECASE)


# Characters


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd\ud800-\udfff]")


@_filter("AlpacaDataCleaned: stray control characters in Alpaca's release")
def control_characters(pack: LanguagePack) -> Filter:
    """Reject a text with a control character, a replacement character or half a surrogate pair."""

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        for where, text in _texts(record):
            found = _CONTROL.search(text)
            if found:
                return "control_character", {"field": where, "character": f"U+{ord(found[0]):04X}"}
        return None

    return _of_record("control_characters", judge)


# Languages


@dataclass(frozen=True, slots=True)
class _Said:
    """A text of a record and what was said before it: an answer in another language may have been asked for."""

    field: str
    text: str
    asked: str = ""
    given: str = ""


def _said(record: Record | None) -> Iterator[_Said]:
    """Yield what should be in the run's language: of a task its instruction and outputs, of a dialogue every turn."""
    if isinstance(record, Task):
        yield _Said("instruction", record.instruction)
        for case in record.instances:
            yield _Said("output", case.output, record.instruction, case.input)
    elif isinstance(record, Dialogue):
        asked: list[str] = []
        for message in record.messages:
            if message.role == "user":
                asked.append(message.content)
                yield _Said("user", message.content, "\n".join(asked[:-1]))
            elif message.role == "assistant":
                yield _Said("assistant", message.content, "\n".join(asked))
    elif isinstance(record, Comparison):
        prompt = record.prompt if isinstance(record.prompt, Dialogue) else None
        asked = [said.text for said in _said(prompt)] if prompt else [str(record.prompt)]
        yield from _said(prompt) if prompt else [_Said("prompt", asked[0])]
        for response in record.responses:
            yield _Said("response", response.content, "\n".join(asked))


def _of_language(name: str, pack: LanguagePack, judge: Callable[[_Said], Verdict]) -> Filter:
    """Return the filter that asks `judge` about each text, but for those that may be in another language.

    An answer may, when what was said before holds a word of the pack's `other_language` (translation, code, formulas).
    """

    def check(candidate: Candidate) -> Rejection | None:
        for said in _said(candidate.record):
            if said.asked and pack.other_language.find(said.asked):
                continue
            verdict = judge(said)
            if verdict is not None:
                reason, measured = verdict
                return Rejection(name, reason, {"field": said.field, **measured})
        return None

    check.__name__ = check.__qualname__ = name
    return check


@_filter("ours: models answer in English, or slip into another language, when asked in any other")
def language_script(
    pack: LanguagePack,
    *,
    minimum: float = 0.1,
    minimum_letters: int = 12,
    maximum_latin: float = 0.6,
    maximum_other: float = 0.2,
    minimum_words: int = 20,
) -> Filter:
    """Reject a text whose letters are not those of its language, or too few of them.

    Nearly all in other scripts: less than `minimum` of the letters in the pack's own. A sentence without the letters
    that tell its language apart is another's too: Japanese without kana. Mixed: of `minimum_words` words and more
    (code and addresses aside) over `maximum_latin` in Latin letters, in which names, units and code are written
    everywhere, or over `maximum_other` in a third script. Text in a script that was asked for passes: the instruction
    or input holds letters of it. Texts of fewer than `minimum_letters` letters, and packs without scripts, get no
    opinion.
    """
    telling = telling_scripts(pack.scripts)

    def judge(said: _Said) -> Verdict:
        text = prose(said.text)
        counted = script_counts(text)
        if not counted:
            return None
        (main, _), *_ = counted.most_common(1)
        asked = _asked_scripts(said, minimum_letters)
        # Names, units and formulas are in Latin letters everywhere; a few letters of a third script are a sentence.
        if counted.total() < (minimum_letters if main == "Latn" else minimum_letters // 3):
            return None
        if main == "Latn" and len(text.split()) == 1:
            return None
        if main in asked - own_scripts(pack.scripts):
            return None
        share, _ = pack.script_share(text)
        if share < minimum:
            return "other_script", {"share": round(share, 4), "minimum": minimum}
        if telling and counted.total() >= minimum_letters // 2 and not any(counted[name] for name in telling):
            if any(mark in text for mark in pack.sentence_ends):
                return "other_script", {"lacking": " ".join(sorted(telling))}
            return None
        shares = script_shares(text, pack, besides=asked)
        if pack.other_language.find(said.text):
            return None
        if shares.latin > maximum_latin and shares.words >= minimum_words:
            return "mixed_scripts", {"share": round(shares.latin, 4), "maximum": maximum_latin}
        if shares.other > maximum_other and shares.words >= minimum_words // 3:
            return "mixed_scripts", {"share": round(shares.other, 4), "maximum": maximum_other}
        return None

    return _of_language("language_script", pack, judge)


_LOWER_CASE_WORD = re.compile(r"(?<![0-9A-Za-zÀ-ÿ_])[a-zß-öø-ÿ]{2,}(?![0-9A-Za-zÀ-ÿ_])")


def _asked_scripts(said: _Said, minimum_letters: int) -> set[str]:
    """Return the scripts of what was asked; Latin only for words, not for names: "Word" asks for no English."""
    before = said.asked + said.given
    words = sum(map(len, _LOWER_CASE_WORD.findall(before)))
    return {name for name in script_counts(before) if name != "Latn" or words >= minimum_letters // 3}


@_filter("ours: py3langid (extra lang), restricted to the pack's language and those it could be mistaken for")
def language(
    pack: LanguagePack,
    *,
    minimum: float = 0.05,
    minimum_letters: int = 12,
    maximum_switched: float = 0.3,
    minimum_switched: int = 40,
) -> Filter:
    """Reject a text in another language of the same script, or that switches into one.

    Another language: its probability of being the run's own is under `minimum`. Switching: sentences of another
    language make up over `maximum_switched` of its letters and `minimum_switched` letters or more. Code, sums,
    quotations asked about and texts of fewer than `minimum_letters` letters get no opinion, nor does anything
    without the extra or for a language that the model doesn't know.
    """
    model = identifier(pack)

    def judge(said: _Said) -> Verdict:
        if model is None or pack.other_language.find(said.text if not said.asked else ""):
            return None
        text = prose(said.text)
        if letters(text) < minimum_letters:
            return None
        given = prose(said.given)
        if letters(given) >= minimum_letters and model.identify(given).own < minimum:
            return None
        found = model.identify(text)
        if found.own < minimum:
            measured: dict[str, float | str] = {"probability": round(found.own, 4), "minimum": minimum}
            return "other_language", measured | {"likeliest": found.language}
        switched, told = model.foreign(text, pack, maximum=minimum, minimum_letters=minimum_letters)
        if switched >= minimum_switched and switched > maximum_switched * told:
            return "code_switch", {"share": round(switched / told, 4), "maximum": maximum_switched}
        return None

    return _of_language("language", pack, judge)


@_filter("ours: GB 2312 and Big5, the standards of Simplified and Traditional Chinese; models mix the two")
def script_variant(pack: LanguagePack, *, maximum: float = 0.1) -> Filter:
    """Reject a text in the other way of writing Han: Simplified for Traditional Chinese, or the other way round.

    Of the characters that only one of the two standards has, over `maximum` are the other's. One alone among the
    right ones passes as a name or quotation. Detection only: a text is never converted.
    """

    def judge(said: _Said) -> Verdict:
        if any(variant_counts(text, pack)[1] for text in (said.asked, said.given)):
            return None
        own, wrong = variant_counts(said.text, pack)
        total = own + len(wrong)
        if len(wrong) <= maximum * total or (len(wrong) == 1 and own):
            return None
        measured: dict[str, float | str] = {"share": round(len(wrong) / total, 4), "maximum": maximum}
        return "other_variant", measured | {"characters": wrong[:10]}

    return _of_language("script_variant", pack, judge)


# The turns of a dialogue


@_filter("ShareGPT clean_sharegpt and FastChat's training: roles strictly in turn, the person first")
def alternation(pack: LanguagePack) -> Filter:
    """Reject a dialogue in which the person does not begin, or one side speaks twice in a row.

    An assistant's call of a tool and what the tool gave are part of the reply that follows. A turn that is empty but
    for white space is none either.
    """

    def judge(dialogue: Dialogue) -> Verdict:
        wanted = "user"
        for number, message in enumerate(dialogue.messages, 1):
            if message.tool_calls or message.role == "tool":
                continue
            if message.role != wanted:
                return "out_of_turn", {"message": number, "role": message.role, "expected": wanted}
            if not message.content.strip():
                return "empty_turn", {"message": number, "role": message.role}
            wanted = "assistant" if wanted == "user" else "user"
        return None

    return _of_dialogue("alternation", judge)


@_filter("ours: two models left alone fall into saying the same again, or into thanking each other for ever")
def repeated_turn(pack: LanguagePack) -> Filter:
    """Reject a dialogue in which a side says again what it has said, word for word or nearly so."""

    def judge(dialogue: Dialogue) -> Verdict:
        said: dict[str, list[str]] = {}
        for number, message in enumerate(dialogue.messages, 1):
            earlier = said.setdefault(message.role, [])
            if message.role in ("user", "assistant") and any(repeats(message.content, each) for each in earlier):
                return "repeated_turn", {"message": number, "role": message.role}
            earlier.append(message.content)
        return None

    return _of_dialogue("repeated_turn", judge)


def repeats(turn: str, earlier: str) -> bool:
    """Tell whether a turn says what an earlier one said.

    The same words (three or more: "Yes." may come twice), or of twenty and more all but one in twenty in their order.
    """
    words, before = tokens(turn), tokens(earlier)
    if words == before:
        return len(words) > 2
    least = 20
    return min(len(words), len(before)) >= least and LCSseq.normalized_similarity(words, before) >= 0.95


# Consultations


@_filter("ours: BianQue's chain of questioning; single replies taught ChatDoctor to prescribe at the first complaint")
def advises_first(pack: LanguagePack, *, minimum: int = 1) -> Filter:
    """Reject a consultation in which the doctor advises before having asked.

    The first reply must ask, and `minimum` replies in all before the last one: what that one asks is never answered. A
    question is what ends with one of the pack's `question_ends`.
    """

    def judge(dialogue: Dialogue) -> Verdict:
        asking = [questions(reply, pack) > 0 for reply in _answers(dialogue)]
        asked = sum(asking[:-1])
        # Nobody has replied where only the opening is screened.
        if not asking or not minimum or (asking[0] and asked >= minimum):
            return None
        return "advises_first", {"asking_replies": asked, "minimum": minimum}

    return _of_dialogue("advises_first", judge)


@_filter("ours: ChatDoctor kept whatever the model made of a row of its table, medicines of its own included")
def ungrounded(pack: LanguagePack, *, minimum_share: float = 0.5) -> Filter:
    """Reject a consultation whose doctor names a medicine or test that its knowledge row does not hold.

    `extra["named"]` holds the names, `extra["knowledge"]` the row; without them there is no opinion. The row holds a
    name that an entry of it is part of, and one of whose words it has `minimum_share`; of a script without spaces pairs
    of characters count in place of words.
    """

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        row, names = record.extra.get("knowledge"), record.extra.get("named")
        if not isinstance(row, Mapping) or not isinstance(names, list | tuple):
            return None
        entries = [tokens(str(entry)) for column in row.values() for entry in column]
        held = {part for entry in entries for part in _parts(entry)}
        for name in map(str, names):
            words = tokens(name)
            parts = _parts(words)
            share = sum(part in held for part in parts) / len(parts) if parts else 1.0
            if share < minimum_share and not any(entry and _run_of(entry, words) for entry in entries):
                return "not_in_the_row", {"name": name, "share": round(share, 4), "minimum": minimum_share}
        return None

    return _of_record("ungrounded", judge)


def _parts(words: Sequence[str]) -> list[str]:
    """Return words, and pairs of neighbouring characters where a script has no spaces."""
    unspaced = [word for word in words if is_unspaced(word)]
    pairs = [one + other for one, other in pairwise(unspaced)] or unspaced
    return [*(word for word in words if not is_unspaced(word)), *pairs]


def _run_of(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Tell whether the words of `part` come one after the other in `whole`."""
    return any(tuple(whole[at : at + len(part)]) == tuple(part) for at in range(len(whole) - len(part) + 1))


def questions(text: str, pack: LanguagePack) -> int:
    """Return how many sentences of a text are questions, by the pack's `question_ends`: marks, or words at the end."""
    return len(_question(pack).findall(text))


@lru_cache(maxsize=64)
def _question(pack: LanguagePack) -> re.Pattern[str]:
    def one_of(spellings: Iterable[str]) -> str:
        return "|".join(map(re.escape, sorted(set(spellings), key=len, reverse=True))) or "(?!)"

    marks = [end for end in pack.question_ends if not any(map(str.isalnum, end))]
    words = {end.rstrip("".join(pack.sentence_ends)) for end in pack.question_ends if end not in marks}
    ends = f"(?:{one_of((*pack.sentence_ends, *marks))})"
    # Where words stand apart a sentence's last one ends it; where they don't, a space does as well.
    apart, joined = (one_of(word for word in words if any(map(is_unspaced, word)) is kind) for kind in (False, True))
    return re.compile(rf"(?:{one_of(marks)})+|(?:{joined})(?:{ends}+|(?=\s|\Z))|(?:{apart})(?:{ends}+|(?=\n|\Z))")


_OF_LANGUAGE = ("language_script", "script_variant", "language")
_OF_INSTRUCTION = (
    "truncated",
    "no_tokens",
    "instruction_length",
    "leading_punctuation",
    "blocked_words",
    "blocked_opening",
    "control_characters",
    "leak",
    "copied_demonstration",
    "self_reference",
    *_OF_LANGUAGE,
)
_OF_OUTPUT = (
    "empty_output",
    "output_equals_input",
    "output_repeats_instruction",
    "ends_with_colon",
    "refusal",
    "repetition",
)

DEFAULT_FILTERS: Mapping[str, tuple[str, ...]] = {
    "list": (*_OF_INSTRUCTION, *_OF_OUTPUT),
    "stepwise": (*_OF_INSTRUCTION, "needs_context", "low_logprob", *_OF_OUTPUT),
    "answers": ("truncated", "control_characters", *_OF_OUTPUT),
    "dialogues": (
        "truncated",
        "alternation",
        "no_tokens",
        "control_characters",
        "leak",
        "copied_demonstration",
        "self_reference",
        *_OF_LANGUAGE,
        "empty_output",
        "output_repeats_instruction",
        "ends_with_colon",
        "refusal",
        "repetition",
        "repeated_turn",
    ),
    "instructions": _OF_INSTRUCTION,
    "instances": (
        "truncated",
        "control_characters",
        "conflicting_outputs",
        "leak",
        "copied_demonstration",
        "self_reference",
        *_OF_LANGUAGE,
        *_OF_OUTPUT,
    ),
}
"""The filters of each prompt style; those on the instruction come first, so a task without instances meets them all.

"answers" are those for instructions that were given and not made, "dialogues" those of every recipe of dialogues,
"instructions" and "instances" those of the two steps of Self-Instruct.
"""


def _instruction_phrase(
    name: str,
    reason: str,
    own: Phrases,
    replaced: tuple[str, ...] | None,
    find: Callable[[Phrases, str], str | None],
) -> Filter:
    phrases = own if replaced is None else Phrases(own.match, replaced)

    def judge(task: Task, candidate: Candidate) -> Verdict:
        found = find(phrases, task.instruction)
        return None if found is None else (reason, {"phrase": found})

    return _of_task(name, judge)


def _plain(text: str, most: int | None = None) -> str:
    """Return the first `most` letters, digits and slashes of a text."""
    return "".join(islice((char for char in text.casefold() if char.isalnum() or char == "/"), most))


def _same(one: str, other: str) -> bool:
    words = tokens(one)
    return words == tokens(other) if words else one.strip() == other.strip()


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Tell whether the words of `part` come in `whole`, in that order."""
    rest = iter(whole)
    return all(word in rest for word in part)


def _longest_run(items: list[str]) -> int:
    longest = run = 0
    previous: str | None = None
    for item in items:
        run = (run + 1 if item == previous else 1) if item else 0
        previous = item
        longest = max(longest, run)
    return longest

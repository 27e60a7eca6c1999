"""Rules for what is asked: a task's instruction, a person's first words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from selfinstruct.filters.rule import Filter, Rules, Verdict, asked_of, of_record, of_task
from selfinstruct.languages import LanguagePack, Phrases
from selfinstruct.values import Candidate, Dialogue, Task

RULES = Rules()


@RULES.add(
    "Self-Instruct bootstrap_instructions.py, Alpaca: more than 3 and at most 150 words; BELLE: more than 3 characters"
)
def instruction_length(pack: LanguagePack, *, minimum: int | None = None, maximum: int | None = None) -> Filter:
    """Reject an instruction that is too short or too long, in the language's unit (words or characters)."""
    least = pack.minimum_length if minimum is None else minimum
    most = pack.maximum_length if maximum is None else maximum

    def judge(task: Task) -> Verdict:
        length = pack.length(task.instruction)
        if least <= length <= most:
            return None
        reason = "too_short" if length < least else "too_long"
        return reason, {"length": length, "minimum": least, "maximum": most, "unit": pack.unit}

    return of_task("instruction_length", judge)


@RULES.add("Self-Instruct and Alpaca: whole words in any case; BELLE: substrings, there wrongly of the output too")
def blocked_words(pack: LanguagePack, *, words: tuple[str, ...] | None = None) -> Filter:
    """Reject an instruction with a word of the pack's block list, such as "image": a text model can't do it."""
    return _instruction_phrase("blocked_words", "blocked_word", pack.blocked_words, words, Phrases.find)


@RULES.add("Self-Instruct: instructions that start with 'Write a program' asked for what GPT-3 did badly")
def blocked_opening(pack: LanguagePack, *, openings: tuple[str, ...] | None = None) -> Filter:
    """Reject an instruction that starts with a blocked phrase, such as "Write a program"."""
    return _instruction_phrase("blocked_opening", "blocked_opening", pack.blocked_openings, openings, Phrases.opens)


@RULES.add("Self-Instruct, Alpaca: first character in string.punctuation; corrected, they dropped opening quotes too")
def leading_punctuation(pack: LanguagePack) -> Filter:
    """Reject an instruction that starts in mid-air: with a dash, a comma, a bullet, a stray mark.

    Quotes and opening brackets of any script, inverted marks, currency signs and non-ASCII symbols (the square root
    or triangle of a mathematical question) open real instructions, so they pass.
    """

    def judge(task: Task) -> Verdict:
        first = task.instruction[:1]
        category = unicodedata.category(first) if first else ""
        symbol = category[:1] == "S" and first.isascii() and category != "Sc"
        mark = category[:1] == "P" and category not in ("Ps", "Pi", "Pf") and first not in "\"'¿¡"
        if first != "`" and (symbol or mark):
            return "leading_punctuation", {"character": first}
        return None

    return of_task("leading_punctuation", judge)


@RULES.add(
    "Self-Instruct and Alpaca: first character must be ASCII; it drops every Chinese instruction, so off by default"
)
def leading_non_ascii(pack: LanguagePack) -> Filter:
    """Reject an instruction whose first character is not ASCII: the originals' rule, for exact reproductions."""

    def judge(task: Task) -> Verdict:
        first = task.instruction[:1]
        return ("leading_non_ascii", {"character": first}) if first and not first.isascii() else None

    return of_task("leading_non_ascii", judge)


@RULES.add("our measurement: an instruction that needs an unseen text is the commonest defect of a 135M model")
def needs_context(pack: LanguagePack, *, extra: tuple[str, ...] = ()) -> Filter:
    """Reject an instruction without input that points at a text nobody can see, such as "the given article".

    A task without instances yet counts as one without input. Where a colon, a dash, a quotation mark or another
    sentence follows the phrase, the instruction brings the text itself and passes. `extra` adds phrases; for very small
    models words such as "my" and "this" pay.
    """
    phrases = Phrases(pack.needs_context.match, (*pack.needs_context.phrases, *extra))

    def judge(task: Task) -> Verdict:
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

    return of_task("needs_context", judge)


@RULES.add("ours: a text without a letter or digit has nothing that novelty could compare")
def no_tokens(pack: LanguagePack) -> Filter:
    """Reject an instruction, or first words of a dialogue, without a single letter or digit."""

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        return None if any(char.isalnum() for char in asked_of(record)) else ("no_tokens", {})

    return of_record("no_tokens", judge)


def _instruction_phrase(
    name: str,
    reason: str,
    own: Phrases,
    replaced: tuple[str, ...] | None,
    find: Callable[[Phrases, str], str | None],
) -> Filter:
    phrases = own if replaced is None else Phrases(own.match, replaced)

    def judge(task: Task) -> Verdict:
        found = find(phrases, task.instruction)
        return None if found is None else (reason, {"phrase": found})

    return of_task(name, judge)

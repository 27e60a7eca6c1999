"""What of a prompt's format, or of a model's chat template, has leaked into a text."""

from __future__ import annotations

import re
from functools import lru_cache

from selfinstruct.filters.rule import Filter, Rules, Verdict, of_record, texts_of
from selfinstruct.labels import NUMBERED_TEXT, Kind, label_kinds, labels_in
from selfinstruct.languages import LanguagePack
from selfinstruct.markers import markers_in, voices
from selfinstruct.values import Candidate, Dialogue, Task

RULES = Rules()

_SEPARATOR_LINE = re.compile(r"^[ \t]*#{2,3}[ \t]*$", re.MULTILINE)
_TEMPLATE_MARK = re.compile(
    r"<\|[a-z_]{2,30}\|>|<｜[^｜\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?think>|<(?:start|end)_of_turn>|</s>\s*\Z",
    re.IGNORECASE,
)
_MARK_BEGINS = re.compile(r"[<\[]")
_DIGIT = re.compile(r"\d")


@RULES.add("Alpaca's released data: merged instructions, separators and no-input markers inside texts")
def leak(pack: LanguagePack, *, marks: tuple[str, ...] = ()) -> Filter:
    """Reject a text into which the format leaked: a label, a separator, "<noinput>", "Task 7:", chat-template marks.

    Bare "Input:" and "Output:" lines within a text are no leak: outputs show worked cases. In a turn of a dialogue a
    marker such as "[User]" leaks, and a reply that goes on as both sides. `marks` adds texts of one's own prompt.
    """
    printed = (*pack.no_input[:1], *pack.no_output[:1], "<noinput>")
    markers = tuple(mark for mark in dict.fromkeys(printed) if mark[:1] == "<")

    def judge(record: Task | Dialogue, candidate: Candidate) -> Verdict:
        for where, text in texts_of(record):
            low = text.casefold()
            found = next((mark for mark in markers if mark.casefold() in low), None)
            found = found or next((mark for mark in marks if mark and mark in text), None)
            found = found or (_leaked(where, text, pack) if isinstance(record, Task) else _leaked_role(text, pack))
            if found:
                return "leak", {"field": where, "mark": found[:60]}
        return None

    return of_record("leak", judge)


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

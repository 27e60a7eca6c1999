"""The labels of the list format at the starts of lines: `4. Instruction:`, `**输入**：`, `### 5. Output`, `Task 7:`.

A label counts only at the start of a line, after marks such as `4.`, `**`, `##`, `-` or `【`; half-width and full-width
digits and colons are the same, and English spellings count in every language. A label without a colon needs a mark
(a number, heading, bold or brackets) and stands alone on its line, except in closed brackets: `【输出】好的`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from selfinstruct.languages import Labels, LanguagePack

Kind = Literal["instruction", "input", "output"]

KINDS: tuple[Kind, ...] = ("instruction", "input", "output")

_ENGLISH = Labels()

# A label is short; looking no further keeps a line of a million spaces cheap.
_HEAD = 160
BLANK = " \t\u3000"
LONE_NUMBER = re.compile(
    r"[ \t\u3000]*(?P<mark>#{1,6}[ \t]*)?[*_]{0,3}[(（【\[]?"
    r"(?P<number>\d{1,4})(?P<point>[)）】\].．。、:：]*)[*_]{0,3}[ \t\u3000]*"
)
NUMBERED_TEXT = re.compile(r"[ \t\u3000]*#{0,6}[ \t]*[*_]{0,3}(\d{1,4})[ \t]*[.．。、:：)）](?!\d)[ \t\u3000]*(\S.*)")
# Joiners and marks of direction belong to the text of some scripts, but not to a label.
_MARKS = "".join(map(chr, (0x061C, *range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A))))
_INVISIBLE = re.compile(f"[{_MARKS}]")


@dataclass(frozen=True, slots=True)
class Label:
    """A label at the start of a line of a text.

    `start` is the line its record begins on, above `line` where a number or "Task 7" stands alone before it;
    `number` is None for a bare label; `rest` follows it on its line; `task` marks "Task 7: ..." in its place.
    """

    kind: Kind
    line: int
    start: int
    number: int | None
    rest: str
    task: bool = False


def label_kinds(pack: LanguagePack) -> Mapping[str, Kind]:
    """Return the kind of each spelling, case-folded: those of the pack and of English."""
    return _pattern(pack.labels)[1]


def labels_in(text: str, pack: LanguagePack) -> list[Label]:
    """Return the labels that start a line of `text`, in the spellings of the pack and of English."""
    lines = text.split("\n")
    pattern, kinds = _pattern(pack.labels)
    found: list[Label] = []
    above: int | None = None
    for at, line in enumerate(lines):
        if not line.strip():
            continue
        label = _label(line, at, pattern, kinds)
        if label is not None:
            previous = found[-1] if found else None
            if label.kind == "instruction" and not label.task and above is not None:
                if previous is not None and previous.line == above:
                    if previous.task and not previous.rest:
                        found.pop()
                        label = replace(label, start=above, number=label.number or previous.number)
                else:
                    alone = LONE_NUMBER.fullmatch(lines[above][:_HEAD])
                    # "Output:" with "42." alone below it is an answer, not the number of what follows.
                    between = lines[previous.line + 1 : above] if previous else []
                    answered = previous is None or previous.rest or any(map(str.strip, between))
                    if alone and (alone["mark"] or alone["point"]) and answered:
                        label = replace(label, start=above, number=label.number or int(alone["number"]))
            found.append(label)
        above = at
    return found


def _label(line: str, at: int, pattern: re.Pattern[str], kinds: Mapping[str, Kind]) -> Label | None:
    head = line[: 2 * _HEAD]
    visible: Sequence[int] = range(len(head))
    if not head.isascii() and _INVISIBLE.search(head):
        visible = [index for index in visible if not _INVISIBLE.match(head[index])]
        head = "".join(head[index] for index in visible)
    stripped = head.lstrip(BLANK)
    match = pattern.match(stripped[:_HEAD])
    if match is None:
        return None
    shown = len(head) - len(stripped) + match.end()
    rest = line[visible[shown - 1] + 1 :].lstrip(_MARKS + BLANK)
    opened = match["open2"] or ("" if match["number_close"] else match["open"]) or ""
    if opened and not (match["close"] or match["task_close"]):
        rest = rest.lstrip(BLANK)
        rest = rest[len(opened) :] if rest.startswith(opened) else rest.rstrip().removesuffix(opened)
    rest = rest.strip()
    if match["task_number"]:
        whole = match["point"] or not rest
        return Label("instruction", at, at, int(match["task_number"]), rest, task=True) if whole else None
    # re's IGNORECASE takes a dotless i for an i, casefold does not.
    kind = kinds.get(match["label"].casefold())
    if kind is None:
        return None
    number = match["number"]
    if match["suffix"]:
        # "Input 2: ..." numbers the data of a task far more often than it labels a field.
        if kind != "instruction":
            return None
        number = number or match["suffix"]
    if not match["colon"] and not match["box"] and (rest or not (number or match["heading"] or opened)):
        return None
    again = _label(rest, at, pattern, kinds) if rest else None
    if again is not None and again.kind == kind:
        return replace(again, number=int(number) if number else again.number)
    return Label(kind, at, at, int(number) if number else None, rest)


@lru_cache(maxsize=64)
def _pattern(labels: Labels) -> tuple[re.Pattern[str], dict[str, Kind]]:
    kinds: dict[str, Kind] = {}
    for kind in KINDS:
        for spelling in (*getattr(labels, kind), *getattr(_ENGLISH, kind)):
            kinds.setdefault(spelling.casefold(), kind)
    names = "|".join(re.escape(name) for name in sorted(kinds, key=len, reverse=True))
    tasks = "|".join(re.escape(name) for name in dict.fromkeys((*labels.task, *_ENGLISH.task)))
    blank = r"[ \t\u3000]*"
    marks = r"[*_]{1,3}"
    pattern = rf"""
        (?P<heading>\#{{1,6}}{blank})? (?:[-+•●▪◦*][ \t]+)? (?P<open>{marks})?
        (?:
            (?:
                (?:{tasks})? {blank} [\#(（【\[]? (?P<number>\d{{1,4}}) {blank} [)）】\]]? [.．。、:：–—-]?
                (?(open)(?P<number_close>{marks})?) {blank} (?P<open2>{marks})?
            )?
            (?P<box>[\[【「])? (?P<label>{names}) {blank} (?:\#?(?P<suffix>\d{{1,4}}))? (?(box)[\]】」])
            {blank} (?P<close>{marks})? {blank} (?P<colon>[:：﹕])?
        |
            (?:{tasks}) {blank} \#? (?P<task_number>\d{{1,4}}) [)）]? {blank}
            (?P<task_close>{marks})? {blank} (?P<point>[:：.．])?
        )
    """
    return re.compile(pattern, re.IGNORECASE | re.VERBOSE), kinds

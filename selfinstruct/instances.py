r"""Self-Instruct's written form of a task's instances, rendered and read (`generate_instances.py` and its templates).

Input-first, for any task, and output-first, for classification: there the label is named before an input for it is
made up, since a model that starts with inputs makes nearly all of them for one label.

    Task: Rank the snacks by sugar.          Task: Is the review positive or negative?
    Example 1                                Class label: negative
    Input: apple, fudge                      Input: The soup was cold.
    Output: fudge, apple                     Class label: positive
    Example 2                                Input: We stayed until they closed.
    ...

The labels are the language pack's; English ones are read in every language. They count at the start of a line, in
any letter case, with or without number, bold or heading, and behind half-width and full-width colons. As in
`prepare_for_finetuning.py`, a class label's line is the output and what follows it the input, a task without
material has the input "", and what stands before the first label is none. Differences from it:

- It split at each "Example" and "Output:" in the text; here a label in the middle of a line, or in a block of code, is
  text, and so is a class label in the instances of other tasks. An example without any label is none.
- A label form with `Output:` or with the input first is read too, and an input without label behind a class label.
- A cut-off completion loses the instance it was cut in; there the last one that had an output was dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from selfinstruct.labels import BLANK
from selfinstruct.languages import Labels, LanguagePack
from selfinstruct.parsing import cleaned, is_no_input
from selfinstruct.values import Instance, Task

Kind = Literal["task", "example", "input", "output", "class_label"]

LIMIT = 5
"""Instances of one task at most, as in the paper."""

_ENGLISH = Labels()
_FENCE = re.compile(r"(?:[^`~]{0,60}[:：])?[ \t]*(?:`{3,}|~{3,})[ \t]*(?P<info>[\w+#.-]*)[ \t]*")
_SEPARATOR = re.compile(r"[ \t\u3000]*(?:#{2,}|-{3,}|\*{3,}|_{3,}|={3,})?[ \t\u3000]*")


@dataclass(slots=True)
class _Case:
    """An instance as far as it has been read; `by_label` when its class label came before its input."""

    input: str | None = None
    output: str | None = None
    by_label: bool = False

    def takes(self, kind: Kind) -> bool:
        """Tell whether a text of that kind belongs to this instance, and does not begin the next."""
        if kind == "input":
            return self.input is None and (self.output is None or self.by_label)
        return self.output is None


def render_instances(task: Task, pack: LanguagePack) -> str:
    """Return the instances of a task, output-first if it is a classification, else input-first.

    `parse_instances` reads them back when they are at most five and different and their texts *normal*: stripped,
    without control or zero-width characters; a class label on one line; an input that is no spelling of "no input";
    no line that is a label or a separator (`##`, `---` alone on it), no code fence that is never closed.
    """
    labels, lines = pack.labels, []
    for number, case in enumerate(task.instances, 1):
        given = [_labelled(labels.input[0], case.input)] if case.input else []
        if task.is_classification:
            lines += [_labelled(pack.class_label[0], case.output), *given]
        else:
            lines += [f"{pack.example[0]} {number}", *given, _labelled(labels.output[0], case.output)]
    return "\n".join(lines)


def parse_instances(text: str, task: Task, pack: LanguagePack, *, truncated: bool = False) -> list[Instance]:
    """Return the different instances of a task in a completion, in order and at most five; an output may be "".

    A "Task:" line ends them, unless it only says the task again. The instance in which a `truncated` completion was
    cut is left out. Never raises.
    """
    is_classification = bool(task.is_classification)
    cases: list[_Case] = []
    current: _Case | None = None
    cut = False
    for kind, content in _fields(cleaned(text), pack, is_classification, truncated):
        cut = kind not in ("task", "example")
        if kind == "task" and (cases or _bare(content.partition("\n")[0]) != _bare(task.instruction)):
            break
        if not cut:
            current = None
            continue
        if current is None or not current.takes(kind):
            current = _Case(by_label=is_classification and kind != "input")
            cases.append(current)
        if kind == "input":
            current.input = content
        elif current.by_label:
            current.output, _, rest = (part.strip() for part in content.partition("\n"))
            current.input = rest or None
        else:
            current.output = content
    if truncated and cut:
        cases.pop()
    read = (_instance(case, pack) for case in cases)
    return list(dict.fromkeys(each for each in read if each is not None))[:LIMIT]


def _instance(case: _Case, pack: LanguagePack) -> Instance | None:
    if case.output is None:
        return None
    given = case.input or ""
    return Instance("" if is_no_input(given, pack) else given, case.output)


def _bare(instruction: str) -> str:
    return "".join(char for char in instruction.casefold() if char.isalnum())


def _labelled(label: str, text: str) -> str:
    return f"{label}:\n{text}" if "\n" in text else f"{label}: {text}"


def _fields(text: str, pack: LanguagePack, is_classification: bool, truncated: bool) -> Iterator[tuple[Kind, str]]:
    """Yield the labels of a text in order, each with what stands behind it; what comes before the first is left out."""
    lines = _unwrapped(text.split("\n"))
    code = _lines_of_code(lines, truncated)
    kind: Kind | None = None
    content: list[str] = []
    for at, line in enumerate(lines):
        rest = line
        while at not in code and (found := _label(rest, pack, is_classification)):
            if kind is not None:
                yield kind, _joined(content)
            kind, rest = found
            content = []
            if kind != "example":
                break
        content.append(rest)
    if kind is not None:
        yield kind, _joined(content)


def _label(line: str, pack: LanguagePack, is_classification: bool) -> tuple[Kind, str] | None:
    pattern, kinds = _pattern(pack.labels, pack.example, pack.class_label, is_classification)
    found = pattern.match(line)
    kind = kinds.get(found["name"].casefold()) if found else None
    if found is None or kind is None:
        return None
    rest = found["rest"].strip(BLANK)
    if kind == "example":
        # "Example 2" and "Example 2: Input: ..." begin an instance, "Example sentences ..." does not.
        return (kind, rest) if not rest or (found["number"] and found["mark"]) else None
    return (kind, rest) if found["mark"] in (":", "：", "﹕") else None


@lru_cache(maxsize=64)
def _pattern(
    labels: Labels, example: tuple[str, ...], class_label: tuple[str, ...], is_classification: bool
) -> tuple[re.Pattern[str], dict[str, Kind]]:
    spellings: dict[Kind, tuple[str, ...]] = {
        "input": (*labels.input, *_ENGLISH.input),
        "output": (*labels.output, *_ENGLISH.output),
        "class_label": (*class_label, "Class label") if is_classification else (),
        "task": (*labels.task, *labels.instruction, *_ENGLISH.task, *_ENGLISH.instruction),
        "example": (*example, "Example"),
    }
    kinds: dict[str, Kind] = {}
    for kind, names in spellings.items():
        for name in names:
            kinds.setdefault(name.casefold(), kind)
    either = "|".join(re.escape(name) for name in sorted(kinds, key=len, reverse=True))
    blank = f"[{BLANK}]*"
    pattern = rf"""
        [{BLANK}\u200c-\u200f\u202a-\u202e\u2066-\u2069]*
        (?:\#{{1,6}}{blank})? (?:[-+•●*][ \t]+)? (?P<open>[*_]{{1,3}})?
        (?:\d{{1,2}}[ \t]*[.．)）、]{blank})? [\[(（【「]?
        (?P<name>{either}) {blank} [\#№]? (?P<number>\d{{1,3}}|[一二三四五六七八九十]{{1,2}})? {blank} [\])）】」]?
        (?P<close>[*_]{{1,3}})? {blank} (?P<mark>[:：﹕.．。、)）–—-])? (?(open)[*_]{{0,3}}) (?P<rest>.*)
    """
    return re.compile(pattern, re.IGNORECASE | re.VERBOSE), kinds


def _unwrapped(lines: list[str]) -> list[str]:
    """Take off the code fence that a chat model puts around its whole reply."""
    written = [at for at, line in enumerate(lines) if line.strip()]
    if written and _FENCE.fullmatch(lines[written[0]]):
        last = written[-1] if len(written) > 1 and _FENCE.fullmatch(lines[written[-1]]) else len(lines)
        return lines[written[0] + 1 : last]
    return lines


def _lines_of_code(lines: list[str], truncated: bool) -> set[int]:
    """Return the lines in blocks of code that are closed again, or in which a completion was cut off."""
    code: set[int] = set()
    opened: int | None = None
    for at, line in enumerate(lines):
        found = _FENCE.fullmatch(line)
        if found and opened is not None and not found["info"]:
            code.update(range(opened + 1, at + 1))
            opened = None
        elif found:
            opened = at
    if truncated and opened is not None:
        code.update(range(opened + 1, len(lines)))
    return code


def _joined(lines: list[str]) -> str:
    """Return a field's text without blank lines and separators below it."""
    end = len(lines)
    while end and _SEPARATOR.fullmatch(lines[end - 1]):
        end -= 1
    return "\n".join(lines[:end]).strip()

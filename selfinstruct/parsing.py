"""From a completion to candidates: the list format of Self-Instruct, Alpaca and BELLE, and JSON.

The list format is what `render_tasks` writes and a model goes on with:

    1. Instruction: Name three rivers of Spain.
    1. Input:
    <noinput>
    1. Output:
    The Ebro, the Tagus and the Guadalquivir.
    ###
    2. Instruction: ...

Models keep to it badly. The originals split at `###` and then asked for exact numbers, so one slip lost
every later record (stanford_alpaca `utils.py`; BELLE `generate_instruction.py`). Here the labels carry the
structure, and each label is a place to start afresh:

- A label counts only at the start of a line (`selfinstruct.labels`).
- **Numbered labels are strong, bare ones weak.** A numbered instruction opens a record; if its number is not above
  the current one, or the answer is a list that has just come to it (a lesson plan: "1. Introduction: ...",
  "2. Instruction: ..."), only where a separator stands before it or an output of its number follows. A bare instruction
  opens one if the completion numbers no instruction, else only behind a separator or before an output.
- Once a record has its output, bare `Input:` and `Output:` lines are text, for answers show worked cases; so are
  numbered ones, unless their number is a later one that no list has come to. Of several output labels before that,
  the one with the record's own number wins, else the first.
- A fenced code block hides bare labels. `###` alone on a line separates, `### Title` is a heading and stays.
- Input or output labels of a record whose instruction is missing open a record of their own, which is rejected.

A parser never raises: what can't be read becomes a rejection by the filter "parse", with the piece it is about.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from selfinstruct.errors import ConfigError
from selfinstruct.labels import BLANK, KINDS, LONE_NUMBER, NUMBERED_TEXT, Kind, Label, label_kinds, labels_in
from selfinstruct.languages import LanguagePack
from selfinstruct.values import Candidate, Instance, Rejection, Task

_SEPARATOR = re.compile(r"[ \t\u3000]*(?:#{2,}|-{3,}|\*{3,}|_{3,}|={3,})[ \t\u3000]*")
_HASHES = re.compile(r"[ \t\u3000]*#{2,3}[ \t\u3000]*")
# A model opens a block behind a colon as well: "Output: ```python".
_FENCE = re.compile(r"(?:[^`~]{0,160}[:：])?[ \t]*(?:`{3,}|~{3,})[ \t]*(?P<info>[\w+#.-]*)[ \t]*")
_THOUGHTS = re.compile(r"\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
# Some chat templates print the opening tag themselves: then only the closing one is in the completion.
_THOUGHTS_END = re.compile(r"</think(?:ing)?>[ \t]*(?=\n|\Z)", re.IGNORECASE)
_DROPPED = dict.fromkeys((*range(0x09), *range(0x0E, 0x20), 0x7F, *range(0x80, 0xA0), 0x200B, 0x2060, 0xFEFF))
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_MARKS = "#*_-=`~.:：" + BLANK
_ENGLISH_NO_INPUT = ("<noinput>", "no input", "n/a", "none", "null")
# No text ends with one of these: whoever wrote it was interrupted.
_CONNECTING = frozenset(",;([{“‘«，、；（【《「『–—")


@dataclass(slots=True)
class _Region:
    """The lines of one record, from its opening label (None: it continues the prompt) up to `end`."""

    opening: Label | None
    start: int
    end: int
    number: int | None = None
    labels: list[Label] = field(default_factory=list)
    answer: Label | None = None


@dataclass(frozen=True, slots=True)
class _Lines:
    """A text's lines with the places of its code fences (line, whether it is bare)."""

    text: tuple[str, ...]
    fences: tuple[tuple[int, bool], ...]

    def above(self, at: int) -> str:
        """Return the last line before `at` that is not blank, or ""."""
        while at > 0:
            at -= 1
            if self.text[at].strip():
                return self.text[at]
        return ""

    def in_code(self, start: int, at: int) -> bool:
        """Tell whether line `at` is in a block opened since `start` that some later fence closes."""
        opened = _open_fence([found for found in self.fences if start <= found[0] < at])
        return opened is not None and next((bare for line, bare in self.fences if line > at), False)


def render_tasks(tasks: Sequence[Task], pack: LanguagePack, first: int = 1) -> str:
    """Return the tasks in the list format, numbered from `first`, with `###` lines between them.

    The inverse of `parse_tasks`: `parse_tasks(render_tasks(tasks, pack), pack, truncated=False, continues=False)`
    gives the same instructions and instances for tasks with one instance whose texts are *normal*: stripped, without
    control or zero-width characters; an instruction on one line with single spaces, not empty, not ending in a colon
    and not starting with a label or a number and a point; an input that is no spelling of "no input"; no text with a
    line that is a label or a separator (`##`, `---` ... alone on a line) or a number alone, an unclosed or empty code
    fence at its end, or a tag of thoughts. Of a task with several instances the first is shown.

    Raises:
        ConfigError: a task has no instance to show.
    """
    blocks = []
    for number, task in enumerate(tasks, first):
        if not task.instances:
            raise ConfigError(f"task {task.id or task.instruction[:60]!r} has no instance to show as a demonstration")
        case = task.instances[0]
        blocks.append(
            f"{number}. {pack.labels.instruction[0]}: {_one_line(task.instruction)}\n"
            f"{number}. {pack.labels.input[0]}:\n{case.input or pack.no_input[0]}\n"
            f"{number}. {pack.labels.output[0]}:\n{case.output}"
        )
    return "\n###\n".join(blocks)


def parse_tasks(text: str, pack: LanguagePack, *, truncated: bool | None, continues: bool = True) -> list[Candidate]:
    """Return the tasks of a completion in the list format, in order, each with one instance or a rejection.

    `continues`: the prompt ended with an instruction's label, so text before the first label is the first
    instruction (unless it ends with a colon, as chat does before a list, or has no output).

    `truncated`: whether the completion was cut off. Its last piece is then rejected as "truncated", unless a
    separator line after it shows that it was whole. With None (the server gave no reason) the last output is taken
    for cut only on plain signs: an open code fence, a last character that opens or joins (comma, bracket, dash), or a
    last line of eight units and more without an end mark where the other lines and records have one.

    Reasons: truncated, no_output, no_instruction, no_label. Never raises.
    """
    body = cleaned(text)
    split = body.split("\n")
    lines = _Lines(tuple(split), tuple(_fences(split)))
    labels = _recovered(lines, labels_in(body, pack))
    if not labels:
        if not text.strip():
            return []
        reason = "truncated" if truncated else "no_output" if continues else "no_label"
        return [_rejected(reason, text, truncated=bool(truncated))]
    wrapped = bool(_FENCE.fullmatch(lines.above(labels[0].start)))
    regions = _regions(lines, labels, continues)
    read = [_read(lines, region, pack, wrapped=wrapped and region is regions[-1]) for region in regions]
    found = [candidate for pieces in read for candidate in pieces]
    # A new label or a whole separator line after a record shows that the cut came later.
    whole = not read[-1] or (body.endswith("\n") and bool(_HASHES.fullmatch(lines.above(len(split)))))
    if found and LONE_NUMBER.fullmatch(found[-1].text):
        found.pop()
        whole = True
    if (
        found
        and not whole
        and (truncated or (truncated is None and looks_cut([_output(candidate) for candidate in found], pack)))
    ):
        found[-1] = _rejected("truncated", found[-1].text, truncated=True)
    return found


def parse_task_json(text: str, pack: LanguagePack, *, truncated: bool | None) -> list[Candidate]:
    """Return the tasks of `{"tasks": [{"instruction", "input", "output", "is_classification"?}]}`.

    Tolerates a fence around it, talk before and after it, a bare list, one object or one object a line, the
    language's labels as keys, and raw line breaks in strings. A list that is cut off keeps its complete items; after
    a damaged item it goes on with the next. `input` may be missing or null.

    Reasons: not_json, truncated, wrong_type, no_instruction, no_output. Never raises.
    """
    if not text.strip():
        return []
    body = cleaned(text)
    names = label_kinds(pack)
    decoder = json.JSONDecoder(strict=False)
    item_start = re.compile(r'\{\s*"(?:' + "|".join(map(re.escape, names)) + r')"\s*:', re.IGNORECASE)
    opening = re.search(r'"tasks"\s*:\s*\[', body, re.IGNORECASE) or re.match(r"(?:\s*```\w*)?\s*\[", body)
    first = item_start.search(body)
    if opening is None and first is None:
        return [_rejected("truncated" if truncated else "not_json", text, truncated=bool(truncated))]
    listed = opening is not None and (first is None or opening.end() <= first.start())
    at = opening.end() if opening is not None and listed else first.start() if first is not None else 0
    found: list[Candidate] = []
    while True:
        at = _skip(body, at)
        if at >= len(body) or (listed and body[at] == "]"):
            return found
        if not listed and not item_start.match(body, at):
            following = item_start.search(body, at)
            if following is None:
                return found
            at = following.start()
        try:
            value, end = decoder.raw_decode(body, at)
        except (ValueError, RecursionError):
            following = item_start.search(body, at + 1)
            end = following.start() if following else len(body)
            cut = following is None and truncated is not False
            found.append(_rejected("truncated" if cut else "not_json", body[at:end], truncated=cut))
        else:
            found.append(_from_json(value, names, body[at:end], pack))
        at = end


def _recovered(lines: _Lines, labels: list[Label]) -> list[Label]:
    """Add the instructions whose label the model left out: behind a `###` line, or "5. Name ..." above "5. Input:"."""
    result: list[Label] = []
    for label in labels:
        previous = result[-1] if result else None
        if label.kind != "instruction" and (previous is None or previous.kind == "output"):
            after = previous.line + 1 if previous else 0
            written = [at for at in range(after, label.line) if lines.text[at].strip()]
            bars = [at for at in written if _HASHES.fullmatch(lines.text[at]) and not lines.in_code(after, at)]
            behind = [at for at in written if bars and at > bars[-1]]
            if behind and previous is not None:
                found = NUMBERED_TEXT.fullmatch(lines.text[behind[0]])
                number, rest = (int(found[1]), found[2]) if found else (label.number, lines.text[behind[0]].strip())
                result.append(Label("instruction", behind[0], behind[0], number, rest))
            elif written and label.number is not None:
                found = NUMBERED_TEXT.fullmatch(lines.text[written[-1]])
                later = previous is None or previous.number is None or label.number > previous.number
                if found and later and int(found[1]) == label.number:
                    result.append(Label("instruction", written[-1], written[-1], label.number, found[2]))
        result.append(label)
    return result


def _regions(lines: _Lines, labels: list[Label], continues: bool) -> list[_Region]:
    numbered = any(label.kind == "instruction" and label.number is not None and not label.task for label in labels)
    region = _Region(None, 0, len(lines.text))
    regions = [region] if continues else []

    def own(label: Label) -> bool:
        return label.number is not None and label.number == region.number

    def ahead(index: int) -> Label | None:
        """Return the first output label after `index` and before the next instruction."""
        for later in labels[index + 1 :]:
            if later.kind == "instruction" and not later.task:
                return None
            if later.kind == "output":
                return later
        return None

    def paired(label: Label, output: Label | None) -> bool:
        """Tell whether two numbers fit: equal, or as far apart as in the record before (1 and 3)."""
        if output is None or output.number is None or label.number is None:
            return output is not None
        before = region.answer.number if region.answer else None
        usual = before - region.number if before is not None and region.number is not None else 0
        return output.number - label.number in (0, usual)

    def counted(label: Label) -> bool:
        """Tell whether the answer is a numbered list that has just come to this label's number."""
        if region.answer is None or label.number is None:
            return False
        items = (region.answer.rest, *lines.text[region.answer.line + 1 : label.line])
        return any(int(found[1]) == label.number - 1 for found in map(NUMBERED_TEXT.fullmatch, items) if found)

    def opens(index: int) -> bool:
        label = labels[index]
        if region.opening is None and not region.labels:
            return label.kind == "instruction" or not continues
        separated = bool(_SEPARATOR.fullmatch(lines.above(label.start)))
        later = region.number is None or (label.number is not None and label.number > region.number)
        if label.kind == "instruction":
            output = ahead(index)
            followed = output is not None and (region.answer is not None or not own(output))
            if label.task:
                return followed
            if label.number is not None:
                return (
                    (later and not counted(label))
                    or not region.labels
                    or separated
                    or (followed and paired(label, output))
                )
            if lines.in_code(region.start, label.line):
                return False
            return not numbered or separated or followed
        if region.answer is None:
            has_input = any(earlier.kind == "input" for earlier in region.labels)
            return label.kind == "input" and has_input and label.number is not None and later
        if label.number is not None:
            return region.answer.number is not None and later and not counted(label)
        return bool(_HASHES.fullmatch(lines.above(label.start)))

    def answers(index: int) -> bool:
        label = labels[index]
        if label.kind != "output" or region.answer is not None:
            return False
        if own(label):
            return True
        if label.number is None and lines.in_code(region.start, label.line):
            return False
        for later in labels[index + 1 :]:
            if later.kind == "instruction" and not later.task:
                break
            if later.kind == "output" and own(later):
                return False
        return True

    for index, label in enumerate(labels):
        if opens(index):
            region.end = label.start
            region = _Region(label, label.start, len(lines.text), label.number)
            regions.append(region)
            if label.kind == "instruction":
                continue
        if region.number is None and not region.labels:
            region.number = label.number
        if answers(index):
            region.answer = label
        region.labels.append(label)
    return regions


def _read(lines: _Lines, region: _Region, pack: LanguagePack, *, wrapped: bool) -> list[Candidate]:
    """Return the record of a region, or why there is none, and what was split off behind it."""
    piece = "\n".join(lines.text[region.start : region.end]).strip()
    opening, answer = region.opening, region.answer
    starts = opening.line + 1 if opening else 0
    opened_by_instruction = opening is None or opening.kind == "instruction"
    before_answer = [
        label
        for label in region.labels
        if label.kind == "input"
        and (answer is None or label.line < answer.line)
        and (label.number is not None or not lines.in_code(region.start, label.line))
    ]
    given = next((label for label in before_answer if label.number == region.number), None)
    given = given or next(iter(before_answer), None)
    first_field = given or answer
    instruction_end = first_field.start if first_field else region.end
    instruction = ""
    if opened_by_instruction:
        head = [opening.rest] if opening else []
        instruction = _instruction([*head, *lines.text[starts:instruction_end]], region)
    if answer is None:
        rest = _field(given.rest, lines.text[given.line + 1 : region.end]) if given else ""
        is_talk = opening is None and given is None and instruction.endswith((":", "："))
        if is_talk or not (instruction.strip(_MARKS) or rest):
            return []
        return [_rejected("no_output", piece)]
    behind, tail = _split_tail([answer.rest, *lines.text[answer.line + 1 : region.end]])
    opened = _open_fence(_fences(behind))
    if wrapped and opened is not None:
        behind = behind[:opened]
    output = _field(behind[0], behind[1:])
    tails = [_rejected("no_label", tail)] if tail else []
    if not instruction.strip(_MARKS):
        return [_rejected("no_instruction", piece), *tails]
    given_text = _field(given.rest, lines.text[given.line + 1 : answer.start]) if given else ""
    case = Instance("" if is_no_input(given_text, pack) else given_text, output)
    return [Candidate(Task(_no_colon(instruction), (case,)), text=piece), *tails]


def _instruction(lines: list[str], region: _Region) -> str:
    kept = [line for line in lines if not _SEPARATOR.fullmatch(line) and line.strip(BLANK + "`~")]
    if region.opening is None and not region.labels:
        kept = [line for line in kept if not _FENCE.fullmatch(line)]
    if region.opening is None and kept:
        # The prompt ended with "4. Instruction:" and the model repeats the "4." alone.
        numbered = NUMBERED_TEXT.fullmatch(kept[0])
        if numbered and int(numbered[1]) == region.number:
            kept[0] = numbered[2]
    return _one_line(" ".join(kept))


def _split_tail(lines: list[str]) -> tuple[list[str], str]:
    """Split off the beginning of a further record that never came to its labels: `###` and a number."""
    fences = _fences(lines)
    for at, line in enumerate(lines):
        if _HASHES.fullmatch(line) and _open_fence([found for found in fences if found[0] < at]) is None:
            behind = "\n".join(lines[at + 1 :]).strip()
            first = behind.partition("\n")[0]
            if LONE_NUMBER.fullmatch(first) or NUMBERED_TEXT.fullmatch(first):
                return lines[:at], behind
    return lines, ""


def _field(first: str, below: Sequence[str]) -> str:
    """Return a field's text without the blank lines, separators and unpaired fences around it."""
    lines = [first, *below]
    while lines:
        if not lines[-1].strip() or _SEPARATOR.fullmatch(lines[-1]):
            lines.pop()
            continue
        fences = _fences(lines)
        if not fences or fences[-1][0] != len(lines) - 1:
            break
        opened = _open_fence(fences[:-1])
        if _open_fence(fences) == len(lines) - 1 or (
            opened is not None
            and lines[opened].strip(BLANK + "`~") == ""
            and not "".join(lines[opened + 1 : -1]).strip()
        ):
            lines.pop()
        else:
            break
    while lines and not lines[0].strip():
        lines.pop(0)
    if not lines:
        return ""
    text = "\n".join(lines)
    return (textwrap.dedent(text) if lines[0][0] in BLANK else text).strip()


def _fences(lines: Sequence[str]) -> list[tuple[int, bool]]:
    matches = ((at, _FENCE.fullmatch(line)) for at, line in enumerate(lines) if "```" in line or "~~~" in line)
    return [(at, not found["info"]) for at, found in matches if found]


def _open_fence(fences: Sequence[tuple[int, bool]]) -> int | None:
    """Return the line of the fence that opens a block nothing closes, or None."""
    opened: int | None = None
    for at, bare in fences:
        opened = None if opened is not None and bare else at
    return opened


def looks_cut(outputs: Sequence[str], pack: LanguagePack) -> bool:
    """Tell by plain signs whether the last of several outputs stops in the middle (`parse_tasks` names them)."""
    last = outputs[-1].rstrip()
    if not last:
        return False
    if _open_fence(_fences(last.split("\n"))) is not None or last[-1] in _CONNECTING:
        return True
    lines = [line for line in last.split("\n") if line.strip()]

    def unended(line: str) -> bool:
        end = line.rstrip().rstrip("\"'”’»」』)）]】*_`~")
        return pack.length(line) >= 8 and not end.endswith(pack.sentence_ends) and end[-1:].isalnum()

    others = [*lines[:-1], *(other.rstrip().rpartition("\n")[2] for other in outputs[:-1])]
    return unended(lines[-1]) and not any(map(unended, others))


def _output(candidate: Candidate) -> str:
    record = candidate.record
    return record.instances[0].output if isinstance(record, Task) and record.instances else ""


def _from_json(value: object, names: Mapping[str, Kind], piece: str, pack: LanguagePack) -> Candidate:
    if not isinstance(value, dict):
        return _rejected("wrong_type", piece, key="", expected="an object")
    given: dict[Kind, object] = {}
    for key, item in value.items():
        kind = names.get(key.strip().casefold())
        if kind is not None:
            given.setdefault(kind, item)
    texts: dict[Kind, str] = {}
    for kind in KINDS:
        item = given.get(kind)
        if item is None and kind == "input":
            item = ""
        if item is None:
            return _rejected(f"no_{kind}", piece)
        if not isinstance(item, str):
            return _rejected("wrong_type", piece, key=kind, expected="text")
        texts[kind] = _scrub(item).strip()
    verdict = value.get("is_classification")
    if verdict is not None and not isinstance(verdict, bool):
        return _rejected("wrong_type", piece, key="is_classification", expected="true or false")
    instruction = _no_colon(_one_line(texts["instruction"]))
    if not instruction:
        return _rejected("no_instruction", piece)
    case = Instance("" if is_no_input(texts["input"], pack) else texts["input"], texts["output"])
    return Candidate(Task(instruction, (case,), verdict), text=piece.strip())


def is_no_input(text: str, pack: LanguagePack) -> bool:
    """Tell whether a text is a spelling of "no input", such as "<noinput>" or "None.", of the language or English."""
    if len(text) > 80:
        return False
    plain = _spelled(text)
    return plain != "" and plain in _spellings(pack.no_input)


@lru_cache(maxsize=64)
def _spellings(no_input: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(_spelled, (*no_input, *_ENGLISH_NO_INPUT)))


def _spelled(text: str) -> str:
    """Return a spelling of "no input" without what such spellings differ in: case, spaces, brackets, full stops."""
    return re.sub(r"[^\w/]|_", "", text).casefold()


def cleaned(text: str) -> str:
    """Return the answer without thoughts before it, control and zero-width characters; lines end with a newline."""
    found = _THOUGHTS.match(text)
    if found is None:
        found = _THOUGHTS_END.search(text)
        if found is not None and "<think" in text[: found.start()].lower():
            found = None
    return _scrub(text[found.end() :] if found else text)


def _scrub(text: str) -> str:
    # A lone surrogate can't be written as UTF-8.
    return _LINE_ENDS.sub("\n", text).translate(_DROPPED).encode("utf-8", "replace").decode("utf-8")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _no_colon(text: str) -> str:
    return text.rstrip(":：" + BLANK)


def _skip(text: str, at: int) -> int:
    while at < len(text) and (text[at].isspace() or text[at] == ","):
        at += 1
    return at


def _rejected(reason: str, piece: str, *, truncated: bool = False, **measured: float | str) -> Candidate:
    return Candidate(None, text=piece.strip(), rejection=Rejection("parse", reason, measured), truncated=truncated)

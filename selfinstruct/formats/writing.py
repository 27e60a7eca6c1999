"""Records into data files: checked against the target's rules and read back before a byte is written."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from selfinstruct.errors import InputError
from selfinstruct.formats import registry, shape
from selfinstruct.formats.format import Format, Row, kind
from selfinstruct.formats.outputs import RowWriter, created, layout_of, row_writer, save
from selfinstruct.values import Comparison, Dialogue, Record

EVAL_EVERY = 20
"""In a train/eval folder every 20th record, the first included, is for evaluation."""

Target = str | os.PathLike[str] | IO[bytes]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that the target can't hold: not at all, or (`written`) not whole."""

    index: int
    record: Record
    reason: str
    written: bool = False

    @property
    def id(self) -> str | int:
        """The record's id, or its position in the input, from 0."""
        return self.record.id or self.index


@dataclass(slots=True)
class Report:
    """What became of the records: each is in `written` or in `refused_count`, never in both.

    `refused` and `reduced` list (id or position, reason), unless a callback took them. `labels`
    counts the records whose id, name, score, ... the format has no place for, `renumbered` those whose id
    was there before in a format of unique ids: they got a number behind it.
    """

    written: int = 0
    rows: int = 0
    refused_count: int = 0
    reduced_count: int = 0
    renumbered: int = 0
    refused: list[tuple[str | int, str]] = field(default_factory=list)
    reduced: list[tuple[str | int, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        # dataclasses.asdict can't copy a Counter.
        return {each.name: getattr(self, each.name) for each in fields(self)}


def write(
    format: str | Format,
    records: Iterable[Record],
    target: Target,
    *,
    lossy: bool = False,
    on_refused: Callable[[Refusal], None] | None = None,
) -> Report:
    """Write records in a format, to a path (whole or not at all), "-" (standard output) or an open file.

    A record is refused when it breaks the target's rules or would not read back; one that loses a part a
    model learns from (thoughts, a system prompt) is refused too, unless `lossy`. Equal records make equal
    bytes. When `on_refused` raises, nothing is written.

    Raises:
        ConfigError: there is no format of that name.
        InputError: the target can't be written.
    """
    chosen = registry.get(format) if isinstance(format, str) else format
    report = Report()
    path = Path(target) if isinstance(target, str | os.PathLike) and str(target) != "-" else None
    if path is not None and chosen.beside is not None:
        # Here it may only object; what is written is made at the end.
        chosen.beside(path)
    with contextlib.ExitStack() as stack:
        outputs = _outputs(stack, chosen, path, target)
        writer = _Writer(chosen, outputs, report, lossy, on_refused)
        numbered = enumerate(records)
        if chosen.group_records is None:
            for index, record in numbered:
                writer.add([(index, record)])
        else:
            key = chosen.group_records
            for _, group in itertools.groupby(numbered, lambda pair: key(pair[1])):
                writer.add(list(group))
        if chosen.directory and min(writer.counts) == 0:
            raise InputError(f"{target}: {chosen.name} needs both train.json and eval.json: at least two records")
        for output in outputs:
            output.close()
    if path is not None and chosen.beside is not None:
        save(path, sorted(chosen.beside(path).items()))
    return report


def _outputs(stack: contextlib.ExitStack, format: Format, path: Path | None, stream: Target) -> list[RowWriter]:
    if path is None:
        if format.directory:
            raise InputError(f"{format.name} is a folder of two files: name one")
        out = sys.stdout.buffer if isinstance(stream, str | os.PathLike) else stream
        return [row_writer(stack, out, format, format.layout)]
    if not format.directory and path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it")
    layout = layout_of(format, path)
    paths = [path / "train.json", path / "eval.json"] if format.directory else [path]
    return [row_writer(stack, stack.enter_context(created(each)), format, layout) for each in paths]


class _Writer:
    def __init__(
        self,
        format: Format,
        outputs: list[RowWriter],
        report: Report,
        lossy: bool,
        on_refused: Callable[[Refusal], None] | None,
    ) -> None:
        self._format = format
        self._outputs = outputs
        self._report = report
        self._lossy = lossy
        self._on_refused = on_refused
        self._seen: set[int] = set()
        self._signature: dict[str, str] = {}
        self.counts = [0] * len(outputs)

    def add(self, group: list[tuple[int, Record]]) -> None:
        """Write the records of one group, or refuse them."""
        try:
            losses = self._try(group)
        except InputError as error:
            for index, record in group:
                self._refuse(Refusal(index, record, str(error)))
            return
        self._report.written += len(group)
        for (index, record), loss in zip(group, losses, strict=True):
            self._report.labels.update(loss.labels)
            if loss.content:
                self._refuse(Refusal(index, record, f"written without {', '.join(loss.content)}", written=True))

    def _try(self, group: list[tuple[int, Record]]) -> list[shape.Loss]:
        format = self._format
        shaped = [part for _, record in group for part in shape.split(record, format.kinds)]
        rows = format.rows(shaped)
        if not rows:
            raise InputError("the record makes no row")
        back = format.records(rows)
        losses = [shape.compare(record, own_records(record, back) if len(group) > 1 else back) for _, record in group]
        for loss in losses:
            if loss.corrupt:
                raise InputError(loss.corrupt)
            if loss.content and not self._lossy:
                raise InputError(f"{format.name} can't hold {', '.join(loss.content)}")
        signature = self._same_family(rows) if format.uniform else {}
        ids, again = self._numbered(rows, group[0][0]) if format.unique else (set(), 0)
        output = self._report.written % EVAL_EVERY == 0 if format.directory else 0
        try:
            if format.ascii:
                # Half of a surrogate pair can be escaped, but is no text.
                json.dumps(rows, ensure_ascii=False).encode()
            self._outputs[int(output)].add(rows)
        except UnicodeEncodeError:
            raise InputError("holds half of a surrogate pair, which is not Unicode text") from None
        except ValueError as error:
            raise InputError(f"can't be written as JSON: {error}") from None
        except RecursionError:
            raise InputError("is nested too deep to be written") from None
        self._signature = signature
        self._seen |= ids
        self.counts[int(output)] += 1
        self._report.rows += len(rows)
        self._report.renumbered += again if group[0][1].id else 0
        return losses

    def _same_family(self, rows: list[Row]) -> dict[str, str]:
        """Return the keys and types of the rows, which are those of all rows before."""
        first = self._signature
        for row in rows:
            signature = {key: kind(value) for key, value in row.items()}
            first = first or signature
            if signature != first:
                file = ", ".join(f"{key} {type}" for key, type in first.items())
                here = ", ".join(f"{key} {type}" for key, type in signature.items())
                raise InputError(f"a file has one key family: its first row has ({file}), this one ({here})")
        return first

    def _numbered(self, rows: list[Row], index: int) -> tuple[set[int], int]:
        """Put the record's number behind ids that were there before; return the ids' hashes, and how many got one."""
        key = self._format.unique
        # A record is worth more than its id. Hashes instead of the ids, so that ten million fit.
        found: set[int] = set()
        again = 0
        # The rows of a group share the id of their tree; others have one each.
        for part in [rows] if self._format.group_records else [[row] for row in rows]:
            identity = part[0][key]
            if hash(identity) in self._seen or hash(identity) in found:
                identity = f"{identity}-{index + 1}"
                again += 1
            for row in part:
                row[key] = identity
            found.add(hash(identity))
        return found, again

    def _refuse(self, refusal: Refusal) -> None:
        if refusal.written:
            self._report.reduced_count += 1
            kept = self._report.reduced
        else:
            self._report.refused_count += 1
            kept = self._report.refused
        self._report.reasons[refusal.reason] += 1
        if self._on_refused is None:
            kept.append((refusal.id, refusal.reason))
        else:
            self._on_refused(refusal)


def own_records(record: Record, back: list[Record]) -> list[Record]:
    """Return those of a group's records that are, or may be, this one: the same turns, and the id where one has it."""
    if isinstance(record, Comparison):
        asked = _turns(record)
        alike: list[Record] = [r for r in back if isinstance(r, Comparison) and _turns(r) == asked]
        # A single response has no rank among others: it comes back as a thread.
        alike = alike or [r for r in back if isinstance(r, Dialogue) and _turns(r)[:-1] == asked]
    else:
        parts = [_turns(part) for part in shape.split(record, {Dialogue})]
        alike = [r for r in back if isinstance(r, Dialogue) and _turns(r) in parts]
    return [other for other in alike if other.id == record.id] or alike


def _turns(record: Record) -> list[tuple[str, str]]:
    if isinstance(record, Comparison):
        return shape.spoken(shape.prompt_dialogue(record.prompt).messages)
    return shape.spoken(record.messages) if isinstance(record, Dialogue) else []

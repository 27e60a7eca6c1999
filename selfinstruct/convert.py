"""From one format to another, streaming; every row is written or reported."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from selfinstruct import formats
from selfinstruct.cleaning import Cleaner, Count, cleaner
from selfinstruct.errors import InputError
from selfinstruct.formats.outputs import apart, created
from selfinstruct.values import Comparison, Dialogue, Record, Task


@dataclass(slots=True)
class Conversion:
    """What became of a file's rows and records.

    rows = decoded + bad; records - dropped + added by cleaning = written + refused.
    """

    source: str
    container: str
    format: str
    alike: list[str]
    target: str
    rows: int = 0
    decoded: int = 0
    bad: int = 0
    records: int = 0
    written: int = 0
    rows_out: int = 0
    refused: int = 0
    reduced: int = 0
    renumbered: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    cleaned: dict[str, Count] = field(default_factory=dict)
    lost: str = ""
    """The side file, or "" when there was nothing to tell."""

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        # dataclasses.asdict can't copy a Counter.
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return plain | {"cleaned": {name: asdict(count) for name, count in self.cleaned.items()}}


class _SideFile:
    """One JSON line for every row or record that is not, or not whole, in the target; made when first needed."""

    def __init__(self, path: Path | None, stack: ExitStack, tell: Callable[[str], None]) -> None:
        self.path = path
        self._stack = stack
        self._tell = tell
        self._stream: Any = None

    def add(self, place: str, reason: str, *, written: bool = False, record: Record | None = None) -> None:
        if self.path is None:
            self._tell(f"{place}: {reason}")
            return
        if self._stream is None:
            self._stream = self._stack.enter_context(created(self.path))
        line: dict[str, Any] = {"place": place, "reason": reason, "written": written}
        if record is not None:
            line |= {"kind": type(record).__name__.lower(), "record": asdict(record)}
        try:
            data = json.dumps(line, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            data = json.dumps(line).encode()
        self._stream.write(data + b"\n")

    @property
    def used(self) -> bool:
        return self._stream is not None


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str,
    source_format: str = "auto",
    lossy: bool = False,
    skip_bad: bool = False,
    clean: Sequence[str] = (),
    lost: str | os.PathLike[str] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Conversion:
    """Convert a data file ("-": standard input or output).

    Without `skip_bad` the first bad row stops it, without `lossy` the first record that the target can't
    hold whole; then nothing is written. With them, and for what cleaning drops, every such row or record
    is listed with its reason in the side file `lost` (default: TARGET.lost.jsonl; told to `tell` when the
    target is standard output).

    Raises:
        InputError: naming file:line or the record, what was expected, and which switch goes on.
        ConfigError: no such format or cleaning step.
    """
    chosen = formats.get(to)
    steps = cleaner(clean)
    side = Path(lost) if lost else None if str(target) == "-" else beside(Path(target))
    if side is not None:
        apart(side, source=source, target=target)
    with ExitStack() as stack:
        losses = _SideFile(side, stack, tell)
        on_bad = (lambda bad: losses.add(bad.place, bad.reason)) if skip_bad else None
        with formats.open_records(source, source_format, on_bad=on_bad) as reading:
            kind = f"{reading.container}, {reading.format.name}" if source_format == "auto" else reading.format.name
            tell(f"{reading.name}: {kind}{_alike(reading.alike)}")
            result = Conversion(reading.name, reading.container, reading.format.name, reading.alike, chosen.name)

            def refuse(refusal: formats.Refusal) -> None:
                place = _place(reading, refusal, chosen)
                if not lossy:
                    raise InputError(f"{place}: {refusal.reason}; {_way_on(refusal.record, chosen)}")
                losses.add(place, refusal.reason, written=refusal.written, record=refusal.record)

            steps.on_dropped = lambda record, step: losses.add(
                reading.place, f"dropped by cleaning: {step}", record=record
            )
            report = formats.write(chosen, _cleaned(reading, steps), target, lossy=lossy, on_refused=refuse)
            result.rows, result.decoded, result.bad = reading.rows, reading.decoded, reading.bad
            result.records, result.ignored = reading.records, reading.ignored
        result.written, result.rows_out = report.written, report.rows
        result.refused, result.reduced = report.refused_count, report.reduced_count
        result.renumbered = report.renumbered
        result.reasons, result.labels = report.reasons, report.labels
        result.cleaned = steps.counts
        result.lost = str(side) if losses.used else ""
        if side is not None and not losses.used and not lost:
            # What an earlier conversion to the same target lost.
            side.unlink(missing_ok=True)
    return result


def _way_on(record: Record, target: formats.Format) -> str:
    # Tasks and dialogues may become one another; a comparison and those never.
    if target.kinds & ({Comparison} if isinstance(record, Comparison) else {Task, Dialogue}):
        return f"--lossy writes what {target.name} can hold and lists the rest"
    kind = type(record)
    names = [name for name in formats.names() if kind in formats.get(name).kinds]
    return f"formats for {kind.__name__.lower()}s: {', '.join(names)}"


def beside(target: Path) -> Path:
    """Return the name of the side file of a target.

    Raises:
        InputError: the target has no name of its own.
    """
    if not target.name:
        raise InputError(f"{target} is a folder: name a file in it")
    return target.with_name(target.name + ".lost.jsonl")


def _alike(names: list[str]) -> str:
    return f" (read the same as {', '.join(names)})" if names else ""


def _place(reading: formats.Reading, refusal: formats.Refusal, target: formats.Format) -> str:
    # Threads of one tree are written together, after the last was read: then only the record's number is certain.
    if target.group_records is not None:
        return f"{reading.name}: record {refusal.index + 1}"
    identity = f" (id {refusal.record.id})" if refusal.record.id else ""
    return f"{reading.place}{identity}"


def _cleaned(reading: formats.Reading, steps: Cleaner) -> Iterator[Record]:
    for record in reading:
        yield from steps(record)

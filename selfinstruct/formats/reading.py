"""Records out of data files."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from selfinstruct.errors import InputError
from selfinstruct.formats import registry
from selfinstruct.formats.format import Format
from selfinstruct.formats.inputs import Container, OpenFile, Source, opened
from selfinstruct.formats.scan import Item
from selfinstruct.values import Record

SNIFFED_ROWS = 100


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that holds no record; `place` is "file:line", and the row's number where its line holds several."""

    place: str
    reason: str
    rows: int = 1


@dataclass(slots=True)
class Reading:
    """A file being read: iterate it for records. The counts are those so far.

    Every row is counted once: `rows` is the sum of `decoded` and `bad`. `ignored` counts the rows
    that carried a key meaning nothing to the format. `place` is where the last record came from.
    """

    name: str
    container: str
    format: Format
    alike: list[str]
    _items: Iterator[Item]
    _on_bad: Callable[[BadRow], None] | None
    rows: int = 0
    decoded: int = 0
    bad: int = 0
    records: int = 0
    place: str = ""
    _line: int = 0
    ignored: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Record]:
        """Yield the records; a bad row goes to `on_bad`, or raises InputError when there is none."""
        for group in self._groups():
            self.rows += len(group)
            again = group[0].place == self._line
            self._line = group[0].place
            self.place = f"{self.name}:{self._line}" + (f" (row {self.rows - len(group) + 1})" if again else "")
            try:
                found = self._records(group)
            except InputError as error:
                self.bad += len(group)
                if self._on_bad is None:
                    raise InputError(f"{self.place}: {error}") from None
                self._on_bad(BadRow(self.place, str(error), len(group)))
                continue
            self.decoded += len(group)
            self.records += len(found)
            yield from found

    def _groups(self) -> Iterator[list[Item]]:
        group_rows = self.format.group_rows
        if group_rows is None:
            for item in self._items:
                yield [item]
            return
        # A row that can't be read is a group of its own, between two others.
        numbered = ((item, item.place if item.fault else group_rows(item.value)) for item in self._items)
        for _, pairs in itertools.groupby(numbered, lambda pair: (bool(pair[0].fault), pair[1])):
            yield [item for item, _ in pairs]

    def _records(self, group: list[Item]) -> list[Record]:
        for item in group:
            if item.fault:
                raise InputError(item.fault)
        records = self.format.records([item.value for item in group])
        for item in group:
            self.ignored.update(set(self.format.unknown(item.value)))
        return records


@contextlib.contextmanager
def open_records(
    source: Source, format: str | Format = "auto", *, on_bad: Callable[[BadRow], None] | None = None
) -> Iterator[Reading]:
    """Open a data file for reading; "auto" tells the format from the first rows, never from the name.

    Raises:
        InputError: the file can't be opened, or its format can't be told.
        ConfigError: there is no format of that name.
    """
    named = registry.get(format) if isinstance(format, str) and format != "auto" else format
    with opened(source) as file:
        alike: list[str] = []
        if isinstance(named, Format):
            chosen = named
            lines = named.list_rows and not file.head.lstrip()[1:].lstrip().startswith(b"[")
            container: Container = "JSON lines" if lines else file.container
            items = file.items(container)
        else:
            container = file.container
            items = file.items()
            first = list(itertools.islice(items, SNIFFED_ROWS))
            chosen, alike = _choose(file, first)
            items = itertools.chain(first, items)
        yield Reading(file.name, container, chosen, alike, items, on_bad)


def _choose(file: OpenFile, first: list[Item]) -> tuple[Format, list[str]]:
    try:
        return registry.choose([item.value for item in first if not item.fault])
    except InputError as error:
        faults = [f"{file.name}:{item.place}: {item.fault}" for item in first if item.fault]
        if faults and len(faults) == len(first):
            raise InputError(f"{faults[0]} (and no row among the first {len(first)} can be read)") from None
        raise InputError(f"{file.name}: {error}") from None


def read(
    source: Source, format: str | Format = "auto", *, on_bad: Callable[[BadRow], None] | None = None
) -> Iterator[Record]:
    """Yield the records of a data file, streaming.

    Raises:
        InputError: naming file:line, at the first bad row unless `on_bad` takes it.
    """
    with open_records(source, format, on_bad=on_bad) as reading:
        yield from reading

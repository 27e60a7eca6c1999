"""Every data format of the field, both ways.

    formats.read("data.json")                      records of a file, whatever it is called
    formats.write("sharegpt", records, "out.json") a file that its trainer takes whole, and a report
    formats.names(), formats.get("alpaca")         which there are, and all about one

`docs/formats.md` lists them.
"""

from __future__ import annotations

import io
import itertools

from selfinstruct.formats.format import Format, Row
from selfinstruct.formats.inputs import container
from selfinstruct.formats.inputs import opened as _opened
from selfinstruct.formats.reading import BadRow, Reading, open_records, read
from selfinstruct.formats.registry import Match, builtin, candidates, get, names
from selfinstruct.formats.shape import Loss
from selfinstruct.formats.writing import Refusal, Report, write

__all__ = [
    "BadRow",
    "Format",
    "Loss",
    "Match",
    "Reading",
    "Refusal",
    "Report",
    "Row",
    "builtin",
    "candidates",
    "container",
    "get",
    "names",
    "open_records",
    "read",
    "sniff",
    "write",
]


def sniff(head: bytes) -> list[Match]:
    """Return the formats that the first bytes of a file fit, best first.

    Raises:
        InputError: they are no data file at all.
    """
    with _opened(io.BytesIO(head)) as file:
        return candidates([item.value for item in itertools.islice(file.items(), 100) if not item.fault])

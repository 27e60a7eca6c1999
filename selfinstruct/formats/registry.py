"""Which formats there are, by name, and which of them a file is written in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from selfinstruct import plugins
from selfinstruct.errors import ConfigError, InputError, PluginError
from selfinstruct.formats.format import Format, Row, kind
from selfinstruct.values import Record

# Order matters where two formats read a file alike: the first is named.
_FAMILIES = (
    "alpaca",
    "self_instruct",
    "belle",
    "transcript",
    "sharegpt",
    "koala",
    "moss",
    "oasst",
    "pclue",
    "stackllama",
    "messages",
    "preferences",
    "deepspeed",
    "colossal",
    "llama_factory",
)


@cache
def builtin() -> dict[str, Format]:
    """Return the formats that ship, in order, by name."""
    modules = [import_module(f"selfinstruct.formats.{family}") for family in _FAMILIES]
    found: list[Format] = [format for module in modules for format in module.FORMATS]
    return {format.name: format for format in found}


def names() -> list[str]:
    """Return the names of all formats, plugins last."""
    return [*builtin(), *(name for name in plugins.names("formats") if name not in builtin())]


def get(name: str) -> Format:
    """Return a format by its name, the name of a plugin's entry point, or "file.py:name".

    Raises:
        ConfigError: there is no such format (the closest names are told).
        PluginError: the plugin fails to load.
    """
    if name in builtin():
        return builtin()[name]
    if name in names() or ".py:" in name:
        loaded = plugins.load("formats", name)
        if not isinstance(loaded, Format):
            raise PluginError(f'format "{name}" must be a selfinstruct.formats.Format, found {type(loaded).__name__}')
        return loaded
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4) or names()[:3]
    raise ConfigError(f'no format "{name}"; closest: {", ".join(near)} (all: selfinstruct list formats)')


@dataclass(frozen=True, slots=True)
class Match:
    """A format that some rows may be written in: how telling, and on how many of them."""

    format: Format
    score: int
    rows: int


def candidates(rows: Sequence[Row]) -> list[Match]:
    """Return the formats that more than half of the rows fit, best first."""
    found = [match for match in _matches(rows) if match.rows * 2 > len(rows)]
    return sorted(found, key=lambda match: (-match.score, -match.rows))


def _matches(rows: Sequence[Row]) -> list[Match]:
    found = []
    for format in map(get, names()):
        if scores := [score for row in rows if (score := format.matches(row))]:
            found.append(Match(format, max(scores), len(scores)))
    return found


def choose(rows: Sequence[Row]) -> tuple[Format, list[str]]:
    """Return the format of the rows, and the names of others that read them as the very same records.

    Raises:
        InputError: no format fits, or several do and differ in what they read.
    """
    if not rows:
        raise InputError("no readable row to tell the format from; name it with --from (verify: --format)")
    found = candidates(rows)
    if not found:
        shape = ", ".join(rows[0]) or "no key" if isinstance(rows[0], dict) else f"an {kind(rows[0])}"
        near = max(_matches(rows), key=lambda match: match.rows, default=None)
        few = f"; {near.format.name} fits {near.rows} of the first {len(rows)}" if near else ""
        raise InputError(f"no known format has such rows ({shape}){few}; name one with --from (verify: --format)")
    best = [match.format for match in found if (match.score, match.rows) == (found[0].score, found[0].rows)]
    first = min(best, key=lambda format: names().index(format.name))
    others = [format for format in best if format is not first]
    reading = _readings(first, rows)
    if any(_readings(format, rows) != reading for format in others):
        raise InputError(f"may be {' or '.join(format.name for format in best)}; say which with --from")
    return first, [format.name for format in others]


def _readings(format: Format, rows: Iterable[Row]) -> list[list[Record] | None]:
    found: list[list[Record] | None] = []
    for row in rows:
        try:
            found.append(format.records([row]))
        except InputError:
            found.append(None)
    return found

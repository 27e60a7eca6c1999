"""Which formats there are, by name, and which of them a file is written in."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from selfinstruct.errors import ConfigError, InputError, PluginError
from selfinstruct.formats.format import Format, Row
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
    "trainers",
    "llama_factory",
)
_GROUP = "selfinstruct.formats"


@cache
def builtin() -> dict[str, Format]:
    """Return the formats that ship, in order, by name."""
    modules = [import_module(f"selfinstruct.formats.{family}") for family in _FAMILIES]
    found: list[Format] = [format for module in modules for format in module.FORMATS]
    return {format.name: format for format in found}


def names() -> list[str]:
    """Return the names of all formats, plugins last."""
    plugins = sorted({point.name for point in entry_points(group=_GROUP)} - set(builtin()))
    return [*builtin(), *plugins]


def get(name: str) -> Format:
    """Return a format by its name, the name of a plugin's entry point, or "file.py:name".

    Raises:
        ConfigError: there is no such format (the closest names are told).
        PluginError: the plugin fails to load.
    """
    if name in builtin():
        return builtin()[name]
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), attribute)
    for point in entry_points(group=_GROUP, name=name):
        try:
            loaded = point.load()
        except Exception as error:
            raise PluginError(f'format "{name}" ({point.value}) fails to load: {error!r}') from error
        return _checked(loaded, f'format "{name}" ({point.value})')
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4) or names()[:3]
    raise ConfigError(f'no format "{name}"; closest: {", ".join(near)} (all: selfinstruct list formats)')


def _from_file(path: Path, attribute: str) -> Format:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PluginError(f"{path}: no such plugin file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PluginError(f"{path} fails to load: {error!r}") from error
    return _checked(getattr(module, attribute, None), f"{path}:{attribute}")


def _checked(loaded: object, label: str) -> Format:
    if not isinstance(loaded, Format):
        raise PluginError(f"{label} must be a selfinstruct.formats.Format, found {type(loaded).__name__}")
    return loaded


@dataclass(frozen=True, slots=True)
class Match:
    """A format that some rows may be written in: how telling, and on how many of them."""

    format: Format
    score: int
    rows: int


def candidates(rows: Sequence[Row]) -> list[Match]:
    """Return the formats that at least nine of ten rows fit, best first."""
    found = []
    for format in (get(name) for name in names()):
        scores = [score for row in rows if (score := format.matches(row))]
        if scores and len(scores) >= 0.9 * len(rows):
            found.append(Match(format, max(scores), len(scores)))
    return sorted(found, key=lambda match: (-match.score, -match.rows))


def choose(rows: Sequence[Row]) -> tuple[Format, list[str]]:
    """Return the format of the rows, and the names of others that read them as the very same records.

    Raises:
        InputError: no format fits, or several do and differ in what they read.
    """
    if not rows:
        raise InputError("no readable row to tell the format from; name it with --from")
    found = candidates(rows)
    if not found:
        shape = ", ".join(rows[0]) if isinstance(rows[0], dict) else type(rows[0]).__name__
        raise InputError(f"no known format has such rows ({shape}); name one with --from (selfinstruct list formats)")
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
            found.append(format.decode([row] if format.group_rows else row))
        except InputError:
            found.append(None)
    return found

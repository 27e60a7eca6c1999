"""Is a data set fit to train on? Checks over its records, each with an allowed share.

A check looks at one record and yields what is wrong with it. Duplicates, overlap and the schema need more
than the record and have their state in `Verifier`. Checks measure texts; nothing in a file is ever run.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from selfinstruct import formats
from selfinstruct.checks import PACK_OF_SCRIPT, RECORD_CHECKS, Thresholds, dominant, other_language, pair_of, question
from selfinstruct.cleaning import texts
from selfinstruct.errors import ConfigError, InputError
from selfinstruct.languages import LanguagePack, load_pack, tokens
from selfinstruct.novelty import NoveltyIndex
from selfinstruct.values import Record

SHINGLE = 13
"""Tokens that two texts must share in a row to overlap (Brown et al. 2020, appendix C)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with one record; `place` is file:line."""

    check: str
    place: str
    id: str
    detail: str


@dataclass(slots=True)
class Verification:
    """What the checks found. `counts` are records (rows for "schema"), `examples` the first findings of each."""

    source: str
    format: str
    rows: int = 0
    records: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    allowed: dict[str, float] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    examples: list[Finding] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """The checks that found more than their allowed share."""
        whole = max(self.records, self.rows, 1)
        return [name for name in self.checks if self.counts[name] > self.allowed.get(name, 0.0) * whole]

    @property
    def fit(self) -> bool:
        """True when the set may be trained on."""
        return self.records > 0 and not self.failed

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        # dataclasses.asdict can't copy a Counter.
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return plain | {
            "counts": {name: self.counts[name] for name in self.checks},
            "examples": [asdict(finding) for finding in self.examples],
            "failed": self.failed,
            "fit": self.fit,
        }


CHECKS: dict[str, str] = {
    "schema": "rows that can't be read, or break the format's own rules",
    **{name: summary for name, (summary, _) in RECORD_CHECKS.items()},
    "exact-duplicate": "the same question and answers again",
    "near-duplicate": "a question above the threshold of ROUGE-L to an earlier one",
    "overlap": "a question that is in the file given with --against",
}
"""Every check and what it finds."""


class Verifier:
    """Checks records one after another.

    Args:
        language: BCP 47 tag of the answers, or None to take it from the letters of each question (then languages of
            one script are not told apart).
        against: texts that must not be in the set (a benchmark's questions).
        only: the checks to run; all by default.

    Raises:
        ConfigError: no such language or check.
    """

    def __init__(
        self,
        *,
        thresholds: Thresholds | None = None,
        language: str | None = None,
        against: Iterable[str] | None = None,
        only: Iterable[str] = (),
        skip: Iterable[str] = (),
    ) -> None:
        chosen, left_out = _known(only), _known(skip)
        self.checks = [name for name in CHECKS if (not chosen or name in chosen) and name not in left_out]
        self._limits = limits = thresholds or Thresholds()
        self._pack = load_pack(language) if language else None
        self._packs: dict[str, LanguagePack] = {}
        self._seen: dict[bytes, str] = {}
        self._index = NoveltyIndex(threshold=limits.near_duplicate)
        self._against: NoveltyIndex | None = None
        self._shingles: set[int] = set()
        if against is None:
            self.checks = [name for name in self.checks if name != "overlap"]
        else:
            self._against = NoveltyIndex(threshold=limits.overlap)
            for position, text in enumerate(against, 1):
                self._against.add(str(position), text)
                self._shingles.update(_shingles(text))

    def __call__(self, record: Record, place: str) -> Iterator[tuple[str, str]]:
        """Yield (check, detail) for everything wrong with a record but its schema."""
        pair = pair_of(record)
        pack = self._pack or self._pack_of(pair.asked)
        for name, (_, check) in RECORD_CHECKS.items():
            if name in self.checks:
                yield from ((name, detail) for detail in check(record, pair, pack, self._limits))
        if self._pack is not None and "language" in self.checks:
            yield from (("language", detail) for detail in other_language(pair, self._pack))
        asked = question(record)
        twin = None
        if "exact-duplicate" in self.checks:
            key = hashlib.blake2b("\x00".join(texts(record)).encode(errors="surrogatepass"), digest_size=12).digest()
            twin = self._seen.setdefault(key, place)
            if twin != place:
                yield "exact-duplicate", f"the same as {twin}"
        if "near-duplicate" in self.checks and asked:
            near = self._index.offer(place, asked)
            if near is not None and twin in (None, place):
                yield "near-duplicate", f"ROUGE-L {near.score:.2f} to {near.id}"
        if self._against is not None and "overlap" in self.checks and asked:
            yield from self._overlaps(asked)

    def _overlaps(self, asked: str) -> Iterator[tuple[str, str]]:
        assert self._against is not None
        if near := self._against.too_near(asked):
            yield "overlap", f"ROUGE-L {near.score:.2f} to record {near.id} of the other file"
        elif not self._shingles.isdisjoint(_shingles(asked)):
            yield "overlap", f"{SHINGLE} words in a row are in the other file"

    def _pack_of(self, text: str) -> LanguagePack:
        tag = PACK_OF_SCRIPT.get(dominant(text), "en")
        if tag not in self._packs:
            self._packs[tag] = load_pack(tag)
        return self._packs[tag]


def _known(names: Iterable[str]) -> set[str]:
    chosen = set(names)
    for name in chosen - set(CHECKS):
        near = difflib.get_close_matches(name, CHECKS, n=1) or list(CHECKS)
        raise ConfigError(f'no check "{name}"; there is {", ".join(near)}')
    return chosen


def _shingles(text: str) -> Iterator[int]:
    words = tokens(text)
    return (hash(tuple(words[at : at + SHINGLE])) for at in range(len(words) - SHINGLE + 1))


def verify(
    source: str | os.PathLike[str],
    format: str = "auto",
    *,
    verifier: Verifier | None = None,
    allowed: Mapping[str, float] | None = None,
    examples: int = 5,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> Verification:
    """Check a data file ("-": standard input), streaming; bad rows are findings, not errors.

    `allowed` is the share of records (0 to 1) that a check may object to.

    Raises:
        InputError: the file can't be opened, or its format can't be told.
    """
    verifier = verifier or Verifier()
    shares = dict(allowed or {})
    _known(shares)
    shown: Counter[str] = Counter()

    def note(finding: Finding) -> None:
        on_finding(finding)
        if shown[finding.check] < examples:
            shown[finding.check] += 1
            result.examples.append(finding)

    def bad(row: formats.BadRow) -> None:
        if "schema" in verifier.checks:
            result.counts["schema"] += row.rows
            note(Finding("schema", row.place, "", row.reason))

    with formats.open_records(source, format, on_bad=bad) as reading:
        result = Verification(reading.name, reading.format.name, allowed=shares, checks=verifier.checks)
        for record in reading:
            result.records += 1
            found = list(verifier(record, reading.place))
            checks = {check for check, _ in found}
            if "schema" in verifier.checks and not checks & {"empty"} and (reason := _broken(reading.format, record)):
                found.append(("schema", reason))
                checks.add("schema")
            result.counts.update(checks)
            for check, detail in found:
                note(Finding(check, reading.place, record.id, detail))
        result.rows = reading.rows
    return result


def _broken(format: formats.Format, record: Record) -> str:
    """Return the rule of its own format that a record breaks, or ""."""
    try:
        format.rows([record])
    except InputError as error:
        return str(error)
    return ""

"""Which language a text is in: its letters first, then its characters' national standard, then a statistical model.

Nothing here knows a language by name. A pack says which scripts are its own and which languages could be mistaken
for it; every measure is about a text and a pack. Code, addresses and sums are taken out before anything is measured,
and a text that is too short or has no letters left gets no opinion.
"""

from __future__ import annotations

import copy
import importlib.metadata
import lzma
import re
import shutil
import tempfile
import unicodedata
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from selfinstruct.errors import ConfigError
from selfinstruct.languages import LanguagePack, ascii_letters, is_unspaced, own_scripts, script, tokens
from selfinstruct.resources import cache_dir

_BLOCK = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)", re.DOTALL)
_INLINE = re.compile(r"`[^`\n]+`|\b(?:https?://|www\.)\S+|\S+@\S+\.\w+|</?[A-Za-z][^<>\n]{0,80}>")
_MARKS = ("`", "~~~", "://", "www.", "@", "<")
"""Without one of these neither is in a text."""
_CODE = re.compile(
    r"[;{}]\s*\Z|\A\s*[\w.]+\(.*\)\s*\Z|\w\([^)\n]*\)\s*[:;.{]|\s(?:[-+*/]?=|==|!=|->|=>|&&|\|\|)\s"
    r"|\bfrom \w+ import\b"
)
_CODE_SIGNS = re.compile(r"[;{}(=>&|]| import\b")
"""Without one of these it finds nothing; most lines have none, and need not be looked at in six ways at each place."""
_STATEMENT = re.compile(r"\s*(?:import|return|def|class|SELECT|INSERT|CREATE|const|let|var|function)\s")

# The Han characters of each way of writing, by the standard its countries type in; the codecs ship with Python.
# Measured on our seeds they beat OpenCC's tables, which take a 里 or 台 that both standards have for a mistake.
_STANDARDS = {"Hans": "gb2312", "Hant": "big5"}


@dataclass(frozen=True, slots=True)
class Shares:
    """How the words of a text divide among scripts: the pack's own, Latin where it is not, and any other.

    `words` counts words, each letter of a script without spaces as one. Single letters of other scripts (x, α) are
    symbols, and like digits and marks belong to no script.
    """

    own: float
    latin: float
    other: float
    words: int


@lru_cache(maxsize=64)
def prose(text: str) -> str:
    """Return a text without code, addresses, markup and lines that are mostly no letters."""
    if any(mark in text for mark in _MARKS):
        text = _INLINE.sub(" ", _BLOCK.sub("\n", text))
    return "\n".join(line for line in text.split("\n") if _is_prose(line))


def letters(text: str) -> int:
    """Return how many letters a text has."""
    return sum(map(str.isalpha, text))


def script_shares(text: str, pack: LanguagePack, besides: Iterable[str] = ()) -> Shares:
    """Return how the words of a text divide among scripts; those of `besides` count as the pack's own."""
    own = own_scripts(pack.scripts) and own_scripts(pack.scripts).union(besides)
    if text.isascii() and "Latn" in own:
        return Shares(1.0, 0.0, 0.0, sum(len(word) > 1 and not word.isdigit() for word in tokens(text)))
    counted: Counter[str] = Counter()
    for word, count in Counter(tokens(text)).items():
        if len(word) > 1 or is_unspaced(word):
            name = next(filter(None, map(script, word)), "")
            counted["none" if not name else "own" if name in own else "latin" if name == "Latn" else "other"] += count
    words = counted.total() - counted["none"]
    if not words or not own:
        return Shares(1.0, 0.0, 0.0, words)
    own_share, latin, other = (counted[kind] / words for kind in ("own", "latin", "other"))
    return Shares(own_share, latin, other, words)


def variant_counts(text: str, pack: LanguagePack) -> tuple[int, str]:
    """Return how many characters only the pack's way of writing Han has, and those that only another one has.

    Nothing is ever converted: many characters have several counterparts, so only a reader can choose.
    """
    own = next((code for code in pack.scripts if code in _STANDARDS), None)
    if own is None:
        return 0, ""
    kinds = [(char, _standard(char)) for char in text]
    wrong = "".join(char for char, kind in kinds if kind and kind != own)
    return sum(kind == own for _, kind in kinds), wrong


@dataclass(frozen=True, slots=True)
class Identified:
    """What the model says of a text: the likeliest language, and the probability (0 to 1) that it is the pack's."""

    language: str
    own: float


class Identifier:
    """The model, restricted to a pack's language and those that could be mistaken for it.

    Restricting is worth more than the choice of model: on 4,963 short strings it took this one from 90 to 99 %.
    """

    def __init__(self, model: Any, own: str) -> None:
        self._model, self._own = model, own

    def identify(self, text: str) -> Identified:
        """Return the likeliest language of a text, of which nothing but its words is looked at."""
        ranked = self._model.rank(" ".join(text.split()))
        return Identified(ranked[0][0], dict(ranked)[self._own])

    def foreign(self, text: str, pack: LanguagePack, *, maximum: float, minimum_letters: int) -> tuple[int, int]:
        """Return how many letters stand in sentences of another language, and in all sentences long enough to tell."""
        switched = told = 0
        for sentence in sentences(text, pack):
            if (size := letters(sentence)) >= minimum_letters:
                told += size
                switched += size * (self.identify(sentence).own < maximum)
        return switched, told


def sentences(text: str, pack: LanguagePack) -> Iterator[str]:
    """Yield the sentences of a text, split at its lines and the pack's end marks."""
    marks = "".join(map(re.escape, pack.sentence_ends))
    for piece in re.split(rf"\n+|(?<=[{marks}])\s+", text):
        if piece.strip():
            yield piece.strip()


@lru_cache(maxsize=64)
def identifier(pack: LanguagePack) -> Identifier | None:
    """Return the identifier of a pack, or None: the extra `lang` is missing, or the model doesn't know the language."""
    base, _ = _model()
    own = pack.tag.split("-")[0]
    if base is None or own not in base.labels:
        return None
    among = [code for code in pack.confusions if code in base.labels and code != own]
    if not among:
        return None
    model = copy.copy(base)
    model.set_languages([own, *among])
    return Identifier(model, own)


def version(pack: LanguagePack) -> str:
    """Return what identifies the pack's language, for the run's fingerprint; "" where letters tell enough."""
    if not pack.confusions:
        return ""
    return f"py3langid {importlib.metadata.version('py3langid')}" if identifier(pack) else "none"


def notice() -> str:
    """Return what to tell the person of the model once it is loaded: that it can't be kept, or nothing."""
    return _model()[1]


_UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)
"""What reading a file that is missing, cut short or damaged raises."""


@lru_cache(maxsize=1)
def _model() -> tuple[Any, str]:
    """Return py3langid's model, or None without the extra, and what to tell of it.

    It comes packed, and unpacking takes most of a second at each start: it is kept unpacked in the cache folder.
    """
    try:
        from py3langid.langid import MODEL_DIR, MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None, ""
    kept = cache_dir() / f"py3langid-{importlib.metadata.version('py3langid')}.npz"
    try:
        return _kept(MODEL_DIR / MODEL_FILE, kept), ""
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        told = (
            f"{kept.parent}: the model that tells languages apart can't be kept there ({reason}) and is unpacked at "
            "each start; make room for 70 MB, or name another folder in SELFINSTRUCT_CACHE"
        )
    try:
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True), told
    except OSError as error:
        raise ConfigError(
            f"{tempfile.gettempdir()}: py3langid can't unpack its model there: {error.strerror or error}; make room "
            "for some 70 MB, or name another folder in TMPDIR"
        ) from error


def _kept(packed: Path, kept: Path) -> Any:
    """Read the unpacked model; where it is missing or damaged it is unpacked first, by one process at a time."""
    from filelock import FileLock

    with suppress(*_UNREADABLE):
        return _read(kept)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        with suppress(*_UNREADABLE):  # another process has unpacked it by now
            return _read(kept)
        part = kept.with_suffix(".part")
        try:
            with lzma.open(packed) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            part.replace(kept)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return _read(kept)


def _read(path: Path) -> Any:
    """Read an unpacked model as `py3langid.modelio.load_model` does: arrays with checksums, no code."""
    import numpy
    from py3langid.langid import LanguageIdentifier

    with path.open("rb") as file, numpy.load(file, allow_pickle=False) as data:
        found = {name: data[name] for name in ("ptc", "pc", "classes", "nextmove", "nextmove_row", "out_feat")}
    moves, rows = (array(found[name].dtype.char) for name in ("nextmove", "nextmove_row"))
    moves.frombytes(memoryview(found["nextmove"]).cast("B"))
    rows.frombytes(memoryview(found["nextmove_row"]).cast("B"))
    return LanguageIdentifier(
        found["ptc"], found["pc"], found["classes"].tolist(), moves, found["out_feat"].tolist(), True, tk_row=rows
    )


def _is_prose(line: str) -> bool:
    """Tell a line of words from code, a table and a sum: two fifths of it letters, and none of the signs of code."""
    shown = "".join(line.split())
    if shown.isascii():
        words = ascii_letters(shown)
    else:
        words = sum(count for char, count in Counter(shown).items() if unicodedata.category(char)[0] in "LM")
    if 5 * words < 2 * len(shown) or _STATEMENT.match(line):
        return False
    return not (_CODE_SIGNS.search(line) and _CODE.search(line))


@lru_cache(maxsize=16384)
def _standard(char: str) -> str:
    """Return the one way of writing whose standard has a Han character, "" where both or none have it."""
    if script(char) != "Hani":
        return ""
    having = [code for code, codec in _STANDARDS.items() if _encodable(char, codec)]
    return having[0] if len(having) == 1 else ""


def _encodable(char: str, codec: str) -> bool:
    try:
        char.encode(codec)
    except UnicodeEncodeError:
        return False
    return True

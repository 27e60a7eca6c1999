"""Tokenizers: how a text becomes the words that ROUGE-L compares.

ROUGE-L is only as good as its tokens. The usual implementation drops everything outside a-z and
0-9, so two Chinese texts that share only "Python" score 1.0 and two equal ones score 0. The default
here, `script`, keeps that implementation's tokens for ASCII text and follows each script's own
writing for the rest.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from selfinstruct.errors import ConfigError

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ASCII_WORD_OR_END = re.compile(r"[a-z0-9]+|\0")

# Written without spaces between words, so one character is the smallest unit everybody agrees on:
# Unicode line-breaking classes ID (East Asian) and SA (South East Asian), UAX #14.
_SINGLE = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u303c"  # Han radicals and marks of repetition
    "\u3040-\u312f\u31a0-\u31ff"  # Hiragana, Katakana, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\ua000-\ua4cf"  # Yi
    "\U00016fe0-\U00018d7f\U0001aff0-\U0001b2ff"  # Tangut, Khitan, Kana supplements, Nushu
    "\U00020000-\U0003ffff"  # Han, supplementary planes
)
# Invisible: joiners, soft hyphen, directions, byte order mark. They change how a word looks, not which word it is.
_INVISIBLE = re.compile("[\u00ad\u034f\u061c\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]+")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Splits a text into tokens; `version` names the exact rules, so a run can record them."""

    name: str
    version: str
    split: Callable[[str], list[str]]
    ascii_words: bool = False
    """In ASCII text the tokens are the runs of a-z and 0-9."""

    def __call__(self, text: str) -> list[str]:
        """Return the tokens of `text` in order."""
        return self.split(text)

    def split_many(self, texts: Sequence[str]) -> Iterator[list[str]]:
        """Yield the tokens of each text; short ASCII texts are cut some at a time, at half the cost."""
        for begin in range(0, len(texts), 16):
            some = texts[begin : begin + 16]
            joined = "\0".join(some)
            if self.ascii_words and joined.isascii() and joined.count("\0") == len(some) - 1:
                tokens = _ASCII_WORD_OR_END.findall(joined.lower() + "\0")
                start = 0
                for _ in some:
                    end = tokens.index("\0", start)
                    yield tokens[start:end]
                    start = end + 1
            else:
                yield from map(self.split, some)


def tokenizer(name: str = "script") -> Tokenizer:
    """Return the tokenizer of that name: script, rouge, whitespace, chars or icu.

    Raises:
        ConfigError: no tokenizer has that name, or `icu` is asked for without the extra `lang`.
    """
    if name == "icu":
        return _icu()
    try:
        return _TOKENIZERS[name]
    except KeyError:
        names = [*_TOKENIZERS, "icu"]
        close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ConfigError(f"unknown tokenizer {name!r}: expected one of {', '.join(names)}{hint}") from None


def _rouge(text: str) -> list[str]:
    """rouge_score 0.1.2, tokenize.py: lower-case, then runs of a-z and 0-9."""
    return _ASCII_WORD.findall(text.lower())


def _script(text: str) -> list[str]:
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _words().findall(_folded(text))


def _chars(text: str) -> list[str]:
    return _characters().findall(_folded(text))


def _whitespace(text: str) -> list[str]:
    return _folded(text).split()


def _folded(text: str) -> str:
    """Compatibility forms and case made equal, invisible characters gone."""
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def _marks() -> str:
    r"""Return the ranges of all combining marks for a character class.

    Python's `re` has no `\p{M}`, and its `\w` leaves marks out: it would cut Hindi and Thai at
    every vowel sign.
    """
    ranges: list[str] = []
    start = -1
    for code in [*range(0x300, 0x1F000), *range(0xE0100, 0xE01F1)]:
        if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me"):
            start = code if start < 0 else start
        elif start >= 0:
            ranges.append(f"\\U{start:08x}-\\U{code - 1:08x}")
            start = -1
    return "".join(ranges)


@functools.cache
def _words() -> re.Pattern[str]:
    """One unspaced-script character, or a run of other letters and digits, each with its marks."""
    marks, letters = _marks(), rf"[^\W_{_SINGLE}]"
    return re.compile(rf"(?=[{_SINGLE}])\w[{marks}]*|{letters}+(?:[{marks}]+{letters}*)*")


@functools.cache
def _characters() -> re.Pattern[str]:
    """Every letter or digit with its marks."""
    return re.compile(rf"[^\W_][{_marks()}]*")


@functools.cache
def _icu() -> Tokenizer:
    """Words by ICU's dictionaries (UAX #29), the only splitter that finds words in Chinese, Thai and Khmer."""
    try:
        from icu4py.breakers import WordBreaker
    except ImportError as error:
        raise ConfigError("tokenizer 'icu' needs the extra `lang`: pip install 'selfinstruct[lang]'") from error
    from importlib.metadata import version

    def split(text: str) -> list[str]:
        return [word for part in WordBreaker(_folded(text), "root") if any(map(str.isalnum, word := part.strip()))]

    return Tokenizer("icu", f"icu4py-{version('icu4py')}", split)


_TOKENIZERS = {
    "script": Tokenizer("script", "script-1", _script, ascii_words=True),
    "rouge": Tokenizer("rouge", "rouge-0.1.2", _rouge, ascii_words=True),
    "whitespace": Tokenizer("whitespace", "whitespace-1", _whitespace),
    "chars": Tokenizer("chars", "chars-1", _chars),
}

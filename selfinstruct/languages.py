"""Language packs: everything the program knows about a language, as data.

A pack is `seeds/TAG/pack.yaml`, the person's own before the shipped one. No code anywhere asks for a
language by name: prompts, parser and filters read the pack. A language without one gets the generic pack,
so every recipe runs in every language.

Keys of a pack (all text; unknown or missing keys are refused):

    name, native_name     "Chinese", "中文"
    scripts               ISO 15924 codes of the scripts it is written in, e.g. [Hans]
    direction             ltr | rtl
    unit                  words | characters: how lengths are counted and stated
    instruction_length    {min, max} in that unit
    labels                {instruction, input, output, task}: spellings, the first is printed
    roles                 {user, assistant, doctor, patient, system}: who speaks in a dialogue, likewise
    example, class_label  spellings of "Example" and "Class label" in Self-Instruct's instances
    yes, no               spellings of the answers to a yes-or-no question
    no_input, no_output   spellings of "there is none"; the first of no_input is printed
    blocked               {match, words, openings}: what an instruction must not say, or start with
    refusals              {match, phrases}: how an output that declines opens
    self_reference        {match, phrases}: the model speaking of itself
    needs_context         {match, phrases}: what points at a text that must then be in the input
    other_language        {match, phrases}: what asks for an answer in another language or script (optional)
    confusions            languages (ISO 639) that a text in these scripts may be in instead (optional)
    sentence_ends, question_ends   the marks that end a sentence, a question
    first_words           forced first words of stepwise prompts, in rotation
    region_scripts        {REGION: SCRIPT}: regions that write the language in another script (optional)
    draft                 true while no speaker has read it: `selfinstruct language new` writes it (optional)

`match: word` finds whole words in any letter case, `match: substring` finds the text anywhere.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from selfinstruct import resources
from selfinstruct.errors import ConfigError

Match = Literal["word", "substring"]
Unit = Literal["words", "characters"]
Direction = Literal["ltr", "rtl"]

# The first words of a letter's Unicode name tell its script; the standard library has no other table of scripts.
_SCRIPTS = {
    "Adlm": "ADLAM", "Arab": "ARABIC", "Armn": "ARMENIAN", "Bali": "BALINESE", "Batk": "BATAK", "Beng": "BENGALI",
    "Bopo": "BOPOMOFO", "Bugi": "BUGINESE", "Cakm": "CHAKMA", "Cans": "CANADIAN", "Cham": "CHAM", "Cher": "CHEROKEE",
    "Copt": "COPTIC", "Cyrl": "CYRILLIC", "Deva": "DEVANAGARI", "Ethi": "ETHIOPIC", "Geor": "GEORGIAN",
    "Goth": "GOTHIC", "Grek": "GREEK", "Gujr": "GUJARATI", "Guru": "GURMUKHI", "Hang": "HANGUL", "Hani": "CJK",
    "Hebr": "HEBREW", "Hira": "HIRAGANA", "Java": "JAVANESE", "Kana": "KATAKANA", "Khmr": "KHMER", "Knda": "KANNADA",
    "Laoo": "LAO", "Latn": "LATIN", "Limb": "LIMBU", "Lisu": "LISU", "Mlym": "MALAYALAM", "Mong": "MONGOLIAN",
    "Mtei": "MEETEI", "Mymr": "MYANMAR", "Nkoo": "NKO", "Olck": "OL", "Orya": "ORIYA", "Sinh": "SINHALA",
    "Sund": "SUNDANESE", "Syrc": "SYRIAC", "Taml": "TAMIL", "Telu": "TELUGU", "Tfng": "TIFINAGH", "Thaa": "THAANA",
    "Thai": "THAI", "Tibt": "TIBETAN", "Vaii": "VAI", "Yiii": "YI",
}  # fmt: skip
_COMPOUND_SCRIPTS = {
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Hrkt": ("Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
}
_TELLING_SCRIPTS = {"Jpan": ("Hira", "Kana"), "Kore": ("Hang",)}
_SCRIPT_BY_NAME = {name: code for code, name in _SCRIPTS.items()}

# Scripts written without spaces between words: each letter counts as a token of its own.
_UNSPACED = frozenset({"Hani", "Hira", "Kana", "Bopo", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Yiii"})

_ASCII_WORD = re.compile("[a-z0-9]+")
_NO_LETTERS = bytes(each for each in range(128) if not chr(each).isalpha())
_TAG = re.compile(
    r"(?P<language>[A-Za-z]{2,3}|[A-Za-z]{5,8})"
    r"(?:-(?P<script>[A-Za-z]{4}))?"
    r"(?:-(?P<region>[A-Za-z]{2}|[0-9]{3}))?"
    r"(?P<rest>(?:-(?:[A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*(?:-[A-WY-Za-wy-z0-9](?:-[A-Za-z0-9]{2,8})+)*"
    r"(?:-[Xx](?:-[A-Za-z0-9]{1,8})+)?)"
)


@dataclass(frozen=True, slots=True)
class Phrases:
    """Phrases to look for, and how they match."""

    match: Match = "word"
    phrases: tuple[str, ...] = ()

    def find(self, text: str) -> str | None:
        """Return the phrase that occurs first in `text`, as the pack spells it, or None."""
        return _find(self, _plain(text), opening=False)

    def opens(self, text: str) -> str | None:
        """Return the phrase that `text` starts with (quotes, marks and spaces before it aside), or None."""
        return _find(self, _plain(text).lstrip(" \"'“‘«「『*_>"), opening=True)


@dataclass(frozen=True, slots=True)
class Labels:
    """Spellings of the labels of the list format; prompts print the first of each."""

    instruction: tuple[str, ...] = ("Instruction",)
    input: tuple[str, ...] = ("Input",)
    output: tuple[str, ...] = ("Output", "Response")
    task: tuple[str, ...] = ("Task",)


@dataclass(frozen=True, slots=True)
class Roles:
    """Spellings of who speaks in a dialogue, without brackets or colon; prompts print the first of each."""

    user: tuple[str, ...] = ("User", "Human")
    assistant: tuple[str, ...] = ("Assistant", "AI")
    doctor: tuple[str, ...] = ("Doctor", "Physician")
    patient: tuple[str, ...] = ("Patient",)
    system: tuple[str, ...] = ("System",)


@dataclass(frozen=True, slots=True)
class LanguagePack:
    """What the program knows about a language; the module's docstring explains each field.

    `tag` is the pack's own folder under `seeds/`: for `en-GB` that is "en". `shipped` is False for the generic
    pack of a language nobody has described yet.
    """

    tag: str
    name: str
    native_name: str
    scripts: tuple[str, ...] = ()
    direction: Direction = "ltr"
    unit: Unit = "words"
    minimum_length: int = 4
    maximum_length: int = 150
    labels: Labels = Labels()
    roles: Roles = Roles()
    example: tuple[str, ...] = ("Example",)
    class_label: tuple[str, ...] = ("Class label", "Label")
    yes: tuple[str, ...] = ("Yes",)
    no: tuple[str, ...] = ("No",)
    no_input: tuple[str, ...] = ("<noinput>", "no input", "n/a", "none")
    no_output: tuple[str, ...] = ("n/a",)
    blocked_words: Phrases = Phrases()
    blocked_openings: Phrases = Phrases()
    refusals: Phrases = Phrases()
    self_reference: Phrases = Phrases()
    needs_context: Phrases = Phrases()
    other_language: Phrases = Phrases()
    confusions: tuple[str, ...] = ("en",)
    sentence_ends: tuple[str, ...] = (".", "!", "?", "…", "。", "！", "？", "।", "؟", "۔", "።", "။", "។")
    question_ends: tuple[str, ...] = ("?", "？", "؟", "՞", "፧")
    first_words: tuple[str, ...] = ()
    region_scripts: tuple[tuple[str, str], ...] = ()
    draft: bool = False
    shipped: bool = True

    def length(self, text: str) -> int:
        """Return the length of `text` in the pack's unit.

        Words: pieces between white space that hold a letter or digit, as the sources count, but each letter of a
        script without spaces is one. Characters: letters and digits. Punctuation, ASCII or full-width, combining
        marks and spaces are never counted.
        """
        if self.unit == "characters":
            return sum(map(_counts, unicodedata.normalize("NFC", text)))
        if text.isascii():
            return sum(any(map(str.isalnum, piece)) for piece in text.split())
        total = 0
        for piece in unicodedata.normalize("NFC", text).split():
            kinds = {"unspaced" if script(char) in _UNSPACED else "spaced" for char in piece if _counts(char)}
            total += sum(script(char) in _UNSPACED for char in piece if _counts(char)) + ("spaced" in kinds)
        return total

    def script_share(self, text: str) -> tuple[float, int]:
        """Return the share of the letters of `text` in the pack's scripts, and how many letters there are.

        Without a letter, or where the pack names no script, the share is 1.
        """
        own = own_scripts(self.scripts)
        counted = script_counts(unicodedata.normalize("NFKC", text))
        letters = counted.total()
        if not letters or not own:
            return 1.0, letters
        return sum(counted[name] for name in own) / letters, letters


def load_pack(tag: str) -> LanguagePack:
    """Return the language pack for a BCP 47 tag.

    The exact tag is tried first, then shorter ones (RFC 4647 lookup): `en-GB` gets `en`. A fall-back never
    changes the script: `zh-Hant`, and `zh-TW` by the `region_scripts` of `zh`, get a pack of their own or the
    generic one, never that of `zh`, which is written in Hans.

    Raises:
        ConfigError: the tag is not of the shape of BCP 47, or the pack's file is not valid.
    """
    canonical, wanted_script, region = _read_tag(tag)
    parts = canonical.split("-")
    for count in range(len(parts), 0, -1):
        folder = "-".join(parts[:count])
        path = resources.find("seeds", f"{folder}/pack.yaml")
        if path is None:
            continue
        pack = _cached(path, folder, path.stat().st_mtime_ns)
        script_code = wanted_script or dict(pack.region_scripts).get(region)
        if count == len(parts) or script_code is None or script_code in pack.scripts:
            return pack
        if not wanted_script:
            other = load_pack(f"{parts[0]}-{script_code}")
            if other.shipped:
                return other
        break
    return LanguagePack(tag=canonical, name=canonical, native_name=canonical, shipped=False)


def canonical(tag: str) -> str:
    """Return a BCP 47 tag in its usual letter case, such as pt-BR.

    Raises:
        ConfigError: it is not of the shape of one.
    """
    return _read_tag(tag)[0]


def read_pack(path: Path, tag: str) -> LanguagePack:
    """Read and check one pack file.

    Raises:
        ConfigError: names the file and the key, what was expected, and the closest valid key.
    """
    try:
        return parse_pack(path.read_text(encoding="utf-8"), path, tag)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as UTF-8: {error}") from error


def parse_pack(text: str, path: Path, tag: str) -> LanguagePack:
    """Check the text of a pack file, which is or will be at `path`.

    Raises:
        ConfigError: names the file and the key, what was expected, and the closest valid key.
    """
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506, a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: can't be read as YAML: {error}") from error
    reader = _Reader(path, data, "")
    length = reader.mapping("instruction_length")
    labels = reader.mapping("labels")
    roles = reader.mapping("roles")
    blocked = reader.mapping("blocked")
    match = cast(Match, blocked.choice("match", ("word", "substring")))
    pack = LanguagePack(
        tag=tag,
        name=reader.text("name"),
        native_name=reader.text("native_name"),
        scripts=reader.scripts("scripts"),
        direction=cast(Direction, reader.choice("direction", ("ltr", "rtl"))),
        unit=cast(Unit, reader.choice("unit", ("words", "characters"))),
        minimum_length=length.count("min", 1),
        maximum_length=length.count("max", 1),
        labels=Labels(*(labels.texts(each.name) for each in fields(Labels))),
        roles=Roles(*(roles.texts(each.name) for each in fields(Roles))),
        example=reader.texts("example"),
        class_label=reader.texts("class_label"),
        yes=reader.texts("yes"),
        no=reader.texts("no"),
        no_input=reader.texts("no_input"),
        no_output=reader.texts("no_output"),
        blocked_words=Phrases(match, blocked.texts("words", empty=True)),
        blocked_openings=Phrases(match, blocked.texts("openings", empty=True)),
        refusals=reader.phrases("refusals"),
        self_reference=reader.phrases("self_reference"),
        needs_context=reader.phrases("needs_context"),
        other_language=reader.phrases("other_language", optional=True),
        confusions=reader.languages("confusions"),
        sentence_ends=reader.texts("sentence_ends"),
        question_ends=reader.texts("question_ends"),
        first_words=reader.texts("first_words"),
        region_scripts=reader.region_scripts("region_scripts"),
        draft=reader.flag("draft"),
    )
    if pack.minimum_length > pack.maximum_length:
        raise ConfigError(f"{path}: instruction_length: min {pack.minimum_length} is above max {pack.maximum_length}")
    for part in (length, labels, roles, blocked, reader):
        part.finish()
    return pack


@lru_cache(maxsize=512)
def tokens(text: str) -> tuple[str, ...]:
    """Return the lower-cased words of `text`, each letter of a script without spaces as a word of its own.

    Punctuation and symbols are no part of a word, combining marks are. Several filters look at the same text, and
    at the same demonstrations: their words are kept for a while.
    """
    if text.isascii():
        return tuple(_ASCII_WORD.findall(text.lower()))
    found: list[str] = []
    word = ""
    previous_unspaced = False
    for char in unicodedata.normalize("NFKC", text).casefold():
        category = unicodedata.category(char)[0]
        if category == "M" and (word or previous_unspaced):
            if word:
                word += char
            else:
                found[-1] += char
            continue
        unspaced = category == "L" and script(char) in _UNSPACED
        if category in "LN" and not unspaced:
            word += char
        else:
            if word:
                found.append(word)
                word = ""
            if unspaced:
                found.append(char)
        previous_unspaced = unspaced
    if word:
        found.append(word)
    return tuple(found)


def own_scripts(codes: Iterable[str]) -> frozenset[str]:
    """Return the scripts of single letters that ISO 15924 codes stand for: Jpan is Hani, Hira and Kana."""
    return frozenset(part for code in codes for part in _COMPOUND_SCRIPTS.get(code, (code,)))


def telling_scripts(codes: Iterable[str]) -> frozenset[str]:
    """Return the scripts without which a sentence in these is unlikely: a Japanese one without kana is Chinese."""
    return frozenset(part for code in codes for part in _TELLING_SCRIPTS.get(code, ()))


@lru_cache(maxsize=16384)
def script(char: str) -> str:
    """Return the ISO 15924 code of a character's script, or "" for marks of no script and rare ones."""
    return _SCRIPT_BY_NAME.get(unicodedata.name(char, "").partition(" ")[0], "")


@lru_cache(maxsize=64)
def script_counts(text: str) -> Counter[str]:
    """Return how many letters of each script `text` has, in the order of their first letters; not to be changed."""
    if text.isascii():
        return +Counter(Latn=ascii_letters(text))
    counted: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if char.isalpha():
            counted[script(char)] += count
    return counted


def ascii_letters(text: str) -> int:
    """Return how many letters an ASCII text has, in a hundredth of the time that asking each character takes."""
    return len(text.encode().translate(None, _NO_LETTERS))


def is_script(code: str) -> bool:
    """Tell whether a text is a script code of ISO 15924 that letters can be held against."""
    return code in _SCRIPTS or code in _COMPOUND_SCRIPTS


def is_unspaced(token: str) -> bool:
    """Tell whether a token is a letter of a script that is written without spaces between words."""
    return script(token[:1]) in _UNSPACED


def closest(name: str, known: Sequence[str]) -> str:
    """Return the end of an error message: the closest valid name, else all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _read_tag(tag: str) -> tuple[str, str, str]:
    found = _TAG.fullmatch(tag)
    if found is None:
        raise ConfigError(f"{tag!r} is not a language tag: expected BCP 47 such as en, pt-BR or zh-Hant")
    language, script_code, region = (found[name] or "" for name in ("language", "script", "region"))
    parts = (language.lower(), script_code.title(), region.upper(), found["rest"].lstrip("-").lower())
    return "-".join(part for part in parts if part), parts[1], parts[2]


@lru_cache(maxsize=64)
def _cached(path: Path, tag: str, modified: int) -> LanguagePack:
    # `modified` is part of the key: a file edited while a program runs is read again.
    return read_pack(path, tag)


def _counts(char: str) -> bool:
    return unicodedata.category(char)[0] in "LN"


@lru_cache(maxsize=64)
def _plain(text: str) -> str:
    return " ".join(text.replace("’", "'").replace("‘", "'").split())


def _find(phrases: Phrases, text: str, *, opening: bool) -> str | None:
    by_text, first_words, pattern = _compiled(phrases)
    if pattern is None:
        return None
    if not opening:  # most texts have none: looking at every place for all phrases is the dearest way to find that out
        if first_words is not None and text.isascii() and first_words.isdisjoint(tokens(text)):
            return None
        folded = text.casefold()
        if not any(phrase in folded for phrase in by_text):
            return None
    start = 0
    while found := (pattern.match(text) if opening else pattern.search(text, start)):
        for size in range(len(found[0]), 0, -1):
            spelled = by_text.get(found[0][:size].casefold())
            if spelled and (phrases.match == "substring" or _bounded(text, found.start(), found.start() + size)):
                return spelled
        if opening:
            return None
        start = found.start() + 1
    return None


@lru_cache(maxsize=256)
def _compiled(phrases: Phrases) -> tuple[dict[str, str], frozenset[str] | None, re.Pattern[str] | None]:
    """Return the phrases by their folded spellings, the words that those in ASCII begin with, and a pattern of all.

    None for the words where they can't tell that no phrase is in a text: parts of words count, or signs alone.
    """
    by_text = {_plain(phrase).casefold(): phrase for phrase in phrases.phrases}
    if not by_text:
        return by_text, None, None
    begin = [tokens(text)[:1] for text in by_text if text.isascii()]
    first_words = frozenset(word for (word,) in begin) if phrases.match == "word" and all(begin) else None
    longest_first = sorted((_plain(phrase) for phrase in phrases.phrases), key=len, reverse=True)
    return by_text, first_words, re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)


def _bounded(text: str, start: int, end: int) -> bool:
    # re's \b splits words at the vowel signs of Indic scripts, which are marks: it can't be used here.
    return not (_inside_word(text, start) or _inside_word(text, end))


def _inside_word(text: str, at: int) -> bool:
    if not 0 < at < len(text):
        return False
    before, after = unicodedata.category(text[at - 1])[0], unicodedata.category(text[at])[0]
    return (before in "LNM" or text[at - 1] == "_") and (after in "LNM" or text[at] == "_")


class _Loader(yaml.SafeLoader):
    """YAML where a key given twice is refused (PyYAML keeps the last), and yes and no are words, as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


# YAML 1.1, which PyYAML reads, takes `no: [No]` for `false: [false]`.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|false|True|False|TRUE|FALSE)\Z"), list("tfTF")
)


class _Reader:
    """Takes typed values out of a mapping; `finish` refuses what nobody took."""

    def __init__(self, path: Path, data: object, prefix: str) -> None:
        if not isinstance(data, Mapping):
            where = prefix.rstrip(".") or "the file"
            raise ConfigError(f"{path}: {where}: expected a mapping of keys, found {_kind(data)}")
        self.path, self.data, self.prefix = path, data, prefix
        self.taken: list[str] = []

    def fail(self, key: str, expected: str, found: object) -> ConfigError:
        return ConfigError(f"{self.path}: {self.prefix}{key}: expected {expected}, found {_kind(found)}")

    def take(self, key: str, *, optional: bool = False) -> object:
        self.taken.append(key)
        if key not in self.data and not optional:
            near = difflib.get_close_matches(key, [str(name) for name in self.data], n=1)
            hint = f"; is {near[0]!r} meant for it?" if near else ""
            raise ConfigError(f"{self.path}: {self.prefix}{key}: this key is missing{hint}")
        return self.data.get(key)

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(key, "text", value)
        return value

    def texts(self, key: str, *, empty: bool = False) -> tuple[str, ...]:
        value = self.take(key)
        if not isinstance(value, list) or not (value or empty):
            raise self.fail(key, "a list of texts" if empty else "a list of at least one text", value)
        for item in value:
            if not isinstance(item, str) or not item.strip():
                raise self.fail(key, "texts only (quote words such as null and true, and numbers)", item)
            if value.count(item) > 1:
                raise ConfigError(f"{self.path}: {self.prefix}{key}: {item!r} is listed twice")
        return tuple(value)

    def count(self, key: str, least: int) -> int:
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.fail(key, f"a whole number of at least {least}", value)
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.take(key)
        if value not in choices:
            raise self.fail(key, " or ".join(choices), value)
        return value

    def flag(self, key: str) -> bool:
        value = self.take(key, optional=True)
        if value is not None and not isinstance(value, bool):
            raise self.fail(key, "true or false", value)
        return value is True

    def scripts(self, key: str) -> tuple[str, ...]:
        codes = self.texts(key)
        for code in codes:
            self._known_script(key, code)
        return codes

    def languages(self, key: str) -> tuple[str, ...]:
        if key not in self.data:
            self.taken.append(key)
            return ()
        codes = self.texts(key, empty=True)
        for code in codes:
            if not re.fullmatch("[a-z]{2,3}", code):
                raise self.fail(key, "language codes of ISO 639 such as pt or ms", code)
        return codes

    def region_scripts(self, key: str) -> tuple[tuple[str, str], ...]:
        value = self.take(key, optional=True)
        if value is None:
            return ()
        if not isinstance(value, Mapping):
            raise self.fail(key, "a mapping of regions to scripts such as {TW: Hant}", value)
        for region, code in value.items():
            if not isinstance(region, str) or not re.fullmatch(r"[A-Z]{2}|[0-9]{3}", region):
                raise self.fail(key, "regions such as TW or 419 (quote numbers)", region)
            self._known_script(f"{key}.{region}", code)
        return tuple(value.items())

    def _known_script(self, key: str, code: object) -> None:
        if not is_script(str(code)):
            known = sorted((*_SCRIPTS, *_COMPOUND_SCRIPTS))
            hint = closest(str(code), known)
            raise ConfigError(f"{self.path}: {self.prefix}{key}: {code!r} is no script code of ISO 15924: {hint}")

    def mapping(self, key: str) -> _Reader:
        return _Reader(self.path, self.take(key), f"{self.prefix}{key}.")

    def phrases(self, key: str, *, optional: bool = False) -> Phrases:
        if optional and key not in self.data:
            self.taken.append(key)
            return Phrases()
        inner = self.mapping(key)
        match = cast(Match, inner.choice("match", ("word", "substring")))
        result = Phrases(match, inner.texts("phrases", empty=True))
        inner.finish()
        return result

    def finish(self) -> None:
        for key in self.data:
            if key not in self.taken:
                raise ConfigError(f"{self.path}: {self.prefix}{key}: unknown key: {closest(str(key), self.taken)}")


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"

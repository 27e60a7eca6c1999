"""Rules for the language that a text is in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from selfinstruct.filters.rule import Filter, Rules, Verdict
from selfinstruct.identification import identifier, letters, prose, script_shares, variant_counts
from selfinstruct.languages import LanguagePack, own_scripts, script_counts, telling_scripts
from selfinstruct.values import Candidate, Comparison, Dialogue, Record, Rejection, Task

RULES = Rules()


@dataclass(frozen=True, slots=True)
class _Said:
    """A text of a record and what was said before it: an answer in another language may have been asked for."""

    field: str
    text: str
    asked: str = ""
    given: str = ""


def _said(record: Record | None) -> Iterator[_Said]:
    """Yield what should be in the run's language: of a task its instruction and outputs, of a dialogue every turn."""
    if isinstance(record, Task):
        yield _Said("instruction", record.instruction)
        for case in record.instances:
            yield _Said("output", case.output, record.instruction, case.input)
    elif isinstance(record, Dialogue):
        asked: list[str] = []
        for message in record.messages:
            if message.role == "user":
                asked.append(message.content)
                yield _Said("user", message.content, "\n".join(asked[:-1]))
            elif message.role == "assistant":
                yield _Said("assistant", message.content, "\n".join(asked))
    elif isinstance(record, Comparison):
        prompt = record.prompt if isinstance(record.prompt, Dialogue) else None
        asked = [said.text for said in _said(prompt)] if prompt else [str(record.prompt)]
        yield from _said(prompt) if prompt else [_Said("prompt", asked[0])]
        for response in record.responses:
            yield _Said("response", response.content, "\n".join(asked))


def _of_language(name: str, pack: LanguagePack, judge: Callable[[_Said], Verdict]) -> Filter:
    """Return the filter that asks `judge` about each text, but for those that may be in another language.

    An answer may, when what was said before holds a word of the pack's `other_language` (translation, code, formulas).
    """

    def check(candidate: Candidate) -> Rejection | None:
        for said in _said(candidate.record):
            verdict = judge(said)
            if verdict is not None and not (said.asked and pack.other_language.find(said.asked)):
                reason, measured = verdict
                return Rejection(name, reason, {"field": said.field, **measured})
        return None

    check.__name__ = check.__qualname__ = name
    return check


@RULES.add("ours: models answer in English, or slip into another language, when asked in any other")
def language_script(
    pack: LanguagePack,
    *,
    minimum: float = 0.1,
    minimum_letters: int = 12,
    maximum_latin: float = 0.6,
    maximum_other: float = 0.2,
    minimum_words: int = 20,
) -> Filter:
    """Reject a text whose letters are not those of its language, or too few of them.

    Nearly all in other scripts: less than `minimum` of the letters in the pack's own. A sentence without the letters
    that tell its language apart is another's too: Japanese without kana. Mixed: of `minimum_words` words and more
    (code and addresses aside) over `maximum_latin` in Latin letters, in which names, units and code are written
    everywhere, or over `maximum_other` in a third script. Text in a script that was asked for passes: the instruction
    or input holds letters of it. Texts of fewer than `minimum_letters` letters, and packs without scripts, get no
    opinion.
    """
    telling = telling_scripts(pack.scripts)
    latin = "Latn" in own_scripts(pack.scripts) and not telling

    def judge(said: _Said) -> Verdict:
        if latin and said.text.isascii():
            return None  # all of its letters are the pack's
        text = prose(said.text)
        counted = script_counts(text)
        if not counted:
            return None
        (main, _), *_ = counted.most_common(1)
        asked = _asked_scripts(said, minimum_letters)
        # Names, units and formulas are in Latin letters everywhere; a few letters of a third script are a sentence.
        if counted.total() < (minimum_letters if main == "Latn" else minimum_letters // 3):
            return None
        if main == "Latn" and len(text.split()) == 1:
            return None
        if main in asked - own_scripts(pack.scripts):
            return None
        share, _ = pack.script_share(text)
        if share < minimum:
            return "other_script", {"share": round(share, 4), "minimum": minimum}
        if telling and counted.total() >= minimum_letters // 2 and not any(counted[name] for name in telling):
            if any(mark in text for mark in pack.sentence_ends):
                return "other_script", {"lacking": " ".join(sorted(telling))}
            return None
        shares = script_shares(text, pack, besides=asked)
        if pack.other_language.find(said.text):
            return None
        if shares.latin > maximum_latin and shares.words >= minimum_words:
            return "mixed_scripts", {"share": round(shares.latin, 4), "maximum": maximum_latin}
        if shares.other > maximum_other and shares.words >= minimum_words // 3:
            return "mixed_scripts", {"share": round(shares.other, 4), "maximum": maximum_other}
        return None

    return _of_language("language_script", pack, judge)


_LOWER_CASE_WORD = re.compile(r"(?<![0-9A-Za-zÀ-ÿ_])[a-zß-öø-ÿ]{2,}(?![0-9A-Za-zÀ-ÿ_])")


def _asked_scripts(said: _Said, minimum_letters: int) -> set[str]:
    """Return the scripts of what was asked; Latin only for words, not for names: "Word" asks for no English."""
    before = said.asked + said.given
    words = sum(map(len, _LOWER_CASE_WORD.findall(before)))
    return {name for name in script_counts(before) if name != "Latn" or words >= minimum_letters // 3}


@RULES.add("ours: py3langid (extra lang), restricted to the pack's language and those it could be mistaken for")
def language(
    pack: LanguagePack,
    *,
    minimum: float = 0.05,
    minimum_letters: int = 12,
    maximum_switched: float = 0.3,
    minimum_switched: int = 40,
) -> Filter:
    """Reject a text in another language of the same script, or that switches into one.

    Another language: its probability of being the run's own is under `minimum`. Switching: sentences of another
    language make up over `maximum_switched` of its letters and `minimum_switched` letters or more. Code, sums,
    quotations asked about and texts of fewer than `minimum_letters` letters get no opinion, nor does anything
    without the extra or for a language that the model doesn't know.
    """
    model = identifier(pack)

    def judge(said: _Said) -> Verdict:
        if model is None or pack.other_language.find(said.text if not said.asked else ""):
            return None
        text = prose(said.text)
        if letters(text) < minimum_letters:
            return None
        given = prose(said.given)
        if letters(given) >= minimum_letters and model.identify(given).own < minimum:
            return None
        found = model.identify(text)
        if found.own < minimum:
            measured: dict[str, float | str] = {"probability": round(found.own, 4), "minimum": minimum}
            return "other_language", measured | {"likeliest": found.language}
        switched, told = model.foreign(text, pack, maximum=minimum, minimum_letters=minimum_letters)
        if switched >= minimum_switched and switched > maximum_switched * told:
            return "code_switch", {"share": round(switched / told, 4), "maximum": maximum_switched}
        return None

    return _of_language("language", pack, judge)


@RULES.add("ours: GB 2312 and Big5, the standards of Simplified and Traditional Chinese; models mix the two")
def script_variant(pack: LanguagePack, *, maximum: float = 0.1) -> Filter:
    """Reject a text in the other way of writing Han: Simplified for Traditional Chinese, or the other way round.

    Of the characters that only one of the two standards has, over `maximum` are the other's. One alone among the
    right ones passes as a name or quotation. Detection only: a text is never converted.
    """

    def judge(said: _Said) -> Verdict:
        if any(variant_counts(text, pack)[1] for text in (said.asked, said.given)):
            return None
        own, wrong = variant_counts(said.text, pack)
        total = own + len(wrong)
        if len(wrong) <= maximum * total or (len(wrong) == 1 and own):
            return None
        measured: dict[str, float | str] = {"share": round(len(wrong) / total, 4), "maximum": maximum}
        return "other_variant", measured | {"characters": wrong[:10]}

    return _of_language("script_variant", pack, judge)
